"""Where the value of an attribute is stored, as far as the object's class tells."""

from __future__ import annotations

import types
from enum import Enum
from typing import Any

__all__ = ["Where", "where_stored"]


class Where(Enum):
    """In the object's `__dict__`, in a slot, in all of the `__dict__` (`obj.__dict__`), in the class, nowhere."""

    INSTANCE = 0
    SLOT = 1
    WHOLE = 2
    CLASS = 3
    NOWHERE = 4


def where_stored(entry: Any, name: str) -> Where:
    """entry: what the class has under the name, or ABSENT."""
    if name in ("__class__", "__weakref__", "_compiled_call_impl"):  # the last one is how a module is called
        return Where.NOWHERE
    if name == "__dict__":
        return Where.WHOLE
    kind = type(entry)
    if not hasattr(kind, "__set__") and not hasattr(kind, "__delete__"):
        return Where.INSTANCE
    stored = kind is types.MemberDescriptorType or kind is types.GetSetDescriptorType
    return Where.SLOT if stored else Where.CLASS
