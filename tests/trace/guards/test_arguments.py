"""Arguments: which later calls a guard passes, by their structure, tensors and constants."""

from __future__ import annotations

import dataclasses
import enum
import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from tests.trace.cases import ONES, Box, trace


class Mode(enum.Enum):
    A = 1
    B = 2


class Point(NamedTuple):
    a: Any
    b: Any


@dataclasses.dataclass
class Batch:
    x: torch.Tensor
    scale: float = 2.0


def _use(*args: Any, **kwargs: Any) -> None:
    """Reads its arguments' structure only."""


NAN = math.nan
ARGUMENTS: list[tuple[str, tuple[Any, ...], tuple[Any, ...], bool]] = [
    ("same tensor", (ONES,), (ONES,), True),
    ("another tensor", (ONES,), (torch.zeros(2, 3),), True),
    ("another offset", (torch.ones(4)[:2],), (torch.ones(4)[2:],), True),
    ("another shape", (ONES,), (torch.ones(3, 2),), False),
    ("another dtype", (ONES,), (ONES.double(),), False),
    ("other strides", (ONES,), (torch.ones(3, 2).t(),), False),
    ("a parameter", (ONES,), (nn.Parameter(ONES),), False),
    ("gradient wanted", (ONES,), (torch.ones(2, 3, requires_grad=True),), False),
    ("conjugated", (torch.ones(2, dtype=torch.complex64),), (torch.ones(2, dtype=torch.complex64).conj(),), False),
    ("no tensor", (ONES,), (1,), False),
    ("one more", (ONES,), (ONES, ONES), False),
    ("one tensor twice", (ONES, ONES), (ONES, ONES), True),
    ("two tensors where one was twice", (ONES, ONES), (ONES, torch.ones(2, 3)), False),
    ("one tensor twice where two were", (ONES, torch.ones(2, 3)), (ONES, ONES), False),
    ("int", (ONES, 3), (ONES, 3), True),
    ("another int", (ONES, 3), (ONES, 4), False),
    ("1 for True", (ONES, True), (ONES, 1), False),
    ("True for 1", (ONES, 1), (ONES, True), False),
    ("1.0 for 1", (ONES, 1), (ONES, 1.0), False),
    ("float", (ONES, 0.5), (ONES, 1.0 / 2), True),
    ("-0.0 for 0.0", (ONES, 0.0), (ONES, -0.0), False),
    ("NaN", (ONES, NAN), (ONES, float("nan")), True),
    ("-0j for 0j", (ONES, complex(0.0, 0.0)), (ONES, complex(0.0, -0.0)), False),
    ("string", (ONES, "mean"), (ONES, "".join(["me", "an"])), True),
    ("another string", (ONES, "mean"), (ONES, "sum"), False),
    ("None", (ONES, None), (ONES, None), True),
    ("0 for None", (ONES, None), (ONES, 0), False),
    ("dtype", (ONES, torch.float32), (ONES, torch.float64), False),
    ("slice", (ONES, slice(1, 2)), (ONES, slice(1, 2)), True),
    ("another slice", (ONES, slice(1, 2)), (ONES, slice(True, 2)), False),
    ("list", ([ONES, [3]],), ([torch.zeros(2, 3), [3]],), True),
    ("another list", ([ONES, [3]],), ([ONES, [4]],), False),
    ("longer list", ([ONES],), ([ONES, 3],), False),
    ("tuple for list", ([ONES],), ((ONES,),), False),
    ("dictionary", ({"x": ONES, "n": 2},), ({"x": torch.zeros(2, 3), "n": 2},), True),
    ("another order", ({"x": ONES, "n": 2},), ({"n": 2, "x": ONES},), False),
    ("another key", ({"x": ONES},), ({"y": ONES},), False),
    ("named tuple", (Point(ONES, 1),), (Point(torch.zeros(2, 3), 1),), True),
    ("another named tuple", (Point(ONES, 1),), (Point(ONES, 2),), False),
    ("tuple for named tuple", (Point(ONES, 1),), ((ONES, 1),), False),
    ("frozenset", (frozenset({1, 2}),), (frozenset({2, 1}),), True),
    ("equal frozenset", (frozenset({1}),), (frozenset({True}),), False),
    ("enum", (Mode.A,), (Mode.B,), False),
    ("class", (Box,), (Batch,), False),
]


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize(("first", "then", "passes"), [case[1:] for case in ARGUMENTS], ids=[c[0] for c in ARGUMENTS])
def test_arguments(first: tuple[Any, ...], then: tuple[Any, ...], passes: bool, native: bool) -> None:
    guard = trace(_use, *first, native=native)
    for _ in range(3):
        assert (guard.check(then, {}) is not None) is passes
    assert (guard.why_not(then, {}) is None) is passes


def test_keyword_arguments() -> None:
    guard = trace(_use, x=ONES, n=2)
    assert guard.check((), {"x": torch.zeros(2, 3), "n": 2}) is not None
    assert guard.check((), {"x": ONES, "n": 3}) is None
    assert guard.check((), {"x": ONES}) is None
    assert guard.check((ONES,), {"n": 2}) is None


def test_a_dataclass_argument_is_guarded_by_what_was_read() -> None:
    guard = trace(lambda batch: batch.x * batch.scale, Batch(ONES))
    other = torch.zeros(2, 3)
    for _ in range(3):
        assert guard.check((Batch(other),), {}) == (other,)
        assert guard.check((Batch(ONES, 3.0),), {}) is None
    assert guard.why_not((Batch(ONES, 3.0),), {}) == "args[0].scale: was 2.0, now 3.0"
