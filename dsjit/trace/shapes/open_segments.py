"""Opens the sizes of segments: what a run's segments, recorded at a few choices of sizes, have in common.

Each segment depends on some of the sizes. It reads them from the tensors that it takes, and is for all sizes at which
these tensors are as they were found to be, its sizes are 2 or more, and Python's conditions hold that were asked in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.graph_template import GraphTemplate, make_graph_template
from dsjit.ir.polynomial import Polynomial, PolynomialFit
from dsjit.ir.template import TemplateMaker
from dsjit.trace.looks.outcome import SMALLEST, OutcomeKind, open_outcome
from dsjit.trace.looks.segments import Recording, Segment, open_looks
from dsjit.trace.shapes.data_sizes import DataSizes, DynamicResult
from dsjit.trace.shapes.lockstep import Abandoned
from dsjit.trace.shapes.open_shapes import OpenShapes
from dsjit.trace.shapes.open_sizes import dense_strides
from dsjit.trace.shapes.size_rules import order_of, rounds_sizes, ruled_parts

__all__ = ["SegmentOpener", "rounds_open_sizes"]

_NAME = re.compile(r"\bs(\d+)\b")


@dataclass(frozen=True, slots=True)
class _Part:
    """A segment as it is at the points. variables: the sizes that it depends on. looked: by the look before it, whether
    the results that were looked at must be among its inputs. missing: sizes that no input has."""

    graphs: tuple[Graph, ...]
    template: GraphTemplate
    ruled: GraphTemplate
    variables: tuple[int, ...]
    looked: bool
    missing: tuple[int, ...]


class SegmentOpener:
    """points: the sizes of each run. fit: at these. places: of the sizes of inputs, the input and the dimension where
    each is read. data_sizes: the sizes after these. conditions: as in `Lockstep`. recording: of the lead.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, ...]],
        fit: PolynomialFit,
        places: Sequence[tuple[int, int]],
        data_sizes: DataSizes,
        conditions: Mapping[str, int],
        recording: Recording,
    ) -> None:
        self._points = points
        self._fit = fit
        self._places = tuple(places)
        self._looks = _dynamic_looks(recording, data_sizes, len(places))
        self._births = {
            number: (segment, place)
            for segment, results in reversed(self._looks.items())
            for place, result in enumerate(results)
            for number in result.dims.values()
        }
        self._all_conditions = tuple(conditions)
        self._conditions: dict[int, list[str]] = {}
        ends = _segment_ends(recording)
        for condition, looks in conditions.items():
            self._conditions.setdefault(ends[looks], []).append(condition)
        for number, column in enumerate(zip(*points, strict=True)):
            if min(column) > SMALLEST:
                self._conditions.setdefault(self._first_segment(number), []).append(f"s{number} >= {min(column)}")
        for condition, pair in order_of(points):
            self._conditions.setdefault(max(map(self._first_segment, pair)), []).append(condition)
        self._parts: list[_Part] = []

    def _first_segment(self, number: int) -> int:
        """The first that may depend on a size."""
        birth = self._births.get(number)
        return 0 if birth is None else birth[0] + 1

    def read(self, runs: Sequence[tuple[Segment, ...]], returned: Sequence[Polynomial]) -> bool:
        """Take the segments of all runs. returned: sizes that the result depends on. Raises Mismatch and Abandoned.

        Returns whether each segment can read the sizes that it depends on from what it takes.
        """
        self._parts = [self._part(runs, number, returned) for number in range(len(runs[0]))]
        return not any(
            part.missing or (part.looked and not self._takes_looked(number, runs[0]))
            for number, part in enumerate(self._parts)
        )

    def _part(self, runs: Sequence[tuple[Segment, ...]], number: int, returned: Sequence[Polynomial]) -> _Part:
        graphs = [segments[number].graph for segments in runs]
        if number in self._looks:
            graphs = [_without_sizes(graph, self._looks[number]) for graph in graphs]
        if any(rounds_open_sizes(graphs, node) for node in range(len(graphs[0].nodes))):
            raise Abandoned("an op rounds sizes that are open")
        template = self._template(graphs)
        ruled = self._template(ruled_parts(graphs, self._fit, self._all_conditions))
        variables = template.variables | ruled.variables
        for condition in self._conditions.get(number, ()):
            variables |= {int(name) for name in _NAME.findall(condition)}
        looked = {size for result in self._looks.get(number - 1, ()) for size in result.dims.values()}
        variables |= looked
        if number + 1 == len(runs[0]):
            variables = variables.union(*[polynomial.variables for polynomial in returned])
        if len(runs[0]) == 1:
            variables |= set(range(len(self._places)))
        missing = [each for each in sorted(variables) if self._source(graphs, each) is None]
        return _Part(tuple(graphs), template, ruled, tuple(sorted(variables)), bool(looked), tuple(missing))

    def _takes_looked(self, number: int, segments: Sequence[Segment]) -> bool:
        look = segments[number - 1].look
        return look is not None and set(look.values) <= set(segments[number].graph.inputs)

    def needs(self, recording: Recording) -> dict[int, list[Value]]:
        """What segments have to be given so that they can read their sizes. recording: of any run."""
        looks = open_looks(recording)
        found: dict[int, list[Value]] = {}
        for number, part in enumerate(self._parts):
            values = list(looks[number - 1].values) if part.looked else []
            for variable in part.missing:
                if variable < len(self._places):
                    values.append(recording.inputs[self._places[variable][0]])
                else:
                    segment, place = self._births[variable]
                    values.append(looks[segment].values[place])
            found[number] = values
        return found

    def _source(self, graphs: Sequence[Graph], variable: int) -> tuple[int, int] | None:
        """An input, and its dimension, whose size is the size of number `variable`."""
        wanted = [point[variable] for point in self._points]
        for number, value in enumerate(graphs[0].inputs):
            for dim in range(len(value.type.shape)):
                if [graph.inputs[number].type.shape[dim] for graph in graphs] == wanted:
                    return number, dim
        return None

    # -- what is open --------------------------------------------------------------------------------------------

    def segments(self, lead: Sequence[Segment]) -> tuple[Segment, ...]:
        """The segments of the lead, for many sizes. Raises Abandoned."""
        found: list[Segment] = []
        for number, (segment, part) in enumerate(zip(lead, self._parts, strict=True)):
            look = segment.look
            if look is not None and number in self._looks:
                look = replace(look, outcome=open_outcome(look.outcome, look.dims))
            sizes = self._sizes(number, part) if part.variables else None
            found.append(replace(segment, graph=part.graphs[0], look=look, sizes=sizes))
        return tuple(found)

    @property
    def last_variables(self) -> tuple[int, ...]:
        """The sizes that the last segment depends on, by number."""
        return self._parts[-1].variables

    def shapes_of_inputs(self, recordings: Sequence[Recording]) -> OpenShapes:
        """For the guard: which shapes of all inputs the first segment serves. recordings: of all runs."""
        first = self._parts[0]
        graphs = [
            replace(graph, inputs=recording.inputs, outputs=())
            for graph, recording in zip(first.graphs, recordings, strict=True)
        ]
        variables = tuple(range(len(self._places)))
        return self._shapes(0, replace(first, template=self._template(graphs), variables=variables), self._places)

    def _sizes(self, number: int, part: _Part) -> OpenShapes:
        found = [self._source(part.graphs, variable) for variable in part.variables]
        sources = tuple([source for source in found if source is not None])
        if len(sources) != len(part.variables):
            raise Abandoned("a size is not to be read from what a part of the program takes")
        return self._shapes(number, part, sources)

    def _shapes(self, number: int, part: _Part, sources: tuple[tuple[int, int], ...]) -> OpenShapes:
        variables = part.variables
        names = {str(variable): f"s{place}" for place, variable in enumerate(variables)}
        conditions = [_NAME.sub(lambda name: names[name[1]], text) for text in self._conditions.get(number, ())]
        # A size of 1 was tried with all others at 1, too: that tells of segments that depend on no other.
        tried = len(variables) == 1 and min([point[variables[0]] for point in self._points]) == 1
        template, ruled = part.template.only(variables), part.ruled.only(variables)
        return OpenShapes(sources, template, ruled, tuple(conditions), 1 if tried else SMALLEST)

    def _template(self, graphs: Sequence[Graph]) -> GraphTemplate:
        return make_graph_template(graphs, TemplateMaker(self._fit))


