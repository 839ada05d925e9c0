"""The GPU benchmark, as far as it goes without a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import dsjit
from benchmarks.gpu import CONTENDERS, WORKLOADS, Measured, Workload, main, measure_all, table, with_figures


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be measured")
def test_without_a_gpu_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_is_captured_as_one_graph(workload: Workload) -> None:
    inputs = tuple([(tuple(min(n, 16) for n in shape), dtype) for shape, dtype in workload.inputs])
    arguments = replace(workload, inputs=inputs).arguments(torch.device("cpu"))
    jitted = dsjit.jit(workload.program, fullgraph=True)
    jitted(*arguments)
    torch.testing.assert_close(
        jitted(*arguments), workload.program(*arguments), rtol=workload.relative, atol=workload.absolute
    )


def test_the_table_gives_ratios_to_dsjit() -> None:
    measured = Measured(
        "softmax",
        cold_s={"dsjit": 0.5, "torch.compile": 2.0},
        warm_us={"dsjit": 10.0, "eager": 25.0},
        bandwidth={"dsjit": 0.914},
    )
    failed = Measured("other", failures={"dsjit": "BackendError: no"})
    rows = table([measured, failed]).splitlines()
    assert rows[2] == "| softmax | yes | 10.0 | 2.50 | - | - | - | 0.25 | 91% |"
    assert rows[3] == "| other | NO | - | - | - | - | - | - | - |"


def test_nothing_is_begun_when_the_time_is_over() -> None:
    begun: list[tuple[str, tuple[str, ...]]] = []

    def run(workload: Workload, contenders: Sequence[str], found: Measured) -> None:
        begun.append((workload.name, tuple(contenders)))
        found.warm_us |= dict.fromkeys(contenders, 1.0)

    two = WORKLOADS[:2]
    names = [workload.name for workload in two]
    found = measure_all(two, 60.0, run)
    assert [name for name, _ in begun] == [*names, *names]
    assert "max-autotune" in begun[-1][1][-1] and not any("max-autotune" in name for name in begun[0][1])
    assert not found[0].failures
    late = measure_all(two, 0.0, run)
    assert len(begun) == 4 and set(late[0].failures) == set(CONTENDERS)


def test_figures_replace_those_that_a_page_has() -> None:
    page = Path(__file__).parents[2] / "docs" / "benchmarks-gpu.md"
    text = page.read_text(encoding="utf-8")
    once = with_figures(text, "| a |")
    assert once.count("| a |") == 1 and with_figures(once, "| a |") == once
    assert once.split("## What is aimed at")[1] == text.split("## What is aimed at")[1]
