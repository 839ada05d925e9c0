"""Makes a traced call into one for many sizes.

The call has run and was captured. What it did to Python objects is put back for a while, and it is run again under the
tracer, in lockstep with copies of the inputs in other sizes. Its results and effects are thrown away: what is wanted
are the recordings. Whatever goes wrong in it concerns nobody: the call then stays one for its own sizes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import Graph
from dsjit.ir.graph_template import GraphTemplate, make_graph_template
from dsjit.ir.polynomial import Polynomial
from dsjit.ir.probes import leg_points
from dsjit.ir.template import Mismatch, Template, TemplateMaker
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.trace.capture import Capture, Conclusion, Description, conclude, describe
from dsjit.trace.guards import Guard
from dsjit.trace.lockstep import Abandoned, Lockstep
from dsjit.trace.memory import CannotTrace
from dsjit.trace.observe import Observer
from dsjit.trace.open_shapes import OpenShapes
from dsjit.trace.open_sizes import SMALLEST, OpenSizes, resize
from dsjit.trace.outputs import TemplateError
from dsjit.trace.recorder import Recorder
from dsjit.trace.replay import Returned, ReturnedSize
from dsjit.trace.rewind import rewound, undo
from dsjit.trace.size_rules import rounds_sizes, ruled_part
from dsjit.trace.source import SourceFinder

__all__ = ["Rehearsal", "rehearse"]

ATTEMPTS: Final = 4
"""Rehearsals of one call, each with sizes that meet the conditions that the ones before found."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A call for many sizes.

    template: its Graph. sources: where the sizes are read. typical: what they were. shapes: which are served.
    inputs: as in `Capture`. description: of the result and the effects. returned: the template of how the tensors in
        it are obtained; `sizes` are its open sizes.
    """

    template: GraphTemplate
    sources: tuple[tuple[int, int], ...]
    typical: tuple[int, ...]
    shapes: OpenShapes
    guard: Guard
    inputs: tuple[int, ...]
    description: Description
    returned: Template
    sizes: tuple[Polynomial, ...]


def rehearse(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    captured: Capture,
    sizes: OpenSizes,
) -> Rehearsal:
    """captured: the call, as it ran. sizes: which sizes of its inputs are open. Raises Abandoned or Mismatch."""
    conditions: list[Any] = []
    lowest: tuple[int, ...] = (SMALLEST,) * len(sizes.typical)

    def allowed(point: tuple[int, ...]) -> bool:
        names = {f"s{number}": size for number, size in enumerate(point)}
        return all(eval(condition, {"max": max, "min": min}, names) for condition in conditions)

    for _ in range(ATTEMPTS):
        points = leg_points(sizes.typical, lowest, allowed)
        if points is None:
            raise Abandoned("too few other sizes meet what Python asks of them")
        state = generator_state()
        assert captured.observer is not None
        try:
            with rewound(captured.observer.before):
                return _rehearse(function, args, kwargs, name, captured, sizes, points)
        except (Abandoned, Mismatch) as stop:
            if isinstance(stop, Abandoned) and stop.condition is not None:
                conditions.append(compile(stop.condition, "<condition>", "eval"))
            elif sizes.before is None or lowest == sizes.smallest:
                raise
            else:  # Something is different for small sizes: leave them out.
                lowest = sizes.smallest
        finally:
            set_generator_state(state)
    raise Abandoned("Python asks too much about sizes")


def _rehearse(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    captured: Capture,
    sizes: OpenSizes,
    points: tuple[tuple[int, ...], ...],
) -> Rehearsal:
    observer = Observer(function, args, kwargs)
    sources = SourceFinder()
    try:
        resized = {
            id(tensor): tuple([resize(tensor, sizes.inputs[path], point) for point in points[1:]])
            for path, tensor, _ in captured.tensors
            if path in sizes.inputs
        }
    except RuntimeError as error:
        raise Abandoned(f"an input cannot have other sizes ({error})") from None
    copies = {id(copy) for every in resized.values() for copy in every}
    lead = Recorder(lambda tensor: observer.path_of(tensor) is not None, sources, observer.pauses())
    legs = [
        Recorder(
            lambda tensor: id(tensor) in copies or observer.path_of(tensor) is not None, sources, observer.pauses()
        )
        for _ in points[1:]
    ]
    run = Lockstep(points, legs, resized)
    try:
        with ExitStack() as watches:
            watch: Any
            for watch in (observer, lead.generator, lead.escapes, lead, run):
                watches.enter_context(watch)
            result = function(*args, **kwargs)
        if run.failed is not None:
            raise run.failed
        problems = [problem.reason for recorder in (lead, *legs) for problem in recorder.problems]
        problems += [problem.reason for problem in observer.problems]
        if problems:
            raise Abandoned(problems[0])
        return _conclude(result, observer, lead, legs, run, name, sizes)
    except CaptureError as error:
        raise Abandoned(str(error)) from None
    except (TemplateError, CannotTrace) as stop:
        raise Abandoned(str(stop)) from None
    except Exception:
        if run.failed is not None:  # what raised met a consequence of it
            raise run.failed from None
        raise
    finally:
        undo(observer.before)


def _conclude(
    result: Any,
    observer: Observer,
    lead: Recorder,
    legs: Sequence[Recorder],
    run: Lockstep,
    name: str,
    sizes: OpenSizes,
) -> Rehearsal:
    description = describe(result, observer, lead, (), keeps_sizes=True)
    items = [item for item in description.maker.tensors if isinstance(item, torch.Tensor)]
    followers = [run.followers(tensor) for tensor in items]
    ended = [conclude(lead, items, name)]
    for number, recorder in enumerate(legs):
        ended.append(conclude(recorder, [found[number] for found in followers], name))
    graphs = [_single_graph(each) for each in ended]
    maker = TemplateMaker(run.fit)
    template = make_graph_template(graphs, maker)
    if any(_rounds_open_sizes(graphs, number) for number in range(len(graphs[0].nodes))):
        raise Abandoned("an op rounds sizes that are open")
    returned_maker = TemplateMaker(run.fit)
    returned = returned_maker.make([_returned(description, each, run, number) for number, each in enumerate(ended)])
    paths = [observer.path_of(tensor) for _, tensor in lead.memory.inputs]
    positions = {path: number for number, path in enumerate(paths)}
    try:
        places = tuple([(positions[path], dim) for path, dim in sizes.sources])
    except KeyError:
        raise Abandoned("a tensor of open size is no input") from None
    smallest = [min(column) for column in zip(*run.points, strict=True)]
    bounds = [f"s{number} >= {size}" for number, size in enumerate(smallest) if size > SMALLEST]
    ruled = make_graph_template([ruled_part(graph) for graph in graphs], TemplateMaker(run.fit))
    shapes = OpenShapes(places, template, ruled, (*bounds, *run.conditions))
    guard = observer.build_guard([path for path in paths if path is not None], frozenset(), shapes=shapes)
    return Rehearsal(
        template=template,
        sources=places,
        typical=run.points[0],
        shapes=shapes,
        guard=guard,
        inputs=tuple([value.id for value, _ in lead.memory.inputs]),
        description=description,
        returned=returned,
        sizes=tuple(returned_maker.sizes),
    )


def _returned(
    description: Description, ended: Conclusion, run: Lockstep, number: int
) -> tuple[Returned | ReturnedSize, ...]:
    """How run number `number` obtains what the result and the effects hold."""
    tensors = iter(ended.returned)
    return tuple(
        [
            ReturnedSize(run.size_of(item, number)) if isinstance(item, torch.SymInt) else next(tensors)
            for item in description.maker.tensors
        ]
    )


def _single_graph(ended: Conclusion) -> Graph:
    if len(ended.segments) != 1:
        raise Abandoned("Python looks at what tensors hold")
    if ended.written:
        raise Abandoned("it writes to its inputs")
    return ended.segments[0].graph


def _rounds_open_sizes(graphs: Sequence[Graph], number: int) -> bool:
    if not rounds_sizes(graphs[0].nodes[number]):
        return False
    shapes = [[value.type.shape[2:] for value in graph.nodes[number].outputs] for graph in graphs]
    return any(shape != shapes[0] for shape in shapes)
