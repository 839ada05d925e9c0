"""CPython's version tags: numbers that change with each modification of a class or a dictionary.

- `tp_version_tag` of a class changes when the class or one of its bases changes; 0 means that there is none now.
- `ma_version_tag` of a dictionary (PEP 509) changes with each modification; CPython 3.11 and 3.12 have it.

Neither has an accessor, so they are read from memory, and only trusted after a probe has seen them change.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Sequence
from typing import Any, Final

__all__ = [
    "DICT_VERSION_OFFSET",
    "TYPE_VERSION_OFFSET",
    "dict_version",
    "dict_versions_work",
    "type_version",
    "type_versions_work",
]

TYPE_VERSION_OFFSET: Final = 384
"""Bytes from the start of a `PyTypeObject` to `tp_version_tag` (Include/cpython/object.h, 64-bit builds)."""

DICT_VERSION_OFFSET: Final = 24
"""Bytes from the start of a `PyDictObject` to `ma_version_tag` (Include/cpython/dictobject.h, until 3.12)."""


def type_version(cls: type) -> int:
    """The version tag of a class, 0 when the interpreter gives it none."""
    getattr(cls, "__dsjit_no_such_attribute__", None)  # a lookup makes the interpreter assign a tag
    return ctypes.c_uint32.from_address(id(cls) + TYPE_VERSION_OFFSET).value


def dict_version(entries: dict[Any, Any]) -> int:
    """The version tag of a dictionary."""
    return ctypes.c_uint64.from_address(id(entries) + DICT_VERSION_OFFSET).value


@functools.cache
def type_versions_work() -> bool:
    """Whether each way to change a class or its base changes `type_version`."""

    class Base:
        pass

    class Derived(Base):
        value = 1

    seen = [type_version(Derived)]
    changes: Sequence[Callable[[], None]] = (
        lambda: setattr(Derived, "value", 2),
        lambda: setattr(Base, "other", 3),
        lambda: delattr(Base, "other"),
        lambda: setattr(Derived, "__getattribute__", object.__getattribute__),
        lambda: setattr(Derived, "__bases__", (type("Other", (Base,), {}),)),
    )
    for change in changes:
        before = seen[-1]
        change()
        if ctypes.c_uint32.from_address(id(Derived) + TYPE_VERSION_OFFSET).value == before:
            return False
        seen.append(type_version(Derived))
    return 0 not in seen and len(set(seen)) == len(seen)


@functools.cache
def dict_versions_work() -> bool:
    """Whether each way to change a dictionary or an instance's attributes changes `dict_version`."""

    class Thing:
        pass

    thing = Thing()
    entries = thing.__dict__

    def store(value: object) -> None:
        for _ in range(64):  # often enough for the interpreter to specialise the store
            thing.value = value  # type: ignore[attr-defined]

    store(0)
    changes: Sequence[Callable[[], object]] = (
        lambda: store(1),
        lambda: setattr(thing, "value", 2),
        lambda: setattr(thing, "new", 3),
        lambda: delattr(thing, "new"),
        lambda: entries.__setitem__("value", 4),
        lambda: entries.update(value=5),
        lambda: entries.setdefault("more", 6),
        lambda: entries.pop("more"),
        lambda: entries.__ior__({"value": 7}),
        lambda: entries.popitem(),
        lambda: entries.update(value=8),
        lambda: entries.clear(),
    )
    for change in changes:
        before = dict_version(entries)
        change()
        if dict_version(entries) == before:
            return False
    return True
