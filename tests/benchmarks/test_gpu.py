"""The GPU benchmark, as far as it goes without a GPU."""

from __future__ import annotations

import pytest
import torch

import dsjit
from benchmarks.gpu import WORKLOADS, Measured, Workload, main, table


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and it would be measured")
def test_without_a_gpu_it_says_so_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "no CUDA device" in capsys.readouterr().err


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_a_workload_is_captured_as_one_graph(workload: Workload) -> None:
    arguments = [torch.randn(tuple(min(n, 16) for n in shape)).to(dtype) for shape, dtype in workload.inputs]
    jitted = dsjit.jit(workload.program, fullgraph=True)
    jitted(*arguments)
    torch.testing.assert_close(
        jitted(*arguments), workload.program(*arguments), rtol=workload.relative, atol=workload.absolute
    )


def test_the_table_gives_ratios_to_dsjit() -> None:
    measured = Measured("softmax", True, warm_us={"dsjit": 10.0, "eager": 25.0}, bandwidth={"dsjit": 0.914})
    failed = Measured("other", failures={"dsjit": "BackendError: no"})
    rows = table([measured, failed]).splitlines()
    assert rows[2] == "| softmax | yes | 10.0 | 2.50 | - | - | 91% |"
    assert rows[3] == "| other | NO | - | - | - | - | - |"
