"""Instructions of CPython, as far as the ways through code depend on them."""

from __future__ import annotations

import dis
from typing import Final

__all__ = ["JUMPS", "ends_the_way"]

JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
"""By number."""

_ENDS: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "JUMP_BACKWARD_NO_INTERRUPT", "RETURN_VALUE", "RETURN_CONST", "RERAISE",
     "RAISE_VARARGS"}
)  # fmt: skip


def ends_the_way(instruction: dis.Instruction) -> bool:
    """Whether the next instruction does not run after it."""
    return instruction.opname in _ENDS
