"""One traced call: the user's function runs for real, and becomes segments, a guard and a recipe for its result."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import Graph, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.trace.effects.effects import Effect, EffectLine
from dsjit.trace.effects.events import Event
from dsjit.trace.effects.journal import Journal, tells
from dsjit.trace.effects.outputs import Fixed, Template, TemplateError, TemplateMaker
from dsjit.trace.effects.replay import Location, Recipe, Returned, ReturnedSize
from dsjit.trace.effects.writes import SetGenerator, Write
from dsjit.trace.guards.guard import Guard
from dsjit.trace.guards.overlap import SharedMemory
from dsjit.trace.looks.python_state import StateWatch
from dsjit.trace.looks.segments import Recording, Segment, cut
from dsjit.trace.observe import Observer
from dsjit.trace.reads.facts import TensorOf
from dsjit.trace.reads.patching import PATCHES
from dsjit.trace.reads.paths import ABSENT, Path
from dsjit.trace.reads.text_uses import goes_to_be_told
from dsjit.trace.recording.memory import CannotTrace, RootView
from dsjit.trace.recording.one_thread import OneThread
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.recording.source import SourceFinder
from dsjit.trace.recording.untraceable import Untraceable
from dsjit.trace.training.checkpoints import CheckpointWatch
from dsjit.trace.training.gradients import BackwardInThisThread, is_spent
from dsjit.trace.training.joint import carries_gradients, record_joint
from dsjit.trace.training.optimizers import OptimizerWatch

__all__ = ["Capture", "Conclusion", "Description", "capture", "conclude", "describe", "refuse_capture"]


def refuse_capture(reason: str) -> None:
    """If a call is traced on this thread, it does what a compiled call could not repeat."""
    listener = PATCHES.current.listener
    if isinstance(listener, Observer):
        listener.refuse(reason)


@dataclass(frozen=True, slots=True)
class Capture:
    """What one traced call gave.

    result: what the function returned. problems: why there are no segments; empty when there are some.
    guard: when the segments (or, without them, the verdict) hold again; None when that cannot be told.
    inputs, places: ids of the Values that the guard's tensors are, in its order, and where it finds them: a path, or
        the paths of all inputs that lie in one memory. recipe: for the result and the effects.
    tensors: those that the guard knows, read or not, with their paths, and what they were. observer: of the call, which
        knows its effects.
    joint: forward and backward, where gradients are wanted; the only segment is then the forward.
    effects: what `recipe` does to Python, told in words.
    given: the input tensors, in the order of `inputs`. recording: of the run, from which the segments were cut.
    opened, closed: places where numbers were taken as inputs, and those of them where the call saw the number itself.
    """

    result: Any
    problems: tuple[Untraceable, ...]
    guard: Guard | None
    inputs: tuple[int, ...] = ()
    places: tuple[Hashable, ...] = ()
    segments: tuple[Segment, ...] = ()
    recipe: Recipe | None = None
    tensors: tuple[tuple[Path, torch.Tensor, TensorOf], ...] = ()
    observer: Observer | None = None
    joint: JointGraph | None = None
    effects: tuple[EffectLine, ...] = ()
    given: tuple[torch.Tensor, ...] = ()
    recording: Recording | None = None
    opened: frozenset[Path] = frozenset()
    closed: frozenset[Path] = frozenset()


def capture(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    name: str,
    open_paths: frozenset[Path] = frozenset(),
) -> Capture:
    """Call `function(*args, **kwargs)` once, for real, and record it. Whatever it raises is raised.

    open_paths: where numbers are that change from call to call (see `trace.numbers.open_places`).
    """
    try:
        observer = Observer(function, args, kwargs, open_paths)
        leaks = observer.leaks
        recorder = Recorder(
            lambda tensor: observer.path_of(tensor) is not None,
            SourceFinder(),
            observer.pauses(),
            leaks.may_hand_out,
            observer.state_of,
        )
        recorder.escapes.on_gradient_read = functools.partial(setattr, observer, "asks_for_gradients", True)
        recorder.escapes.on_grad = observer.on_grad
        recorder.data_writes.may_set = observer.given_data.meet
        recorder.freed = observer.freed
        leaks.listen(observer.tell_again, recorder.numbers.pin_all, recorder.numbers.reveal)
        observer.listen_to_numbers(recorder.numbers)
        observer.listen_to_modules(recorder.numbers.math.show, recorder.numbers.math.withdraw)
        journal = Journal(
            observer, recorder.numbers.value, recorder.numbers.pin_all, _capture.__code__, recorder.numbers.marks
        )
        recorder.numbers.is_told = functools.partial(_is_told, observer, recorder)
        checkpoints = CheckpointWatch(
            (recorder,), lambda: (len(journal.events), recorder.memory.input_versions(), observer.before.changes())
        )
        states = StateWatch(
            observer, recorder.memory, recorder.numbers, lambda: _told(journal, recorder), _capture.__code__
        )
        recorder.state_at = states.at_look
    except Exception as error:
        return _without_trace(function, args, kwargs, error)
    found = None
    try:
        watches: tuple[AbstractContextManager[Any], ...] = (
            checkpoints,
            recorder.escapes,
            recorder,
            recorder.numbers,
            states,
            BackwardInThisThread(),
        )
        found = _capture(function, args, kwargs, name, observer, recorder, journal, watches)
        return found
    finally:
        recorder.numbers.math.withdraw()
        checkpoints.forget()
        # They refer to each other and to all that was met, whose life must not depend on the next collection.
        for part in (recorder.memory, recorder.numbers, recorder.generators, recorder, journal, states):
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
    others: Sequence[AbstractContextManager[Any]],
) -> Capture:
    updates = OptimizerWatch(recorder, observer)
    watches = _Watches((OneThread(), observer, recorder.generator, journal, updates, *others))
    try:
        watches.enter()
    except Exception as error:
        return _without_trace(function, args, kwargs, error)
    places = observer.open_places
    try:
        try:
            with observer.undisturbed():
                places.open(recorder.numbers)
                args, kwargs = places.arguments(args, kwargs)
        except Exception as error:
            recorder.note_failure(error)
        result = function(*args, **kwargs)
        del args, kwargs  # they may hold traced numbers
        observer.leaks.close()
    finally:
        watches.leave()
    here = recorder.sources.current()
    # The call has run: whatever goes wrong from here on must not keep its result from the user.
    try:
        problems = [*recorder.problems, *(Untraceable(p.reason, p.source, p.passing) for p in observer.problems)]
        problems += [Untraceable(_describe_failure(error), here) for error in watches.failures]
        if not problems:
            try:
                return _finish(result, observer, recorder, journal, name)
            except (TemplateError, CannotTrace) as error:
                problems.append(Untraceable(str(error), here))
        return Capture(result, tuple(problems), observer.build_guard((), frozenset()), opened=frozenset(places.opened))
    except Exception as error:
        problem = Untraceable(_describe_failure(error), here, passing=isinstance(error, MemoryError))
        return Capture(result, (problem,), None)


class _Watches:
    """Contexts that are entered in order, and left in the opposite one.

    failures: what was raised in leaving, which is no concern of the user's, who has a result or an exception already.
    """

    def __init__(self, contexts: Sequence[AbstractContextManager[Any]]) -> None:
        self._contexts = contexts
        self._entered = 0
        self.failures: list[Exception] = []

    def enter(self) -> None:
        """Raises what a context raises; those before it have then been left."""
        try:
            for context in self._contexts:
                context.__enter__()
                self._entered += 1  # nothing runs in between that the first of them could see, and fail on
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """Every context is left, even if this is interrupted in one of them."""
        interrupt: BaseException | None = None
        while self._entered:
            self._entered -= 1
            try:
                self._contexts[self._entered].__exit__(None, None, None)
            except Exception as error:
                self.failures.append(error)
            except BaseException as error:
                interrupt = error
        if interrupt is not None:
            raise interrupt


def _without_trace(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], error: Exception
) -> Capture:
    """The call, when no trace could begin."""
    reason = str(error) if isinstance(error, CaptureError) else _describe_failure(error)
    problem = Untraceable(reason, SourceFinder().current(), passing=True)
    return Capture(function(*args, **kwargs), (problem,), None)


def _told(journal: Journal, recorder: Recorder) -> Hashable:
    return len(journal.events), recorder.generators.drawn


def _is_told(observer: Observer, recorder: Recorder, method: str) -> bool:
    with observer.undisturbed():
        try:
            return goes_to_be_told(method, tells)
        except Exception as error:
            recorder.note_failure(error)
            return False


def _describe_failure(error: Exception) -> str:
    return f"the trace failed ({type(error).__name__}: {error})"


def _finish(result: Any, observer: Observer, recorder: Recorder, journal: Journal, name: str) -> Capture:
    numbers = recorder.numbers
    description = describe(result, observer, recorder, journal.events)
    numbers.forget_additions()
    held = Counter(description.maker.references_to_numbers(_held(result, observer.effects))) + Counter(observer.sums)
    numbers.pin_unaccounted(held)
    items = [item for item in description.maker.tensors if not isinstance(item, torch.SymInt)]
    ended = conclude(recorder, items, name)
    joint = ended.joint
    observer.asks_for_gradients |= joint is not None
    inputs = recorder.memory.inputs
    paths = tuple([path for _, tensor in inputs if (path := observer.path_of(tensor)) is not None])
    assert len(paths) == len(inputs)
    regions = recorder.memory.regions
    shared = tuple([SharedMemory.of([inputs[number][1] for number in r.members], r.members) for r in regions])
    guard = observer.build_guard(paths, ended.written, shared=shared)
    places = (*paths, *(tuple([paths[number] for number in region.members]) for region in regions))
    ids = tuple([value.id for value, _ in inputs] + [region.value.id for region in regions])
    tensors = observer.tensors_met()
    told = [EffectLine(str(event), None, event.source) for event, _ in journal.events]
    effects = (*told, *map(EffectLine.of, observer.effects))
    recipe = description.recipe(ended.returned)
    given = (*(tensor for _, tensor in inputs), *(region.tensor for region in regions))
    return Capture(
        result, (), guard, ids, places, ended.segments, recipe, tensors, observer, joint, effects, given,
        ended.recording, frozenset(observer.open_places.opened), frozenset(observer.open_places.closed),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Description:
    """What a call returned, told and left behind. maker: knows the tensors and the objects of before that it holds."""

    maker: TemplateMaker
    result: Template
    events: tuple[tuple[Event, Template], ...]
    changes: tuple[tuple[Write, int, Template], ...]
    found: tuple[Location, ...]

    def recipe(self, returned: tuple[Returned | ReturnedSize, ...]) -> Recipe:
        """How later calls do it. returned: how the tensors are obtained."""
        return Recipe(self.result, returned, self.found, self.events, self.changes)


def describe(
    result: Any,
    observer: Observer,
    recorder: Recorder,
    events: Sequence[tuple[Event, list[Any]]],
    keeps_sizes: bool = False,
) -> Description:
    """After a call: what it returned, told (`events`) and left behind. Raises TemplateError.

    keeps_sizes: symbols of sizes are handed out, too.
    """
    known = {id(tensor) for _, tensor in recorder.memory.inputs}
    maker = TemplateMaker(
        lambda obj: id(obj) not in known and observer.existed(obj), recorder.numbers.value, keeps_sizes
    )
    template = maker.make(result)
    told = tuple([(event, maker.make(values)) for event, values in events])
    effects = [(effect, effect.write) for effect in observer.effects if effect.write is not None]
    changes = tuple(
        [
            (write, maker.find(effect.owner), Fixed(ABSENT) if effect.value is ABSENT else maker.make(effect.value))
            for effect, write in effects
        ]
    )
    left = recorder.generators.states_left()
    states = [(SetGenerator(), maker.find(generator), maker.make(state)) for generator, state in left]
    found = [observer.locate(obj) for obj in maker.existing]
    assert all(each is not None for each in found)
    return Description(maker, template, told, (*changes, *states), tuple([each for each in found if each is not None]))


@dataclass(frozen=True, slots=True)
class Conclusion:
    """What a recorder saw. returned: how the result's tensors are obtained. written: inputs, by number, that the call
    writes. recording: the run, uncut."""

    segments: tuple[Segment, ...]
    returned: tuple[Returned, ...]
    written: frozenset[int]
    joint: JointGraph | None = None
    recording: Recording | None = None


def conclude(
    recorder: Recorder,
    items: Sequence[torch.Tensor | float],
    name: str,
    needs: Mapping[int, Iterable[Value]] = MappingProxyType({}),
) -> Conclusion:
    """The end of a recording, whose result and effects hold `items`. needs: see `cut`. Raises CannotTrace."""
    recorder.borrowed.check(items)
    if carries_gradients(recorder, items):
        recorded = record_joint(recorder, items, name)
        return Conclusion(
            recorded.segments, recorded.returned, recorded.written, recorded.joint, recorder.recording(name)
        )
    roots = [recorder.locate(item) for item in items]
    inputs = recorder.memory.inputs
    value_of = {id(tensor): value for value, tensor in inputs}
    value_of |= {id(region.tensor): region.value for region in recorder.memory.regions}
    wanted = [root.root if root.input is None else value_of[id(root.input)] for root in roots]
    fresh = dict.fromkeys(value for value, root in zip(wanted, roots, strict=True) if root.input is None)
    handed = [value for value, root in zip(wanted, roots, strict=True) if root.input is not None]
    writes = recorder.memory.writes()
    recording = recorder.recording(name)
    segments = cut(recording, fresh, handed, writes, needs)
    last = segments[-1].graph
    returned = [
        _returned(value, root, tensor, last, recorder.freed)
        for value, root, tensor in zip(wanted, roots, items, strict=True)
    ]
    written = {write.target for write in writes}
    positions = frozenset(number for number, (value, _) in enumerate(inputs) if value in written)
    positions |= {number for region in recorder.memory.regions for number in region.members if region.value in written}
    return Conclusion(segments, tuple(returned), positions, recording=recording)


def _held(result: Any, effects: Iterable[Effect]) -> Iterator[Any]:
    """Objects that are referred to once more here than where the call left them."""
    yield result
    for effect in effects:
        yield effect.value
        if type(effect.value) is list:
            yield from effect.value


def _returned(value: Value, root: RootView, tensor: Any, graph: Graph, freed: Set[Any]) -> Returned:
    from_input = value in graph.inputs and value not in graph.outputs
    detached = root.input is not None and root.input.requires_grad and not tensor.requires_grad
    number = (graph.inputs if from_input else graph.outputs).index(value)
    spent = isinstance(tensor, torch.Tensor) and is_spent(tensor, freed)
    return Returned(from_input, number, root.view, detached, spent)
