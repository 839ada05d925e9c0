"""Graphs for many sizes: what Graphs of the same ops have in common, and the Graph for any sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dsjit.ir.graph import Arg, Graph, Node, TensorType, Value, map_values
from dsjit.ir.polynomial import Polynomial, PolynomialFit, Quotient, quotients_of
from dsjit.ir.probes import LOWEST, probe_points
from dsjit.ir.template import Mismatch, Template, TemplateMaker, fill

__all__ = ["GraphTemplate", "integers_in", "make_graph_template"]


@dataclass(frozen=True, slots=True)
class GraphTemplate:
    """A Graph whose sizes are polynomials.

    example: one of the Graphs that it was made from. sizes: the open sizes of `structure`.
    inputs: the types of the inputs, with open sizes.
    """

    example: Graph
    structure: Template
    inputs: tuple[Template, ...]
    sizes: tuple[Polynomial, ...]

    def at(self, point: Sequence[int]) -> Graph:
        """The Graph for these sizes."""
        numbers = [polynomial.at(point) for polynomial in self.sizes]
        return _build(self.example, fill(self.structure, numbers))

    def rewritten(self, typical: Sequence[int], rewrite: Callable[[Graph], Graph]) -> GraphTemplate:
        """The template of what `rewrite` makes of the Graphs, which has to do the same for all sizes. typical: sizes to
        expect. Raises Mismatch."""
        fit = self.probes(typical)
        return make_graph_template([rewrite(self.at(point)) for point in fit.points], TemplateMaker(fit))

    def probes(self, typical: Sequence[int], lowest: int = LOWEST) -> PolynomialFit:
        """Choices of sizes, by which a compiler of Graphs is probed: near `typical`, or from `lowest` on where that is
        more. Raises Mismatch when there are too few."""
        points = probe_points(typical, integers_in(self.example), self.sizes, lowest)
        if points is None:
            raise Mismatch("sizes that are divided cannot be told apart")
        return PolynomialFit(points, self.quotients)

    @property
    def quotients(self) -> tuple[Quotient, ...]:
        """Rounded quotients of sizes, on which others depend."""
        return quotients_of(self.sizes)

    @property
    def variables(self) -> frozenset[int]:
        """The numbers of the sizes that the Graph depends on."""
        return frozenset().union(*[polynomial.variables for polynomial in self.sizes])

    def only(self, variables: Sequence[int]) -> GraphTemplate:
        """The same in other names, as `Polynomial.only` has it."""
        return replace(self, sizes=tuple([polynomial.only(variables) for polynomial in self.sizes]))

    def canonical(self) -> tuple[Graph, ...]:
        """Graphs for sizes that are the same for each template: templates are equal when these are."""
        count = max(self.variables, default=-1) + 1
        # No size is an affine form of another one at all points, and remainders differ.
        rows = ((911, 172, 31), (2012, 397, 17), (3013, 611, 7))
        return tuple([self.at([a + b * n + c * n * n for n in range(count)]) for a, b, c in rows])

    def input_types(self, point: Sequence[int]) -> tuple[TensorType, ...]:
        """The types of the inputs for these sizes."""
        numbers = [polynomial.at(point) for polynomial in self.sizes]
        return tuple([fill(template, numbers) for template in self.inputs])


def make_graph_template(graphs: Sequence[Graph], maker: TemplateMaker) -> GraphTemplate:
    """The template of Graphs that were recorded at the points of `maker.fit`, in that order.

    Raises Mismatch when they differ in more than sizes.
    """
    references: dict[int, _Reference] = {}
    definitions: dict[tuple[int, TensorType], tuple[int, TensorType]] = {}
    structure = maker.make([_Flat(graph, references, definitions).structure(graphs[0]) for graph in graphs])
    inputs = [maker.make([graph.inputs[number].type for graph in graphs]) for number in range(len(graphs[0].inputs))]
    return GraphTemplate(graphs[0], structure, tuple(inputs), tuple(maker.sizes))


def integers_in(graph: Graph) -> frozenset[int]:
    """Every integer among the sizes, strides and arguments of a Graph."""
    found: set[int] = set()

    def collect(arg: Arg) -> None:
        if isinstance(arg, tuple):
            for item in arg:
                collect(item)
        elif type(arg) is int:
            found.add(arg)

    for value in (*graph.inputs, *graph.constants):
        found.update(value.type.shape, value.type.strides)
    for node in graph.nodes:
        collect((node.args, tuple(node.kwargs.values())))
        for value in node.outputs:
            found.update(value.type.shape, value.type.strides)
    return frozenset(found)


class _Reference:
    """Stands for the Value that is defined as number `number`. One object for each number.

    No dataclass: numbers of Values that differ are another Graph, and no size, whatever polynomial has them.
    """

    __slots__ = ("number",)

    def __init__(self, number: int) -> None:
        self.number = number

    def __repr__(self) -> str:
        return f"value {self.number}"


@dataclass(slots=True)
class _Flat:
    """A Graph as tuples. references, definitions: one object for all that are equal, of any of the Graphs."""

    graph: Graph
    references: dict[int, _Reference]
    definitions: dict[tuple[int, TensorType], tuple[int, TensorType]]
    numbers: dict[Value, int] = field(default_factory=dict)

    def structure(self, first: Graph) -> tuple[Any, ...]:
        """first: the Graph whose sources are taken."""
        graph = self.graph
        inputs = tuple([self._define(value) for value in graph.inputs])
        constants = tuple([(self._define(value), tensor) for value, tensor in graph.constants.items()])
        nodes = tuple([self._node(node) for node in graph.nodes])
        outputs = tuple([self._refer(value) for value in graph.outputs])
        writes = tuple([(self._refer(write.target), self._refer(write.value)) for write in graph.writes])
        return inputs, constants, nodes, outputs, writes

    def _node(self, node: Node) -> tuple[Any, ...]:
        args = tuple([map_values(arg, self._refer) for arg in node.args])
        kwargs = tuple([(name, map_values(arg, self._refer)) for name, arg in node.kwargs.items()])
        outputs = tuple([self._define(value) for value in node.outputs])
        return node.op, args, kwargs, outputs, node.mutates, node.effect

    def _define(self, value: Value) -> tuple[int, TensorType]:
        self.numbers[value] = len(self.numbers)
        definition = value.id, value.type
        return self.definitions.setdefault(definition, definition)

    def _refer(self, value: Value) -> _Reference:
        number = self.numbers[value]
        return self.references.setdefault(number, _Reference(number))


def _build(example: Graph, structure: tuple[Any, ...]) -> Graph:
    values: list[Value] = []

    def define(described: tuple[int, TensorType]) -> Value:
        values.append(Value(*described))
        return values[-1]

    def resolve(arg: Arg) -> Arg:
        if isinstance(arg, _Reference):
            return values[arg.number]
        return tuple([resolve(item) for item in arg]) if isinstance(arg, tuple) else arg

    described_inputs, described_constants, described_nodes, outputs, described_writes = structure
    inputs = tuple([define(value) for value in described_inputs])
    constants: Mapping[Value, torch.Tensor] = {define(value): tensor for value, tensor in described_constants}
    nodes: list[Node] = []
    for node, (op, args, kwargs, made, mutates, effect) in zip(example.nodes, described_nodes, strict=True):
        resolved = tuple([resolve(arg) for arg in args])
        named = {name: resolve(arg) for name, arg in kwargs}
        nodes.append(Node(op, resolved, named, tuple([define(v) for v in made]), node.source, mutates, effect))
    writes = tuple(
        [
            replace(write, target=resolve(target), value=resolve(value))
            for write, (target, value) in zip(example.writes, described_writes, strict=True)
        ]
    )
    results = tuple([resolve(value) for value in outputs])
    donated = frozenset([own for own, value in zip(inputs, example.inputs, strict=True) if value in example.donated])
    return Graph(inputs, tuple(nodes), results, writes, constants, example.name, donated)
