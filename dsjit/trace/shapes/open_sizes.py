"""Which sizes of a call's inputs are open: told by the user, or by two calls that differ in them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, TypeAlias

import torch

from dsjit.trace.looks.outcome import SMALLEST
from dsjit.trace.reads.facts import TensorOf
from dsjit.trace.reads.paths import Path

__all__ = [
    "NO_SIZES",
    "Met",
    "OpenInput",
    "OpenSizes",
    "changed_sizes",
    "chosen_sizes",
    "dense_strides",
    "resize",
    "stride_order",
]

Met: TypeAlias = Mapping[Path, TensorOf]
"""The tensors that a call read, and what they were."""


@dataclass(frozen=True, slots=True)
class OpenInput:
    """An input whose sizes are open. dims: for a dimension, the number of its size, and what is added to that.

    keeps_strides: a window on something larger, whose strides do not change; otherwise they follow from the sizes.
    """

    dims: Mapping[int, tuple[int, int]]
    keeps_strides: bool


@dataclass(frozen=True, slots=True)
class OpenSizes:
    """inputs: by path. sources: for each size, the path and the dimension that it is read from.

    typical: the sizes. before: what they were in an earlier call.
    """

    inputs: Mapping[Path, OpenInput]
    sources: tuple[tuple[Path, int], ...]
    typical: tuple[int, ...]
    before: tuple[int, ...] | None

    @property
    def smallest(self) -> tuple[int, ...]:
        """The smallest sizes that were seen."""
        return tuple(map(min, zip(self.typical, self.before or self.typical, strict=True)))

    def places(self) -> set[tuple[Path, int]]:
        """Every dimension that is open."""
        return {(path, dim) for path, opened in self.inputs.items() for dim in opened.dims}

    def only(self, number: int) -> OpenSizes:
        """Size `number` alone is open."""
        inputs: dict[Path, OpenInput] = {}
        for path, opened in self.inputs.items():
            dims = {dim: (0, shift) for dim, (which, shift) in opened.dims.items() if which == number}
            if dims:
                inputs[path] = OpenInput(dims, opened.keeps_strides)
        return OpenSizes(inputs, (self.sources[number],), (self.typical[number],), None)


NO_SIZES: Final = OpenSizes(MappingProxyType({}), (), (), None)
"""Of inputs none is open."""


def changed_sizes(before: Met, now: Met, coupled: bool) -> OpenSizes | None:
    """The sizes that differ between two calls; None when the calls differ in more, or in nothing.

    Sizes that changed alike are one. coupled: so are sizes that have a constant difference (a mask that is one longer
    than the cache). Sizes that were 0 or 1, which no program for open sizes serves, tell that they change, and no more.
    """
    if list(before) != list(now):
        return None
    table = _Table(coupled)
    comparable = True
    for path, new in now.items():
        old = before[path]
        if old == new:
            continue
        if len(old.shape) != len(new.shape) or old.strides is None or new.strides is None:
            return None
        if old.freed(_nothing(old)) != new.freed(_nothing(old)):
            return None
        changed = [dim for dim, (a, b) in enumerate(zip(old.shape, new.shape, strict=True)) if a != b]
        keeps = old.strides == new.strides
        if not changed or not (keeps or (_is_dense(old) and _is_dense(new))):
            return None
        if any((new.shape[dim] or 0) < SMALLEST for dim in changed):
            return None
        comparable = comparable and all((old.shape[dim] or 0) >= SMALLEST for dim in changed)
        table.add(path, {dim: (old.shape[dim] or 0, new.shape[dim] or 0) for dim in changed}, keeps)
    found = table.sizes()
    return found if found is None or comparable else replace(found, before=None)


def chosen_sizes(now: Met, dims: Mapping[Path, Iterable[int]]) -> OpenSizes | None:
    """The sizes of these dimensions, as far as they are 2 or more; equal ones are one size."""
    table = _Table(coupled=False)
    for path, chosen in dims.items():
        metadata = now.get(path)
        if metadata is None or metadata.strides is None or not _is_dense(metadata):
            continue
        sizes = {dim: metadata.shape[dim] or 0 for dim in chosen}
        rows = {dim: (size, size) for dim, size in sizes.items() if size >= SMALLEST}
        if rows:
            table.add(path, rows, keeps_strides=False)
    found = table.sizes()
    return None if found is None else replace(found, before=None)


def _nothing(metadata: TensorOf) -> TensorOf:
    """A pattern that leaves every size and step free."""
    free = (None,) * len(metadata.shape)
    return TensorOf(
        metadata.type, metadata.dtype, free, free, metadata.device, metadata.layout, False, False, False, None
    )


class _Table:
    """Numbers the sizes: one for each pair of an old and a new size."""

    def __init__(self, coupled: bool) -> None:
        self.coupled = coupled
        self.numbers: dict[tuple[int, int], int] = {}
        self.sources: list[tuple[Path, int]] = []
        self.typical: list[int] = []
        self.before: list[int] = []
        self.inputs: dict[Path, OpenInput] = {}

    def add(self, path: Path, dims: Mapping[int, tuple[int, int]], keeps_strides: bool) -> None:
        self.inputs[path] = OpenInput({dim: self._number(pair, path, dim) for dim, pair in dims.items()}, keeps_strides)

    def _number(self, pair: tuple[int, int], path: Path, dim: int) -> tuple[int, int]:
        if pair in self.numbers:
            return self.numbers[pair], 0
        if self.coupled:
            for (old, new), number in self.numbers.items():
                if pair[0] - old == pair[1] - new:
                    return number, pair[0] - old
        number = self.numbers[pair] = len(self.typical)
        self.sources.append((path, dim))
        self.typical.append(pair[1])
        self.before.append(pair[0])
        return number, 0

    def sizes(self) -> OpenSizes | None:
        if not self.inputs:
            return None
        return OpenSizes(self.inputs, tuple(self.sources), tuple(self.typical), tuple(self.before))


def _is_dense(metadata: TensorOf) -> bool:
    """Whether the elements fill a stretch of memory without holes or overlaps."""
    expected = 1
    for step, size in sorted(zip(metadata.strides or (), metadata.shape, strict=True), key=_by_step):
        if size != 1 and step != expected:
            return False
        expected *= size or 0
    return True


def _by_step(pair: tuple[int | None, int | None]) -> tuple[int, int]:
    step, size = pair
    return step or 0, size or 0


def resize(tensor: torch.Tensor, opened: OpenInput, point: Sequence[int]) -> torch.Tensor:
    """A copy of `tensor` whose open sizes are as `point` says; its content is cut, or repeated.

    Its strides are in the order of the tensor's; raises RuntimeError when a window would not fit into its strides.
    """
    content = tensor.detach()
    for dim, (number, shift) in opened.dims.items():
        size = max(point[number] + shift, 1)
        content = content.index_select(dim, torch.arange(size) % tensor.shape[dim])
    shape = tuple(content.shape)
    if opened.keeps_strides:
        strides = tensor.stride()
    else:
        strides = dense_strides(shape, stride_order(tensor.shape, tensor.stride()))
    copy = torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)
    return copy.copy_(content)


def stride_order(shape: Sequence[int], strides: Sequence[int]) -> tuple[int, ...]:
    """The dimensions from the innermost on; those that strides do not tell apart are in row-major order."""
    return tuple(sorted(range(len(shape)), key=lambda dim: (strides[dim], shape[dim], -dim)))


def dense_strides(shape: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """Strides without holes. order: the dimensions from the innermost on."""
    steps = [0] * len(shape)
    expected = 1
    for dim in order:
        steps[dim] = expected
        expected *= shape[dim]
    return tuple(steps)
