"""Attributes, classes and methods that were read: unchanged, the guard passes; changed, it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.trace.cases import ONES, Box, Change, assert_noticed, changes_in, names_of, restored


class Slotted:
    __slots__ = ("factor",)

    def __init__(self, factor: float) -> None:
        self.factor = factor


class Opaque:
    """Like transformers' configurations: every read goes through a `__getattribute__` written in Python."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__({"alias": "factor"}.get(name, name))


class Dynamic:
    def __init__(self) -> None:
        self.values = {"factor": 2.0}

    def __getattr__(self, name: str) -> Any:
        return self.values[name]


@pytest.fixture(autouse=True)
def _classes_are_restored() -> Iterator[None]:
    with restored(Box, Slotted, Opaque, Dynamic):
        yield
    Box.table.clear()


def _attribute() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _attribute_absent() -> Change:
    box = Box()
    return Change(lambda x: hasattr(box, "extra"), lambda: setattr(box, "extra", 1), ".extra: was absent, now 1")


def _attribute_deleted() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: delattr(box, "factor"), ".factor: was 2.0, now absent")


def _attribute_of_argument() -> Change:
    box = Box(factor=2.0)
    change = lambda: setattr(box, "factor", 3.0)  # noqa: E731
    return Change(lambda x, b: x * b.factor, change, "args[1].factor: was 2.0, now 3.0", (ONES, box))


def _attribute_in_dict() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * vars(box)["factor"], lambda: vars(box).update(factor=3.0), ".factor: was 2.0, now 3.0")


def _vars_grow() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: len(vars(box)), lambda: setattr(box, "other", 1), "vars(")


def _dict_replaced() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "__dict__", {"factor": 3.0}), ".factor")


def _class_replaced() -> Change:
    box = Box(factor=2.0)
    other = type("Other", (Box,), {})
    return Change(lambda x: x * box.factor, lambda: setattr(box, "__class__", other), "was a Box, now a Other")


def _nested_attribute() -> Change:
    box = Box(inner=Box(items=[Box(factor=2.0)]))
    change = lambda: setattr(box.inner.items[0], "factor", 3.0)  # noqa: E731
    return Change(lambda x: x * box.inner.items[0].factor, change, ".inner.items[0].factor: was 2.0, now 3.0")


def _object_replaced() -> Change:
    box = Box(inner=Box(factor=2.0))
    change = lambda: setattr(box, "inner", Box(factor=3.0))  # noqa: E731
    return Change(lambda x: x * box.inner.factor, change, ".inner.factor: was 2.0, now 3.0")


def _slot() -> Change:
    box = Slotted(2.0)
    return Change(lambda x: x * box.factor, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _property() -> Change:
    box = Box(factor=2.0)
    return Change(lambda x: x * box.doubled, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _property_replaced() -> Change:
    box = Box(factor=2.0)
    change = lambda: setattr(Box, "doubled", property(lambda self: 5.0))  # noqa: E731
    return Change(lambda x: x * box.doubled, change, "Box.doubled")


def _opaque() -> Change:
    box = Opaque(factor=2.0)
    return Change(lambda x: x * box.alias, lambda: setattr(box, "factor", 3.0), ".factor: was 2.0, now 3.0")


def _dynamic() -> Change:
    box = Dynamic()
    change = lambda: box.values.update(factor=3.0)  # noqa: E731
    return Change(lambda x: x * box.factor, change, ".values['factor']: was 2.0, now 3.0")


def _class_attribute() -> Change:
    box = Box()
    return Change(lambda x: box.kind, lambda: setattr(Box, "kind", "fancy"), "Box.kind: was 'plain', now 'fancy'")


def _class_attribute_shadowed() -> Change:
    box = Box()
    return Change(lambda x: box.kind, lambda: setattr(box, "kind", "own"), ".kind: was absent, now 'own'")


def _class_attribute_overridden_between() -> Change:
    middle = type("Middle", (Box,), {})
    box = type("Lower", (middle,), {})()
    return Change(lambda x: box.kind, lambda: setattr(middle, "kind", "own"), "kind: was 'plain', now 'own'")


def _class_container() -> Change:
    box = Box()
    return Change(lambda x: len(box.table), lambda: Box.table.update(new=1), "Box.table")


def _class_by_name() -> Change:
    return Change(lambda x: Box.kind, lambda: setattr(Box, "kind", "fancy"), "Box.kind: was 'plain', now 'fancy'")


def _method_on_class() -> Change:
    box = Box()
    change = lambda: setattr(Box, "scale", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box.scale(x), change, "Box.scale")


def _method_on_instance() -> Change:
    box = Box()
    return Change(lambda x: box.scale(x), lambda: setattr(box, "scale", lambda x: x * 3), ".scale: was absent")


def _super_method() -> Change:
    class Lower(Box):
        def scale(self, x: torch.Tensor) -> torch.Tensor:
            return super().scale(x) + 1

    box = Lower()
    change = lambda: setattr(Box, "scale", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box.scale(x), change, "Box.scale")


def _special_method() -> Change:
    callable_box = type("Callable", (Box,), {"__call__": lambda self, x: x * 2})
    box = callable_box()
    change = lambda: setattr(callable_box, "__call__", lambda self, x: x * 3)  # noqa: E731
    return Change(lambda x: box(x), change, "__call__")


CHANGES = changes_in(globals())


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("make", CHANGES, ids=names_of(CHANGES))
def test_a_changed_attribute_fails_the_check(make: Callable[[], Change], native: bool) -> None:
    assert_noticed(make(), native)
