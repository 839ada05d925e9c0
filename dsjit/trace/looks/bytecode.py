"""Instructions of CPython, as far as the ways through code depend on them."""

from __future__ import annotations

import dis
from collections.abc import Sequence
from typing import Final

__all__ = ["JUMPS", "ends_the_way", "successors"]

JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
"""By number."""

_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "RETURN_VALUE", "RETURN_CONST", "RERAISE",
     "RAISE_VARARGS"}
)  # fmt: skip


def ends_the_way(instruction: dis.Instruction) -> bool:
    """Whether the next instruction does not run after it."""
    return instruction.opname in _ENDS


def successors(body: Sequence[dis.Instruction]) -> list[list[int]]:
    """By position in `body`, a whole code object's instructions: the positions of what may run next. Handlers of
    exceptions are nobody's successors."""
    number = {each.offset: at for at, each in enumerate(body)}
    found: list[list[int]] = []
    for at, each in enumerate(body):
        then = [number[each.argval]] if each.opcode in JUMPS else []
        if not ends_the_way(each) and at + 1 < len(body):
            then.append(at + 1)
        found.append(then)
    return found
