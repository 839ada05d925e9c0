"""Where code looks at data with nothing unknown on the frame's value stack, as far as the bytecode proves it.

The value stack of a frame holds iterators of `for` loops, results that an expression still needs, operands. At the
places that are found here it holds nothing but such iterators and the operands of the instruction that looks. Of these,
nothing is left but the outcome (`while t:`, `if not t:`, `if t.item() < limit:`, `bool(t)`), or they are known
(`mask.nonzero()`, `x[mask]`, whose sizes are looked at). Each of these instructions looks once each time it runs, so
that two looks at one place are two runs of it. The same goes for calls of Python functions that look: nothing written
in C, which could be in the middle of something, stands between the two frames. `nn.Module.__call__` is such a function:
what it runs for a module without hooks returns what it was returned, and does nothing else.

What a `with` statement outside every loop keeps on the stack is the same at each look.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.trace.looks.bytecode import JUMPS, ends_the_way
from dsjit.trace.looks.frame_stack import stack_entry
from dsjit.trace.looks.loop_exits import ForLoop, LoopExit, find_exits
from dsjit.trace.looks.outcome import OutcomeKind
from dsjit.trace.reads.paths import ABSENT, instance_dict, static_lookup

__all__ = [
    "CallSite",
    "LookSite",
    "call_site",
    "is_conversion",
    "look_site",
    "passes_on",
    "running_offset",
    "stack_heights",
]

_IDLE: Final = frozenset({"CACHE", "PRECALL", "NOP", "EXTENDED_ARG"})
_NAMES: Final = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_DEREF"})
_SIMPLE: Final = _NAMES | {"LOAD_GLOBAL"}

_FINDERS: Final = frozenset(
    function
    for name in ("nonzero", "argwhere", "masked_select", "repeat_interleave", "bincount", "where")
    for function in (getattr(torch, name), getattr(torch.Tensor, name))
    if isinstance(function, types.BuiltinFunctionType | types.MethodDescriptorType)
)
"""Functions written in C whose results have sizes that depend on data, and that look at nothing else."""

_MODULE_CALLS: Final = {
    torch.nn.Module._wrapped_call_impl.__code__: ("self", "_call_impl"),
    torch.nn.Module._call_impl.__code__: ("forward_call", None),
}
"""By code, where it finds what it calls for a module without hooks: a variable, and an attribute of it."""


@dataclass(frozen=True, slots=True)
class LookSite:
    """An instruction that looks. before: the two instructions before it, for what it compares with or calls.

    repeats: whether it is in a loop. iterators: where those of the `for` loops around it lie on the stack; operands:
    where its own do. exits: by the outcome with which it leaves one of them.
    """

    name: str
    offset: int
    before: tuple[dis.Instruction, ...]
    repeats: bool
    iterators: tuple[int, ...]
    operands: range
    exits: Mapping[bool, LoopExit] = field(default_factory=dict)

    def sees_only(self, kind: OutcomeKind, frame: types.FrameType, variables: Mapping[str, Any]) -> bool:
        """Whether nothing is left of the instruction but the outcome of one look of this kind.

        frame: that runs it. variables: its local ones.
        """
        if self.name.startswith("POP_JUMP") or self.name == "UNARY_NOT":
            return kind is OutcomeKind.TRUTH
        if self.name == "COMPARE_OP":
            # A float is compared with nothing but a number: containers would compare element by element.
            return kind is OutcomeKind.TRUTH and isinstance(self._operand(frame, variables), int | float)
        if self.name == "bool":
            return kind is OutcomeKind.TRUTH and frame.f_builtins is vars(builtins) and "bool" not in frame.f_globals
        if self.name == "item":
            return kind is OutcomeKind.NUMBER
        return kind is OutcomeKind.SHAPE and self._looks_at_one_shape(frame)

    def _looks_at_one_shape(self, frame: types.FrameType) -> bool:
        """Whether the instruction looks at nothing else, when it looks at a shape."""
        first = stack_entry(frame, self.operands[0])
        if self.name == "BINARY_SUBSCR":
            return isinstance(first, torch.Tensor)
        called = stack_entry(frame, self.operands[1]) if first is None else first
        return isinstance(called, Hashable) and called in _FINDERS

    def _operand(self, frame: types.FrameType, variables: Mapping[str, Any]) -> Any:
        """The second operand; ABSENT when it is not plain to see."""
        last = self.before[-1]
        if last.opname == "LOAD_ATTR" and not _is_method_load(last) and self.before[0].opname in _NAMES:
            owner = _loaded(self.before[0], frame, variables)
            return (instance_dict(owner) or {}).get(last.argval, ABSENT)
        return _loaded(last, frame, variables)


@dataclass(frozen=True, slots=True)
class CallSite:
    """A call. callee: what loads the function, or an object and a method of it. repeats, iterators: as in LookSite."""

    offset: int
    callee: tuple[dis.Instruction, ...]
    repeats: bool
    iterators: tuple[int, ...]

    def calls(self, code: types.CodeType, frame: types.FrameType, variables: Mapping[str, Any]) -> bool:
        """Whether `frame`, with these variables, calls a function of this code itself."""
        found = _loaded(self.callee[0], frame, variables)
        if len(self.callee) == 2:
            owner, name = found, self.callee[1].argval
            inside = vars(owner) if isinstance(owner, types.ModuleType) else instance_dict(owner) or {}
            found = inside.get(name, ABSENT)
            if found is ABSENT and not isinstance(owner, type):
                found = static_lookup(type(owner), name)
        if isinstance(found, torch.nn.Module):
            found = static_lookup(type(found), "__call__")
        function = found.__func__ if type(found) is types.MethodType else found
        return type(function) is types.FunctionType and function.__code__ is code


def _loaded(instruction: dis.Instruction, frame: types.FrameType, variables: Mapping[str, Any]) -> Any:
    """What a simple load finds; ABSENT for other instructions."""
    if instruction.opname == "LOAD_CONST":
        return instruction.argval
    if instruction.opname == "LOAD_GLOBAL":
        return frame.f_globals.get(instruction.argval, ABSENT)
    return variables.get(instruction.argval, ABSENT) if instruction.opname in _NAMES else ABSENT


def look_site(frame: types.FrameType) -> LookSite | None:
    """Where `frame` is looking."""
    return _sites(frame.f_code).looks.get(running_offset(frame))


def running_offset(frame: types.FrameType) -> int:
    """The offset of the instruction that `frame` is running. Where CPython 3.11 has specialised a call, the instruction
    before it makes it."""
    return _sites(frame.f_code).precalls.get(frame.f_lasti, frame.f_lasti)


def call_site(frame: types.FrameType) -> CallSite | None:
    """Where `frame` is calling."""
    sites, offset = _sites(frame.f_code), frame.f_lasti
    while offset >= 0 and offset not in sites.offsets:
        offset -= 2  # it may point into the instruction's cache
    return sites.calls.get(offset)


def passes_on(frame: types.FrameType, callee: types.CodeType) -> bool:
    """Whether `frame` belongs to `nn.Module.__call__`, is calling a function of this code, and will return what it
    returns, whatever that is."""
    variable, name = _MODULE_CALLS.get(frame.f_code, (None, None))
    if variable is None or not _sites(frame.f_code).returns.get(frame.f_lasti, False):
        return False
    found = frame.f_locals.get(variable)
    frame.f_locals.clear()
    function = found if name is None else static_lookup(type(found), name)
    if type(function) is types.MethodType:
        function = function.__func__
    return type(function) is types.FunctionType and function.__code__ is callee


def stack_heights(code: types.CodeType) -> dict[int, int]:
    """How high the stack is before each instruction of `code`, by offset; handlers of exceptions are left out."""
    body = list(dis.get_instructions(code))
    return {offset: height.before for offset, height in _heights(body, []).items()}


def is_conversion(frame: types.FrameType, kind: type) -> bool:
    """Whether `frame` is running `kind(...)`, a call of that built-in type with one argument."""
    named = _sites(frame.f_code).converts.get(running_offset(frame)) == kind.__name__
    return named and frame.f_builtins is vars(builtins) and kind.__name__ not in frame.f_globals


@dataclass(frozen=True, slots=True)
class _Sites:
    """The places in a code object, by the offsets of their instructions, and the offsets of all. converts: calls of
    built-in types with one argument, by name. precalls: of instructions before calls, to those. returns: which calls
    have their results returned at once."""

    looks: Mapping[int, LookSite]
    calls: Mapping[int, CallSite]
    offsets: frozenset[int]
    converts: Mapping[int, str]
    precalls: Mapping[int, int]
    returns: Mapping[int, bool]


@functools.lru_cache(maxsize=1024)
def _sites(code: types.CodeType) -> _Sites:
    if not code.co_flags & inspect.CO_OPTIMIZED:
        return _Sites({}, {}, frozenset(), {}, {}, {})
    body = list(dis.get_instructions(code))
    loops = [(each.argval, each.offset) for each in body if each.opcode in JUMPS and each.argval < each.offset]
    heights = _heights(body, loops)
    iterations = [
        ForLoop(each.offset, each.argval, heights[each.offset].before - 1)
        for each in body
        if each.opname == "FOR_ITER" and each.offset in heights
    ]
    looks: dict[int, LookSite] = {}
    calls: dict[int, CallSite] = {}
    converts: dict[int, str] = {}
    working: list[dis.Instruction] = []
    for each in body:
        if each.offset not in heights or each.opname in _IDLE:
            continue
        if each.opname == "CALL" and each.arg == 1:
            loads = _callee(each, working, heights, heights[each.offset].rest)
            if [load.opname for load in loads] == ["LOAD_GLOBAL"] and loads[0].argval in ("int", "float"):
                converts[each.offset] = loads[0].argval
        rest = heights[each.offset].rest
        around = [loop for loop in iterations if loop.first < each.offset < loop.last]
        iterators = tuple([loop.slot for loop in around])
        if rest == len(iterators) and not code.co_flags & _SUSPENDABLE:
            before, repeats = tuple(working[-2:]), _is_in(loops, each)
            name = _looking(each, working, heights, rest)
            if name is not None:
                operands = range(heights[each.offset].base + rest, heights[each.offset].before)
                exits = find_exits(code, body, each, name, around) if around else {}
                looks[each.offset] = LookSite(name, each.offset, before, repeats, iterators, operands, exits)
            callee = _callee(each, working, heights, rest) if each.opname == "CALL" else ()
            if callee:
                calls[each.offset] = CallSite(each.offset, callee, repeats, iterators)
        working.append(each)
    real = [each for each in body if each.opname != "CACHE"]
    precalls = {first.offset: then.offset for first, then in itertools.pairwise(real) if first.opname == "PRECALL"}
    handled = [range(entry.start, entry.end) for entry in _handlers(code)]
    returns = {
        first.offset: then.opname == "RETURN_VALUE" and not any(first.offset in each for each in handled)
        for first, then in itertools.pairwise(real)
        if first.opname.startswith("CALL")
    }
    return _Sites(looks, calls, frozenset(each.offset for each in body), converts, precalls, returns)


def _handlers(code: types.CodeType) -> list[Any]:
    """Which instructions have a handler of exceptions, by their offsets."""
    return list(dis._parse_exception_table(code))  # type: ignore[attr-defined]


_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""What resumes generators and coroutines has a state, too."""


