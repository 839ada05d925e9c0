"""Python's state when it looks at data: what decides, together with the outcome, what it does from there on.

When it is the same at two looks, but for which tensors are meant, then Python does the same after both of them,
whatever the outcomes are. So the rounds of a loop are told apart by nothing but their tensors, and what follows the
second look is what follows the first one; and where two ways meet again (after an `if`), what follows the one is what
follows the other (`api.planting` makes loops and joins of that). So everything counts that code could read:

- the frames: the same instructions, with nothing on their value stacks but iterators of `for` loops that are known
  (`trace.looks.iterators`, `trace.looks.look_sites`) and the operands of the instruction that looks. The innermost one
  looks itself, the others call functions that look. Of a *loop*, all frames up to the one in which it is, which must be
  the same one: the frames around it have not moved then. For a *join*, whose ways are those of two calls, all of them;
- their variables that may still be read (`trace.looks.liveness`): constants, objects of before, tensors, traced
  numbers, and tuples of these. Other objects that were born in the call may have changed in ways that nobody sees:
  then nothing is known of the state;
- what existed before the call: nothing of it may have changed, at either look. For a join it is told by the path where
  it was met, which the guards of both calls hold to;
- all tensors and traced numbers that are alive elsewhere: the very same ones at both looks of a loop, none for a join;
- what the tracer knows of tensors: which of them share memory, and how views are made again;
- torch's state, and that nothing was told (printed, logged) in between; for a join, nothing at all.

Of a look that decides whether a `for` loop goes on, there is also the state *with the outcome* that leaves the loop
(`trace.looks.loop_exits`): without what only the rounds read, it may be the same for all of them. Numbers in which the
rounds differ then (`break` at the third layer, at the fifth) become traced numbers when the loop is left.

The random generator is no part of it: draws are nodes of the Graph, in order. Where sizes are open, the state has to be
the same for all sizes that are tried.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol, TypeAlias

import torch
import torch.overrides as function_modes
import torch.utils._python_dispatch as dispatch_modes

from dsjit.ir.graph import Value
from dsjit.trace.looks.counters import RANGE_ITERATOR, Counter, changed, find_counters
from dsjit.trace.looks.frame_stack import can_reach_stacks, stack_entry
from dsjit.trace.looks.iterators import items_of_tuples
from dsjit.trace.looks.liveness import dead_after, dead_before
from dsjit.trace.looks.look_sites import LookSite, call_site, look_site, passes_on
from dsjit.trace.looks.loop_exits import LoopExit
from dsjit.trace.looks.outcome import Outcome, OutcomeKind
from dsjit.trace.looks.snapshot import Activation, Known, Snapshot
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.library import is_library_code, is_own_file
from dsjit.trace.reads.paths import Path
from dsjit.trace.reads.torch_state import TorchState
from dsjit.trace.recording.memory import Memory

__all__ = ["Leg", "PythonState", "StateAtLook", "StateWatch"]

_ROUNDS: Final = 8
"""How often the state is taken at one place in a loop: one whose rounds differ so often will hardly settle later."""

_JOINS: Final = 64
"""How often the state is taken for a join, in one trace."""

_SEES_VARIABLES: Final = frozenset({"locals", "vars", "dir", "eval", "exec", "f_locals"})
"""Names by which code gets at its frame's dictionary of variables."""


@dataclass(frozen=True, slots=True)
class PythonState:
    """Equal states have equal keys; what is one tensor's content in the one is, in the other, what has the same
    position in `values`. joins: states of other calls may be equal, too; else, only those of the same trace.
    outcome: of the look, when the state is that after it; None when it is that before, whatever the look sees."""

    key: Hashable
    values: tuple[Value, ...]
    joins: bool = False
    outcome: bool | None = None


StateAtLook: TypeAlias = Callable[[OutcomeKind, Value, Sequence[torch.Tensor], Outcome], tuple[PythonState, ...]]


class Surroundings(Protocol):
    """What is asked of the Observer."""

    def existed(self, obj: object) -> bool: ...

    def path_of(self, obj: object) -> Path | None: ...

    def is_settled(self) -> bool: ...

    def undisturbed(self) -> AbstractContextManager[None]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Leg:
    """A run of the same call for other sizes. of: its tensor for one that Python has."""

    memory: Memory
    of: Callable[[torch.Tensor], torch.Tensor]


