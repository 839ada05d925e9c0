"""Compares outputs: with eager's within a tolerance, and with a float64 reference by the size of the error."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from benchmarks.workloads.workload import Case, Tolerance, cast

__all__ = ["Comparison", "Float64Arithmetic", "compare", "in_float64", "tensors"]


class Float64Arithmetic(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs every ATen call below it in float64, the casts to float32, bfloat16 and float16 in the program included.

    Models that compute their norms and softmaxes in float32 whatever their dtype would otherwise be no reference.
    """

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        args, kwargs = tree_map(_widen, (args, kwargs or {}))
        return func(*args, **kwargs)


def _widen(leaf: object) -> object:
    if isinstance(leaf, torch.dtype):
        return torch.float64 if leaf.is_floating_point else leaf
    return cast(leaf, torch.float64) if isinstance(leaf, Tensor) else leaf


def in_float64(case: Case) -> Any:
    """The result of `case` on copies of its module and arguments in float64 arithmetic."""
    program, arguments = copy.deepcopy((case.program, case.arguments))
    program = cast(program, torch.float64)
    with Float64Arithmetic():  # type: ignore[no-untyped-call]
        return program(*tree_map(_widen, arguments))


def tensors(value: object, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in a result with its path: containers, mappings, and attributes of other objects (KV caches).

    Python's numbers count as tensors of no dimension.
    """
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, (bool, int, float)):
        yield path, torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else None)
    elif isinstance(value, Mapping):
        for key in value:
            yield from tensors(value[key], f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from tensors(item, f"{path}[{index}]")
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        for name, item in vars(value).items():
            yield from tensors(item, f"{path}.{name}")


@dataclass(frozen=True, slots=True)
class Comparison:
    """One result against eager's and against float64.

    `outputs` is the number of tensors; `equal` says that each has eager's path, shape, dtype and strides' order, that
    floating ones are within the tolerance (NaN and infinities alike) and that others are identical; `worst` is the
    largest |y' - y| / max|y|. `error` and `eager_error` are root mean square distances from the float64 reference
    relative to its root mean square, the largest over the outputs; `maximum` ones are relative to max|reference|.
    """

    outputs: int
    equal: bool
    bitwise: bool
    worst: float
    error: float
    eager_error: float
    maximum_error: float
    eager_maximum_error: float

    @property
    def as_precise_as_eager(self) -> bool:
        return self.error <= self.eager_error * ERROR_ALLOWANCE


ERROR_ALLOWANCE = 1.05
"""Two results that are rounded differently have errors that differ by chance: a mean error up to 5 % above eager's is
counted as the same."""


def compare(actual: object, expected: object, reference: object, tolerance: Tolerance) -> Comparison:
    """Compare the result `actual` with eager's `expected` and the float64 `reference` of the same structure."""
    actual_tensors, expected_tensors = list(tensors(actual)), list(tensors(expected))
    same_structure = [(path, _layout(t)) for path, t in actual_tensors] == [
        (path, _layout(t)) for path, t in expected_tensors
    ]
    if not same_structure:
        infinity = float("inf")
        return Comparison(len(expected_tensors), False, False, infinity, infinity, 0.0, infinity, 0.0)
    equal = bitwise = True
    worst = error = eager_error = maximum = eager_maximum = 0.0
    for (_, a), (_, b), (_, r) in zip(actual_tensors, expected_tensors, tensors(reference), strict=True):
        identical = torch.equal(_bits(a), _bits(b))
        bitwise &= identical
        if not b.is_floating_point():
            equal &= identical
            continue
        wide_a, wide_b, wide_r = a.double(), b.double(), r.double()
        scale = _largest(wide_b)
        equal &= torch.allclose(
            wide_a, wide_b, rtol=tolerance.relative, atol=tolerance.absolute * scale, equal_nan=True
        )
        worst = max(worst, _largest(wide_a - wide_b) / (scale or 1.0))
        norm, reference_scale = _mean_square(wide_r) or 1.0, _largest(wide_r) or 1.0
        error = max(error, _mean_square(wide_a - wide_r) / norm)
        eager_error = max(eager_error, _mean_square(wide_b - wide_r) / norm)
        maximum = max(maximum, _largest(wide_a - wide_r) / reference_scale)
        eager_maximum = max(eager_maximum, _largest(wide_b - wide_r) / reference_scale)
    return Comparison(len(expected_tensors), equal, bitwise, worst, error, eager_error, maximum, eager_maximum)


def _layout(t: Tensor) -> tuple[torch.dtype, torch.Size, torch.device]:
    return t.dtype, t.shape, t.device


def _bits(t: Tensor) -> Tensor:
    return t.contiguous().view(torch.uint8) if t.dim() else t.reshape(1).view(torch.uint8)


def _largest(t: Tensor) -> float:
    return float(t.abs().nan_to_num(0.0, 0.0).max()) if t.numel() else 0.0


def _mean_square(t: Tensor) -> float:
    return float(t.nan_to_num(0.0, 0.0, 0.0).square().mean().sqrt()) if t.numel() else 0.0