@dataclass(frozen=True, slots=True)
class _Height:
    """Of the stack. before: an instruction. rest: below the operands of one that looks, less what is the same at each
    look. base: how much that is. operands are taken for one result, jumps take one and leave none."""

    before: int
    rest: int
    base: int


def _looking(
    each: dis.Instruction, earlier: list[dis.Instruction], heights: Mapping[int, _Height], rest: int
) -> str | None:
    """How an instruction may look: its name, or that of what it calls; None when it does not. rest: as in `_callee`."""
    if each.opname.startswith("POP_JUMP") or each.opname in ("UNARY_NOT", "COMPARE_OP", "BINARY_SUBSCR"):
        return each.opname
    if each.opname != "CALL":
        return None
    if each.arg == 0 and _is_method_load(earlier[-1]) and earlier[-1].argval == "item":
        return "item"
    callee = _callee(each, earlier, heights, rest) if each.arg == 1 else ()
    return "bool" if [(load.opname, load.argval) for load in callee] == [("LOAD_GLOBAL", "bool")] else each.opname


def _callee(
    each: dis.Instruction, earlier: list[dis.Instruction], heights: Mapping[int, _Height], rest: int = 0
) -> tuple[dis.Instruction, ...]:
    """What loads the callee of a call, if that is simple, and the arguments come after it on a straight way on which
    no variable is stored. rest: how much lies below it on the stack."""
    base, count = heights[each.offset].base + rest, len(earlier)
    for at in range(count - 1, -1, -1):
        load = earlier[at]
        if load.opcode in JUMPS or load.opname.startswith(("STORE_", "DELETE_")):
            return ()
        if heights[load.offset].before == base:
            following = earlier[at + 1] if at + 1 < count else each
            if load.opname == "PUSH_NULL":
                return (following,) if following.opname in _SIMPLE else ()
            if load.opname == "LOAD_GLOBAL" and _effect(load, jump=False) == 2:
                return (load,)
            return (load, following) if load.opname in _SIMPLE and _is_method_load(following) else ()
        if load.is_jump_target:
            return ()
    return ()


