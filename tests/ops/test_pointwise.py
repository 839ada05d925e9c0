"""Every pointwise row against the torch op that it describes: special values, all dtypes, broadcasting, promotion."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from dsjit.ops.binding import bind
from dsjit.ops.inference import pointwise_type
from dsjit.ops.pointwise import POINTWISE_ROWS
from dsjit.ops.row import OpRow, Pointwise
from dsjit.ops.table import rule_of
from tests.ops.checks import evaluate_pointwise, further_from_truth, in_fp64, ulps_between
from tests.ops.samples import calls, mixed_calls, overload
from tests.ops.torch_scalars import TorchScalars, node_of

TRANSCENDENTAL = frozenset(
    {"exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "atan2",
     "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid", "erf", "erfc", "lgamma", "pow", "hypot"}
)  # fmt: skip
"""Scalar ops that need not be correctly rounded: what uses one may differ from torch by a few ulps."""

UNLIKE_TORCH = TRANSCENDENTAL | {"sqrt"}
"""Those that may be nearer to the truth than torch's, whose square roots are MKL's on some processors."""

REMAINDERS = ("aten.remainder", "aten.fmod")


def accepted_by_torch(op: Any, samples: Iterator[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
    for sample in samples:
        try:
            yield sample, op(**sample)
        except (RuntimeError, TypeError, IndexError):
            continue


def cancels(name: str) -> bool:
    """Ops in which torch's formula subtracts nearly equal numbers: 1 + tanh(x) for negative x, 1 - tanh(x) ** 2."""
    return name == "aten.gelu.default" or name.endswith("_backward.default")


def beyond_cancellation(sample: dict[str, Any], actual: torch.Tensor, expected: torch.Tensor) -> torch.Tensor:
    """Where the two differ by more than a few ulps of the largest intermediate, rather than of the result."""
    size = torch.ones(expected.shape, dtype=torch.float64)
    for operand in sample.values():
        if isinstance(operand, torch.Tensor):
            size = size * operand.double().abs().clamp(min=1)
    error = (actual.double() - expected.double()).abs()
    return ~(error <= 8 * torch.finfo(expected.dtype).eps * size) & ~(actual.isnan() & expected.isnan())


def allowed_ulps(name: str, used: set[str]) -> float:
    if used & TRANSCENDENTAL:
        return 4
    # ATen's own vectorised reciprocal square root is not correctly rounded in fp64.
    return 2 if name in ("aten.rsqrt.default", "aten.pow.Tensor_Scalar") else 0


def is_defined(name: str, sample: dict[str, Any], like: torch.Tensor) -> torch.Tensor:
    """False where torch itself is inconsistent: its vectorised fmod gives NaN when the quotient has too many bits."""
    if not name.startswith(REMAINDERS):
        return torch.ones(like.shape, dtype=torch.bool)
    dividend, divisor = (torch.as_tensor(sample[key]).double() for key in ("self", "other"))
    return ((dividend / divisor).abs() < 2**20).expand(like.shape)


def check(row: OpRow, op: Any, samples: Iterator[dict[str, Any]]) -> int:
    checked = 0
    for sample, expected in accepted_by_torch(op, samples):
        node, tensors = node_of(op, (), sample, expected)
        rule = rule_of(node)
        if rule is None:
            continue
        assert isinstance(rule, Pointwise)
        inferred = pointwise_type(rule, bind(node))
        assert (inferred.shape, inferred.dtype) == (node.output.type.shape, node.output.type.dtype), sample
        b = TorchScalars()
        actual = evaluate_pointwise(rule, node, tensors, b)
        wrong = ulps_between(actual, expected) > allowed_ulps(row.name, b.used)
        wrong &= is_defined(row.name, sample, expected)
        if cancels(row.name):
            wrong &= beyond_cancellation(sample, actual, expected)
        if wrong.any() and b.used & UNLIKE_TORCH and expected.dtype is not torch.float64:
            truth = op(**{name: in_fp64(value) for name, value in sample.items()})
            wrong &= further_from_truth(actual, expected, truth)
        assert not wrong.any(), (sample, actual[wrong][:3], expected[wrong][:3])
        checked += 1
    return checked


@pytest.mark.parametrize("name", POINTWISE_ROWS)
def test_a_row_computes_what_torch_computes(name: str) -> None:
    row, op = POINTWISE_ROWS[name], overload(name)
    assert check(row, op, calls(row, op)) > 0


@pytest.mark.parametrize("name", POINTWISE_ROWS)
def test_operands_of_different_dtype_and_rank_promote_as_in_torch(name: str) -> None:
    row, op = POINTWISE_ROWS[name], overload(name)
    samples = list(mixed_calls(row, op))
    checked = check(row, op, iter(samples))
    assert checked > 0 or not list(accepted_by_torch(op, iter(samples)))