def _dynamic_looks(recording: Recording, data_sizes: DataSizes, first: int) -> dict[int, tuple[DynamicResult, ...]]:
    """By segment, the results with open sizes that its look is at; the sizes are numbered from `first` on."""
    planned = iter(data_sizes.looks)
    results = {id(look): next(planned, ()) for look in recording.looks if look.kind is OutcomeKind.SHAPE}
    found: dict[int, tuple[DynamicResult, ...]] = {}
    for segment, look in enumerate(open_looks(recording)):
        mine = results.get(id(look), ())
        if any(result.dims for result in mine):
            found[segment] = tuple(
                [replace(each, dims={dim: first + number for dim, number in each.dims.items()}) for each in mine]
            )
    return found


def _segment_ends(recording: Recording) -> list[int]:
    """In which segment Python is after each number of looks."""
    cutting = {id(look) for look in open_looks(recording)}
    found = [0]
    for look in recording.looks:
        found.append(found[-1] + (id(look) in cutting))
    return found


def _without_sizes(graph: Graph, results: Sequence[DynamicResult]) -> Graph:
    """The same with the smallest open sizes in the results of its last node, which nothing in it reads."""
    *nodes, last = graph.nodes
    if len(last.outputs) < len(results) or any(value in graph.inputs for value in last.outputs):
        raise Abandoned("a size that depends on data is looked at later than it is found")
    made: dict[Value, Value] = {}
    for value, result in zip(last.outputs, results, strict=False):
        shape = [SMALLEST if dim in result.dims else size for dim, size in enumerate(value.type.shape)]
        strides = dense_strides(shape, result.order)
        made[value] = Value(value.id, TensorType(tuple(shape), value.type.dtype, strides, value.type.device))
    outputs = tuple([made.get(value, value) for value in last.outputs])
    returned = tuple([made.get(value, value) for value in graph.outputs])
    return replace(graph, nodes=(*nodes, replace(last, outputs=outputs)), outputs=returned)


def rounds_open_sizes(graphs: Sequence[Graph], number: int) -> bool:
    """Whether node number `number` rounds sizes (behind batch and channels) that differ between `graphs`."""
    if not rounds_sizes(graphs[0].nodes[number]):
        return False
    shapes = [[value.type.shape[2:] for value in graph.nodes[number].outputs] for graph in graphs]
    return any(shape != shapes[0] for shape in shapes)
