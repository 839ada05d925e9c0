"""What tests of guards share: things to read, the guard of a call that reads them, and changes to what it read."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from dsjit.trace.guards.guard import Guard
from dsjit.trace.observe import Observer

ONES = torch.ones(2, 3)


def trace(
    function: Callable[..., Any], *args: Any, native: bool = True, written: frozenset[int] = frozenset(), **kwargs: Any
) -> Guard:
    """The guard of one observed call; every tensor that it met is an input."""
    observer = Observer(function, args, kwargs)
    with observer:
        function(*args, **kwargs)
    assert observer.problems == ()
    return observer.build_guard([path for path, *_ in observer.tensors_met()], written, native=native)


@dataclass
class Change:
    """A call, and a change to what it reads. `where` is in the message that tells what changed."""

    function: Callable[..., Any]
    change: Callable[[], Any]
    where: str
    args: tuple[Any, ...] = (ONES,)
    kwargs: dict[str, Any] = field(default_factory=dict)


def changes_in(namespace: Mapping[str, Any]) -> list[Callable[[], Change]]:
    """The functions of a module that make a Change."""
    functions = [value for _, value in sorted(namespace.items()) if isinstance(value, types.FunctionType)]
    return [f for f in functions if f.__name__.startswith("_") and f.__annotations__.get("return") == "Change"]


def names_of(changes: list[Callable[[], Change]]) -> list[str]:
    return [function.__name__.strip("_") for function in changes]


def assert_noticed(case: Change, native: bool) -> None:
    """Unchanged, the guard passes, however often; changed, it fails and says what changed."""
    guard = trace(case.function, *case.args, native=native, **case.kwargs)
    for _ in range(3):  # walked in Python, bound, checked natively
        assert guard.check(case.args, case.kwargs) is not None, guard.why_not(case.args, case.kwargs)
    assert guard.why_not(case.args, case.kwargs) is None
    case.change()
    for _ in range(2):
        assert guard.check(case.args, case.kwargs) is None
    assert case.where in (guard.why_not(case.args, case.kwargs) or "")


@contextmanager
def restored(*namespaces: type | types.ModuleType) -> Iterator[None]:
    """The attributes of classes and modules are afterwards what they were."""
    before = {namespace: dict(vars(namespace)) for namespace in namespaces}
    yield
    for namespace, entries in before.items():
        for name in set(vars(namespace)) - set(entries):
            delattr(namespace, name)
        for name, value in entries.items():
            if vars(namespace)[name] is not value:
                setattr(namespace, name, value)


class Box:
    kind = "plain"
    table: dict[str, Any] = {}

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2

    @property
    def doubled(self) -> float:
        return self.factor * 2

    @staticmethod
    def static(x: torch.Tensor) -> torch.Tensor:
        return x


def helper(x: torch.Tensor, factor: float = 2.0, *, bias: float = 1.0) -> torch.Tensor:
    return x * factor + bias


class Layer(nn.Module):
    def __init__(self, scale: float = 0.5) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x) * self.scale
