"""Cuts a recorded run where Python looked at data: a list of segments, each a Graph of its own.

Between two looks, what Python does is settled; at a look, the compiled run looks too, and goes on with the segment
that belongs to what it saw. A later trace that saw something else there shares the segments before it.

A segment hands on what may be needed after it: what this run used, and what the tensors hold that Python still had
in hands at the look (nothing else can be used by whatever the code does instead). Views are not handed on: they are
made again from their base. Numbers of Python's own that became traced ones are no part of a program: two segments that
hand on different ones are one program.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from dsjit.ir.graph import Graph, Node, Source, Value, Write
from dsjit.ir.structure_graph import argument_structure, constant_digest
from dsjit.ops.library import writes_over_first
from dsjit.ops.properties import is_reproducible, shares_memory
from dsjit.ops.python_numbers import compute
from dsjit.trace.looks.outcome import Outcome, OutcomeKind
from dsjit.trace.looks.python_state import PythonState
from dsjit.trace.shapes.open_shapes import OpenShapes

__all__ = ["Look", "Recording", "Segment", "State", "cut", "open_looks"]


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """Python looked at `values`, after the first `position` nodes, and saw `outcome`.

    live: what tensors held that Python could still reach. states: what is known of Python's state.
    dims: at a shape, the dimensions of each value whose sizes the content of other tensors decides, as far as is known.
    """

    position: int
    kind: OutcomeKind
    values: tuple[Value, ...]
    outcome: Outcome
    live: tuple[Value, ...]
    source: Source
    states: tuple[PythonState, ...] = ()
    dims: tuple[tuple[int, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """One whole run. inputs: the caller's tensors, in the order in which they were met."""

    name: str
    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    looks: tuple[Look, ...]
    constants: Mapping[Value, torch.Tensor]


@dataclass(frozen=True, slots=True)
class State:
    """The state of a run at a look: Python's, and how the tensors that it knows are made of what segments hand on.

    At two looks with equal keys, what comes next is the same, with the ids of the one in place of those of the other,
    when the inputs are the same. joins, outcome: see `PythonState`. inputs: their ids.
    """

    key: Hashable
    ids: tuple[int, ...]
    inputs: tuple[int, ...]
    joins: bool
    outcome: bool | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """The nodes up to a look (`look` is None after the last one), as a Graph.

    The Graph takes what the caller or earlier segments gave, and returns what later ones may want; Values are known
    by their ids from one segment to the next. drops: ids that nothing can want after this segment. states: at the look.
    sizes: which sizes of what it takes are open; None when all are those of `graph`. numbers: what it hands on besides,
    by id: each the same on every run.
    """

    graph: Graph
    look: Look | None
    drops: tuple[int, ...] = ()
    states: tuple[State, ...] = ()
    sizes: OpenShapes | None = None
    numbers: tuple[tuple[int, torch.Tensor], ...] = ()

    @property
    def reads(self) -> tuple[int, ...]:
        return tuple([value.id for value in self.graph.inputs])

    @property
    def exports(self) -> tuple[int, ...]:
        return tuple([value.id for value in self.graph.outputs])


def cut(
    recording: Recording,
    results: Iterable[Value],
    handed: Iterable[Value],
    writes: tuple[Write, ...],
    needs: Mapping[int, Iterable[Value]] = MappingProxyType({}),
) -> tuple[Segment, ...]:
    """The segments of a run, one more than it has looks that can turn out otherwise.

    results: Values that the last segment has to return, unless it is given them. handed: inputs of the run that the
    last segment needs whether or not its nodes read them. writes: what the last segment leaves in inputs.
    needs: what further segments, by number, take whether or not their nodes read it.
    """
    looks = open_looks(recording)
    if not looks:
        graph = Graph(
            recording.inputs, recording.nodes, tuple(results), writes, dict(recording.constants), recording.name
        )
        return (Segment(graph, None),)
    return _Cutter(recording, looks).cut(tuple(results), tuple(handed), writes, needs)