class StateWatch:
    """Takes the state at the looks of one trace, within the `with` block.

    told: tells apart how many things were printed, logged and warned so far, and what was drawn from generators of the
    caller's. root: the code that calls the traced function. legs: runs for other sizes.
    """

    def __init__(
        self,
        observer: Surroundings,
        memory: Memory,
        numbers: Numbers,
        told: Callable[[], Hashable],
        root: types.CodeType,
        legs: Sequence[Leg] = (),
    ) -> None:
        self._observer = observer
        self._known = Known(observer.existed, id, memory, numbers)
        self._alone = replace(self._known, tell=self._name, alone=True)
        self._legs = legs
        self._numbers = numbers
        self._told = told
        self._root = root
        self._visits: dict[Hashable, int] = {}
        self._rounds: dict[Hashable, tuple[Hashable, Sequence[Any]]] = {}
        self._counting: dict[Hashable, set[str | int]] = {}
        self._marks: list[Any] = []
        self._mark_type = type("Mark", (_Mark,), {})  # of this trace
        self._torch_states: list[TorchState] = []
        self._begun: set[Hashable] = set()

    def __enter__(self) -> StateWatch:
        """The function is about to be called."""
        with self._undisturbed():
            # Where one of the tracer's modes tells of a look, it is not active.
            for number in range(torch._C._len_torch_dispatch_stack() + 1):
                with _without(number, dispatch_modes._pop_mode_temporarily):
                    for count in range(torch._C._len_torch_function_stack() + 1):
                        with _without(count, function_modes._pop_mode_temporarily):
                            self._begun.add(self._context())
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def at_look(
        self, kind: OutcomeKind, looked: Value, tensors: Sequence[torch.Tensor], outcome: Outcome
    ) -> tuple[PythonState, ...]:
        """The state now that `looked` is looked at, which `tensors` hold, and `outcome` is seen: for a loop, a join,
        and outcomes that leave a loop; none when too little is known of it."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and is_own_file(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or not self._numbers.conversions.arrivals.is_free() or self._known.memory.regions:
            return ()
        with self._undisturbed():
            return self._states(kind, frame, looked, tensors, outcome)

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        with self._observer.undisturbed(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            yield

    def _states(
        self,
        kind: OutcomeKind,
        frame: types.FrameType,
        looked: Value,
        tensors: Sequence[torch.Tensor],
        outcome: Outcome,
    ) -> tuple[PythonState, ...]:
        stack = self._stack(kind, frame)
        if stack is None or not stack.places:
            return ()
        context, by_shape = self._context(), kind is OutcomeKind.SHAPE
        joins = stack.is_whole and context in self._begun and self._visit("joins", _JOINS)
        loop = [] if stack.loop is None else stack.activations[: stack.loop + 1]
        place = (self._mark(loop[-1].frame), stack.places[: len(loop)]) if loop else None
        loops = place is not None and self._visit(place, _ROUNDS)
        found: list[PythonState] = []
        if not (loops or joins) or not self._observer.is_settled():
            return ()
        if loops:
            self._trace_counters(place, loop, looked, tensors)
            found += self._state(self._known, (place, kind, context), loop, looked, tensors, by_shape)
        if joins:
            places = tuple([(each.frame.f_code, _Itself(each.frame.f_globals)) for each in stack.activations])
            offsets = tuple([offset for _, offset in stack.places])
            where = kind, places, offsets, context
            found += self._state(self._alone, where, stack.activations, looked, tensors, by_shape)
            for leaves, way in stack.site.exits.items():
                found += self._exit_state(stack, leaves, way, context, looked, tensors, leaves is outcome)
        return tuple(found)

    def _exit_state(
        self,
        stack: _Stack,
        outcome: bool,
        way: LoopExit,
        context: Hashable,
        looked: Value,
        tensors: Sequence[torch.Tensor],
        taken: bool,
    ) -> list[PythonState]:
        """The state after this outcome, which leaves a loop. taken: whether it is what is seen now."""
        look, *callers = stack.activations
        leaving = _leaving(look, way, tensors, self._known.existed)
        places = tuple([(each.frame.f_code, _Itself(each.frame.f_globals)) for each in stack.activations])
        offsets = way.offset, *[offset for _, offset in stack.places[1:]]
        counters = self._counters_of_exit((self._mark(look.frame), offsets), leaving, looked)
        if counters and (self._legs or not self._numbers.may_trace()):
            return []
        for counter in counters:
            number = self._numbers.of_constant(counter.value)
            leaving.variables[str(counter.place)] = number
            if taken:
                counter.put(number)
        found = self._state(self._alone, (places, offsets, context), [leaving, *callers], looked, (), False)
        return [replace(state, outcome=outcome) for state in found]

    def _counters_of_exit(self, place: Hashable, leaving: Activation, looked: Value) -> list[Counter]:
        """The variables by which the rounds differ where they leave the loop, if they differ in nothing else."""
        variables = leaving.variables
        numbers = find_counters(leaving.frame, variables, [], (), self._numbers.is_traced)
        names = {each.place for each in numbers}
        rest = replace(leaving, variables={name: each for name, each in variables.items() if name not in names})
        key = tuple(sorted(map(str, names))), Snapshot(self._known).take([rest], looked, ())
        former, values = self._rounds.get(place, (None, ()))
        self._rounds[place] = key, [each.value for each in numbers]
        if key[1] is None or key != former:
            return []
        counting = self._counting.setdefault(place, set())
        counting.update([each.place for each in changed(numbers, values)])
        return [each for each in numbers if each.place in counting]

    def _visit(self, place: Hashable, most: int) -> bool:
        self._visits[place] = self._visits.get(place, 0) + 1
        return self._visits[place] <= most

    def _state(
        self,
        known: Known,
        where: Hashable,
        activations: Sequence[Activation],
        looked: Value,
        tensors: Sequence[torch.Tensor],
        by_shape: bool,
    ) -> list[PythonState]:
        """The state, if it is known."""
        snapshot = Snapshot(known)
        key = snapshot.take(activations, looked, tensors, by_shape)
        if key is None:
            return []
        for leg in self._legs:
            run = Snapshot(replace(known, memory=leg.memory, of=leg.of))
            found = run.take(activations, None, () if by_shape else tensors)  # a shape is seen before the legs have it
            if found is None or found[0] != key[0] or not (by_shape or found[1] == key[1]):
                return []
        return [PythonState((where, key), tuple(snapshot.values), known.alone)]

    def _name(self, obj: object) -> Hashable | None:
        """A name that other calls have for the same object, or for one in the same place."""
        path = self._observer.path_of(obj)
        return path or (_Itself(obj) if isinstance(obj, _NAMED) else None)

    # -- the frames ----------------------------------------------------------------------------------------------

    def _stack(self, kind: OutcomeKind, frame: types.FrameType) -> _Stack | None:
        """The frames from this one on outwards, as far as nothing about them is unknown."""
        site, variables = look_site(frame), _variables(frame)
        if site is None or not _is_known(frame) or not _is_readable(site.iterators or kind is OutcomeKind.SHAPE):
            return None
        if not site.sees_only(kind, frame, variables):
            return None
        operands = tuple([stack_entry(frame, at) for at in site.operands]) if kind is OutcomeKind.SHAPE else ()
        found = [_activation(frame, variables, site.offset, site.iterators, operands)]
        places = [(id(frame.f_code), site.offset)]
        loop = 0 if site.repeats else None
        while True:
            code, caller = frame.f_code, frame.f_back
            while caller is not None and passes_on(caller, code):
                code, caller = caller.f_code, caller.f_back
            if caller is None or is_own_file(caller.f_code.co_filename):
                return _Stack(site, found, tuple(places), loop, caller is not None and caller.f_code is self._root)
            # The loop may be further out: the frames from there to here are as good as a part of its own.
            call, variables = call_site(caller), _variables(caller)
            known = _is_known(caller) and not frame.f_code.co_cellvars and not frame.f_code.co_freevars
            if call is None or not known or not _is_readable(call.iterators):
                return _Stack(site, found, tuple(places), loop, False)
            if not call.calls(code, caller, variables):
                return _Stack(site, found, tuple(places), loop, False)
            frame = caller
            found.append(_activation(frame, variables, call.offset, call.iterators))
            places.append((id(frame.f_code), call.offset))
            if loop is None and call.repeats:
                loop = len(found) - 1

    def _trace_counters(
        self, place: Hashable, loop: Sequence[Activation], looked: Value, tensors: Sequence[torch.Tensor]
    ) -> None:
        """Make traced numbers of those in which this round differs from the one before, if it does so in nothing else.

        loop: the frames of the loop.
        """
        counters = [
            each
            for part in loop
            for each in find_counters(part.frame, part.variables, part.stack, part.heights, self._numbers.is_traced)
        ]
        named = {(id(each.variables), each.place) for each in counters}
        rest = [
            replace(
                part,
                variables={k: v for k, v in part.variables.items() if (id(part.variables), k) not in named},
                stack=[entry for entry in part.stack if type(entry) is not RANGE_ITERATOR],
            )
            for part in loop
        ]
        names = tuple([each.place for each in counters])
        key = names, Snapshot(self._known).take(rest, looked, tensors)
        former, values = self._rounds.get(place, (None, ()))
        self._rounds[place] = key, [each.value for each in counters]
        if key[1] is None or key != former:
            return
        different = changed(counters, values)
        if different and self._numbers.may_trace():
            for counter in different:
                counter.trace(self._numbers.of_constant)

    def _mark(self, frame: types.FrameType) -> int:
        """Tells frames apart, also one that has ended from one that took its place in memory."""
        mark = self._numbers.conversions.arrivals.mark(frame, self._mark_type, self._new_mark)
        return self._marks.index(mark)

    def _new_mark(self) -> Any:
        self._marks.append(self._mark_type())
        return self._marks[-1]

    def _context(self) -> Hashable:
        """torch's state, and what was told so far."""
        states = self._torch_states
        number = next((number for number, state in enumerate(states) if state.check()), len(states))
        if number == len(states):
            states.append(TorchState.current())
        return number, self._told()


