"""Records the backward of a traced call, by walking the autograd graph that the call left.

The walk does what autograd's engine does (torch/csrc/autograd/engine.cpp): nodes run when all gradients that flow into
them are there, those that were made last first; gradients that meet are added in the order in which they arrive; they
are summed to the shape and converted to the dtype of what they are the gradient of. It stops at the inputs of the
traced function. It calls the nodes, not the engine: hooks of the user's do not run, nothing is freed, and no `.grad`
is touched. What the nodes compute is recorded as the forward was.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import get_gradient_edge

from dsjit.ir.graph import UNKNOWN_SOURCE
from dsjit.trace.recording.memory import CannotTrace
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.training.functions import run_function_backward

__all__ = ["walk_backward"]

NOBODY: Final = -1
"""In place of an input's number."""


def walk_backward(
    recorder: Recorder,
    results: Sequence[torch.Tensor],
    tangents: Sequence[torch.Tensor],
    inputs: Sequence[torch.Tensor],
) -> list[torch.Tensor | None]:
    """The gradients of `inputs` (None where none flows), given the gradients `tangents` of `results`.

    To be called while `recorder` is active. Raises CannotTrace.
    """
    walk = _Walk(recorder, len(results) == 1)
    for number, tensor in enumerate(inputs):
        if tensor.requires_grad:
            edge = get_gradient_edge(tensor)
            walk.ends[edge.node, edge.output_nr] = number
    edges = [get_gradient_edge(result) for result in results]
    walk.count_dependencies([edge.node for edge in edges])
    for edge, tangent in zip(edges, tangents, strict=True):
        walk.receive(edge.node, edge.output_nr, tangent)
    for node in dict.fromkeys(edge.node for edge in edges):
        walk.enqueue_if_ready(node)
    walk.run()
    return [walk.gradients.get(number) for number in range(len(inputs))]


@dataclass(slots=True)
class _Walk:
    """alone: whether one result is differentiated. ends: the edges where the walk stops, with the number of the input.
    buffers: what flowed into a node."""

    recorder: Recorder
    alone: bool
    ends: dict[tuple[Any, int], int] = field(default_factory=dict)
    gradients: dict[int, torch.Tensor] = field(default_factory=dict)
    dependencies: dict[Any, int] = field(default_factory=dict)
    buffers: dict[Any, list[torch.Tensor | None]] = field(default_factory=dict)
    ready: list[tuple[int, int, Any]] = field(default_factory=list)
    arrival: Iterator[int] = field(default_factory=itertools.count)

    def count_dependencies(self, roots: Sequence[Any]) -> None:
        """How many edges lead to each node that the walk will come to."""
        stack = list(dict.fromkeys(roots))
        seen = set(stack)
        for root in stack:
            self.dependencies.setdefault(root, 0)
        while stack:
            node = stack.pop()
            for following, number in node.next_functions:
                if following is None or (following, number) in self.ends:
                    continue
                if hasattr(following, "variable"):
                    self._end_at(following, number)
                    continue
                self.dependencies[following] = self.dependencies.get(following, 0) + 1
                if following not in seen:
                    seen.add(following)
                    stack.append(following)

    def _end_at(self, leaf: Any, number: int) -> None:
        """The walk comes to a tensor that was made in the call, and that nobody has any more: the gradient is lost."""
        if self.recorder.memory.lookup(leaf.variable) is None:
            raise CannotTrace("gradients flow to a tensor of unknown origin")
        self.ends[leaf, number] = NOBODY

    def receive(self, node: Any, number: int, gradient: torch.Tensor) -> None:
        buffer = self.buffers.get(node)
        if buffer is None:
            buffer = self.buffers[node] = [None] * len(node._input_metadata)
        before = buffer[number]
        buffer[number] = gradient if before is None else before + gradient

    def enqueue_if_ready(self, node: Any) -> None:
        if self.dependencies[node] == 0:
            heapq.heappush(self.ready, (-node._sequence_nr(), next(self.arrival), node))

    def run(self) -> None:
        while self.ready:
            _, _, node = heapq.heappop(self.ready)
            self.recorder.at = self.recorder.forward_sources.get(node._sequence_nr(), UNKNOWN_SOURCE)
            buffer = self.buffers.pop(node, None)
            flowing: Sequence[torch.Tensor | None] = ()
            if buffer is not None:
                if isinstance(node, BackwardCFunction):
                    flowing = run_function_backward(node, buffer, self.alone)
                else:
                    made = node(*buffer)
                    flowing = made if isinstance(made, tuple) else (made,)
            self._hand_on(node, flowing)

    def _hand_on(self, node: Any, flowing: Sequence[torch.Tensor | None]) -> None:
        """Give each of the node's gradients to where it belongs; without any, only let the others know."""
        for index, (following, number) in enumerate(node.next_functions):
            if following is None:
                continue
            gradient = flowing[index] if flowing else None
            end = self.ends.get((following, number))
            if gradient is not None:
                gradient = _conform(gradient, following._input_metadata[number])
                if end is None:
                    self.receive(following, number, gradient)
                else:
                    before = self.gradients.get(end)
                    self.gradients[end] = gradient if before is None else before + gradient
            if end is None:
                self.dependencies[following] -= 1
                self.enqueue_if_ready(following)


def _conform(gradient: torch.Tensor, metadata: Any) -> torch.Tensor:
    """As `validate_outputs` of the engine does."""
    if gradient.shape != metadata.shape:
        gradient = gradient.sum_to_size(metadata.shape)
    return gradient if gradient.dtype is metadata.dtype else gradient.to(metadata.dtype)
