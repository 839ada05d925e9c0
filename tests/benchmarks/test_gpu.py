"""The GPU benchmark, as far as it goes without a GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import dsjit
from benchmarks.gpu import (
    CONTENDERS,
    SDPA,
    SLOWEST,
    WORKLOADS,
    Bench,
    Measured,
    Workload,
    main,
    measure_all,
    table,
    targets,
    with_figures,
)
from benchmarks.gpu_supervisor import supervise
from benchmarks.launches import own_launch_us
from tests.codegen.triton.machines import ClockEvent


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be measured")
def test_without_a_gpu_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


def small(workload: Workload) -> Workload:
    """Of the same form, with small sizes."""
    if "decoder" in workload.name:
        (batch, length, _), dtype = workload.inputs[0]
        width, inner = 128, 48
        shapes = ((min(batch, 2), min(length, 16), width), (3 * width, width), (width, width), (inner, width),
                  (inner, width), (width, inner))  # fmt: skip
        return replace(workload, inputs=tuple([(shape, dtype) for shape in shapes]))
    if "int4" in workload.name:
        (_, x), (_, packed), (_, scales) = workload.inputs
        return replace(workload, inputs=(((16, 32), x), ((16, 16), packed), ((16, 2), scales)))
    return replace(
        workload, inputs=tuple([(tuple(min(n, 16) for n in shape), dtype) for shape, dtype in workload.inputs])
    )


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_is_captured_as_one_graph(workload: Workload) -> None:
    arguments = small(workload).arguments(torch.device("cpu"))
    expected = workload.program(*arguments)  # first, as the benchmark has it: what autograd does once is no workload's
    jitted = dsjit.jit(workload.program, fullgraph=True)
    jitted(*arguments)
    torch.testing.assert_close(jitted(*arguments), expected, rtol=workload.relative, atol=workload.absolute)


def test_the_table_gives_ratios_to_dsjit() -> None:
    measured = Measured(
        "softmax",
        cold_s={"dsjit": 0.5, "torch.compile": 2.0},
        warm_us={"dsjit": 10.0, "eager": 25.0, "SDPA, flash": 9.0, "SDPA, cuDNN": 8.0},
        bandwidth={"dsjit": 0.914},
    )
    failed = Measured("other", failures={"dsjit": "BackendError: no"})
    rows = table([measured, failed]).splitlines()
    assert rows[2] == "| softmax | yes | 10.0 | 2.50 | - | - | - | - | 0.80 | 0.25 | 91% |"
    assert rows[3] == "| other | NO | - | - | - | - | - | - | - | - | - |"


@dataclass(frozen=True)
class FakeGpu:
    """The CPU, by its clock."""

    name: str = "no GPU"
    flushed_bytes: int = 64

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    def event(self) -> ClockEvent:
        return ClockEvent()

    def launch_us(self) -> float:
        return own_launch_us()

    def synchronize(self) -> None: ...


def refuse(program: Callable[..., Any]) -> Callable[..., Any]:
    raise RuntimeError("no such mode here\nat all")


FAKES: dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]] = {
    "eager": lambda program: program,
    "dsjit": lambda program: dsjit.jit(program, backend="triton-interpret", fullgraph=True),
    "dsjit, measured": lambda program: dsjit.jit(program, fullgraph=True),
    "torch.compile": lambda program: program,
    SLOWEST: refuse,
}


def test_the_whole_run_without_a_gpu(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("softmax", "column sum", "linear and gelu, bfloat16", "causal attention, bfloat16")
    workloads = [small(each) for each in WORKLOADS if each.name in names]
    file, page = tmp_path / "gpu.json", tmp_path / "page.md"
    page.write_text("<!-- figures -->\n<!-- end of figures -->\n", encoding="utf-8")
    arguments = ["--quick", "--json", str(file), "--page", str(page)]
    assert main(arguments, FakeGpu(), FAKES, workloads, 1 << 16) == 0
    data = json.loads(file.read_text(encoding="utf-8"))
    assert [each["name"] for each in data["workloads"]] == [each.name for each in workloads]
    for each in data["workloads"]:
        assert each["correct"] and set(each["cold_s"]) == set(FAKES) - {SLOWEST}
        assert set(each["warm_us"]) >= set(FAKES) - {SLOWEST}
        assert each["failures"][SLOWEST] == "RuntimeError: no such mode here"
        assert bool(each["bandwidth"]) == (each["name"] in ("softmax", "column sum"))
    assert set(data["workloads"][-1]["warm_us"]) & set(SDPA)
    told = capsys.readouterr()
    assert "| softmax | yes |" in told.out and told.out.strip() in page.read_text(encoding="utf-8")


def test_a_wrong_result_fails_the_run() -> None:
    fakes = {"eager": FAKES["eager"], "dsjit": lambda program: lambda *arguments: program(*arguments) + 1}
    assert main(["--quick"], FakeGpu(), fakes, [small(WORKLOADS[2])], 1 << 16) == 1


def test_results_are_compared_first_and_nothing_is_begun_when_the_time_is_over() -> None:
    @dataclass
    class Noting(Bench):
        def __post_init__(self) -> None:
            begun.clear()

        def check(self, workload: Workload, found: Measured) -> None:
            begun.append((workload.name, "check"))

        def measure(self, workload: Workload, names: Sequence[str], found: Measured) -> None:
            begun.append((workload.name, SLOWEST if SLOWEST in names else "measure"))
            found.warm_us |= dict.fromkeys(names, 1.0)

    begun: list[tuple[str, str]] = []
    two = WORKLOADS[:2]
    names = [workload.name for workload in two]
    found = [Measured(each.name) for each in two]
    measure_all(two, 60.0, Noting(FakeGpu(), CONTENDERS, 1, 1.0), found)
    assert begun == [(name, step) for step in ("check", "measure", SLOWEST) for name in names]
    assert not found[0].failures
    late = [Measured(each.name) for each in two]
    measure_all(two, 0.0, Noting(FakeGpu(), CONTENDERS, 1, 1.0), late)
    assert not begun and set(late[0].failures) == set(CONTENDERS)


def test_what_was_measured_before_is_not_measured_again(tmp_path: Path) -> None:
    file, workload = tmp_path / "gpu.json", small(WORKLOADS[2])
    arguments = ["--quick", "--json", str(file)]
    assert main(arguments, FakeGpu(), {name: FAKES[name] for name in ("eager", "dsjit")}, [workload], 1 << 16) == 0
    first = json.loads(file.read_text(encoding="utf-8"))
    calls: list[str] = []

    def counted(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        return lambda program: calls.append(name) or program if program is not torch.neg else program

    fakes = {name: counted(name) for name in ("eager", "dsjit")}
    assert main(arguments, FakeGpu(), fakes, [workload], 1 << 16) == 0
    assert not calls
    assert json.loads(file.read_text(encoding="utf-8"))["workloads"] == first["workloads"]


WORKER = """
import json, os, signal, sys, time
from pathlib import Path
from benchmarks.gpu_supervisor import Progress
path, names = Path(sys.argv[1]), ["first", "second", "third"]
progress = Progress.read(path, names)
progress.machine = {"device": "none"}
for each in progress.workloads:
    for contender in ("dsjit", "eager"):
        if contender in each.failures or contender in each.warm_us:
            continue
        progress.begin(each.name, contender)
        if (each.name, contender) == ("first", "dsjit"):
            os.kill(os.getpid(), signal.SIGSEGV)
        if (each.name, contender) == ("second", "eager"):
            time.sleep(60)
        each.warm_us[contender] = 1.0
        progress.write()
