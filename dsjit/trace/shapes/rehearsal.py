"""Makes a traced call into one for many sizes.

The call has run and was captured. What it did to Python objects is put back for a while, and it is run again under the
tracer, in lockstep with copies of the inputs in other sizes. Its results and effects are thrown away: what is wanted
are the recordings. Whatever goes wrong in it concerns nobody: the call then stays one for its own sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from dsjit.errors import CaptureError
from dsjit.ir.polynomial import Polynomial
from dsjit.ir.probes import leg_points
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import Mismatch, Template, TemplateMaker
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.trace.capture import Capture, Conclusion, Description, conclude, describe
from dsjit.trace.effects.outputs import TemplateError
from dsjit.trace.effects.replay import Returned, ReturnedSize
from dsjit.trace.effects.rewind import rewound, undo
from dsjit.trace.guards.guard import Guard
from dsjit.trace.looks.outcome import SMALLEST
from dsjit.trace.looks.python_state import Leg, StateWatch
from dsjit.trace.looks.segments import Segment
from dsjit.trace.observe import Observer
from dsjit.trace.recording.memory import CannotTrace
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.recording.source import SourceFinder
from dsjit.trace.shapes.data_sizes import DataSizes
from dsjit.trace.shapes.lockstep import Abandoned, Lockstep
from dsjit.trace.shapes.open_segments import SegmentOpener
from dsjit.trace.shapes.open_sizes import OpenSizes, resize

__all__ = ["Rehearsal", "rehearse"]

ATTEMPTS: Final = 4
"""Rehearsals of one call, each with sizes that meet the conditions that the ones before found."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A call for many sizes.

    guard, inputs, places: as in `Capture`. segments: with their open sizes. description: of the result and the effects.
    returned: the template of how the tensors in it are obtained; `sizes` are its open sizes, in those of the last
        segment.
    """

    guard: Guard
    inputs: tuple[int, ...]
    places: tuple[Hashable, ...]
    segments: tuple[Segment, ...]
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
    data_sizes: DataSizes,
) -> Rehearsal:
    """captured: the call, as it ran. sizes, data_sizes: which sizes are open, of its inputs and within it.

    Raises Abandoned or Mismatch.
    """
    conditions: list[Any] = []
    typical = (*sizes.typical, *data_sizes.typical)
    lowest_data_sizes = (data_sizes.smallest,) * len(data_sizes.typical)
    smallest = (*sizes.smallest, *lowest_data_sizes)
    lowest: tuple[int, ...] = (*((SMALLEST,) * len(sizes.typical)), *lowest_data_sizes)

    def allowed(point: tuple[int, ...]) -> bool:
        names = {f"s{number}": size for number, size in enumerate(point)}
        return all(eval(condition, {"max": max, "min": min}, names) for condition in conditions)

    for _ in range(ATTEMPTS):
        points = leg_points(typical, lowest, allowed)
        if points is None:
            raise Abandoned("too few other sizes meet what Python asks of them")
        state = generator_state()
        assert captured.observer is not None
        try:
            with rewound(captured.observer.before):
                return _rehearse(function, args, kwargs, name, captured, sizes, data_sizes, points)
        except (Abandoned, Mismatch) as stop:
            if isinstance(stop, Abandoned) and stop.condition is not None:
                conditions.append(compile(stop.condition, "<condition>", "eval"))
            elif sizes.before is None or lowest == smallest:
                raise
            else:  # Something is different for small sizes: leave them out.
                lowest = smallest
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
    data_sizes: DataSizes,
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
    run = Lockstep(points, lead, legs, resized, data_sizes, len(sizes.typical))
    others = [Leg(leg.memory, functools.partial(run.follower, number=number)) for number, leg in enumerate(legs, 1)]
    states = StateWatch(observer, lead.memory, lead.numbers, lambda: lead.generators.drawn, _rehearse.__code__, others)
    lead.state_at = states.at_look
    try:
        with ExitStack() as watches:
            watch: Any
            for watch in (observer, lead.generator, lead.escapes, lead, run, states):
                watches.enter_context(watch)
            result = function(*args, **kwargs)
        if run.failed is not None:
            raise run.failed
        problems = [problem.reason for recorder in (lead, *legs) for problem in recorder.problems]
        problems += [problem.reason for problem in observer.problems]
        if problems:
            raise Abandoned(problems[0])
        run.share_looks()
        return _conclude(result, observer, run, name, captured, sizes, data_sizes)
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
    run: Lockstep,
    name: str,
    captured: Capture,
    sizes: OpenSizes,
    data_sizes: DataSizes,
) -> Rehearsal:
    lead = run.lead
    description = describe(result, observer, lead, (), keeps_sizes=True)
    items = [item for item in description.maker.tensors if isinstance(item, torch.Tensor)]
    followers = [run.followers(tensor) for tensor in items]

    recorders = (lead, *run.legs)
    everything = [items, *[[every[number] for every in followers] for number in range(len(run.legs))]]
    ended = [conclude(each, mine, name) for each, mine in zip(recorders, everything, strict=True)]
    if any(each.written for each in ended):
        raise Abandoned("it writes to its inputs")
    if not _is_as_captured(ended[0].segments, captured.segments):
        raise Abandoned("with open sizes the program would be another one")
    paths = [observer.path_of(tensor) for _, tensor in lead.memory.inputs]
    positions = {path: number for number, path in enumerate(paths)}
    try:
        places = tuple([(positions[path], dim) for path, dim in sizes.sources])
    except KeyError:
        raise Abandoned("a tensor of open size is no input") from None
    recordings = [each.recording for each in ended if each.recording is not None]
    if len(recordings) != len(ended):
        raise Abandoned("gradients are wanted")
    opener = SegmentOpener(run.points, run.fit, places, data_sizes, run.conditions, recordings[0])
    maker = TemplateMaker(run.fit)
    returned = maker.make([_returned(description, each, run, number) for number, each in enumerate(ended)])
    if not opener.read([each.segments for each in ended], list(maker.sizes)):
        needs = [opener.needs(recording) for recording in recordings]
        ended = [conclude(*each) for each in zip(recorders, everything, [name] * len(ended), needs, strict=True)]
        maker = TemplateMaker(run.fit)
        returned = maker.make([_returned(description, each, run, number) for number, each in enumerate(ended)])
        opener.read([each.segments for each in ended], list(maker.sizes))
    segments = opener.segments(ended[0].segments)
    shapes = opener.shapes_of_inputs(recordings) if places else None
    return Rehearsal(
        guard=observer.build_guard([path for path in paths if path is not None], frozenset(), shapes=shapes),
        inputs=tuple([value.id for value, _ in lead.memory.inputs]),
        places=tuple(paths),
        segments=segments,
        description=description,
        returned=returned,
        sizes=tuple([polynomial.only(opener.last_variables) for polynomial in maker.sizes]),
    )


def _is_as_captured(segments: Sequence[Segment], captured: Sequence[Segment]) -> bool:
    """Whether the lead did and saw what the call did, which ran with integers in place of symbols."""
    if len(segments) != len(captured):
        return False
    for segment, other in zip(segments, captured, strict=True):
        looks = [
            (each.look.kind, each.look.source, each.look.outcome) if each.look else None for each in (segment, other)
        ]
        if looks[0] != looks[1]:
            return False
        graphs = [replace(each.graph, outputs=()) for each in (segment, other)]
        if graph_structure(graphs[0]) != graph_structure(graphs[1]):
            return False
    return True


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
