"""Whether the two halves of a training call fit: what the forward keeps, and what the backward computes again of it.

The joint Graph, as it was before it was cut apart, runs on the inputs of the forward; each tensor that the forward
keeps, and each Value that the backward's Graph computes, must be what it was there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.oracle.checked import FaultFound
from dsjit.oracle.fault import CompiledGraph, Fault, FaultKind
from dsjit.oracle.reference import Reference, run_with_precision
from dsjit.passes.partition import Partition
from dsjit.passes.reference import evaluate_node

__all__ = ["TrainingCheck"]


@dataclass(frozen=True, slots=True)
class TrainingCheck:
    """joint, partition: which both halves were made of."""

    joint: JointGraph
    partition: Partition

    def __call__(
        self, compiled: CompiledGraph, inputs: Sequence[torch.Tensor], state: torch.Tensor, kept: Sequence[torch.Tensor]
    ) -> None:
        """Raises FaultFound. compiled: the forward. inputs: of it, before it wrote to any. state: of the random
        generator then. kept: what it kept, in the order of the partition."""
        now = generator_state()
        try:
            set_generator_state(state)
            fault = self._fault(inputs, kept)
        finally:
            set_generator_state(now)
        if fault is not None:
            raise FaultFound(fault, compiled, tuple(inputs))

    def _fault(self, inputs: Sequence[torch.Tensor], kept: Sequence[torch.Tensor]) -> Fault | None:
        graph = self.joint.graph
        generator = torch.Generator().manual_seed(0)
        tangents = [
            torch.randn(value.type.shape, generator=generator).to(value.type.dtype)
            for value in graph.inputs[self.joint.primals :]
        ]
        expected = run_with_precision(graph, [*inputs, *tangents])
        tensors = dict(zip(self.partition.kept, kept, strict=True))
        for value, tensor in tensors.items():
            if value in expected.eager and not expected.accepts(value, tensor):
                return self._told("memory", "of what is kept", value, "what is kept for the backward is not its result")
        return self._recomputed(expected, tensors)

    def _recomputed(self, expected: Reference, kept: Mapping[Value, torch.Tensor]) -> Fault | None:
        """The first op of the backward's Graph that gives something else than it did in the joint Graph.

        kept: what is not in the joint Graph itself was brought into another form for the backward, which undoes that.
        """
        backward = self.partition.backward
        found = {value: expected.eager[value] if value in expected.eager else kept[value] for value in backward.inputs}
        found |= dict(backward.constants)
        for node in backward.nodes:
            found.update(zip(node.outputs, evaluate_node(node, found), strict=True))
            for value in node.outputs:
                if value in expected.eager and not expected.accepts(value, found[value]):
                    text = "the backward computes it again, and finds something else than the forward did"
                    return self._told("pass", "partition", value, text)
        return None

    def _told(self, kind: FaultKind, name: str, value: Value, text: str) -> Fault:
        node = self.joint.graph.producers().get(value)
        if node is None:
            return Fault(kind, name, "an input", UNKNOWN_SOURCE, text)
        return Fault(kind, name, str(node.op), node.source, text)
