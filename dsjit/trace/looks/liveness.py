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

from dsjit.trace.looks.bytecode import successors

__all__ = ["dead_after", "dead_before"]

_READS: Final = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK", "DELETE_FAST"})
_STORES: Final = frozenset({"STORE_FAST"})


def dead_after(code: types.CodeType, offset: int) -> frozenset[str]:
    """The variables that are dead after the instruction at `offset`, whether or not it jumps."""
    return _dead(code)[1].get(offset, frozenset())


def dead_before(code: types.CodeType, offset: int) -> frozenset[str]:
    """The variables that are dead where the instruction at `offset` is next."""
    return _dead(code)[0].get(offset, frozenset())


@functools.lru_cache(maxsize=1024)
def _dead(code: types.CodeType) -> tuple[Mapping[int, frozenset[str]], Mapping[int, frozenset[str]]]:
    """Before and after each instruction, by offset. None is, where handlers of exceptions or unknown instructions may
    read variables."""
    body = list(dis.get_instructions(code))
    known = _READS | _STORES
    if code.co_exceptiontable or any("FAST" in each.opname and each.opname not in known for each in body):
        return {}, {}
    names = frozenset(code.co_varnames).difference(code.co_cellvars)
    following = successors(body)
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
    offsets = [each.offset for each in body]
    return (
        {offset: names.difference(before) for offset, before in zip(offsets, live, strict=True)},
        {offset: names.difference(then) for offset, then in zip(offsets, after, strict=True)},
    )