def open_looks(recording: Recording) -> list[Look]:
    """The looks at what depends on an input, or on chance. The others see the same on every run: library code reads
    tensors that it made itself from sizes (position ids, masks)."""
    if not recording.looks:
        return []
    varying = set(recording.inputs)
    for node in recording.nodes:
        if not is_reproducible(node) or not varying.isdisjoint(node.inputs()):
            varying.update(node.outputs)
    return [look for look in recording.looks if not varying.isdisjoint(look.values)]


def _is_number(node: Node) -> bool:
    """Whether the node makes a traced number of one of Python's."""
    return node.op is compute and not any(True for _ in node.inputs())


@dataclass(slots=True)
class _Part:
    """A segment in the making: inputs and exports as ordered sets."""

    nodes: list[Node] = field(default_factory=list)
    inputs: dict[Value, None] = field(default_factory=dict)
    exports: dict[Value, None] = field(default_factory=dict)
    local: set[Value] = field(default_factory=set)


class _Cutter:
    def __init__(self, recording: Recording, looks: Sequence[Look]) -> None:
        self.recording = recording
        self.looks = looks
        ends = [*(look.position for look in looks), len(recording.nodes)]
        starts = [0, *ends[:-1]]
        self.producer: dict[Value, Node] = {}
        self.home: dict[Value, int] = {}
        self.parts: list[_Part] = []
        for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
            for node in recording.nodes[start:end]:
                for value in node.outputs:
                    self.producer[value], self.home[value] = node, number
            self.parts.append(_Part())
        self.spans = list(zip(starts, ends, strict=True))

    def cut(
        self,
        results: tuple[Value, ...],
        handed: tuple[Value, ...],
        writes: tuple[Write, ...],
        needs: Mapping[int, Iterable[Value]],
    ) -> tuple[Segment, ...]:
        last = len(self.parts) - 1
        for number, (start, end) in enumerate(self.spans):
            part = self.parts[number]
            for node in self.recording.nodes[start:end]:
                self._place(node, part, number)
        for number, look in enumerate(self.looks):
            for value in look.values:
                self._want(value, number)
                if value not in self.parts[number].inputs:
                    self.parts[number].exports[value] = None
            for value in self._live(look):
                self._export(self._base(value))
        for value in (*results, *(write.value for write in writes)):
            self._want(value, last)
        for value in (*handed, *(write.target for write in writes)):
            self.parts[last].inputs[value] = None
        for number, values in needs.items():
            for value in values:
                self.parts[number].inputs[value] = None
                self._export(value)
        for value in results:
            if value not in self.parts[last].inputs:
                self.parts[last].exports[value] = None
        kept = {*results, *handed, *[value for write in writes for value in (write.value, write.target)]}
        segments = [
            self._segment(number, drops, self._dying(number, drops)) for number, drops in enumerate(self._drops())
        ]
        given = [value for value in self.parts[last].inputs if value in self.home and value not in kept]
        return (*segments, self._segment(last, (), given, writes))

    def _dying(self, number: int, drops: Sequence[int]) -> list[Value]:
        """What a part is given that nobody wants after it, its look included."""
        looked, dead = self.looks[number].values, frozenset(drops)
        taken = [value for value in self.parts[number].inputs if value in self.home]
        return [value for value in taken if value.id in dead and value not in looked]

    def _place(self, node: Node, part: _Part, number: int) -> None:
        for value in node.inputs():
            self._want(value, number)
        part.nodes.append(node)
        part.local.update(node.outputs)

    def _want(self, value: Value, number: int) -> None:
        """Make `value` known in part `number`: it is there, or its view is made again, or it is handed on."""
        part = self.parts[number]
        if value in part.local or value in part.inputs or value in self.recording.constants:
            return
        home = self.home.get(value)
        if home == number:
            return
        if home is not None:
            node = self.producer[value]
            if shares_memory(node.op):
                self._place(node, part, number)
                return
        part.inputs[value] = None
        self._export(value)

    def _export(self, value: Value) -> None:
        home = self.home.get(value)
        if home is not None:
            self.parts[home].exports[value] = None

    def _base(self, value: Value) -> Value:
        node = self.producer.get(value)
        while node is not None and shares_memory(node.op):
            value = next(node.inputs())
            node = self.producer.get(value)
        return value

    def _segment(
        self, number: int, drops: tuple[int, ...], dying: Iterable[Value], writes: tuple[Write, ...] = ()
    ) -> Segment:
        part = self.parts[number]
        is_last = number == len(self.looks)
        operands = {value for node in part.nodes for value in node.inputs()}
        # No others: what is of no use to a program must not tell it from an equal one.
        over = {node.args[0] for node in part.nodes if writes_over_first(node.op)}
        numbers = (
            [] if is_last else [node for node in part.nodes if _is_number(node) and node.outputs[0] not in operands]
        )
        exports = {value: None for value in part.exports if all(value not in node.outputs for node in numbers)}
        used = operands | {*exports, *(w.value for w in writes)}
        constants = {value: tensor for value, tensor in self.recording.constants.items() if value in used}
        name = f"{self.recording.name}_part{number}"
        # Sorted, so that the rounds of a loop are one program, whatever order its tensors came to be known in.
        returned = tuple(exports) if is_last else tuple(sorted(exports, key=lambda value: value.id))
        graph = Graph(
            tuple(sorted(part.inputs, key=lambda value: value.id)),
            tuple([node for node in part.nodes if node not in numbers]),
            returned,
            writes,
            constants,
            name,
            frozenset([value for value in dying if value in over and not _is_number(self.producer[value])]),
        )
        if is_last:
            return Segment(graph, None)
        look = self.looks[number]
        constant = tuple([(node.outputs[0].id, node.op(*node.args)) for node in numbers])
        return Segment(graph, look, drops, self._states(look), numbers=constant)

    def _live(self, look: Look) -> tuple[Value, ...]:
        return (*look.live, *[value for state in look.states for value in state.values])

    def _states(self, look: Look) -> tuple[State, ...]:
        found = [self._state(state, look) for state in look.states]
        return tuple([state for state in found if state is not None])

    def _state(self, state: PythonState, look: Look) -> State | None:
        bases: dict[Value, int] = {}
        inputs: dict[Value, int] = {}
        origins: list[Hashable] = []
        for value in state.values:
            # A shape that is looked at is no part of the state.
            type_ = value.type.dtype if look.kind is OutcomeKind.SHAPE and value in look.values else value.type
            views: list[Hashable] = []
            node = self.producer.get(value)
            while node is not None and shares_memory(node.op):
                base, *others = node.inputs()
                if others:
                    return None
                views.append((argument_structure(node), node.outputs.index(value)))
                value, node = base, self.producer.get(base)
            origins.append((self._origin(value, bases, inputs), type_, tuple(views)))
        ids = [tuple([value.id for value in values]) for values in (bases, inputs)]
        return State((state.key, tuple(origins)), ids[0], ids[1], state.joins, state.outcome)

    def _origin(self, value: Value, bases: dict[Value, int], inputs: dict[Value, int]) -> Hashable:
        """What is handed on and an input are told by their numbers in `bases` and `inputs`, a constant by content."""
        constant = self.recording.constants.get(value)
        if constant is not None:
            return "constant", constant_digest(constant)
        if value not in self.home:
            return "input", inputs.setdefault(value, len(inputs))
        return "handed on", bases.setdefault(value, len(bases))

    def _drops(self) -> list[tuple[int, ...]]:
        """At each look: what was handed on so far, and is wanted by no tensor alive then and no later part."""
        last_reader = {value: number for number, part in enumerate(self.parts) for value in part.inputs}
        held: dict[Value, None] = {}
        found: list[tuple[int, ...]] = []
        for number, look in enumerate(self.looks):
            held.update(self.parts[number].exports)
            live = {self._base(value) for value in self._live(look)}
            dead = [value for value in held if value not in live and last_reader.get(value, -1) <= number]
            for value in dead:
                del held[value]
            found.append(tuple([value.id for value in dead]))
        return found
