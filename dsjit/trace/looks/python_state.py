"""Python's state when it looks at data: what decides, together with the outcome, what it does from there on.

When it is the same at two looks, but for which tensors are meant, then Python does the same after both of them,
whatever the outcomes are: the rounds of a loop are told apart by nothing but their tensors, and what follows the second
look is what follows the first one (`api.planting` makes a loop of that). So everything counts that code could read:

- the frame of the loop: the same one, at the same instruction, with nothing on its value stack but the iterators of
  `for` loops over ranges (`trace.looks.look_sites`). The frames around it have not moved then. It looks itself, or it
  calls a function that looks;
- its variables, and those of that function: constants, objects of before, tensors, traced numbers, and tuples of
  these. Other objects that were born in the call may have changed in ways that nobody sees: then nothing is known of
  the state;
- what existed before the call: nothing of it may have changed, at either look;
- all tensors and traced numbers that are alive elsewhere: the very same ones at both looks;
- what the tracer knows of tensors: which of them share memory, and how views are made again;
- torch's state, and that nothing was told (printed, logged) in between.

The random generator is no part of it: draws are nodes of the Graph, in order.
"""

from __future__ import annotations

import inspect
import struct
import sys
import types
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias

import torch

from dsjit.ir.graph import Arg, Node, Value
from dsjit.trace.looks.counters import RANGE_ITERATOR, TracedRange, changed, find_counters, remaining
from dsjit.trace.looks.frame_stack import can_reach_stacks, stack_entry
from dsjit.trace.looks.look_sites import call_site, look_site, running_offset
from dsjit.trace.looks.outcome import OutcomeKind
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.numbers.tables import plain
from dsjit.trace.reads.facts import is_constant
from dsjit.trace.reads.library import is_library_code, is_own_file
from dsjit.trace.reads.paths import instance_dict
from dsjit.trace.reads.torch_state import TorchState
from dsjit.trace.recording.memory import Memory, Storage, TracedTensor

__all__ = ["PythonState", "StateAtLook", "StateWatch"]

_ROUNDS: Final = 8
"""How often the state is taken at one place: a loop whose rounds differ so often will hardly settle later."""

_SEES_VARIABLES: Final = frozenset({"locals", "vars", "dir", "eval", "exec", "f_locals"})
"""Names by which code gets at its frame's dictionary of variables."""


@dataclass(frozen=True, slots=True)
class PythonState:
    """Equal states of one trace have equal keys; what is one tensor's content in the one is, in the other, what has
    the same position in `values`."""

    key: Hashable
    values: tuple[Value, ...]


StateAtLook: TypeAlias = Callable[[OutcomeKind, Value, Sequence[torch.Tensor]], PythonState | None]


class Surroundings(Protocol):
    """What is asked of the Observer."""

    def existed(self, obj: object) -> bool: ...

    def is_settled(self) -> bool: ...

    def undisturbed(self) -> AbstractContextManager[None]: ...


