"""A key for caches by code object."""

from __future__ import annotations

import types

__all__ = ["CodeKey"]


class CodeKey:
    """A code object that hashes by identity (code objects hash by all they contain, slowly)."""

    __slots__ = ("code",)

    def __init__(self, code: types.CodeType) -> None:
        self.code = code

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CodeKey) and other.code is self.code
