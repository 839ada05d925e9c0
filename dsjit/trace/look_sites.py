"""Where loops look at data with nothing else on the frame's value stack, as far as the bytecode proves it.

The value stack of a frame cannot be read. It holds iterators of `for` loops, results that an expression still needs,
operands. At the places that are found here it holds nothing but the operands of the instruction that looks, of which
nothing is left but the outcome: `while t:`, `if not t:`, `if t.item() < limit:`, `bool(t)`. Each of these instructions
looks once each time it runs, so that two looks at one place are two runs of it.

What a `with` statement outside every loop keeps on the stack is the same at each look.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dsjit.trace.outcome import OutcomeKind
from dsjit.trace.paths import ABSENT, instance_dict

__all__ = ["LookSite", "look_sites"]

_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "RETURN_VALUE", "RETURN_CONST", "RERAISE",
     "RAISE_VARARGS"}
)  # fmt: skip
"""Instructions after which the next one does not run."""

_JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_IDLE: Final = frozenset({"CACHE", "PRECALL", "NOP", "EXTENDED_ARG"})
_NAMES: Final = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_DEREF"})


@dataclass(frozen=True, slots=True)
class LookSite:
    """An instruction that looks. before: the two instructions before it, for what it compares with or calls."""

    name: str
    before: tuple[dis.Instruction, ...]

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
        return kind is OutcomeKind.NUMBER

    def _operand(self, frame: types.FrameType, variables: Mapping[str, Any]) -> Any:
        """The second operand; ABSENT when it is not plain to see."""
        last = self.before[-1]
        if last.opname == "LOAD_ATTR" and not _is_method_load(last) and self.before[0].opname in _NAMES:
            owner = variables.get(self.before[0].argval, ABSENT)
            return (instance_dict(owner) or {}).get(last.argval, ABSENT)
        if last.opname == "LOAD_CONST":
            return last.argval
        if last.opname == "LOAD_GLOBAL":
            return frame.f_globals.get(last.argval, ABSENT)
        return variables.get(last.argval, ABSENT) if last.opname in _NAMES else ABSENT


@functools.lru_cache(maxsize=1024)
def look_sites(code: types.CodeType) -> Mapping[int, LookSite]:
    """The places in the loops of `code`, by the offset of the instruction (a frame's `f_lasti`)."""
    if code.co_flags & _SUSPENDABLE or not code.co_flags & inspect.CO_OPTIMIZED:
        return {}
    body = list(dis.get_instructions(code))
    loops = [(each.argval, each.offset) for each in body if each.opcode in _JUMPS and each.argval < each.offset]
    heights = _heights(body, loops) if loops else {}
    found: dict[int, LookSite] = {}
    working: list[dis.Instruction] = []
    for each in body:
        if each.offset in heights and each.opname not in _IDLE:
            possible = heights[each.offset].rest == 0 and _is_in(loops, each)
            site = _site(each, working, heights) if possible else None
            if site is not None:
                found[each.offset] = site
            working.append(each)
    return found


_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
"""What resumes generators and coroutines has a state, too."""


@dataclass(frozen=True, slots=True)
class _Height:
    """Of the stack. before: an instruction. rest: below the operands of one that looks, less what is the same at each
    look. base: how much that is. operands are taken for one result, jumps take one and leave none."""

    before: int
    rest: int
    base: int


def _site(each: dis.Instruction, earlier: list[dis.Instruction], heights: Mapping[int, _Height]) -> LookSite | None:
    before = tuple(earlier[-2:])
    if each.opname.startswith("POP_JUMP") or each.opname in ("UNARY_NOT", "COMPARE_OP"):
        return LookSite(each.opname, before)
    if each.opname != "CALL":
        return None
    if each.arg == 0 and _is_method_load(before[-1]) and before[-1].argval == "item":
        return LookSite("item", before)
    return LookSite("bool", before) if each.arg == 1 and _calls_bool(each, earlier, heights) else None


def _calls_bool(each: dis.Instruction, earlier: list[dis.Instruction], heights: Mapping[int, _Height]) -> bool:
    """Whether a call with one argument is one of `bool`: it is loaded first, then the argument, on a straight way."""
    base = heights[each.offset].base
    for loaded in reversed(earlier):
        if loaded.opcode in _JUMPS or loaded.opname == "KW_NAMES":
            return False
        if heights[loaded.offset].before == base:
            return loaded.opname == "LOAD_GLOBAL" and loaded.argval == "bool" and _effect(loaded, jump=False) == 2
        if loaded.is_jump_target:
            return False
    return False


def _is_method_load(instruction: dis.Instruction) -> bool:
    if "LOAD_METHOD" in dis.opmap:
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
        if each.opcode in _JUMPS:
            beyond = height + _effect(each, jump=True)
            pending.append((number[each.argval], beyond, _below(kept, beyond)))
        if each.opname not in _ENDS:
            pending.append((at + 1, after, _below(kept, after)))
    return found


def _below(kept: tuple[int, ...], height: int) -> tuple[int, ...]:
    """What `with` statements keep below this height: theirs is over when the stack is lower."""
    return tuple([each for each in kept if each < height])
