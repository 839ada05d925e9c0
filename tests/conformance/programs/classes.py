"""Classes that users write: mixins, wrappers, metaclasses, protocols, operators, copies, cached properties."""

from __future__ import annotations

import abc
import copy
import functools
import weakref
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=2)
def mixins_call_each_other_by_super(play: Play) -> None:
    class Base(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Doubling(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 2)

    class Shifting(Base):
        shift = 3

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super(Shifting, self).forward(x) + self.shift  # noqa: UP008

    class Both(Doubling, Shifting):
        pass

    both = Both()
    f = play.jit(both)
    play(f, whole(3))
    play(f, whole(3))
    Shifting.shift = 4
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def a_wrapper_hands_attributes_on(play: Play) -> None:
    class Wrapper(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.inner, name)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * self.scale

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = 2.0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    wrapper = Wrapper(Inner())
    f = play.jit(wrapper)
    play(f, whole(3))
    play(f, whole(3))
    wrapper.inner.scale = 3.0
    play(f, whole(3))
    wrapper.scale = 5.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=None)
def subclasses_register_themselves(play: Play) -> None:
    registry: dict[str, type] = {}

    class Meta(type):
        def __call__(cls, *args: Any, **kwargs: Any) -> Any:
            made = super().__call__(*args, **kwargs)
            made.tag = cls.__name__
            return made

    class Layer(metaclass=Meta):
        def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
            super().__init_subclass__(**kwargs)
            registry[key] = cls

        def __init__(self, factor: float) -> None:
            self.factor = factor

    class Scale(Layer, key="scale"):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.factor

    class Shift(Layer, key="shift"):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.factor

    def f(x: torch.Tensor, keys: tuple[str, ...]) -> tuple[torch.Tensor, str]:
        layers = [registry[key](2.0) for key in keys]
        for layer in layers:
            x = layer(x)
        return x, "-".join(layer.tag for layer in layers)

    jitted = play.jit(f)
    for keys in (("scale", "shift"), ("scale", "shift"), ("shift",), ("shift",)):
        play(jitted, whole(3), keys)


@program(traces=3)
def protocols_and_abstract_classes_are_asked(play: Play) -> None:
    @runtime_checkable
    class Scales(Protocol):
        def scale(self) -> float: ...

    class Shape(abc.ABC):
        @abc.abstractmethod
        def area(self) -> float: ...

    class Square(Shape):
        def __init__(self, side: float) -> None:
            self.side = side

        def area(self) -> float:
            return self.side**2

    class Half:
        def scale(self) -> float:
            return 0.5

    def f(x: torch.Tensor, thing: object) -> torch.Tensor:
        if isinstance(thing, Scales):
            return x * thing.scale()
        return x + thing.area() if isinstance(thing, Shape) else x

    jitted = play.jit(f)
    for thing in (Square(2.0), Half(), None, Square(2.0), Half(), None):
        play(jitted, whole(3), thing)


@program(traces=None)
def objects_are_copied_inside(play: Play) -> None:
    settings = SimpleNamespace(scale=2.0, parts=[1.0, 2.0])

    def f(x: torch.Tensor) -> tuple[torch.Tensor, Any]:
        shallow, deep = copy.copy(settings), copy.deepcopy(settings)
        shallow.scale += 1
        deep.parts.append(3.0)
        return x * shallow.scale + sum(deep.parts), deep

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    settings.parts.append(5.0)
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=None)
def a_method_remembers_its_answers(play: Play) -> None:
    class Rotary:
        def __init__(self) -> None:
            self.known: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
            self.base = 2

        @functools.cached_property
        def powers(self) -> torch.Tensor:
            return torch.arange(4) * self.base

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.powers[: x.shape[0]]

    f = play.jit(Rotary())
    for width in (2, 2, 3, 4, 2):
        play(f, whole(width))


@program(traces=2)
def operators_of_a_class_are_overloaded(play: Play) -> None:
    @dataclass
    class Dual:
        value: torch.Tensor
        slope: torch.Tensor

        def __mul__(self, other: Dual) -> Dual:
            return Dual(self.value * other.value, self.value * other.slope + self.slope * other.value)

        def __add__(self, other: Any) -> Dual:
            return Dual(self.value + other, self.slope)

        __radd__ = __add__

        def __getitem__(self, index: Any) -> Dual:
            return Dual(self.value[index], self.slope[index])

        def __len__(self) -> int:
            return self.value.shape[0]

        def __bool__(self) -> bool:
            return True

    def f(x: torch.Tensor) -> Dual:
        dual = Dual(x, torch.ones_like(x))
        out = 1 + dual * dual
        return out[: len(out) - 1] if out else out

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(3, start=start))
