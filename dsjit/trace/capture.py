"""One traced call: the user's function runs for real, and becomes segments, a guard and a recipe for its result."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import Graph, Value
from dsjit.trace.effects import Effect
from dsjit.trace.events import Event
from dsjit.trace.facts import TensorOf
from dsjit.trace.guards import Guard
from dsjit.trace.journal import Journal
from dsjit.trace.memory import CannotTrace, RootView
from dsjit.trace.observe import Observer
from dsjit.trace.outputs import Fixed, Template, TemplateError, TemplateMaker
from dsjit.trace.paths import ABSENT, Path
from dsjit.trace.recorder import Recorder, Untraceable
from dsjit.trace.replay import Location, Recipe, Returned
from dsjit.trace.segments import Segment, cut
from dsjit.trace.source import SourceFinder
from dsjit.trace.writes import Write

__all__ = ["Capture", "Conclusion", "Description", "capture", "conclude", "describe"]


@dataclass(frozen=True, slots=True)
class Capture:
    """What one traced call gave.

    result: what the function returned. problems: why there are no segments; empty when there are some.
    guard: when the segments (or, without them, the verdict) hold again; None when that cannot be told.
    inputs: ids of the Values that the guard's tensors are, in its order. recipe: for the result and the effects.
    tensors: the inputs, with their paths, and what they were. observer: of the call, which knows its effects.
    given: the input tensors, in the order of `inputs`.
    """

    result: Any
    problems: tuple[Untraceable, ...]
    guard: Guard | None
    inputs: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    recipe: Recipe | None = None
    tensors: tuple[tuple[Path, torch.Tensor, TensorOf], ...] = ()
    observer: Observer | None = None
    given: tuple[torch.Tensor, ...] = ()


def capture(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> Capture:
    """Call `function(*args, **kwargs)` once, for real, and record it. Whatever it raises is raised."""
    observer = Observer(function, args, kwargs)
    leaks = observer.leaks
    recorder = Recorder(
        lambda tensor: observer.path_of(tensor) is not None, SourceFinder(), observer.pauses(), leaks.may_hand_out
    )
    recorder.escapes.on_gradient_read = functools.partial(setattr, observer, "asks_for_gradients", True)
    leaks.listen(observer.tell_again, recorder.numbers.pin_all)
    observer.listen_to_numbers(recorder.numbers.value)
    journal = Journal(observer, recorder.numbers.value)
    found = None
    try:
        found = _capture(function, args, kwargs, name, observer, recorder, journal)
        return found
    finally:
        # They refer to each other and to all that was met, whose life must not depend on the next collection.
        for part in (recorder.memory, recorder.numbers, recorder, journal):
            vars(part).clear()
        if found is None or found.observer is None:
            observer.let_go()


def _capture(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    observer: Observer,
    recorder: Recorder,
    journal: Journal,
) -> Capture:
    with ExitStack() as watches:
        try:
            for watch in (observer, recorder.generator, journal, recorder.escapes, recorder, recorder.numbers):
                watches.enter_context(watch)
        except CaptureError as error:
            watches.close()
            problem = Untraceable(str(error), recorder.sources.current(), passing=True)
            return Capture(function(*args, **kwargs), (problem,), None)
        result = function(*args, **kwargs)
        observer.leaks.close()
    problems = [*recorder.problems, *(Untraceable(p.reason, p.source, p.passing) for p in observer.problems)]
    if not problems:
        try:
            return _finish(result, observer, recorder, journal, name)
        except TemplateError as error:
            problems.append(Untraceable(str(error), recorder.sources.current()))
        except CannotTrace as stop:
            problems.append(Untraceable(stop.reason, recorder.sources.current()))
    return Capture(result, tuple(problems), observer.build_guard((), frozenset()))


def _finish(result: Any, observer: Observer, recorder: Recorder, journal: Journal, name: str) -> Capture:
    numbers = recorder.numbers
    description = describe(result, observer, recorder, journal.events)
    numbers.pin_unaccounted(description.maker.references_to_numbers(_held(result, observer.effects)))
    ended = conclude(recorder, description.maker.tensors, name)
    inputs = recorder.memory.inputs
    paths = [observer.path_of(tensor) for _, tensor in inputs]
    assert all(path is not None for path in paths)
    guard = observer.build_guard([path for path in paths if path is not None], ended.written)
    ids = tuple(value.id for value, _ in inputs)
    wanted = {id(tensor) for _, tensor in inputs}
    tensors = tuple([met for met in observer.tensors_met() if id(met[1]) in wanted])
    recipe = description.recipe(ended.returned)
    given = tuple([tensor for _, tensor in inputs])
    return Capture(result, (), guard, ids, ended.segments, recipe, tensors, observer, given)


@dataclass(frozen=True, slots=True)
class Description:
    """What a call returned, told and left behind. maker: knows the tensors and the objects of before that it holds."""

    maker: TemplateMaker
    result: Template
    events: tuple[tuple[Event, Template], ...]
    changes: tuple[tuple[Write, int, Template], ...]
    found: tuple[Location, ...]

    def recipe(self, returned: tuple[Returned, ...]) -> Recipe:
        """How later calls do it. returned: how the tensors are obtained."""
        return Recipe(self.result, returned, self.found, self.events, self.changes)


def describe(
    result: Any, observer: Observer, recorder: Recorder, events: Sequence[tuple[Event, list[Any]]]
) -> Description:
    """After a call: what it returned, told (`events`) and left behind. Raises TemplateError."""
    known = {id(tensor) for _, tensor in recorder.memory.inputs}
    maker = TemplateMaker(lambda obj: id(obj) not in known and observer.existed(obj), recorder.numbers.value)
    template = maker.make(result)
    told = tuple([(event, maker.make(values)) for event, values in events])
    effects = [(effect, effect.write) for effect in observer.effects if effect.write is not None]
    changes = tuple(
        [
            (write, maker.find(effect.owner), Fixed(ABSENT) if effect.value is ABSENT else maker.make(effect.value))
            for effect, write in effects
        ]
    )
    found = [observer.locate(obj) for obj in maker.existing]
    assert all(each is not None for each in found)
    return Description(maker, template, told, changes, tuple([each for each in found if each is not None]))


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a recorder saw. returned: how the result's tensors are obtained. written: inputs, by number, that the call
    writes."""

    segments: tuple[Segment, ...]
    returned: tuple[Returned, ...]
    written: frozenset[int]


