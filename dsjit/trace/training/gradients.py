"""What a call does to the `.grad` of tensors that existed before it.

`torch.autograd.backward` adds to `.grad`, which is no ATen call and no Python write. It runs below the recorder as all
else does, so that what it computes is recorded; what is missing is which tensors it adds to. That the graph of the
result tells: its leaves are noted, with their hooks, before the engine runs. From then on, `.grad` is an attribute
like others: a fact of the guard, an input where it is read, and an effect where it is another tensor in the end.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Set
from typing import Any, Final

import torch
from torch.autograd.graph import GradientEdge, get_gradient_edge

from dsjit.trace.reads.notes import Notes
from dsjit.trace.reads.paths import Slot

__all__ = ["GRAD", "BackwardInThisThread", "GradientWatch", "graph_of", "is_spent", "keeps_tensors", "runs_backward"]

GRAD: Final = Slot("grad")

_HOOKS: Final = (Slot("_backward_hooks"), Slot("_post_accumulate_grad_hooks"))


class BackwardInThisThread:
    """While it is entered, autograd's engine runs all nodes in the thread that calls it. Those of a GPU have a thread
    of their own otherwise, where nobody watches what hooks and functions of the user's read."""

    def __enter__(self) -> None:
        self._before = torch._C._is_multithreading_enabled()
        torch._C._set_multithreading_enabled(False)

    def __exit__(self, *error: object) -> None:
        torch._C._set_multithreading_enabled(self._before)


def runs_backward(code: object) -> bool:
    """Whether it is the code that runs the engine: of `torch.autograd.grad`, which only returns gradients, or of what
    adds them to `.grad` (`Tensor.backward` calls that, too)."""
    return code in (_BACKWARD_CODE, _GRAD_CODE)


_BACKWARD_CODE: Final = torch.autograd.backward.__code__
_GRAD_CODE: Final = torch.autograd.grad.__code__


def graph_of(roots: Iterable[Any], stops: Set[Any] = frozenset()) -> dict[Any, None]:
    """The nodes of autograd's graph that the nodes `roots` lead to, these included; but not those behind `stops`."""
    stack = [root for root in dict.fromkeys(roots) if root is not None]
    seen = dict.fromkeys(stack)
    while stack:
        node = stack.pop()
        for following, _ in () if node in stops else node.next_functions:
            if following is not None and following not in seen:
                seen[following] = None
                stack.append(following)
    return seen


def is_spent(tensor: torch.Tensor, freed: Set[Any]) -> bool:
    """Whether the graph of `tensor` has nodes whose memory is freed, so that a backward through it raises."""
    return bool(freed) and tensor.grad_fn is not None and not freed.isdisjoint(graph_of([tensor.grad_fn]))


def keeps_tensors(node: Any) -> bool:
    """Whether a node of autograd's graph keeps tensors, so that it can run only once unless the graph is retained."""
    for name in _saved_names(node.__class__):
        try:
            kept = getattr(node, name)
        except RuntimeError:  # written to since, or freed
            return True
        if isinstance(kept, torch.Tensor) or (isinstance(kept, tuple) and kept):
            return True
    return False


@functools.cache
def _saved_names(kind: type) -> tuple[str, ...]:
    """The attributes of a node of autograd's graph that are tensors which it keeps."""
    if hasattr(kind, "saved_tensors"):  # of a function of the user's
        return ("saved_tensors",)
    return tuple([name.removeprefix("_raw") for name in dir(kind) if name.startswith("_raw_saved_")])


class GradientWatch:
    """notes: of the call. refuse: is told what keeps the call from being captured.

    freed: nodes of autograd's graph that ran, and let go of the tensors that they had kept.
    """

    def __init__(self, notes: Notes, refuse: Callable[[str], None]) -> None:
        self._notes = notes
        self._refuse = refuse
        self.freed: set[Any] = set()

    def meet(self, tensor: torch.Tensor) -> None:
        """The `.grad` of a tensor is about to be read or written."""
        node = self._notes.node_of(tensor)
        if node is None:
            return
        if not (tensor.is_leaf or tensor.retains_grad):
            self._refuse(f"uses the .grad of {node.path}, which is no leaf")
            return
        self._notes.note(node, GRAD, tensor.grad)

    def on_backward(self, code: object, arguments: Mapping[str, Any]) -> None:
        """The engine is about to run for `code` (see `runs_backward`). arguments: its own, by name."""
        accumulates = code is _BACKWARD_CODE
        results = _listed(arguments["tensors" if accumulates else "outputs"])
        if any(
            isinstance(each, torch.Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(each) for each in results
        ):
            return  # a transform (`torch.func.grad`) differentiates what it has made itself
        inputs = _listed(arguments.get("inputs"))
        nodes = graph_of(map(_node_of, results))
        running = _leading_to(nodes, [_node_of(each) for each in inputs]) if inputs else nodes
        if not (arguments["create_graph"] if arguments["retain_graph"] is None else arguments["retain_graph"]):
            self.freed.update(node for node in running if _saved_names(node.__class__))
        if not accumulates:
            return
        before = {node.obj.grad_fn for node, _ in self._notes.metadata if node.obj.requires_grad} - {None}
        if not before.isdisjoint(nodes):
            self._refuse("gradients flow out of the call, to what made its arguments")
        given = [each for each in (*results, *inputs) if isinstance(each, torch.Tensor) and each.requires_grad]
        for leaf in (*given, *(node.variable for node in nodes if hasattr(node, "variable"))):
            known = self._notes.node_of(leaf)
            if known is not None:
                self.meet(leaf)
                for step in _HOOKS:
                    self._notes.note(known, step, step.get(leaf))


def _node_of(given: Any) -> Any:
    """The node of autograd's graph that a tensor or an edge belongs to; None for a tensor without."""
    if isinstance(given, GradientEdge):
        return given.node
    return get_gradient_edge(given).node if given.requires_grad else None


def _leading_to(nodes: Iterable[Any], ends: Iterable[Any]) -> set[Any]:
    """Those of `nodes` from which the graph leads to one of `ends`, these left out: they do not run."""
    before: dict[Any, list[Any]] = {}
    for node in nodes:
        for following, _ in node.next_functions:
            before.setdefault(following, []).append(node)
    stack, found = list(ends), set()
    while stack:
        for node in before.get(stack.pop(), ()):
            if node not in found:
                found.add(node)
                stack.append(node)
    return found


def _listed(given: Any) -> list[Any]:
    """What an argument of one or several tensors or edges holds."""
    if given is None or isinstance(given, torch.Tensor | GradientEdge):
        return [] if given is None else [given]
    return list(given)
