"""Writes to what existed before the call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.trace.observing import ONES, Box, observe

COUNTERS = {"calls": 0}
COUNT = 0


class Slotted:
    __slots__ = ("value",)


def _effect_cases() -> dict[str, tuple[Callable[[Any], Any], Any, str]]:
    def set_attribute(box: Any) -> None:
        box.count = 1

    def increment(box: Any) -> None:
        box.total += 1

    def delete(box: Any) -> None:
        del box.total

    def through_dict(box: Any) -> None:
        box.__dict__["fresh"] = 1

    def append(box: Any) -> None:
        box.items.append(1)

    def set_item(box: Any) -> None:
        box.table["k"] = 2

    def set_class(box: Any) -> None:
        type(box).count += 1

    def cache_tensor(box: Any) -> None:
        box.cache = torch.ones(1)

    def cache_in_list(box: Any) -> None:
        box.tensors[0] = torch.ones(1)

    def resize(box: Any) -> None:
        box.tensors[0].resize_(5)

    def add_to_set(box: Any) -> None:
        box.names.add("new")

    def set_slot(box: Any) -> None:
        box.slotted.value = 2

    slotted = Slotted()
    slotted.value = 1
    make = lambda: Box(total=0, items=[], table={"k": 1}, tensors=[torch.ones(3)], names={"a"}, slotted=slotted)  # noqa: E731
    return {
        "attribute": (set_attribute, make(), "writes attribute 'count' of args[0]"),
        "increment": (increment, make(), "writes attribute 'total' of args[0]"),
        "deletion": (delete, make(), "writes attribute 'total' of args[0]"),
        "through __dict__": (through_dict, make(), "writes attribute 'fresh' of args[0]"),
        "list": (append, make(), "changes the contents of args[0].items"),
        "dictionary": (set_item, make(), "writes item 'k' of args[0].table"),
        "class": (set_class, make(), "writes class 'count' of Box"),
        "cached tensor": (cache_tensor, make(), "writes attribute 'cache' of args[0]"),
        "tensor in a list": (cache_in_list, make(), "changes the contents of args[0].tensors"),
        "tensor's shape": (resize, make(), "changes the metadata of args[0].tensors[0]"),
        "set": (add_to_set, make(), "changes the contents of args[0].names"),
        "slot": (set_slot, make(), "writes attribute 'value' of args[0].slotted"),
    }


EFFECTS = _effect_cases()


@pytest.mark.parametrize(("function", "box", "effect"), EFFECTS.values(), ids=list(EFFECTS))
def test_writes_to_what_existed_are_effects(function: Callable[[Any], Any], box: Any, effect: str) -> None:
    observer = observe(function, box)
    assert effect in [str(found) for found in observer.effects]
    kept = [found for found in observer.effects if found.write is None]
    assert [problem.reason for problem in observer.problems] == [str(found) for found in kept]
    Box.count = 0


def test_writes_of_globals_and_closures_are_effects() -> None:
    count = 0

    def function() -> None:
        nonlocal count
        global COUNT
        count += 1
        COUNT += 1
        COUNTERS["calls"] += 1

    found = {str(effect) for effect in observe(function).effects}
    assert found == {
        "writes closure 'count' of function",
        f"writes global 'COUNT' of globals({__name__})",
        f"writes item 'calls' of globals({__name__})['COUNTERS']",
    }


def test_an_effect_tells_the_line() -> None:
    def function(box: Any) -> None:
        box.count = 5

    (effect,) = observe(function, Box()).effects
    assert effect.source.file == __file__
    assert effect.source.line == function.__code__.co_firstlineno + 1
    assert effect.source.function.endswith("function")


def test_assigning_what_is_there_already_is_no_effect_but_a_read() -> None:
    box = Box(flag=True, limit=0.5)

    def function(x: torch.Tensor) -> torch.Tensor:
        box.flag = True
        box.limit = 0.5
        return x

    observer = observe(function, ONES)
    assert observer.problems == ()
    guard = observer.build_guard((), frozenset())
    assert guard.check((ONES,), {}) is not None
    box.flag = False
    assert guard.check((ONES,), {}) is None


def test_writes_to_objects_born_in_the_call_are_no_effects() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        box = Box(items=[])
        box.total = 1
        box.items.append(x)
        table = {}
        table["x"] = x
        return box.items[0] + table["x"]

    assert observe(function, ONES).problems == ()


def test_the_guard_of_a_call_with_effects_fails_while_they_last() -> None:
    box = Box(cache=None)

    def function(x: torch.Tensor) -> torch.Tensor:
        if box.cache is None:
            box.cache = 2.0
        return x * box.cache

    guard = observe(function, ONES).build_guard((), frozenset())
    assert guard.check((ONES,), {}) is None
    assert guard.why_not((ONES,), {}) == "closure(function)['box'].cache: was None, now 2.0"
    assert observe(function, ONES).problems == ()
    box.cache = None
    assert guard.check((ONES,), {}) is not None