def conclude(recorder: Recorder, items: Sequence[torch.Tensor | float], name: str) -> Conclusion:
    """The end of a recording, whose result and effects hold `items`. Raises CannotTrace."""
    roots = [recorder.locate(item) for item in items]
    inputs = recorder.memory.inputs
    value_of = {id(tensor): value for value, tensor in inputs}
    wanted = [root.root if root.input is None else value_of[id(root.input)] for root in roots]
    fresh = dict.fromkeys(value for value, root in zip(wanted, roots, strict=True) if root.input is None)
    handed = [value for value, root in zip(wanted, roots, strict=True) if root.input is not None]
    writes = recorder.memory.writes()
    segments = cut(recorder.recording(name), fresh, handed, writes)
    last = segments[-1].graph
    returned = [
        _returned(value, root, tensor, last) for value, root, tensor in zip(wanted, roots, items, strict=True)
    ]
    written = {write.target for write in writes}
    positions = frozenset(number for number, (value, _) in enumerate(inputs) if value in written)
    return Conclusion(segments, tuple(returned), positions)


def _held(result: Any, effects: Iterable[Effect]) -> Iterator[Any]:
    """Objects that are referred to once more here than where the call left them."""
    yield result
    for effect in effects:
        yield effect.value
        if type(effect.value) is list:
            yield from effect.value


def _returned(value: Value, root: RootView, tensor: Any, graph: Graph) -> Returned:
    from_input = value in graph.inputs and value not in graph.outputs
    detached = root.input is not None and root.input.requires_grad and not tensor.requires_grad
    return Returned(from_input, (graph.inputs if from_input else graph.outputs).index(value), root.view, detached)

