"""Training workloads: what a step is, what is counted, and how it is told."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
from pathlib import Path

import pytest
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.optim import SGD, AdamW

from benchmarks import gradients
from benchmarks.contenders import CONTENDERS, DSJIT, EAGER, FREEZING
from benchmarks.machine import describe
from benchmarks.report import markdown
from benchmarks.results import Report, load, save
from benchmarks.session import Plan
from benchmarks.training import catalog, memory, session, tasks
from benchmarks.training.models import Classifier
from benchmarks.training.report import broken_promises, errors, sheets, summary
from benchmarks.training.results import TrainingFigures, TrainingResult
from benchmarks.training.session import measure_training
from benchmarks.training.tasks import StepMemory
from benchmarks.training.workload import Trainee, TrainingWorkload
from benchmarks.worker import Cold, Counters, State, Worker

COMPILED = Counters(4, 1, 0, {}, 1, 1, 0, 11, 0)


@pytest.fixture(autouse=True)
def counting() -> None:
    memory.count_from_now()


def perceptron() -> Classifier:
    return Classifier(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)))


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(16, 32).requires_grad_(), torch.randint(0, 10, (16,))


def workload(whole_step: bool = False) -> TrainingWorkload:
    optimizer = functools.partial(AdamW, lr=1e-2) if whole_step else functools.partial(SGD, lr=0.1, momentum=0.9)
    return TrainingWorkload("perceptron", "Perceptron", "16", perceptron, batch, optimizer, whole_step, draws=True)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find", lambda name: workload(whole_step=name == "whole"))


def trainee(whole_step: bool = False) -> Trainee:
    each = workload(whole_step)
    return Trainee(each, *each.build())


@pytest.mark.parametrize("whole_step", [False, True])
def test_a_reset_trainee_trains_again_as_it_did(whole_step: bool) -> None:
    one = trainee(whole_step)
    curves = []
    for _ in range(2):
        one.reset()
        torch.manual_seed(3)
        curves.append(one.train(5))
    assert curves[0] == curves[1]
    assert len(set(curves[0])) == 5


def test_nudged_parameters_are_the_next_floats() -> None:
    one, other = trainee(), trainee()
    one.reset()
    other.reset(nudge=True)
    moved = [(a != b).float().mean() for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True)]
    assert 0.3 < sum(moved) / len(moved) < 0.7
    for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert bool(((a == b) | (a.nextafter(a * 2) == b)).all())


def test_gradients_are_those_of_parameters_and_of_inputs_that_want_one() -> None:
    one = trainee()
    one.step()
    assert list(one.gradients()) == [name for name, _ in one.model.named_parameters()] + ["input 0"]


def test_the_most_live_bytes_are_those_of_the_allocator() -> None:
    gc.collect()
    kilobyte = torch.ones(256)
    before = memory.live_bytes()
    held = torch.ones(1024)
    assert memory.live_bytes() - before == 4096

    def run() -> None:
        first = torch.ones(1024)
        del first
        torch.ones(2048)

    assert memory.most_live_bytes(run) - before == 4096 + 8192
    del held, kilobyte
    assert memory.live_bytes() - before == -1024


def test_what_was_made_before_is_seen_when_it_is_released() -> None:
    gc.collect()
    held = [torch.ones(1024)]
    before = memory.live_bytes()
    assert memory.most_live_bytes(held.clear) == before - 4096


def test_buffers_of_dsjit_are_counted(small: None) -> None:
    state = State("forward", DSJIT.name)
    cold = tasks.measure_cold_step(state)
    assert cold.counters is not None
    assert cold.counters.all_compiled
    measured = tasks.measure_memory(state)
    assert measured.held > 0
    assert measured.saved is not None
    assert measured.peak > measured.held + measured.saved > measured.held


@pytest.mark.parametrize("name", ["forward", "whole"])
def test_dsjit_trains_as_eager_does(small: None, name: str, tmp_path: Path) -> None:
    file = str(tmp_path / "float64.pt")
    tasks.save_float64_gradients(State(name, EAGER.name), file)
    found = {}
    for contender in (EAGER, DSJIT):
        state = State(name, contender.name)
        tasks.measure_cold_step(state)
        found[contender.name] = tasks.gradient_error(state, file), tasks.loss_curve(state, nudge=False)
    for error, losses in found.values():
        assert 0 < error < 1e-6
        assert losses == pytest.approx(found["eager"][1], rel=1e-4)
        assert losses[-1] < losses[0] / 2


def test_each_seed_makes_another_batch_whose_gradients_are_near_float64(small: None) -> None:
    one, other = gradients.measure(catalog.find("forward"), (1, 2))
    assert (one.seed, other.seed) == (1, 2)
    for each in (one, other):
        assert 0 < each.eager < 1e-6 and 0 < each.dsjit < 1e-6
    assert one.eager != other.eager
    assert gradients.pooled([3.0, 4.0]) == pytest.approx(math.sqrt(12.5))


def test_the_loss_curve_needs_a_trainee() -> None:
    with pytest.raises(RuntimeError, match="measure_cold_step comes before"):
        tasks.loss_curve(State("forward", EAGER.name), nudge=False)


def test_a_workload_is_measured_by_contenders_that_train(tmp_path: Path) -> None:
    plan = Plan([EAGER, FREEZING], torch.float32, [torch.float32], rounds=2, budget=120.0, threads=1, cache=tmp_path)
    with Progress(disable=True) as progress:
        result = measure_training(catalog.find("train_step_cnn"), plan, progress)
    (figures,) = result.contenders
    assert errors([result]) == []
    assert len(figures.rounds) == 2
    assert figures.memory is not None
    assert figures.memory.saved is None
    assert figures.gradient_error is not None
    assert len(figures.losses) == len(result.nudged) == catalog.find("train_step_cnn").curve == 20


class Ends(Worker):
    """Its process ends at once."""

    def __init__(self) -> None:
        super().__init__("perceptron", "dsjit", "", 1)
        self.process.kill()
        self.process.join()


def test_whoever_fails_in_the_rounds_is_told_and_left_out(tmp_path: Path) -> None:
    plan = Plan([EAGER, DSJIT], torch.float32, [], rounds=2, budget=60.0, threads=1, cache=tmp_path)
    results = {name: TrainingFigures(name) for name in ("eager", "dsjit")}
    with (
        Worker("train_step_cnn", "eager", str(tmp_path), 1) as eager,
        Ends() as ends,
        Progress(disable=True) as progress,
    ):
        eager.begin(tasks.measure_cold_step)
        eager.answer(timeout=60.0)
        display = session.Display(progress, progress.add_task("", total=None))
        session._rounds(catalog.find("train_step_cnn"), plan, display, {"eager": eager, "dsjit": ends}, results)
    assert len(results["eager"].rounds) == 2 and results["eager"].error is None
    assert results["dsjit"].error is not None and "the process ended" in results["dsjit"].error


def result(**changes: object) -> TrainingResult:
    own = {
        "cold": Cold(0.1, 1.8, 0.4, COMPILED),
        "rounds": [0.4, 0.4],
        "memory": StepMemory(2**20, 40 * 2**20, 100 * 2**20, 2**30),
        "gradient_error": 1e-6,
        "losses": [2.0, 1.0],
    }
    eager = StepMemory(0, 100 * 2**20, 600 * 2**20, 2**30)
    contenders = [
        TrainingFigures("eager", Cold(0, 1, 0.5, None), False, [0.5, 0.5], eager, 1e-6, [2.0, 1.0]),
        TrainingFigures("dsjit", **{**own, **changes}),
        TrainingFigures(
            "inductor", Cold(20, 50, 0.4, None), False, [0.44, 0.44], dataclasses.replace(eager, saved=2**26)
        ),
    ]
    return TrainingResult("train", "Model", "2x8", 0.5, 0.2, contenders, [2.0, 1.001])


def test_a_result_survives_json(tmp_path: Path) -> None:
    report = Report(describe(threads=2), "python -m benchmarks", "2025-01-01T00:00:00+00:00", [], training=[result()])
    save(report, tmp_path / "report.json")
    assert load(tmp_path / "report.json") == report
    assert "## Training: memory of a step" in markdown(report)


def test_figures_are_told_as_shares_of_the_others() -> None:
    one = result()
    assert one.speed("dsjit", over="eager") == pytest.approx(1.25)
    assert one.saved_share("dsjit", of="eager") == pytest.approx(0.4)
    assert one.saved_share("dsjit", of="inductor") == pytest.approx(0.625)
    assert one.peak_share("dsjit", of="eager") == pytest.approx(1 / 6)
    assert one.cold_fraction("dsjit", of="inductor") == pytest.approx(1 / 49.2)
    assert one.gradient_ratio("dsjit", of="inductor") is None
    assert one.curve_distance(one.nudged) == pytest.approx(0.001)
    assert one.curve_distance([]) is None


def test_tables_have_a_cell_for_every_column() -> None:
    assert all(len(row) == len(table.columns) for table in sheets([result()]) for row in table.rows)
    assert all(table.rows == [] for table in sheets([]))


def test_a_result_is_summed_up_in_a_line() -> None:
    assert summary(result()).startswith(
        "Model, 2x8: eager 500.0 ms, 100.0 MiB saved, 600.0 MiB at most; dsjit 400.0 ms, 40.0 MiB saved, 100.0 MiB"
    )


@pytest.mark.parametrize(
    ("changes", "complaints"),
    [
        ({}, []),
        ({"rounds": [0.48, 0.48]}, ["train has 0.92x of torch.compile's speed"]),
        ({"memory": StepMemory(0, 2**26, 2**27, 0)},
         ["train saves 64.0 % of eager's bytes", "train saves 100.0 % of torch.compile's",
          "train takes 21.3 % of eager's peak"]),
        ({"cold": Cold(0.1, 8.8, 0.4, COMPILED)}, ["train takes 0.16260162601626016 of its compile time"]),
        ({"gradient_error": 2e-6}, ["train has gradients further from float64 than eager's"]),
        ({"error": "killed"}, ["train failed"]),
    ],
    ids=["none", "speed", "bytes", "compile time", "gradients", "failure"],
)  # fmt: skip
def test_broken_promises_are_told(changes: dict[str, object], complaints: list[str]) -> None:
    assert broken_promises([result(**changes)]) == complaints


def test_random_numbers_of_contenders() -> None:
    """Nothing that draws is compared with a contender that draws otherwise."""
    assert [each.name for each in CONTENDERS if each.trains and each.draws_as_eager] == ["eager", "dsjit"]


@pytest.mark.parametrize("each", catalog.TRAINING, ids=lambda each: each.name)
def test_names_are_found(each: TrainingWorkload) -> None:
    assert catalog.find(each.name) is each
    assert each.name.startswith("train_")


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(KeyError, match="there are train_bert"):
        catalog.find("train")
