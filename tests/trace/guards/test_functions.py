"""Globals, defaults, closures and modules that functions read: changed, the guard fails."""

from __future__ import annotations

import functools
import sys
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from tests.trace.cases import Box, Change, assert_noticed, changes_in, names_of, restored

FACTOR = 2.0
SETTINGS: dict[str, Any] = {"deep": [1, {"factor": 2.0}]}
module_of_user = types.ModuleType("module_of_user")
exec("FACTOR = 2.0\ndef f(x):\n    return x * FACTOR\n", module_of_user.__dict__)


def helper(x: torch.Tensor, factor: float = 2.0, *, bias: float = 1.0) -> torch.Tensor:
    return x * factor + bias


def _globals_with(**changes: Any) -> Callable[[], None]:
    return lambda: globals().update(changes)


@pytest.fixture(autouse=True)
def _everything_is_restored() -> Iterator[None]:
    defaults = helper.__defaults__, dict(helper.__kwdefaults__), helper.__code__
    with restored(sys.modules[__name__], module_of_user):
        yield
    SETTINGS.update(deep=[1, {"factor": 2.0}])
    helper.__defaults__, helper.__kwdefaults__, helper.__code__ = defaults


def _global_constant() -> Change:
    return Change(lambda x: x * FACTOR, _globals_with(FACTOR=3.0), "['FACTOR']: was 2.0, now 3.0")


def _global_type() -> Change:
    return Change(lambda x: x * FACTOR, _globals_with(FACTOR=2), "['FACTOR']: was 2.0, now 2")


def _global_container() -> Change:
    change = lambda: SETTINGS["deep"][1].update(factor=3.0)  # noqa: E731
    return Change(lambda x: x * SETTINGS["deep"][1]["factor"], change, "['SETTINGS']['deep'][1]['factor']: was 2.0")


def _global_container_grows() -> Change:
    return Change(lambda x: len(SETTINGS["deep"]), lambda: SETTINGS["deep"].append(1), "len(")


def _global_function() -> Change:
    return Change(lambda x: helper(x), _globals_with(helper=lambda x: x), "['helper']")


def _global_function_code() -> Change:
    change = lambda: setattr(helper, "__code__", (lambda x, factor=2.0, *, bias=1.0: x).__code__)  # noqa: E731
    return Change(lambda x: helper(x), change, "['helper']")


def _global_of_callee() -> Change:
    return Change(lambda x: module_of_user.f(x), lambda: setattr(module_of_user, "FACTOR", 3.0), "['FACTOR']: was 2.0")


def _global_in_inner_function() -> Change:
    def outer(x: torch.Tensor) -> Any:
        return [x * FACTOR for _ in range(2)]

    return Change(outer, _globals_with(FACTOR=3.0), "['FACTOR']: was 2.0, now 3.0")


def _builtin_shadowed() -> Change:
    return Change(lambda x: max(1, 2), lambda: globals().update(max=min), "['max']: was absent")


def _default() -> Change:
    return Change(lambda x: helper(x), lambda: setattr(helper, "__defaults__", (3.0,)), "__defaults__")


def _keyword_default() -> Change:
    return Change(lambda x: helper(x), lambda: helper.__kwdefaults__.update(bias=2.0), "['bias']: was 1.0, now 2.0")


def _module_attribute() -> Change:
    change = lambda: setattr(module_of_user, "f", lambda x: x)  # noqa: E731
    return Change(lambda x: module_of_user.f(x), change, "module_of_user.f")


def _torch_function() -> Change:
    original = torch.relu

    def change() -> None:
        torch.relu = lambda x: x

    weakref.finalize(change, setattr, torch, "relu", original)
    return Change(lambda x: torch.relu(x), change, "torch.relu")


def _closure() -> Change:
    factor = 2.0

    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    def change() -> None:
        nonlocal factor
        factor = 3.0

    return Change(scale, change, "closure(scale)['factor']: was 2.0, now 3.0")


def _closure_of_callee() -> Change:
    factor = 2.0

    def inner(x: torch.Tensor) -> torch.Tensor:
        return x * factor

    def change() -> None:
        nonlocal factor
        factor = 3.0

    return Change(lambda x: inner(x), change, "['factor']: was 2.0, now 3.0")


def _closure_of_decorated_method() -> Change:
    cell = [2.0]

    def decorate(function: Callable[..., Any], factors: list[float]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any) -> Any:
            return function(*args) * factors[0]

        return wrapper

    class Lower(Box):
        scale = decorate(Box.scale, cell)

    box = Lower()
    return Change(lambda x: box.scale(x), lambda: cell.__setitem__(0, 3.0), "[0]: was 2.0, now 3.0")


def _partial() -> Change:
    keywords = functools.partial(helper, bias=2.0)
    box = Box(f=keywords)
    return Change(lambda x: box.f(x), lambda: keywords.keywords.update(bias=3.0), "['bias']: was 2.0, now 3.0")


def _function_attribute() -> Change:
    def scale(x: torch.Tensor) -> torch.Tensor:
        return x * scale.factor

    scale.factor = 2.0
    return Change(scale, lambda: setattr(scale, "factor", 3.0), ".factor: was 2.0, now 3.0")


CHANGES = changes_in(globals())


@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
@pytest.mark.parametrize("make", CHANGES, ids=names_of(CHANGES))
def test_a_changed_name_fails_the_check(make: Callable[[], Change], native: bool) -> None:
    assert_noticed(make(), native)
