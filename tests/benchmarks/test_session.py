"""Workers answer, are interleaved, and fail clearly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.progress import Progress

from benchmarks.contenders import DSJIT, EAGER, INDUCTOR
from benchmarks.machine import describe
from benchmarks.results import ContenderResult, Report, WorkloadResult
from benchmarks.session import Plan, measure_workload
from benchmarks.worker import Cold, State, Worker, WorkerError, check_shapes, measure_cold
from benchmarks.workloads.catalog import find


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_a_cold_measurement_of_dsjit_counts_compiled_calls() -> None:
    cold = measure_cold(State("linear_relu", DSJIT.name), torch.float32)
    assert cold.first_two_calls > 0
    assert cold.counters is not None
    assert cold.counters.all_compiled


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_shape_is_checked(dtype: torch.dtype) -> None:
    checks = check_shapes(State("expert_gate", EAGER.name), dtype)
    assert [check.shape for check in checks] == list(find("expert_gate").shapes)
    assert all(check.comparison.bitwise for check in checks)


def plan(cache: Path, reused: Report | None = None) -> Plan:
    return Plan([EAGER], torch.float32, [], rounds=2, budget=60.0, threads=1, cache=cache, reused=reused)


def test_a_workload_is_measured_in_rounds(tmp_path: Path) -> None:
    with Progress(disable=True) as progress:
        result = measure_workload(find("expert_gate"), plan(tmp_path), progress)
    assert len(result.contender("eager").rounds) == 2
    assert result.contender("eager").error is None


def fail(state: State) -> None:
    raise ValueError(f"{state.workload} is not to be")


def test_a_failing_worker_is_reported_and_goes_on(tmp_path: Path) -> None:
    with Worker("expert_gate", EAGER.name, str(tmp_path), threads=1) as worker:
        worker.begin(fail)
        with pytest.raises(WorkerError, match="eager on expert_gate: ValueError: expert_gate is not to be"):
            worker.answer(timeout=60.0)
        worker.begin(measure_cold, torch.float32)
        assert isinstance(worker.answer(timeout=60.0), Cold)


def test_a_worker_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with Worker("bert", EAGER.name, str(tmp_path), threads=1) as worker:
        worker.begin(measure_cold, torch.float32)
        with pytest.raises(WorkerError, match="no answer within 0 s"):
            worker.answer(timeout=0.01)


def test_cold_figures_of_an_earlier_run_are_kept_apart() -> None:
    cold = Cold(20.0, 5.0, 1.0, None)
    workload = find("expert_gate")
    earlier = WorkloadResult(
        workload.name, workload.title, workload.shapes[0], "float32", 1.0, [ContenderResult(INDUCTOR.name, cold)]
    )
    report = Report(describe(threads=1), "", "", [earlier])
    assert plan(Path(), report).earlier(workload, INDUCTOR) == cold
    assert plan(Path(), report).earlier(find("bert"), INDUCTOR) is None
    assert plan(Path(), report).earlier(workload, DSJIT) is None
