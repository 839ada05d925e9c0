"""Iterators of `for` loops: over what they go, and how far they have come."""

from __future__ import annotations

import gc
from collections.abc import Callable, Hashable
from typing import Any, Final

from dsjit.trace.looks.counters import RANGE_ITERATOR, TracedRange, remaining

__all__ = ["UnknownIterator", "describe_iterator", "items_of_tuples"]

_TUPLES: Final = frozenset({type(iter(()))})
_LISTS: Final[frozenset[type]] = frozenset({type(iter([""])), type(reversed([""]))})
_NESTED: Final = frozenset({enumerate, zip})
_TABLE: Final[dict[str, str]] = {}
_DICTIONARIES: Final[frozenset[type]] = frozenset(
    type(iterator)
    for view in (_TABLE.keys(), _TABLE.values(), _TABLE.items())
    for iterator in (iter(view), reversed(view))
)


class UnknownIterator(Exception):
    """There is no telling how an iterator goes on."""


def describe_iterator(
    iterator: Any,
    describe: Callable[[Any], Hashable],
    existed: Callable[[object], bool],
    forget: Callable[[Any], None],
) -> Hashable:
    """Equal for iterators that give equal things from now on; none of them moves.

    describe: tells objects by what they are. existed: whether a list or dictionary was there before the call: it has
    not changed then, and is told by `describe`. forget: called with what it has given, and holds still.
    Raises UnknownIterator, and what `describe` raises.
    """
    kind = type(iterator)
    if kind is TracedRange:
        return kind, describe(iterator.number), iterator.stop, iterator.step
    if kind is RANGE_ITERATOR:
        return kind, repr(remaining(iterator))
    if kind in _NESTED:
        _, parts, *strict = iterator.__reduce__()
        inner = [part if type(part) is int else describe_iterator(part, describe, existed, forget) for part in parts]
        return kind, tuple(inner), tuple(strict)
    if kind in _TUPLES:
        given, left = _items(iterator)
        forget(given)
        return kind, tuple([describe(item) for item in left])
    if kind in _LISTS or kind in _DICTIONARIES:
        containers = [each for each in gc.get_referents(iterator) if isinstance(each, list | dict) and existed(each)]
        if len(containers) == 1:
            return kind, describe(containers[0]), iterator.__length_hint__()
    raise UnknownIterator


def items_of_tuples(iterator: Any) -> tuple[Any, ...]:
    """What is held by the tuples that an iterator of a `for` loop goes over, which nothing else may hold."""
    kind = type(iterator)
    if kind in _NESTED:
        return tuple([item for part in iterator.__reduce__()[1] for item in items_of_tuples(part)])
    return tuple([item for items in _items(iterator) for item in items]) if kind in _TUPLES else ()


def _items(iterator: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """What an iterator of a tuple has given, and what is left."""
    _, (items,), *position = iterator.__reduce__()
    at = position[0] if position else 0
    return tuple(items[:at]), tuple(items[at:])
