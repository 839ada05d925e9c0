"""Every scalar op in Triton does what the interpreter says; no row lacks a spelling in either emitter."""

from __future__ import annotations

import pytest
import torch

from dsjit.codegen.llvm.math import MATH
from dsjit.codegen.llvm.spellings import SPELLINGS as LLVM_SPELLINGS
from dsjit.codegen.triton.interpret import INTERPRETED_LIBDEVICE
from dsjit.codegen.triton.spellings import HELPERS, LIBDEVICE, SPELLINGS
from dsjit.ir.dtypes import is_floating
from dsjit.ir.kernel import Apply, Load, Param, Stmt, Store
from dsjit.ir.scalar import SCALAR_OPS, accepts
from tests.codegen.kernels import at, pointwise
from tests.codegen.llvm.test_spellings import DTYPES, operands
from tests.codegen.triton.running import outputs

ULP = {"sigmoid": 3, "erf": 1, "erfc": 1, "lgamma": 1, **dict.fromkeys(LIBDEVICE, 1)}
"""Of ops that are not correctly rounded: what two good implementations may differ by."""


def supported(op: str) -> list[torch.dtype]:
    return [dtype for dtype in DTYPES if accepts(SCALAR_OPS[op].domain, dtype)]


@pytest.mark.parametrize("emitter", [set(LLVM_SPELLINGS) | set(MATH), set(SPELLINGS)], ids=["llvm", "triton"])
def test_every_row_has_a_spelling(emitter: set[str]) -> None:
    assert emitter == set(SCALAR_OPS)


def test_the_interpreter_has_every_function_of_libdevice_that_is_called() -> None:
    called = {*LIBDEVICE.values(), *[name for name in ("fmod",) if any(name in h.text for h in HELPERS.values())]}
    assert called <= set(vars(INTERPRETED_LIBDEVICE))


@pytest.mark.parametrize("op", sorted(SCALAR_OPS))
def test_an_op_is_what_the_interpreter_says(op: str) -> None:
    for dtype in supported(op):
        inputs = operands(op, dtype)
        result = torch.bool if SCALAR_OPS[op].result == "bool" else dtype
        params = [Param(f"p{number}", column.dtype, "read") for number, column in enumerate(inputs)]
        body: list[Stmt] = [Load(f"v{n}", param.name, at(i0=1), param.dtype) for n, param in enumerate(params)]
        body += [Apply("r", op, tuple(f"v{n}" for n in range(len(inputs))), result), Store("out", at(i0=1), "r")]
        kernel = pointwise(len(inputs[0]), body, [*params, Param("out", result, "write")])
        (expected,), (actual,) = outputs(kernel, inputs, [torch.zeros(len(inputs[0]), dtype=result)])
        tolerance = ULP.get(op, 0) * torch.finfo(dtype).eps if is_floating(dtype) else 0
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=0, equal_nan=True)