@contextmanager
def _without(count: int, pop: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Without so many modes, the innermost ones."""
    with ExitStack() as popped:
        for _ in range(count):
            popped.enter_context(pop())
        yield


@dataclass(frozen=True, slots=True)
class _Stack:
    """site: of the look. activations: frames, from the innermost one on. places: their codes and instructions. loop:
    the number of the first one that is in a loop. is_whole: whether the last one is that of the traced function."""

    site: LookSite
    activations: list[Activation]
    places: tuple[tuple[int, int], ...]
    loop: int | None
    is_whole: bool


def _activation(
    frame: types.FrameType,
    variables: dict[str, Any],
    offset: int,
    iterators: Sequence[int],
    operands: tuple[Any, ...] = (),
) -> Activation:
    """offset: of the instruction that runs."""
    dead = {name for name in dead_after(frame.f_code, offset) if _is_harmless(variables.get(name))}
    alive, unread = _divided(variables, dead)
    return Activation(frame, alive, unread, [stack_entry(frame, at) for at in iterators], iterators, operands)


def _leaving(
    look: Activation, way: LoopExit, looked: Sequence[torch.Tensor], existed: Callable[[object], bool]
) -> Activation:
    """The frame once the outcome is seen that leaves a loop; `looked` are gone by then, unless a variable has them."""
    dead = {
        name
        for name in dead_before(look.frame.f_code, way.offset)
        if name in look.variables and (existed(look.variables[name]) or _is_harmless(look.variables[name]))
    }
    alive, unread = _divided(look.variables, dead)
    stack = dict(zip(look.heights, look.stack, strict=True))
    items = tuple([item for at in way.left for item in items_of_tuples(stack[at]) if _is_harmless(item)])
    gone = (*look.dead, *unread, *items, *looked)
    return Activation(look.frame, alive, gone, [stack[at] for at in way.kept], way.kept)


def _divided(variables: Mapping[str, Any], dead: Collection[str]) -> tuple[dict[str, Any], tuple[Any, ...]]:
    """The variables that are not dead, and what the others hold."""
    alive = {name: value for name, value in variables.items() if name not in dead}
    return alive, tuple([value for name, value in variables.items() if name in dead])


def _is_harmless(obj: Any) -> bool:
    """Whether nobody notices when it is let go."""
    if type(obj) is tuple:
        return all(_is_harmless(item) for item in obj)
    return is_constant(obj) or type(obj) in (torch.Tensor, torch.nn.Parameter) or isinstance(obj, int | float)


def _variables(frame: types.FrameType) -> dict[str, Any]:
    """The local variables, those in cells included. The frame itself would keep what they hold alive."""
    if not _is_private(frame):
        return {}
    found = dict(frame.f_locals)
    frame.f_locals.clear()
    return found


def _is_readable(needed: object) -> bool:
    """Whether what is needed of value stacks can be had."""
    return not needed or can_reach_stacks()


def _is_known(frame: types.FrameType) -> bool:
    return _is_private(frame) and not is_library_code(frame.f_code, frame.f_globals)


def _is_private(frame: types.FrameType) -> bool:
    """Whether nobody has the frame's dictionary of variables."""
    return bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED) and _SEES_VARIABLES.isdisjoint(frame.f_code.co_names)


_NAMED: Final = (type, types.ModuleType, types.BuiltinFunctionType, types.MethodDescriptorType)
"""What has no path, and is the same thing for every call."""


class _Itself:
    """Equal for one object alone, which it keeps."""

    __slots__ = ("_obj",)

    def __init__(self, obj: object) -> None:
        self._obj = obj

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and other._obj is self._obj

    def __hash__(self) -> int:
        return id(self._obj)

    def __repr__(self) -> str:
        return f"{self._obj!r} itself"


class _Mark:
    """A frame's `f_trace`: there is no other place to mark it. Nothing calls it while no tracer is installed."""

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        return None
