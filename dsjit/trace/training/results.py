"""What a call with gradients returns and leaves behind: which tensors its autograd nodes make, and views of these.

Tensors that share memory are views of one tensor, which autograd knows (`Tensor._base`): that one is made, and each
compiled call takes the views of it anew, so that they share memory and gradients as eager's do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from dsjit.ir.graph import Value
from dsjit.ops.strided import StridedView
from dsjit.trace.effects.replay import Returned
from dsjit.trace.recording.memory import CannotTrace, RootView, tensor_type
from dsjit.trace.recording.recorder import Recorder

__all__ = ["Made", "Results", "find_results"]


@dataclass(slots=True, eq=False)
class Made:
    """A tensor that the call makes. tensor: None for a number. wanted: whether gradients flow into it."""

    value: Value
    tensor: torch.Tensor | None
    wanted: bool

    @property
    def is_leaf(self) -> bool:
        """Whether it is a parameter, so to speak: it requires a gradient, and comes of nothing."""
        return self.tensor is not None and self.tensor.requires_grad and self.tensor.grad_fn is None


@dataclass(slots=True)
class Results:
    """made: by Value. ways: for each item, where it lies: the Value of what was made or of an input, a view of it, and
    whether it is cut off from its history."""

    made: dict[Value, Made] = field(default_factory=dict)
    ways: list[_Way] = field(default_factory=list)

    def returned(self, inputs: Sequence[Value], made: Sequence[Value]) -> tuple[Returned, ...]:
        """How each item is obtained, when `inputs` and `made` are what the last program takes and gives."""
        return tuple(
            [
                Returned(way.is_input, (inputs if way.is_input else made).index(way.value), way.view, way.detached)
                for way in self.ways
            ]
        )


@dataclass(frozen=True, slots=True)
class _Way:
    is_input: bool
    value: Value
    view: StridedView | None = None
    detached: bool = False


def find_results(recorder: Recorder, items: Sequence[torch.Tensor | float]) -> Results:
    """Raises CannotTrace when what autograd knows of `items` cannot be had again."""
    found = Results()
    roots = [recorder.locate(item) for item in items]
    sharing: dict[int, list[torch.Tensor]] = {}
    for item, root in zip(items, roots, strict=True):
        if isinstance(item, torch.Tensor) and root.input is None:
            sharing.setdefault(item.untyped_storage()._cdata, []).append(item)
    for item, root in zip(items, roots, strict=True):
        if root.input is not None:
            found.ways.append(_way_to_input(recorder, item, root))
            continue
        if not isinstance(item, torch.Tensor):
            found.made[root.root] = Made(root.root, None, False)
            found.ways.append(_Way(False, root.root))
            continue
        if _is_refused(item):
            raise CannotTrace("a view is returned that autograd refuses to differentiate")
        others = sharing[item.untyped_storage()._cdata]
        found.ways.append(_way_to_made(recorder, item, root, others, found.made))
    return found


def _is_refused(item: torch.Tensor) -> bool:
    """Whether it is one of several views that one op made, of memory that was written since."""
    try:
        item.grad_fn  # noqa: B018  autograd makes it when it is asked for
    except RuntimeError:
        return True
    return False


def _way_to_input(recorder: Recorder, item: torch.Tensor | float, root: RootView) -> _Way:
    assert isinstance(item, torch.Tensor) and root.input is not None
    value = next(value for value, tensor in recorder.memory.inputs if tensor is root.input)
    if item.requires_grad and root.view is not None:
        origin = root.input._base if root.input._is_view() else root.input
        if not root.input.requires_grad or not item._is_view() or item._base is not origin:
            raise CannotTrace("the memory of an argument is returned, with other gradients than the argument's")
        if value.type.may_overlap:  # autograd gives each element that shares memory an equal part
            raise CannotTrace("a view of an argument that overlaps itself in memory is returned with gradients")
        if item.dtype is not root.input.dtype:
            raise CannotTrace("a view of an argument as another dtype is returned with gradients")
    return _Way(True, value, root.view, root.input.requires_grad and not item.requires_grad)


def _way_to_made(
    recorder: Recorder, item: torch.Tensor, root: RootView, others: Sequence[torch.Tensor], made: dict[Value, Made]
) -> _Way:
    """others: all items on the same memory, this one included."""
    memory = recorder.memory
    alone = all(other is item for other in others)
    if alone and not (item.requires_grad and tensor_type(item).may_overlap):
        value = memory.read(item)
        made.setdefault(value, Made(value, item, item.requires_grad))
        return _Way(False, value)
    bases = {id(base): base for base in (each if each._base is None else each._base for each in others)
             if base.requires_grad}  # fmt: skip
    if not bases:
        made.setdefault(root.root, Made(root.root, None, False))
        return _Way(False, root.root, root.view)
    (base, *more) = bases.values()
    whole = memory.locate(base)
    if more or whole.root is not root.root or whole.root.type != tensor_type(base) or base.grad_fn is None:
        raise CannotTrace("results that require gradients share memory")
    if whole.root.type.may_overlap:
        raise CannotTrace("a result that requires a gradient overlaps itself in memory")
    made.setdefault(whole.root, Made(whole.root, base, True))
    if item is base:
        return _Way(False, whole.root)
    if item.dtype is not base.dtype:
        raise CannotTrace("results that require gradients share memory, as different dtypes")
    offset = 0 if root.view is None else root.view[2]
    view = (tuple(item.shape), item.stride(), offset)
    return _Way(False, whole.root, view, not item.requires_grad)