progress.done()
"""


def test_a_process_that_crashes_or_hangs_costs_no_more_than_what_it_ran(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    names = ["first", "second", "third"]
    progress = supervise([sys.executable, "-c", WORKER, str(file)], file, names, 60.0, silence=5.0)
    first, second, third = progress.workloads
    assert "status -11" in first.failures["dsjit"] and not first.correct
    assert second.failures == {"eager": "it did not end, and was killed"} and second.correct
    assert set(first.warm_us) == {"eager"} and set(second.warm_us) == {"dsjit"}
    assert set(third.warm_us) == {"dsjit", "eager"} and not third.failures
    assert progress.machine == {"device": "none"} and not json.loads(file.read_text(encoding="utf-8"))["begun"]


def test_a_process_that_cannot_begin_is_started_once(tmp_path: Path) -> None:
    file = tmp_path / "gpu.json"
    progress = supervise([sys.executable, "-c", "raise SystemExit(9)"], file, ["first"], 60.0)
    assert progress.workloads == [Measured("first")]


def test_targets_name_what_misses_them() -> None:
    softmax = Measured(
        "softmax",
        cold_s={"dsjit": 0.5, "torch.compile": 3.0},
        warm_us={"dsjit": 10.0, "torch.compile": 9.0},
        bandwidth={"dsjit": 0.95},
    )
    attention = Measured("attention", warm_us={"dsjit": 20.0, "dsjit, measured": 10.0, "SDPA, flash": 9.5})
    lines = targets([softmax, attention])
    assert "bandwidth: met (1 of 1)" in lines[0] and "epilogue: not measured" in lines[1]
    assert "library's: met (1 of 1)" in lines[2]
    assert "no slower than torch.compile: missed by softmax (0.90) (0 of 1)" in lines[3]
    assert "time: met" in lines[4]


def test_figures_replace_those_that_a_page_has() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks-gpu.md"
    text = page.read_text(encoding="utf-8")
    once = with_figures(text, "| a |")
    assert once.count("| a |") == 1 and with_figures(once, "| a |") == once
    assert once.split("## What is aimed at")[1] == text.split("## What is aimed at")[1]
