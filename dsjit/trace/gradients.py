"""What a call does to the `.grad` of tensors that existed before it.

`torch.autograd.backward` adds to `.grad`, which is no ATen call and no Python write. It runs below the recorder as all
else does, so that what it computes is recorded; what is missing is which tensors it adds to. That the graph of the
result tells: its leaves are noted, with their hooks, before the engine runs. From then on, `.grad` is an attribute
like others: a fact of the guard, an input where it is read, and an effect where it is another tensor in the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final

import torch
from torch.autograd.graph import GradientEdge

from dsjit.trace.notes import Notes
from dsjit.trace.paths import Slot

__all__ = ["GRAD", "GradientWatch", "graph_of", "is_spent", "runs_backward"]

GRAD: Final = Slot("grad")

_HOOKS: Final = (Slot("_backward_hooks"), Slot("_post_accumulate_grad_hooks"))


def runs_backward(code: object) -> bool:
    """Whether it is the code that adds to the `.grad` of tensors: `Tensor.backward` calls it, too (and
    `torch.autograd.grad`, which only returns gradients, does not)."""
    return code is torch.autograd.backward.__code__


def graph_of(roots: Iterable[Any]) -> Iterator[Any]:
    """The nodes of autograd's graph that the nodes `roots` lead to, each once, these included."""
    stack = list(dict.fromkeys(roots))
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                stack.append(following)


def is_spent(tensor: torch.Tensor) -> bool:
    """Whether a backward has freed what the graph of `tensor` kept, so that another one raises."""
    return tensor.grad_fn is not None and any(map(_is_freed, graph_of([tensor.grad_fn])))


def _is_freed(node: Any) -> bool:
    for name in _saved_names(type(node)):
        try:
            getattr(node, name)
        except RuntimeError:
            return True
    return False


@functools.cache
def _saved_names(kind: type) -> tuple[str, ...]:
    """The attributes of a node of autograd's graph that are tensors which it keeps."""
    raw = [name.removeprefix("_raw") for name in dir(kind) if name.startswith("_raw_saved_")]
    return (*raw, *(["saved_tensors"] if hasattr(kind, "saved_tensors") else []))


class GradientWatch:
    """notes: of the call. refuse: is told what keeps the call from being captured."""

    def __init__(self, notes: Notes, refuse: Callable[[str], None]) -> None:
        self._notes = notes
        self._refuse = refuse

    def meet(self, tensor: torch.Tensor) -> None:
        """The `.grad` of a tensor is about to be read or written."""
        node = self._notes.node_of(tensor)
        if node is None:
            return
        if not (tensor.is_leaf or tensor.retains_grad):
            self._refuse(f"uses the .grad of {node.path}, which is no leaf")
            return
        self._notes.note(node, GRAD, tensor.grad)

    def on_backward(self, arguments: Mapping[str, Any]) -> None:
        """`torch.autograd.backward` begins. arguments: its own, by name."""
        given = [*_listed(arguments["tensors"]), *_listed(arguments.get("inputs"))]
        tensors = [each for each in given if isinstance(each, torch.Tensor)]
        roots = [each.grad_fn for each in tensors] + [each.node for each in given if isinstance(each, GradientEdge)]
        nodes = list(graph_of(root for root in roots if root is not None))
        before = {node.obj.grad_fn for node, _ in self._notes.metadata if node.obj.requires_grad} - {None}
        if not before.isdisjoint(nodes):
            self._refuse("gradients flow out of the call, to what made its arguments")
        leaves = [each for each in tensors if each.is_leaf and each.requires_grad]
        for leaf in (*leaves, *(node.variable for node in nodes if hasattr(node, "variable"))):
            known = self._notes.node_of(leaf)
            if known is not None:
                self.meet(leaf)
                for step in _HOOKS:
                    self._notes.note(known, step, step.get(leaf))


def _listed(given: Any) -> list[Any]:
    """What an argument of one or several tensors or edges holds."""
    if given is None or isinstance(given, torch.Tensor | GradientEdge):
        return [] if given is None else [given]
    return list(given)
