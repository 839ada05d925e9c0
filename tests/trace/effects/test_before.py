"""Copies of what was met tell what was there before, whatever happened since."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Any

import pytest
import torch
from torch import nn

from dsjit.trace.effects.before import Before, slot_names
from dsjit.trace.reads.paths import ABSENT, Attribute, Closure, Item, Slot


class Box:
    pass


class Base:
    __slots__ = ("__hidden", "shown")


class Derived(Base):
    __slots__ = "own"


def test_attributes_are_told_as_they_were_when_the_object_was_met() -> None:
    before, box = Before(), Box()
    box.old = 1  # type: ignore[attr-defined]
    before.take_instance(box)
    box.old, box.new = 2, 3  # type: ignore[attr-defined]
    assert before.original(box, Attribute("old"), 2) == 1
    assert before.original(box, Attribute("new"), 3) is ABSENT
    assert not before.copies[id(vars(box))].same()


def test_a_modules_tables_are_copied_with_it() -> None:
    before, layer = Before(), nn.Linear(2, 2)
    weight = layer.weight
    before.take_instance(layer)
    layer.weight = nn.Parameter(torch.ones(2, 2))
    assert before.original(layer._parameters, Item("weight"), layer.weight) is weight


def test_slots_of_all_bases_are_copied() -> None:
    before, derived = Before(), Derived()
    assert set(slot_names(Derived)) == {"_Base__hidden", "shown", "own"}
    derived.shown = 1
    before.take_instance(derived)
    derived.shown = derived.own = 2
    assert before.original(derived, Slot("shown"), 2) == 1
    assert before.original(derived, Slot("own"), 2) is ABSENT


@pytest.mark.parametrize(
    ("container", "change"),
    [
        ([1, 2], lambda c: c.reverse()),
        ({"a": 1}, lambda c: c.update(b=2)),
        (OrderedDict(a=1, b=2), lambda c: c.move_to_end("a")),
        ({"x"}, lambda c: c.add("y")),
        (deque([1, 2]), lambda c: c.rotate()),
    ],
    ids=lambda value: type(value).__name__,
)
def test_changed_containers_differ_from_their_copies(container: Any, change: Any) -> None:
    before = Before()
    content = before.content(container)
    kept = list(content)
    assert before.copies[id(container)].same()
    change(container)
    assert not before.copies[id(container)].same()
    assert list(before.content(container)) == kept


def test_what_has_no_copy_is_what_was_found_first_by_any_path() -> None:
    value: Any = 1

    def one() -> Any:
        return value

    def other() -> Any:
        return value

    before, scope = Before(), {"name": 5}
    assert before.original(one, Closure("value", 0), 1) == 1
    assert before.original(other, Closure("value", 0), 2) == 1
    assert before.original(scope, Item("name"), 5) == 5
    assert before.original(scope, Item("name"), 6) == 5
