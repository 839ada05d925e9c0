"""Text made of traced numbers, which each run makes again with its own.

While the call is traced, the text of such a number is a *mark*, a string that nobody else makes. It is handed out only
where bytecode proves that what is made of it goes nowhere but to be told (`trace.reads.text_uses`): to `print`, a
logger or a standard stream, whose stand-ins find the mark in what they are given (`trace.effects.journal`).
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Any, Final

from dsjit.trace.numbers.tables import plain

__all__ = ["Formatted", "Marks", "Text"]


@dataclass(frozen=True, slots=True)
class Formatted:
    """`getattr(number, method)(*arguments)`, a string."""

    number: Any
    method: str
    arguments: tuple[str, ...]

    def render(self, number: float) -> str:
        """The string, for this number."""
        text: str = getattr(number, self.method)(*self.arguments)
        return text


@dataclass(frozen=True, slots=True)
class Text:
    """A string in pieces."""

    pieces: tuple[str | Formatted, ...]

    def __str__(self) -> str:
        return "".join([each if isinstance(each, str) else each.render(plain(each.number)) for each in self.pieces])


class Marks:
    """The marks of one trace."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self._pattern = re.compile(f"{_BEGIN}{self._nonce}:(\\d+){_END}")
        self._made: list[Formatted] = []

    def mark(self, formatted: Formatted) -> str:
        """A string that stands for the text of a number."""
        self._made.append(formatted)
        return f"{_BEGIN}{self._nonce}:{len(self._made) - 1}{_END}"

    def read(self, string: str) -> str | Text:
        """`string`, with its marks taken apart."""
        if not self._made or _BEGIN not in string:
            return string
        pieces = self._pattern.split(string)
        found: list[str | Formatted] = [
            self._made[int(piece)] if at % 2 else piece for at, piece in enumerate(pieces) if at % 2 or piece
        ]
        return Text(tuple(found)) if len(pieces) > 1 else string

    def forget(self) -> None:
        """The trace has ended."""
        self._made.clear()


_BEGIN: Final = "\ue0d5"
_END: Final = "\ue0d6"
"""Characters of Unicode's private use area."""
