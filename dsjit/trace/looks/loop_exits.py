"""What a look decides in a `for` loop: with which outcome Python leaves it.

After `if t: break`, or `if t: return x`, nothing is left of the round but the variables that are still read. So what
comes next may be the same for every round, however the rounds differ: each has another layer, say.
"""

from __future__ import annotations

import dis
import itertools
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dsjit.trace.looks.bytecode import successors

__all__ = ["ForLoop", "LoopExit", "find_exits"]

_BEFORE_A_JUMP: Final = frozenset({"COMPARE_OP", "UNARY_NOT", "bool"})
"""How LookSites are named that look, and leave to the next instruction to jump."""

_SKIPPED: Final = frozenset({"CACHE", "NOP", "EXTENDED_ARG"})


@dataclass(frozen=True, slots=True)
class ForLoop:
    """first, last: offsets of its `FOR_ITER` and of what comes behind its body. slot: where its iterator lies on the
    stack."""

    first: int
    last: int
    slot: int


@dataclass(frozen=True, slots=True)
class LoopExit:
    """What comes after an outcome that leaves a loop. offset: of the next instruction. left: where the iterators lie of
    which none is asked any more; kept: those of the other loops around the look."""

    offset: int
    left: tuple[int, ...]
    kept: tuple[int, ...]


def find_exits(
    code: types.CodeType, body: Sequence[dis.Instruction], look: dis.Instruction, name: str, loops: Sequence[ForLoop]
) -> Mapping[bool, LoopExit]:
    """By the outcome of a look at the truth of something. body: the instructions of `code`. look: the one that looks;
    name: how. loops: around it, the outermost one first."""
    if code.co_exceptiontable:
        return {}  # handlers may come back into the loop
    working = [each for each in body if each.opname not in _SKIPPED]
    at = next(at for at, each in enumerate(working) if each.offset == look.offset)
    jump = working[at + 1] if name in _BEFORE_A_JUMP and at + 1 < len(working) else look
    if not jump.opname.startswith("POP_JUMP") or "NONE" in jump.opname:
        return {}
    behind = working[working.index(jump) + 1].offset
    found: dict[bool, LoopExit] = {}
    for outcome in (False, True):
        jumps = (outcome is not (name == "UNARY_NOT")) is ("IF_TRUE" in jump.opname)
        start = jump.argval if jumps else behind
        reached = _reached(body, start)
        dropped = _dropped(working, start)
        inner = set(loops[len(loops) - dropped :]) if dropped else set()
        left = tuple([each.slot for each in loops if each in inner or each.first not in reached])
        if left:
            found[outcome] = LoopExit(start, left, tuple([each.slot for each in loops if each.slot not in left]))
    return found


def _reached(body: Sequence[dis.Instruction], start: int) -> frozenset[int]:
    """The offsets of what may run from `start` on."""
    following = successors(body)
    pending = [at for at, each in enumerate(body) if each.offset == start]
    found: set[int] = set()
    while pending:
        at = pending.pop()
        if at not in found:
            found.add(at)
            pending += following[at]
    return frozenset([body[at].offset for at in found])


def _dropped(working: Sequence[dis.Instruction], start: int) -> int:
    """How many entries are taken off the stack first of all."""
    rest = [each for each in working if each.offset >= start]
    if rest[0].opname == "JUMP_FORWARD":
        return _dropped(working, rest[0].argval)
    return len(list(itertools.takewhile(lambda each: each.opname == "POP_TOP", rest)))
