"""Writes set what is stored, below what the user's classes do; deletions and orders included."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest
from torch import nn

from dsjit.trace.effects.writes import (
    AddEntry,
    AddSlot,
    Extend,
    SetCell,
    SetClass,
    SetEntry,
    SetSlot,
    SetTail,
    written_place,
)
from dsjit.trace.reads.paths import ABSENT, Attribute, InstanceKeys


class Strict:
    __slots__ = ("value",)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError("not to be called")


class Loud(dict[str, Any]):
    def __setitem__(self, key: str, value: Any) -> None:
        raise AssertionError("not to be called")


def test_entries_of_dictionaries_are_set_deleted_and_moved() -> None:
    for table in ({"a": 1, "b": 2}, OrderedDict(a=1, b=2), Loud(a=1, b=2)):
        SetEntry(None, "c").apply(table, 3)
        SetEntry(None, "a", last=True).apply(table, 4)
        SetEntry(None, "b").apply(table, ABSENT)
        SetEntry(None, "missing").apply(table, ABSENT)
        AddEntry(None, "c").apply(table, (1, 2))
        assert list(table.items()) == [("c", 6), ("a", 4)]


def test_attributes_are_set_in_the_dictionary_of_the_object_or_of_its_table() -> None:
    net = nn.Module()
    SetEntry(InstanceKeys(), "plain").apply(net, 1)
    SetEntry(Attribute("_buffers"), "buffer").apply(net, None)
    AddEntry(InstanceKeys(), "plain").apply(net, (0.5,))
    assert net.plain == 1.5
    assert dict(net.named_buffers(remove_duplicate=False)) == {} and "buffer" in net._buffers


def test_slots_are_set_without_the_classes_setattr() -> None:
    strict = Strict()
    SetSlot("value").apply(strict, 1)
    AddSlot("value").apply(strict, (2,))
    assert strict.value == 3
    SetSlot("value").apply(strict, ABSENT)
    assert not hasattr(strict, "value")


def test_cells_are_set_added_to_and_emptied() -> None:
    value: Any = 1

    def function() -> Any:
        return value

    SetCell(0).apply(function, 5)
    SetCell(0, adds=True).apply(function, (2,))
    assert function() == 7
    SetCell(0).apply(function, ABSENT)
    with pytest.raises(NameError):
        function()


def test_classes_are_set() -> None:
    class Local:
        old = 1

    SetClass("new").apply(Local, 2)
    SetClass("old").apply(Local, ABSENT)
    assert Local.new == 2 and not hasattr(Local, "old")  # type: ignore[attr-defined]


def test_containers_keep_their_identity() -> None:
    numbers, recent, names = [1, 2, 3], deque([1], maxlen=2), {"a"}
    SetTail(1).apply(numbers, [5])
    Extend().apply(numbers, [6])
    SetTail(0).apply(recent, [7, 8])
    SetTail(0).apply(names, ["b"])
    assert (numbers, list(recent), recent.maxlen, names) == ([1, 5, 6], [7, 8], 2, {"b"})


def test_the_place_of_a_write_is_where_it_stores() -> None:
    net, table = nn.Module(), {"a": 1}
    assert written_place(SetEntry(None, "a"), table) == (id(table), "a")
    assert written_place(SetEntry(InstanceKeys(), "x"), net) == (id(vars(net)), "x")
    assert written_place(AddEntry(Attribute("_buffers"), "x"), net) == (id(net._buffers), "x")
    assert written_place(Extend(), []) is None
