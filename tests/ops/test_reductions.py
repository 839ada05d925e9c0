"""Every reduction row against torch: which dimensions, which dtypes, and in what it accumulates."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dsjit.ops.binding import bind
from dsjit.ops.reductions import ROWS, listed_dims
from dsjit.ops.row import Reduction
from dsjit.ops.table import rule_of
from tests.ops.checks import in_fp64, results_of_row, ulps_between
from tests.ops.samples import overload
from tests.ops.torch_scalars import node_of

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)

DIMENSIONS: dict[str, list[dict[str, Any]]] = {
    "default": [{}],
    "dim_IntList": [{"dim": d, "keepdim": k} for d in ([0], [1, 2], [-1], None) for k in (False, True)],
    "dim_int": [{"dim": d, "keepdim": k} for d in (0, -1) for k in (False, True)],
    "dim": [{"dim": d, "keepdim": k} for d in (0, -1) for k in (False, True)],
    "dims": [{"dim": d, "keepdim": k} for d in ([0], [0, 2], None) for k in (False, True)],
    "amax.default": [{"dim": d, "keepdim": k} for d in ([0], [0, 1], []) for k in (False, True)],
    "argmax.default": [{"dim": d, "keepdim": k} for d in (1, -1, None) for k in (False, True)],
}
DIMENSIONS["amin.default"] = DIMENSIONS["amax.default"]
DIMENSIONS["argmin.default"] = DIMENSIONS["argmax.default"]


def sample(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype is torch.bool:
        return torch.rand(3, 4, 5, generator=generator) > 0.4
    if dtype.is_floating_point:
        return torch.randn(3, 4, 5, generator=generator).to(dtype)
    return torch.randint(0 if dtype is torch.uint8 else -9, 9, (3, 4, 5), generator=generator).to(dtype)


def options(name: str) -> list[dict[str, Any]]:
    _, packet, overload_name = name.split(".")
    return DIMENSIONS.get(f"{packet}.{overload_name}", DIMENSIONS[overload_name])


@pytest.mark.parametrize("name", ROWS)
def test_reduces_as_torch_does(name: str) -> None:
    op, checked = overload(name), 0
    for dtype in DTYPES:
        for kwargs in options(name):
            for x in (sample(dtype), sample(dtype)[:1, :1, :1], sample(dtype)[0, 0, 0]):
                try:
                    op(x, **kwargs)
                except (RuntimeError, IndexError, NotImplementedError):
                    continue
                results = results_of_row(op, x, **kwargs)
                if results is None:
                    continue
                (actual,), (expected,) = results
                truth = op(in_fp64(x), **kwargs)
                near = ulps_between(actual, expected) <= (4 if ROWS[name].rule.kind in ("sum", "prod") else 0)
                near |= (actual.double() - truth.double()).abs() <= (expected.double() - truth.double()).abs()
                assert near.all(), (dtype, kwargs)
                checked += 1
    assert checked > 0


@pytest.mark.parametrize("name", [f"aten.{name}.default" for name in ("amax", "amin", "argmax", "argmin")])
def test_nan_wins_and_the_first_extreme_is_taken(name: str) -> None:
    for row in ([1.0, math.nan, 3.0, math.nan], [2.0, 5.0, 5.0, 2.0], [math.inf, -math.inf, math.inf, -math.inf]):
        results = results_of_row(overload(name), torch.tensor([row]))
        assert results is not None
        assert torch.equal(results[0][0].nan_to_num(nan=-9.0), results[1][0].nan_to_num(nan=-9.0))


@pytest.mark.parametrize(
    ("name", "source", "kwargs", "computes_in"),
    [
        ("aten.sum.default", torch.bfloat16, {}, torch.float32),
        ("aten.sum.default", torch.float16, {}, torch.float32),
        ("aten.sum.default", torch.int32, {}, torch.int64),
        ("aten.sum.default", torch.bool, {}, torch.int64),
        ("aten.sum.default", torch.float32, {"dtype": torch.float64}, torch.float64),
        ("aten.amax.default", torch.bfloat16, {}, torch.float32),
        ("aten.any.default", torch.float32, {}, torch.bool),
        ("aten.argmax.default", torch.float16, {}, torch.float32),
    ],
)
def test_accumulates_in(name: str, source: torch.dtype, kwargs: dict[str, Any], computes_in: torch.dtype) -> None:
    op, x = overload(name), sample(torch.bool).to(source)
    node, _ = node_of(op, (x,), kwargs, op(x, **kwargs))
    rule = rule_of(node)
    assert isinstance(rule, Reduction)
    assert rule.compute(source, node.output.type.dtype) is computes_in


@pytest.mark.parametrize(
    ("name", "x", "kwargs"),
    [
        ("aten.amax.default", torch.tensor([True, False]), {}),
        ("aten.sum.default", torch.ones(3), {"dtype": torch.bfloat16}),
        ("aten.sum.default", torch.ones(3, dtype=torch.int64), {"dtype": torch.int32}),
        ("aten.sum.default", torch.ones(3, dtype=torch.complex64), {}),
    ],
)
def test_leaves_to_the_library(name: str, x: torch.Tensor, kwargs: dict[str, Any]) -> None:
    assert results_of_row(overload(name), x, **kwargs) is None


@pytest.mark.parametrize("name", ["aten.sum.default", "aten.prod.default", "aten.any.default", "aten.all.default"])
def test_reduces_nothing_to_the_neutral_element(name: str) -> None:
    results = results_of_row(overload(name), torch.ones(0, 3))
    assert results is not None
    assert torch.equal(results[0][0], results[1][0])


@pytest.mark.parametrize(
    ("dim", "rank", "expected"),
    [(None, 3, (0, 1, 2)), ((), 2, (0, 1)), ((-1, 0), 3, (0, 2)), (1, 2, (1,)), (-1, 1, (0,)), ((0,), 0, ())],
)
def test_dimensions_are_non_negative_and_sorted(dim: Any, rank: int, expected: tuple[int, ...]) -> None:
    assert listed_dims(dim, rank) == expected


def test_bound_arguments_have_defaults() -> None:
    op, x = overload("aten.sum.dim_IntList"), torch.ones(2, 3)
    node, _ = node_of(op, (x, [1]), {}, op(x, [1]))
    assert bind(node) == {"self": node.args[0], "dim": (1,), "keepdim": False, "dtype": None}