class StateWatch:
    """Takes the state at the looks of one trace. told: tells apart how many things were printed, logged and warned so
    far, and what was drawn from generators of the caller's."""

    def __init__(self, observer: Surroundings, memory: Memory, numbers: Numbers, told: Callable[[], Hashable]) -> None:
        self._observer = observer
        self._memory = memory
        self._numbers = numbers
        self._told = told
        self._visits: dict[Hashable, int] = {}
        self._rounds: dict[Hashable, tuple[Hashable, Sequence[Any]]] = {}
        self._marks: list[Any] = []
        self._mark_type = type("Mark", (_Mark,), {})  # of this trace
        self._torch_states: list[TorchState] = []
        self._kept: list[Any] = []

    def at_look(self, kind: OutcomeKind, looked: Value, tensors: Sequence[torch.Tensor]) -> PythonState | None:
        """The state now that `looked` is looked at, which `tensors` hold; None when too little is known of it."""
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None and is_own_file(frame.f_code.co_filename):
            frame = frame.f_back
        if frame is None or not self._numbers.conversions.arrivals.is_free() or self._memory.regions:
            return None
        with self._observer.undisturbed(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return self._state(kind, frame, looked, tensors)

    def _state(
        self, kind: OutcomeKind, frame: types.FrameType, looked: Value, tensors: Sequence[torch.Tensor]
    ) -> PythonState | None:
        site = look_site(frame)
        if site is None:
            return None
        frames, variables, sites = [frame], [_variables(frame)], [site.iterators]
        if not site.sees_only(kind, frame, variables[0]):
            return None
        repeats = site.repeats
        while not repeats:
            # The loop may be further out: the frames from there to here are as good as a part of its own.
            code, caller = frame.f_code, frame.f_back
            if caller is None or is_own_file(caller.f_code.co_filename) or code.co_cellvars or code.co_freevars:
                return None
            call, frame = call_site(caller), caller
            frames.append(frame)
            variables.append(_variables(frame))
            if call is None or not call.calls(code, frame, variables[-1]):
                return None
            sites.append(call.iterators)
            repeats = call.repeats
        if any(is_library_code(each.f_code, each.f_globals) for each in frames) or not all(map(_is_private, frames)):
            return None
        place = self._mark(frame), tuple([(id(each.f_code), running_offset(each)) for each in frames])
        visits = self._visits[place] = self._visits.get(place, 0) + 1
        if visits > _ROUNDS or not self._observer.is_settled():
            return None
        if any(sites) and not can_reach_stacks():
            return None
        stacks = [
            [stack_entry(each, height) for height in heights] for each, heights in zip(frames, sites, strict=True)
        ]
        self._trace_counters(place, frames, variables, stacks, sites, looked, tensors)
        snapshot = self._snapshot()
        key = snapshot.take(variables, stacks, looked, tensors)
        return None if key is None else PythonState((place, kind, self._context(), key), tuple(snapshot.values))

    def _snapshot(self) -> _Snapshot:
        return _Snapshot(self._observer.existed, self._memory, self._numbers, self._kept)

    def _trace_counters(
        self,
        place: Hashable,
        frames: Sequence[types.FrameType],
        variables: Sequence[dict[str, Any]],
        stacks: Sequence[list[Any]],
        heights: Sequence[Sequence[int]],
        looked: Value,
        tensors: Sequence[torch.Tensor],
    ) -> None:
        """Make traced numbers of those in which this round differs from the one before, if it does so in nothing else.

        stacks: the iterators on the stacks of `frames`, at these `heights`.
        """
        parts = zip(frames, variables, stacks, heights, strict=True)
        counters = [each for part in parts for each in find_counters(*part, self._numbers.is_traced)]
        named = {(id(each.variables), each.place) for each in counters}
        others = [{k: v for k, v in each.items() if (id(each), k) not in named} for each in variables]
        kept = [[entry for entry in stack if type(entry) is not RANGE_ITERATOR] for stack in stacks]
        names = tuple([each.place for each in counters])
        key = names, self._snapshot().take(others, kept, looked, tensors)
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


def _variables(frame: types.FrameType) -> dict[str, Any]:
    """The local variables, those in cells included. The frame itself would keep what they hold alive."""
    if not _is_private(frame):
        return {}
    found = dict(frame.f_locals)
    frame.f_locals.clear()
    return found


def _is_private(frame: types.FrameType) -> bool:
    """Whether nobody has the frame's dictionary of variables."""
    return bool(frame.f_code.co_flags & inspect.CO_OPTIMIZED) and _SEES_VARIABLES.isdisjoint(frame.f_code.co_names)


class _Mark:
    """A frame's `f_trace`: there is no other place to mark it. Nothing calls it while no tracer is installed."""

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> None:
        return None


class _Unknown(Exception):
    """Something is there of which the state is not known."""


class _Snapshot:
    """Describes everything by constants, identities of what existed before, and numbers in the order of first sight.

    values: in this order. kept: keeps objects alive whose ids are told.
    """

    def __init__(self, existed: Callable[[object], bool], memory: Memory, numbers: Numbers, kept: list[Any]) -> None:
        self._existed = existed
        self._memory = memory
        self._numbers = numbers
        self._kept = kept
        self.values: dict[Value, int] = {}
        self._tensors: dict[TracedTensor, int] = {}
        self._storages: dict[Storage, int] = {}
        self._seen_numbers: dict[int, int] = {}

    def take(
        self,
        variables: Sequence[Mapping[str, Any]],
        stacks: Sequence[Sequence[Any]],
        looked: Value,
        tensors: Sequence[torch.Tensor],
    ) -> Hashable | None:
        """variables, stacks: of each frame; of its stack, the iterators. looked, tensors: see `StateWatch.at_look`."""
        try:
            iterators = tuple([tuple([self._iterator(each) for each in stack]) for stack in stacks])
            known = tuple([tuple([(name, self._describe(each[name])) for name in sorted(each)]) for each in variables])
            operands = tuple([self._tensor(tensor) for tensor in tensors])
            return iterators, known, operands, self._other_tensors(), self._other_numbers(looked)
        except _Unknown:
            return None

    def _iterator(self, iterator: Any) -> Hashable:
        if type(iterator) is TracedRange:
            return TracedRange, self._describe(iterator.number), iterator.stop, iterator.step
        if type(iterator) is RANGE_ITERATOR:
            return RANGE_ITERATOR, repr(remaining(iterator))
        raise _Unknown

    def _describe(self, obj: Any) -> Hashable:
        kind = type(obj)
        if isinstance(obj, torch.Tensor):
            return self._tensor(obj)
        if self._numbers.value(obj) is not None:
            return self._number(obj)
        if kind is tuple or (issubclass(kind, tuple) and kind.__module__ == "torch.return_types"):
            return kind, tuple([self._describe(item) for item in tuple.__iter__(obj)])
        if is_constant(obj):
            return _exact(obj)
        if kind is types.MethodType:
            return kind, self._describe(obj.__func__), self._describe(obj.__self__)
        free = kind is types.BuiltinFunctionType and isinstance(obj.__self__, type | types.ModuleType | None)
        if free or kind is types.ModuleType or self._existed(obj):
            self._kept.append(obj)
            return "old", id(obj)
        raise _Unknown

    # -- tensors -------------------------------------------------------------------------------------------------

    def _tensor(self, tensor: torch.Tensor) -> Hashable:
        existed = self._existed(tensor)
        record = self._memory.lookup(tensor)
        if record is None:
            if not existed:
                raise _Unknown
            self._kept.append(tensor)
            return "old", id(tensor)
        if record in self._tensors:
            return "tensor", self._tensors[record]
        self._tensors[record] = len(self._tensors)
        if not existed and (instance_dict(tensor) or tensor.grad_fn is not None):
            raise _Unknown
        return (
            "tensor",
            type(tensor),
            id(tensor) if existed else None,
            (tensor.requires_grad, tensor.is_conj(), tensor.is_neg(), tensor.is_inference()),
            tensor.storage_offset() - record.storage.offset,
            self._record(record),
            None if existed or tensor._base is None else self._tensor(tensor._base),
        )

    def _record(self, record: TracedTensor | None) -> Hashable:
        """What the tracer knows of a tensor: what it holds, unless memory was written since, and how it is a view."""
        if record is None:
            return None
        view: Hashable = None
        if record.view is not None:
            op, args, kwargs, number, _ = record.view
            arguments = self._argument(args), tuple([(name, self._argument(arg)) for name, arg in kwargs.items()])
            view = id(op), arguments, number
        current = record.version == record.storage.version
        held = self._value(record.value) if current else None
        return self._storage(record.storage), record.value.type, held, view, self._record(record.parent)

    def _argument(self, arg: Arg) -> Hashable:
        if isinstance(arg, Value):
            return Value, self._value(arg)
        if isinstance(arg, tuple):
            return tuple([self._argument(item) for item in arg])
        return _exact(arg)

    def _storage(self, storage: Storage) -> Hashable:
        if storage in self._storages:
            return self._storages[storage]
        number = self._storages[storage] = len(self._storages)
        given = None if storage.input is None else id(storage.input)
        return number, given, storage.offset, storage.shared, storage.version > 0, self._value(storage.current)

    def _value(self, value: Value) -> int:
        return self.values.setdefault(value, len(self.values))

    def _other_tensors(self) -> Hashable:
        """Those that no variable holds, one by one: whoever holds them is not looked into, and has not moved."""
        found: list[Hashable] = []
        for record in self._memory.tensors.values():
            tensor = record.reference()
            if tensor is None or record in self._tensors:
                continue
            untouched = record.storage.input is tensor and not record.storage.version
            if not untouched:
                self._kept.append(record)
                found.append((id(record), self._tensor(tensor)))
        return tuple(found)

    # -- numbers -------------------------------------------------------------------------------------------------

    def _number(self, number: float) -> Hashable:
        if id(number) in self._seen_numbers:
            return "number", self._seen_numbers[id(number)]
        self._seen_numbers[id(number)] = len(self._seen_numbers)
        value, bound, pinned = self._numbers.describe(number)
        return "number", self._value(value), bound, _exact(plain(number)) if pinned else None

    def _other_numbers(self, looked: Value) -> Hashable:
        """Those that no variable holds; the operands of the look will be gone after it."""
        operands = set(_operands(self._memory.nodes, looked))
        found: list[Hashable] = []
        for number, value, entry in self._numbers.held():
            if id(number) not in self._seen_numbers and value not in operands:
                self._kept.append(entry)
                found.append((id(entry), self._number(number)))
        return tuple(found)


def _exact(constant: Any) -> Hashable:
    kind = type(constant)
    if kind is float:
        return kind, struct.pack("<d", constant)
    if kind is complex:
        return kind, struct.pack("<dd", constant.real, constant.imag)
    return kind, repr(constant) if kind in (slice, range, frozenset) else constant


def _operands(nodes: Sequence[Node], looked: Value) -> Iterable[Value]:
    made = next((node for node in reversed(nodes) if looked in node.outputs), None)
    return () if made is None else made.inputs()
