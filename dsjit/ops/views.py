"""Rows of views: the sizes and strides that each op gives its output.

Strides follow aten/src/ATen/native/TensorShape.cpp; those of `view` follow `computeStride` in ATen/TensorUtils.cpp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from dsjit.ir.graph import Arg, TensorType, contiguous_strides
from dsjit.ops.row import OpRow, View

__all__ = ["ROWS", "inferred_shape", "view_strides"]

Ints = tuple[int, ...]
Bound = Mapping[str, Arg]


def inferred_shape(shape: Ints, numel: int) -> Ints:
    """`shape` with its -1, if any, replaced so that it holds `numel` elements."""
    if -1 not in shape:
        return shape
    known = 1
    for size in shape:
        if size != -1:
            known *= size
    return tuple(numel // known if size == -1 else size for size in shape)


def view_strides(source: TensorType, shape: Ints) -> Ints | None:
    """Strides that show the elements of `source` as `shape`, or None when no strides do.

    Runs of source dimensions that are contiguous with each other are cut into the new dimensions, from the last on.
    """
    if source.numel == 0:
        return source.strides if shape == source.shape else contiguous_strides(shape)
    strides = [0] * len(shape)
    position = len(shape) - 1
    if not source.shape:
        return (1,) * len(shape)
    base = source.strides[-1]
    run = viewed = 1
    for d in range(len(source.shape) - 1, -1, -1):
        run *= source.shape[d]
        if d and (source.shape[d - 1] == 1 or source.strides[d - 1] == run * base):
            continue
        while position >= 0 and (viewed < run or shape[position] == 1):
            strides[position] = viewed * base
            viewed *= shape[position]
            position -= 1
        if viewed != run:
            return None
        if d:
            base = source.strides[d - 1]
            run = viewed = 1
    return tuple(strides) if position == -1 else None


def _wrap(dim: int, rank: int) -> int:
    return dim + rank if dim < 0 else dim


def _viewed(source: TensorType, shape: Ints, strides: Ints) -> tuple[TensorType, ...]:
    return (replace(source, shape=shape, strides=strides),)


def _same(bound: Bound) -> tuple[TensorType, ...]:
    return (bound["self"].type,)


def _view(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    shape = inferred_shape(bound["size"], source.numel)
    strides = view_strides(source, shape)
    if strides is None:
        raise ValueError(f"a tensor of shape {source.shape} and strides {source.strides} has no view of shape {shape}")
    return _viewed(source, shape, strides)


def _reshape_alias(bound: Bound) -> tuple[TensorType, ...]:
    return _viewed(bound["self"].type, bound["size"], bound["stride"])


def _permute(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    order = [_wrap(d, len(source.shape)) for d in bound["dims"]]
    return _viewed(source, tuple(source.shape[d] for d in order), tuple(source.strides[d] for d in order))


def _swapped(source: TensorType, first: int, second: int) -> tuple[TensorType, ...]:
    order = list(range(len(source.shape)))
    order[first], order[second] = second, first
    return _viewed(source, tuple(source.shape[d] for d in order), tuple(source.strides[d] for d in order))


def _transpose(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    rank = len(source.shape)
    return _swapped(source, _wrap(bound["dim0"], rank), _wrap(bound["dim1"], rank)) if rank else (source,)


def _t(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    return _swapped(source, 0, 1) if len(source.shape) == 2 else (source,)


def _expand(bound: Bound) -> tuple[TensorType, ...]:
    """A new or stretched dimension has stride 0; a new one of size 1 has the stride that torch gives it."""
    source: TensorType = bound["self"].type
    size: Ints = bound["size"]
    if not source.shape:
        return _viewed(source, size, (0,) * len(size))
    lead = len(size) - len(source.shape)
    shape: list[int] = []
    strides: list[int] = []
    for d in range(len(size) - 1, -1, -1):
        if d >= lead:
            own, stride = source.shape[d - lead], source.strides[d - lead]
        else:
            own, stride = 1, shape[-1] * strides[-1] if shape else 1
        wanted = own if size[d] == -1 else size[d]
        shape.append(wanted)
        strides.append(stride if wanted == own else 0)
    return _viewed(source, tuple(reversed(shape)), tuple(reversed(strides)))


def _unsqueeze(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    rank = len(source.shape)
    dim = _wrap(bound["dim"], rank + 1)
    stride = source.shape[dim] * source.strides[dim] if dim < rank else 1
    return _viewed(
        source,
        (*source.shape[:dim], 1, *source.shape[dim:]),
        (*source.strides[:dim], stride, *source.strides[dim:]),
    )


def _squeeze(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    rank = len(source.shape)
    dim: int | Ints | None = bound.get("dim")
    listed = range(rank) if dim is None else (dim,) if isinstance(dim, int) else dim
    dropped = {_wrap(d, rank) for d in listed} if rank else set()
    kept = [d for d in range(rank) if d not in dropped or source.shape[d] != 1]
    return _viewed(source, tuple(source.shape[d] for d in kept), tuple(source.strides[d] for d in kept))


def _select(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    dim = _wrap(bound["dim"], len(source.shape))
    return _viewed(
        source, source.shape[:dim] + source.shape[dim + 1 :], source.strides[:dim] + source.strides[dim + 1 :]
    )


def _sliced(source: TensorType, dim: int, size: int, step: int = 1) -> TensorType:
    return replace(
        source,
        shape=(*source.shape[:dim], size, *source.shape[dim + 1 :]),
        strides=(*source.strides[:dim], source.strides[dim] * step, *source.strides[dim + 1 :]),
    )


def _slice(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    dim = _wrap(bound["dim"], len(source.shape))
    start, stop, _ = slice(bound["start"], bound["end"]).indices(source.shape[dim])
    step: int = bound["step"]
    return (_sliced(source, dim, max(0, (stop - start + step - 1) // step), step),)


def _split(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    dim = _wrap(bound["dim"], len(source.shape))
    extent, size = source.shape[dim], bound["split_size"]
    if extent == 0 or size == 0:
        return (source,)
    return tuple(_sliced(source, dim, min(size, extent - start)) for start in range(0, extent, size))


def _split_with_sizes(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    dim = _wrap(bound["dim"], len(source.shape))
    return tuple(_sliced(source, dim, size) for size in bound["split_sizes"])


def _unbind(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    return _select(bound) * source.shape[_wrap(bound["dim"], len(source.shape))]


def _diagonal(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    rank = len(source.shape)
    first, second, offset = _wrap(bound["dim1"], rank), _wrap(bound["dim2"], rank), bound["offset"]
    rows = source.shape[first] + min(offset, 0)
    columns = source.shape[second] - max(offset, 0)
    kept = [d for d in range(rank) if d not in (first, second)]
    return _viewed(
        source,
        (*(source.shape[d] for d in kept), max(0, min(rows, columns))),
        (*(source.strides[d] for d in kept), source.strides[first] + source.strides[second]),
    )


def _unfold(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    size, step = bound["size"], bound["step"]
    if not source.shape:
        return _viewed(source, (size,), (1,))
    dim = _wrap(bound["dimension"], len(source.shape))
    windows = _sliced(source, dim, (source.shape[dim] - size) // step + 1, step)
    return _viewed(source, (*windows.shape, size), (*windows.strides, source.strides[dim]))


def _as_strided(bound: Bound) -> tuple[TensorType, ...]:
    return _viewed(bound["self"].type, bound["size"], bound["stride"])


def _flip(bound: Bound) -> tuple[TensorType, ...]:
    source: TensorType = bound["self"].type
    return _viewed(source, source.shape, contiguous_strides(source.shape))


TYPES: Final[Mapping[str, Callable[[Bound], tuple[TensorType, ...]]]] = {
    "view.default": _view,
    "_unsafe_view.default": _view,
    "_reshape_alias.default": _reshape_alias,
    "alias.default": _same,
    "detach.default": _same,
    "lift_fresh.default": _same,
    "permute.default": _permute,
    "transpose.int": _transpose,
    "t.default": _t,
    "expand.default": _expand,
    "unsqueeze.default": _unsqueeze,
    "squeeze.default": _squeeze,
    "squeeze.dim": _squeeze,
    "squeeze.dims": _squeeze,
    "select.int": _select,
    "slice.Tensor": _slice,
    "split.Tensor": _split,
    "split_with_sizes.default": _split_with_sizes,
    "unbind.int": _unbind,
    "diagonal.default": _diagonal,
    "unfold.default": _unfold,
    "as_strided.default": _as_strided,
}

ROWS: Final[Mapping[str, OpRow]] = {
    **{f"aten.{name}": OpRow(f"aten.{name}", View(types)) for name, types in TYPES.items()},
    "aten.flip.default": OpRow("aten.flip.default", View(_flip, aliases=False)),
}
