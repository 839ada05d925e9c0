"""The forward and the backward of one function in a single Graph, before they are cut apart."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.polynomial import Polynomial
from dsjit.ir.template import Template, fill

__all__ = ["JointGraph", "JointTemplate"]


@dataclass(frozen=True, slots=True, eq=False)
class JointGraph:
    """graph: from the function's inputs, and gradients of its results, to its results and the gradients of its inputs.

    Inputs: `primals` tensors of the caller, then one gradient for each of `differentiated` (numbers of results).
    Outputs: `results` tensors, then gradients. gradients: for each primal, the number among those, or None;
    shapes: and the shape to which it is expanded.
    keepable: numbers of the primals, and of the results, that eager keeps for its backward. Only these may be kept
        here, too: the caller may write to the others before the backward runs.
    passed: numbers of primals that are results as well; as such they have the numbers behind `results`.
    leaves: numbers of results that require a gradient and come of nothing (they are made, say); what flows into them is
        in `gradients` behind that of the primals.
    groups: of `differentiated`, by place; those of different groups share nothing that eager keeps for the backward.
        Without any, all are one.
    """

    graph: Graph
    primals: int
    results: int
    differentiated: tuple[int, ...]
    gradients: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    keepable_primals: frozenset[int]
    keepable_results: frozenset[int]
    passed: tuple[int, ...] = ()
    leaves: tuple[int, ...] = ()
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def key(self) -> Hashable:
        """All but the Graph."""
        return self.structure, self.shapes

    @property
    def regions(self) -> tuple[int, ...]:
        """Under which checkpoints the nodes were recorded, in order; empty without any."""
        found = tuple([node.source.region for node in self.graph.nodes])
        return found if any(found) else ()

    def with_primals(self, values: tuple[Value, ...]) -> JointGraph:
        """The same with more primals behind its own, which nobody reads."""
        end, inputs, nothing = self.primals, self.graph.inputs, (None,) * len(values)
        return replace(
            self,
            graph=replace(self.graph, inputs=(*inputs[:end], *values, *inputs[end:])),
            primals=end + len(values),
            gradients=(*self.gradients[:end], *nothing, *self.gradients[end:]),
            shapes=(*self.shapes[:end], *nothing, *self.shapes[end:]),
        )

    @property
    def structure(self) -> Hashable:
        """All but the Graph and what depends on sizes."""
        return (
            self.primals, self.results, self.differentiated, self.gradients,
            self.keepable_primals, self.keepable_results, self.passed, self.leaves, self.groups,
        )  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class JointTemplate:
    """A JointGraph for many sizes.

    example: one of those that it was made from. template: of the Graph. shapes: of `JointGraph.shapes`; `sizes` are its
    open sizes. sources: where the open sizes are read, as (number of a primal, dimension).
    """

    example: JointGraph
    template: GraphTemplate
    shapes: Template
    sizes: tuple[Polynomial, ...]
    sources: tuple[tuple[int, int], ...]

    @property
    def typical(self) -> tuple[int, ...]:
        """What the open sizes were."""
        inputs = self.example.graph.inputs
        return tuple([inputs[number].type.shape[dim] for number, dim in self.sources])

    def at(self, point: Sequence[int]) -> JointGraph:
        """The JointGraph for these sizes."""
        return replace(self.example, graph=self.template.at(point), shapes=self.shapes_at(point))

    def shapes_at(self, point: Sequence[int]) -> tuple[tuple[int, ...] | None, ...]:
        """`JointGraph.shapes` for these sizes."""
        shapes: tuple[tuple[int, ...] | None, ...] = fill(self.shapes, [size.at(point) for size in self.sizes])
        return shapes

    def tangents_at(self, point: Sequence[int]) -> tuple[TensorType, ...]:
        """The types of the gradients of results for these sizes."""
        return self.template.input_types(point)[self.example.primals :]
