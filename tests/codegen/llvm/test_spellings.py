"""Every scalar op in LLVM IR does to vectors and to scalars what the interpreter says."""

from __future__ import annotations

import itertools

import pytest
import torch

from dsjit.codegen.llvm.math import MATH
from dsjit.codegen.llvm.spellings import SPELLINGS
from dsjit.ir.dtypes import is_floating, short_name
from dsjit.ir.kernel import Apply, Load, Param, Stmt, Store
from dsjit.ir.scalar import SCALAR_OPS, accepts
from tests.codegen.kernels import at, outputs, pointwise

DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
DIVISIONS = ("trunc_div", "floor_div", "trunc_rem", "floor_rem")
EXACT = sorted(SPELLINGS)


def values(dtype: torch.dtype) -> list[float | int | bool]:
    """Numbers at which ops change their ways."""
    if dtype is torch.bool:
        return [False, True]
    if is_floating(dtype):
        limits = torch.finfo(dtype)
        return [
            0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-3, 7.0, 1e10, -1e10, 0.1, 8388609.0,
            limits.tiny, limits.smallest_normal / 8, limits.max, -limits.max, float("inf"), -float("inf"), float("nan"),
        ]  # fmt: skip
    info = torch.iinfo(dtype)
    return [0, 1, 2, 3, 7, 13, 100, info.max, info.max - 1, info.min, info.min + 1, info.max // 2] + (
        [-1, -2, -3, -7, -100] if info.min < 0 else [200, 255]
    )


def operands(op: str, dtype: torch.dtype) -> list[torch.Tensor]:
    """All pairs (or triples) of values, but for divisions by zero, whose result is unspecified."""
    arity = SCALAR_OPS[op].arity
    chosen = values(dtype) if arity < 3 else values(dtype)[::3]
    columns = [[False, True] if op == "select" and position == 0 else chosen for position in range(arity)]
    rows = list(itertools.product(*columns))
    if op in DIVISIONS and not is_floating(dtype):
        rows = [row for row in rows if row[1] != 0]
    dtypes = [torch.bool if op == "select" and position == 0 else dtype for position in range(arity)]
    return [torch.tensor(column, dtype=d) for column, d in zip(zip(*rows, strict=True), dtypes, strict=True)]


def run(op: str, inputs: dict[torch.dtype, list[torch.Tensor]], step: int):
    """The interpreter's and LLVM's results, by dtype, from one kernel that does all of them.

    step 1: of lanes. step 0: of the scalars at the front, broadcast to the lanes of the store.
    """
    row = SCALAR_OPS[op]
    size = max(len(columns[0]) for columns in inputs.values())
    body: list[Stmt] = []
    params: list[Param] = []
    results: list[Param] = []
    for dtype, columns in inputs.items():
        tag = short_name(dtype)
        names = []
        for position, column in enumerate(columns):
            params.append(Param(f"x{position}_{tag}", column.dtype, "read"))
            names.append(f"a{position}_{tag}")
            body.append(Load(names[-1], params[-1].name, at(i0=step), column.dtype))
        result = torch.bool if row.result == "bool" else dtype
        results.append(Param(f"y_{tag}", result, "write"))
        body.append(Apply(f"r_{tag}", op, tuple(names), result))
        body.append(Store(results[-1].name, at(i0=1), f"r_{tag}"))
    kernel = pointwise(size, body, [*params, *results])
    padded = [column.repeat(-(-size // len(column)))[:size] for columns in inputs.values() for column in columns]
    return outputs(kernel, padded, [torch.zeros(size, dtype=param.dtype) for param in results])


def dtypes_of(op: str) -> list[torch.dtype]:
    return [dtype for dtype in DTYPES if accepts(SCALAR_OPS[op].domain, dtype)]


def assert_same(expected: torch.Tensor, actual: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0, equal_nan=True)
    if expected.is_floating_point():
        numbers = ~expected.isnan()
        assert torch.equal(expected.signbit()[numbers], actual.signbit()[numbers])


def test_every_scalar_op_has_exactly_one_spelling():
    assert set(SPELLINGS) | set(MATH) == set(SCALAR_OPS)
    assert not set(SPELLINGS) & set(MATH)


@pytest.mark.parametrize("op", EXACT)
def test_lanes_equal_the_interpreter(op):
    for expected, actual in zip(*run(op, {dtype: operands(op, dtype) for dtype in dtypes_of(op)}, 1), strict=True):
        assert_same(expected, actual)


@pytest.mark.parametrize("op", EXACT)
def test_scalars_equal_the_interpreter(op):
    inputs = {dtype: [column[len(column) // 3 :][:1] for column in operands(op, dtype)] for dtype in dtypes_of(op)}
    for expected, actual in zip(*run(op, inputs, 0), strict=True):
        assert_same(expected, actual)


@pytest.mark.parametrize("op", sorted(MATH))
def test_transcendentals_are_close_to_the_interpreter(op):
    start = {"acosh": 1.1, "lgamma": 2.1}.get(op, 0.05)
    inputs = {
        dtype: [torch.linspace(start, start + 0.85, 37, dtype=dtype) + 0.01 * p for p in range(SCALAR_OPS[op].arity)]
        for dtype in dtypes_of(op)
    }
    for expected, actual in zip(*run(op, inputs, 1), strict=True):
        torch.testing.assert_close(actual, expected, rtol=4 * torch.finfo(expected.dtype).eps, atol=0)


@pytest.mark.parametrize("op", DIVISIONS)
def test_integer_division_by_zero_does_not_trap(op):
    dtypes = [dtype for dtype in dtypes_of(op) if not is_floating(dtype)]
    inputs = {d: [torch.tensor(values(d), dtype=d), torch.zeros(len(values(d)), dtype=d)] for d in dtypes}
    _, actual = run(op, inputs, 1)
    assert [tensor.dtype for tensor in actual] == dtypes
