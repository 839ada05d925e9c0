"""The control-flow programs compute what they are said to compute, and go another way from input to input."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from benchmarks.contenders import DSJIT, EAGER
from benchmarks.machine import describe
from benchmarks.report import sheets
from benchmarks.results import Report, load, save
from benchmarks.session import Plan, measure_workload
from benchmarks.worker import State, measure_cold, measure_varied
from benchmarks.workloads import control_flow
from benchmarks.workloads.catalog import WORKLOADS, find
from benchmarks.workloads.control_flow import AdaptiveSteps, BeamSearch, Decoder, RoutedExperts
from benchmarks.workloads.workload import Workload

VARIED = [workload for workload in WORKLOADS if workload.varied]


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.no_grad():
        yield


@pytest.mark.parametrize("workload", VARIED, ids=lambda workload: workload.name)
def test_each_draw_is_another_input_and_the_same_one_again(workload: Workload) -> None:
    first, again, other = (workload.arguments(torch.float32, 0, draw)[0] for draw in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape == other.shape and not torch.equal(first, other)


def test_easy_inputs_leave_the_classifier_early_and_hard_ones_late() -> None:
    model = find("early_exit").build(torch.float32).program
    x = torch.randn(7, 384)
    layers = [model(x * scale)[1] for scale in (8.0, 2.0, 0.5)]
    assert layers == sorted(layers) and layers[0] < layers[2]


def test_the_classifier_is_sure_where_it_stops() -> None:
    model = find("early_exit").build(torch.float32).program
    logits, layers = model(torch.randn(7, 384) * 4)
    assert layers < 12
    assert bool((logits.softmax(-1).amax(-1) > 0.9).all())


def test_the_inverse_square_root_of_a_matrix() -> None:
    matrices, tolerance = control_flow.matrix_inputs(1)
    root = control_flow.inverse_square_root(matrices, tolerance)
    torch.testing.assert_close(root @ matrices @ root, torch.eye(32).expand(3, 32, 32), rtol=0.0, atol=2e-3)


def test_anomalies_solve_keplers_equation() -> None:
    mean, eccentricity, tolerance = control_flow.orbit_inputs(1)
    anomaly = control_flow.eccentric_anomaly(mean, eccentricity, tolerance)
    torch.testing.assert_close(anomaly - eccentricity * anomaly.sin(), mean, rtol=1e-5, atol=1e-5)


def test_a_beam_of_all_sequences_finds_the_best_one() -> None:
    decoder = Decoder(vocabulary=4, positions=8, width=8, heads=2, layers=1).eval()
    prompt = torch.tensor([[2, 3]])

    def score(continuation: tuple[int, ...]) -> float:
        tokens, total = prompt, 0.0
        for token in continuation:
            total += float(decoder(tokens).log_softmax(-1)[0, token])
            tokens = torch.cat([tokens, torch.tensor([[token]])], dim=1)
        return total

    tokens, best = BeamSearch(decoder, beams=4, steps=2, end=-1)(prompt)
    scores = {continuation: score(continuation) for continuation in product(range(4), repeat=2)}
    assert best == pytest.approx(max(scores.values()))
    assert tuple(tokens[0, 2:].tolist()) == max(scores, key=scores.__getitem__)


def test_a_finished_beam_is_not_continued() -> None:
    decoder = Decoder(vocabulary=4, positions=8, width=8, heads=2, layers=1).eval()
    prompt = torch.tensor([[2, 1]])
    tokens, score = BeamSearch(decoder, beams=2, steps=3, end=1)(prompt)
    assert torch.equal(tokens, prompt) and score == 0.0


def test_routed_experts_are_a_weighted_sum_of_the_chosen_ones() -> None:
    model = RoutedExperts(width=8, hidden=16, experts=4, chosen=2).eval()
    x = torch.randn(10, 8)
    weights, chosen = model.router(x).softmax(-1).topk(2)
    every = torch.stack([expert(x) for expert in model.experts], dim=1)
    picked = every.gather(1, chosen[:, :, None].expand(-1, -1, 8))
    expected = (picked * (weights / weights.sum(-1, keepdim=True))[:, :, None]).sum(1)
    torch.testing.assert_close(model(x), expected)


def test_halting_weights_add_up_to_one() -> None:
    model = AdaptiveSteps(4)
    x = torch.randn(3, 4)
    model.step.register_forward_hook(lambda module, inputs, result: torch.full_like(result, 20.0))
    torch.testing.assert_close(model(x)[0], torch.ones(3, 4))  # every state is tanh(20 or more): one


def test_calls_on_new_inputs_equal_eager_and_are_counted() -> None:
    state = State("newton_item", DSJIT.name)
    measure_cold(state, torch.float32)
    calls = measure_varied(state, torch.float32, range(1, 5))
    assert len(calls.seconds) == 4 and calls.unequal == 0
    assert calls.counters is not None
    counters = calls.counters
    assert counters.calls_compiled + counters.calls_traced + counters.calls_eager == 4


def test_rounds_of_varied_calls_are_kept_and_printed(tmp_path: Path) -> None:
    plan = Plan([EAGER, DSJIT], torch.float32, [], rounds=2, budget=60.0, threads=1, cache=tmp_path)
    with Progress(disable=True) as progress:
        result = measure_workload(find("newton_item"), plan, progress)
    own = result.contender("dsjit")
    assert len(own.rounds) == len(own.varied) == 2 and len(own.warm_up) == 1
    assert result.equal
    report = Report(describe(threads=1), "", "", [result])
    save(report, tmp_path / "report.json")
    assert load(tmp_path / "report.json") == report
    [sheet] = [sheet for sheet in sheets(report) if sheet.title == "Calls that vary"]
    assert all(len(row) == len(sheet.columns) for row in sheet.rows)
    assert sum(int(cell) for cell in sheet.rows[0][-4:-1]) == int(sheet.rows[0][-5])
