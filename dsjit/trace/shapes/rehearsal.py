"""Makes a traced call into one for many sizes.

The call has run and was captured. What it did to Python objects is put back for a while, and it is run again under the
tracer, in lockstep with copies of the inputs in other sizes. Its results and effects are thrown away: what is wanted
are the recordings. Whatever goes wrong in it concerns nobody: the call then stays one for its own sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import TensorType
from dsjit.ir.graph_template import make_graph_template
from dsjit.ir.joint_graph import JointGraph, JointTemplate
from dsjit.ir.polynomial import Polynomial
from dsjit.ir.probes import leg_points
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import Mismatch, Template, TemplateMaker
from dsjit.ops.generator import generator_states, put_back
from dsjit.trace.capture import Capture, Conclusion, Description, conclude, describe
from dsjit.trace.effects.outputs import TemplateError
from dsjit.trace.effects.replay import Returned, ReturnedSize
from dsjit.trace.effects.rewind import rewound, undo
from dsjit.trace.guards.guard import Guard
from dsjit.trace.looks.outcome import SMALLEST, OutcomeKind
from dsjit.trace.looks.python_state import Leg, StateWatch
from dsjit.trace.looks.segments import Segment
from dsjit.trace.observe import Observer
from dsjit.trace.reads.paths import Path
from dsjit.trace.recording.generator import GeneratorWatch
from dsjit.trace.recording.memory import CannotTrace, tensor_type
from dsjit.trace.recording.one_thread import OneThread
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.recording.source import SourceFinder
from dsjit.trace.shapes.data_sizes import DataSizes
from dsjit.trace.shapes.lockstep import Abandoned, Lockstep
from dsjit.trace.shapes.open_segments import SegmentOpener, rounds_open_sizes
from dsjit.trace.shapes.open_shapes import OpenShapes
from dsjit.trace.shapes.open_sizes import OpenSizes, resize
from dsjit.trace.shapes.size_rules import meets, order_of, ruled_parts
from dsjit.trace.shapes.unread_inputs import with_inputs
from dsjit.trace.training.checkpoints import CheckpointWatch
from dsjit.trace.training.gradients import BackwardInThisThread
from dsjit.trace.training.optimizers import OptimizerWatch

__all__ = ["Rehearsal", "rehearse"]

ATTEMPTS: Final = 7
"""Rehearsals of one call, each with sizes that meet the conditions that the ones before found."""


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """A call for many sizes.

    guard, inputs, places: as in `Capture`. segments: with their open sizes. description: of the result and the effects.
    returned: the template of how the tensors in it are obtained; `sizes` are its open sizes, in those of the last
        segment. joint: forward and backward, where gradients are wanted.
    """

    guard: Guard
    inputs: tuple[int, ...]
    places: tuple[Hashable, ...]
    segments: tuple[Segment, ...]
    description: Description
    returned: Template
    sizes: tuple[Polynomial, ...]
    joint: JointTemplate | None = None


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
    conditions: list[str] = []
    divisors: dict[int, int] = {}
    typical = (*sizes.typical, *data_sizes.typical)
    lowest_data_sizes = (data_sizes.smallest,) * len(data_sizes.typical)
    smallest = (*sizes.smallest, *lowest_data_sizes)
    lowest: tuple[int, ...] = (*((SMALLEST,) * len(sizes.typical)), *lowest_data_sizes)
    # Something may be different for small sizes, or where another size is the lesser one: leave these out.
    choices = [
        (least, turned)
        for least in dict.fromkeys([lowest, lowest if sizes.before is None else smallest])
        for turned in ([True, False] if len(typical) > 1 else [False])
    ]
    failures: list[str] = []

    def allowed(point: tuple[int, ...]) -> bool:
        return meets(point, conditions)

    for _ in range(ATTEMPTS):
        least, turned = choices[0]
        points = leg_points(typical, least, allowed, divisors, turned)
        if points is None:
            raise Abandoned("too few other sizes meet what Python asks of them")
        states = generator_states()
        assert captured.observer is not None
        try:
            with rewound(captured.observer.before), _unwritten(captured):
                return _rehearse(function, args, kwargs, name, captured, sizes, data_sizes, points, divisors)
        except (Abandoned, Mismatch) as stop:
            if isinstance(stop, Abandoned) and stop.condition is not None:
                conditions.append(stop.condition)
            elif isinstance(stop, Abandoned) and any(divisors.get(n, 0) < by for n, by in stop.divisors.items()):
                divisors.update({n: max(by, divisors.get(n, 0)) for n, by in stop.divisors.items()})
            else:
                failures.append(str(stop))
                order_matters = len(failures) != 2 or failures[0] != failures[1]
                choices = [(least, turned) for least, turned in choices[1:] if turned or order_matters]
                if not choices:
                    raise
        finally:
            put_back(states)
    raise Abandoned("Python asks too much about sizes")


@contextmanager
def _unwritten(captured: Capture) -> Iterator[None]:
    """Afterwards, what the call writes of the caller's memory holds what it held before, and says so to autograd."""
    given = dict(zip(captured.inputs, captured.given, strict=True))
    tensors = [given[write.target.id].detach() for write in captured.segments[-1].graph.writes]
    with torch.no_grad():
        content = [tensor.clone() for tensor in tensors]
    versions = [tensor._version for tensor in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, held in zip(tensors, content, strict=True):
                tensor.copy_(held)
        torch._C._autograd._unsafe_set_version_counter(tuple(tensors), tuple(versions))


def _rehearse(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    captured: Capture,
    sizes: OpenSizes,
    data_sizes: DataSizes,
    points: tuple[tuple[int, ...], ...],
    divisors: Mapping[int, int],
) -> Rehearsal:
    observer = Observer(function, args, kwargs)
    sources = SourceFinder()
    try:
        resized = {
            id(tensor): tuple(
                [resize(tensor, sizes.inputs[path], point).requires_grad_(tensor.requires_grad) for point in points[1:]]
            )
            for path, tensor, _ in captured.tensors
            if path in sizes.inputs
        }
    except RuntimeError as error:
        raise Abandoned(f"an input cannot have other sizes ({error})") from None
    if captured.observer is not None and captured.observer.before.gradients():
        resized |= _aliases(captured, resized, len(points) - 1)
    copies = {id(copy) for every in resized.values() for copy in every}
    seen = () if captured.recording is None else captured.recording.looks
    # What the call did with numbers from tensors, whoever saw them, is known: it is recorded alike, or not at all.
    hands_out = all(look.kind is not OutcomeKind.NUMBER for look in seen).__bool__
    lead = Recorder(lambda tensor: observer.path_of(tensor) is not None, sources, observer.pauses(), hands_out)
    legs = [
        Recorder(
            lambda tensor: id(tensor) in copies or observer.path_of(tensor) is not None,
            sources,
            observer.pauses(),
            hands_out,
        )
        for _ in points[1:]
    ]
    recorders = (lead, *legs)

    def on_generator(what: str, value: Any) -> None:
        for recorder in recorders:
            recorder.on_generator(what, value)

    checkpoints = CheckpointWatch(recorders, lambda: None)  # the captured call has been told
    run = Lockstep(points, lead, legs, resized, data_sizes, len(sizes.typical), divisors)
    followers = [(leg, functools.partial(run.in_run, number=number)) for number, leg in enumerate(legs, start=1)]
    updates = OptimizerWatch(lead, observer, followers)
    others = [Leg(leg.memory, functools.partial(run.follower, number=number)) for number, leg in enumerate(legs, 1)]
    states = StateWatch(observer, lead.memory, lead.numbers, lambda: lead.generators.drawn, _rehearse.__code__, others)
    lead.state_at = states.at_look
    lead.escapes.on_grad = observer.on_grad
    for recorder in recorders:
        recorder.freed = observer.freed
    try:
        with ExitStack() as watches:
            watch: Any
            for watch in (
                OneThread(),
                observer,
                GeneratorWatch(on_generator),
                updates,
                checkpoints,
                lead.escapes,
                lead,
                lead.numbers,
                run,
                states,
                BackwardInThisThread(),
            ):
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
    except Mismatch as stop:
        if run.fit.hints:
            raise Abandoned(str(stop), divisors=run.fit.hints) from None
        raise
    except CaptureError as error:
        raise Abandoned(str(error)) from None
    except (TemplateError, CannotTrace) as stop:
        raise Abandoned(str(stop)) from None
    except Exception:
        if run.failed is not None:  # what raised met a consequence of it
            raise run.failed from None
        raise
    finally:
        checkpoints.forget()
        undo(observer.before)


def _aliases(
    captured: Capture, resized: Mapping[int, tuple[torch.Tensor, ...]], count: int
) -> dict[int, tuple[torch.Tensor, ...]]:
    """For each other input of the call, `count` tensors on its memory, each with a history, a `.grad` and a count of
    writes of its own: a backward in the call adds to one `.grad` for each run."""
    found = {
        id(tensor): tuple([tensor.data.requires_grad_(tensor.requires_grad) for _ in range(count)])
        for _, tensor, _ in captured.tensors
        if id(tensor) not in resized
    }
    everything = {**resized, **found}
    assert captured.observer is not None
    for tensor, gradient in captured.observer.before.gradients():
        if gradient is None or id(tensor) not in everything:
            continue
        if id(gradient) not in everything:
            found[id(gradient)] = everything[id(gradient)] = tuple([gradient.data for _ in range(count)])
        for copy, its in zip(everything[id(tensor)], everything[id(gradient)], strict=True):
            copy.grad = its
    return found


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
    if captured.observer is not None:
        observer.asks_for_gradients |= captured.observer.asks_for_gradients
    for tensor, _ in observer.before.gradients():
        copies = run.resized.get(id(tensor), ())
        gradients = [copy.grad for copy in copies if copy.grad is not None]
        if tensor.grad is not None and gradients and len(gradients) == len(copies):
            run.follow(tensor.grad, tuple(gradients))
    description = describe(result, observer, lead, (), keeps_sizes=True)
    items = [item for item in description.maker.tensors if not isinstance(item, torch.SymInt)]
    followers = [run.followers(item) if isinstance(item, torch.Tensor) else (item,) * len(run.legs) for item in items]

    recorders = (lead, *run.legs)
    everything = [items, *[[every[number] for every in followers] for number in range(len(run.legs))]]
    ended = [conclude(each, mine, name) for each, mine in zip(recorders, everything, strict=True)]
    if any(each.memory.regions for each in recorders):
        raise Abandoned("it writes to memory that its inputs share")
    if not _is_as_captured(ended[0], captured) or sum(each.joint is not None for each in ended) not in (0, len(ended)):
        raise Abandoned("with open sizes the program would be another one")
    paths = [observer.path_of(tensor) for _, tensor in lead.memory.inputs]
    unread = [path for path in sizes.inputs if path not in paths]
    if unread and len(ended[0].segments) == 1:
        ended = with_inputs(ended, _types_at(unread, captured, run))
        paths += unread
    positions = {path: number for number, path in enumerate(paths)}
    try:
        places = tuple([(positions[path], dim) for path, dim in sizes.sources])
    except KeyError:
        raise Abandoned("a tensor of open size is no input") from None
    recordings = [each.recording for each in ended if each.recording is not None]
    if len(recordings) != len(ended):
        raise Abandoned("the recording is incomplete")
    inputs = tuple([value.id for value in recordings[0].inputs])
    joints = [each.joint for each in ended if each.joint is not None]
    if joints:
        template, shapes_of_all = _open_joint(joints, run, places)
        maker = TemplateMaker(run.fit)
        returned = maker.make([_returned(description, each, run, number) for number, each in enumerate(ended)])
        return Rehearsal(
            guard=observer.build_guard(
                [path for path in paths if path is not None], ended[0].written, shapes=shapes_of_all
            ),
            inputs=inputs,
            places=tuple(paths),
            segments=(replace(ended[0].segments[0], sizes=shapes_of_all),),
            description=description,
            returned=returned,
            sizes=tuple(maker.sizes),
            joint=template,
        )
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
    if any(segment.sizes is not None and not segment.sizes.serves_typical() for segment in segments):
        raise Abandoned("a size of the call is 1, and special beside others")
    shapes = opener.shapes_of_inputs(recordings) if places else None
    return Rehearsal(
        guard=observer.build_guard([path for path in paths if path is not None], ended[0].written, shapes=shapes),
        inputs=inputs,
        places=tuple(paths),
        segments=segments,
        description=description,
        returned=returned,
        sizes=tuple([polynomial.only(opener.last_variables) for polynomial in maker.sizes]),
    )


def _types_at(paths: Sequence[Path], captured: Capture, run: Lockstep) -> list[list[TensorType]]:
    """The types that these tensors of the call have in each run."""
    tensors = {path: tensor for path, tensor, _ in captured.tensors}
    rows = [[tensor_type(tensors[path]) for path in paths]]
    return rows + [
        [tensor_type(run.follower(tensors[path], number)) for path in paths] for number in range(1, len(run.points))
    ]


def _open_joint(
    joints: Sequence[JointGraph], run: Lockstep, places: tuple[tuple[int, int], ...]
) -> tuple[JointTemplate, OpenShapes]:
    """What the JointGraphs of all runs have in common, and the shapes of the inputs for which that holds."""
    graphs = [joint.graph for joint in joints]
    if any(joint.structure != joints[0].structure for joint in joints):
        raise Abandoned("other gradients are wanted for other sizes")
    if any(rounds_open_sizes(graphs, node) for node in range(len(graphs[0].nodes))):
        raise Abandoned("an op rounds sizes that are open")
    template = make_graph_template(graphs, TemplateMaker(run.fit))
    ruled = make_graph_template(ruled_parts(graphs, run.fit, run.conditions), TemplateMaker(run.fit))
    lowest = [
        f"s{number} >= {min(column)}"
        for number, column in enumerate(zip(*run.points, strict=True))
        if min(column) > SMALLEST
    ]
    lowest += [condition for condition, _ in order_of(run.points)]
    inputs = replace(template, inputs=template.inputs[: joints[0].primals])
    maker = TemplateMaker(run.fit)
    shapes = maker.make([joint.shapes for joint in joints])
    joint = JointTemplate(joints[0], template, shapes, tuple(maker.sizes), places)
    return joint, OpenShapes(places, inputs, ruled, (*run.conditions, *lowest))


def _is_as_captured(ended: Conclusion, capture: Capture) -> bool:
    """Whether the lead did and saw what the call did, which ran with integers in place of symbols."""
    if ended.joint is not None and capture.joint is not None:
        structures = [(graph_structure(joint.graph), joint.key) for joint in (ended.joint, capture.joint)]
        return structures[0] == structures[1]
    segments, captured = ended.segments, capture.segments
    if len(segments) != len(captured) or ended.joint is not capture.joint:
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
