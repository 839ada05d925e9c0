"""Which local variables of a function may still be read, at each of its instructions.

A variable that is stored again before anything reads it is dead: whatever it holds decides nothing (backward data-flow
analysis; Aho, Lam, Sethi, Ullman, "Compilers", 2006, section 9.2.5).
"""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Mapping
from typing import Final

from dsjit.trace.looks.bytecode import JUMPS, ends_the_way

__all__ = ["dead_after"]

_READS: Final = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "DELETE_FAST"})
_STORES: Final = frozenset({"STORE_FAST"})


def dead_after(code: types.CodeType, offset: int) -> frozenset[str]:
    """The variables that are dead after the instruction at `offset`, whether or not it jumps."""
    return _dead(code).get(offset, frozenset())


@functools.lru_cache(maxsize=1024)
def _dead(code: types.CodeType) -> Mapping[int, frozenset[str]]:
    """By offset. None is, where handlers of exceptions or unknown instructions may read variables."""
    body = list(dis.get_instructions(code))
    known = _READS | _STORES
    if code.co_exceptiontable or any("FAST" in each.opname and each.opname not in known for each in body):
        return {}
    names = frozenset(code.co_varnames).difference(code.co_cellvars)
    following = _successors(body)
    live: list[frozenset[str]] = [frozenset()] * len(body)  # before each instruction
    after = list(live)
    changed = True
    while changed:
        changed = False
        for at in range(len(body) - 1, -1, -1):
            each = body[at]
            after[at] = frozenset().union(*[live[then] for then in following[at]])
            before = after[at]
            if each.opname in _STORES:
                before = before.difference((each.argval,))
            elif each.opname in _READS:
                before = before.union((each.argval,))
            if before != live[at]:
                live[at], changed = before, True
    return {each.offset: names.difference(after[at]) for at, each in enumerate(body)}


def _successors(body: list[dis.Instruction]) -> list[list[int]]:
    number = {each.offset: at for at, each in enumerate(body)}
    found: list[list[int]] = []
    for at, each in enumerate(body):
        then = [number[each.argval]] if each.opcode in JUMPS else []
        if not ends_the_way(each) and at + 1 < len(body):
            then.append(at + 1)
        found.append(then)
    return found
