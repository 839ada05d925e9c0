"""Iterators are told by what they have still to give; telling does not move them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dsjit.trace.looks.iterators import UnknownIterator, describe_iterator

ITEMS = ["a", "b", "c"]
NAMES = {"a": 1, "b": 2, "c": 3}

ITERATORS: list[Callable[[], Iterator[Any]]] = [
    lambda: iter(range(3)),
    lambda: iter(ITEMS),
    lambda: reversed(ITEMS),
    lambda: iter((1, 2, 3)),
    lambda: iter(NAMES),
    lambda: iter(NAMES.values()),
    lambda: iter(NAMES.items()),
    lambda: enumerate(ITEMS),
    lambda: enumerate(ITEMS, start=5),
    lambda: zip(ITEMS, (4, 5, 6), strict=True),
    lambda: enumerate(zip(ITEMS, range(3), strict=False)),
]


def told(iterator: Iterator[Any]) -> Any:
    return describe_iterator(iterator, repr, lambda obj: obj is ITEMS or obj is NAMES, lambda given: None)


@pytest.mark.parametrize("make", ITERATORS)
def test_each_place_is_told_from_the_others(make: Callable[[], Iterator[Any]]) -> None:
    one, other, seen = make(), make(), set()
    for _ in range(3):
        assert told(one) == told(other)
        seen.add(told(one))
        assert next(one) == next(other)
    assert len(seen) == 3
    assert list(one) == list(other) == []


def test_an_iterator_is_told_from_one_over_something_else() -> None:
    assert told(iter(ITEMS)) != told(iter(NAMES))
    assert told(enumerate(ITEMS)) != told(enumerate(ITEMS, start=1))
    assert told(zip(ITEMS, ITEMS, strict=True)) != told(zip(ITEMS, ITEMS, strict=False))


@pytest.mark.parametrize(
    "iterator", [iter([1, 2]), iter({1: 2}), map(str, ITEMS), (each for each in ITEMS), iter("ab")]
)
def test_what_may_change_unseen_is_not_known(iterator: Iterator[Any]) -> None:
    with pytest.raises(UnknownIterator):
        told(iterator)


def test_what_an_iterator_of_a_tuple_has_given_is_told() -> None:
    iterator, given = iter((1, 2, 3)), []
    next(iterator)
    describe_iterator(iterator, repr, lambda obj: False, given.append)
    assert given == [(1,)]
