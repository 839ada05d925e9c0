"""Containers and other objects of the standard library and numpy that were read: changed, the guard fails."""

from __future__ import annotations

import collections
import enum
import gc
import os
import types
import weakref
from collections.abc import Callable

import numpy
import pytest

from tests.trace.cases import Box, Change, assert_noticed, changes_in, names_of


class Mode(enum.Enum):
    A = 1
    B = 2


def _list_order() -> Change:
    items = [1, 2]
    return Change(lambda x: x * items[0], lambda: items.reverse(), "[0]: was 1, now 2")


def _dict_order() -> Change:
    items = {"a": 1, "b": 2}

    def change() -> None:
        items["a"] = items.pop("a")

    return Change(lambda x: next(iter(items)), change, "keys(")


def _ordered_dict_order() -> Change:
    items = collections.OrderedDict(a=1, b=2)
    return Change(lambda x: next(iter(items)), lambda: items.move_to_end("a"), "keys(")


def _set_element() -> Change:
    items = {"a", "b"}

    def change() -> None:
        items.remove("a")
        items.add("c")

    return Change(lambda x: "a" in items, change, "['items']")


def _set_of_equal_elements() -> Change:
    items = {1}

    def change() -> None:
        items.clear()
        items.add(True)

    return Change(lambda x: next(iter(items)), change, "['items']")


def _deque_element() -> Change:
    items = collections.deque([1, 2])
    return Change(lambda x: x * items[0], lambda: items.rotate(), "[0]: was 1, now 2")


def _namedtuple_constant() -> Change:
    point = collections.namedtuple("point", "a b")
    box = Box(p=point(1, 2))
    return Change(lambda x: x * box.p.a, lambda: setattr(box, "p", point(3, 2)), ".p[0]: was 1, now 3")


def _enum() -> Change:
    box = Box(mode=Mode.A)
    return Change(lambda x: box.mode is Mode.A, lambda: setattr(box, "mode", Mode.B), ".mode")


def _numpy_content() -> Change:
    array = numpy.ones(3)
    box = Box(array=array)
    return Change(lambda x: x * float(box.array[0]), lambda: array.fill(2), ".array")


def _weak_reference() -> Change:
    inner = Box(factor=2.0)
    box = Box(ref=weakref.ref(inner), keep=inner)
    return Change(lambda x: x * box.ref().factor, lambda: setattr(inner, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _dying_referent() -> Change:
    owner = [Box(factor=2.0)]
    box = Box(ref=weakref.ref(owner[0]))

    def die() -> None:
        owner.clear()
        gc.collect()

    return Change(lambda x: x if box.ref() is None else x * box.ref().factor, die, ".ref(): was a Box, now absent")


def _simple_namespace() -> Change:
    space = types.SimpleNamespace(factor=2.0)
    return Change(lambda x: x * space.factor, lambda: setattr(space, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _environment() -> Change:
    os.environ.pop("GUARDED_VALUE", None)
    change = lambda: os.environ.update(GUARDED_VALUE="1")  # noqa: E731
    return Change(lambda x: os.environ.get("GUARDED_VALUE"), change, "os.environ[b'GUARDED_VALUE']: was absent")


CHANGES = changes_in(globals())


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("make", CHANGES, ids=names_of(CHANGES))
def test_a_changed_content_fails_the_check(make: Callable[[], Change], native: bool) -> None:
    assert_noticed(make(), native)
