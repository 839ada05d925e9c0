"""Runs Kernels in the Kernel interpreter and in Triton's, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from dsjit.codegen.triton.interpret import interpret_kernel
from dsjit.ir.kernel import Kernel
from dsjit.ir.verify_kernel import verify_kernel
from tests.codegen.kernels import run_interpreted


def run_triton(kernel: Kernel, *buffers: torch.Tensor, sizes: Mapping[str, int] | None = None) -> None:
    """Buffers in the order of the params."""
    verify_kernel(kernel)
    by_name = {param.name: buffer.view(-1) for param, buffer in zip(kernel.params, buffers, strict=True)}
    interpret_kernel(kernel, by_name, sizes=sizes)


def outputs(
    kernel: Kernel, inputs: Sequence[torch.Tensor], results: Sequence[torch.Tensor]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What the definition and what Triton leave in copies of `results`."""
    expected = [tensor.clone() for tensor in results]
    actual = [tensor.clone() for tensor in results]
    run_interpreted(kernel, *inputs, *expected)
    run_triton(kernel, *inputs, *actual)
    return expected, actual