def _is_method_load(instruction: dis.Instruction) -> bool:
    if sys.version_info < (3, 12):  # later ones still know the name, of an instruction that no code has
        return instruction.opname == "LOAD_METHOD"
    return instruction.opname == "LOAD_ATTR" and bool((instruction.arg or 0) & 1)


def _effect(instruction: dis.Instruction, jump: bool) -> int:
    argument = instruction.arg if instruction.opcode >= dis.HAVE_ARGUMENT else None
    return dis.stack_effect(instruction.opcode, argument, jump=jump)


def _is_in(loops: list[tuple[int, int]], each: dis.Instruction) -> bool:
    return any(first <= each.offset <= last for first, last in loops)


def _heights(body: list[dis.Instruction], loops: list[tuple[int, int]]) -> dict[int, _Height]:
    """By offset. What only handlers of exceptions run is left out: there, the exception is on the stack.

    `dis.stack_effect` tells how the height changes along the jumps; compiled code has one height at each instruction.
    """
    number = {each.offset: at for at, each in enumerate(body)}
    found: dict[int, _Height] = {}
    pending: list[tuple[int, int, tuple[int, ...]]] = [(0, 0, ())]
    while pending:
        at, height, kept = pending.pop()
        each = body[at]
        if each.offset in found:
            continue
        if each.opname == "BEFORE_WITH" and not _is_in(loops, each):
            kept = (*kept, height - 1)
        after = height + _effect(each, jump=False)
        results = 0 if each.opname.startswith("POP_JUMP") else 1
        found[each.offset] = _Height(height, after - results - len(kept), len(kept))
        if each.opcode in JUMPS:
            beyond = height + _effect(each, jump=True)
            pending.append((number[each.argval], beyond, _below(kept, beyond)))
        if not ends_the_way(each):
            pending.append((at + 1, after, _below(kept, after)))
    return found


def _below(kept: tuple[int, ...], height: int) -> tuple[int, ...]:
    """What `with` statements keep below this height: theirs is over when the stack is lower."""
    return tuple([each for each in kept if each < height])
