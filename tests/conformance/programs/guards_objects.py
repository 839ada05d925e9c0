"""Guards on Python objects: attributes, classes, descriptors, identity."""

from __future__ import annotations

import enum
import functools
import operator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=2)
def a_deep_attribute_changes(play: Play) -> None:
    config = SimpleNamespace(model=SimpleNamespace(scale=2.0, unused=1))
    f = play.jit(lambda x: x * config.model.scale)
    for scale in (2.0, 2.0, 3.0, 3.0, 2.0):
        config.model.scale = scale
        config.model.unused += 1
        play(f, whole(4))


@program(traces=3)
def an_instance_attribute_comes_to_hide_the_class_attribute(play: Play) -> None:
    class Scaler:
        scale = 2.0

        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    scaler = Scaler()
    f = play.jit(scaler.apply)
    play(f, whole(3))
    play(f, whole(3))
    scaler.scale = 5.0
    play(f, whole(3))
    play(f, whole(3))
    del scaler.scale
    play(f, whole(3))
    Scaler.scale = 7.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def a_method_is_replaced_on_the_class_then_on_the_instance(play: Play) -> None:
    class Layer:
        def inner(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) * 2

    layer = Layer()
    f = play.jit(layer.forward)
    play(f, whole(3))
    play(f, whole(3))
    Layer.inner = lambda self, x: x - 1  # type: ignore[method-assign]
    play(f, whole(3))
    play(f, whole(3))
    layer.inner = lambda x: x * 10  # type: ignore[method-assign]
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def an_attribute_of_a_base_class_changes(play: Play) -> None:
    class Base:
        shift = 1

    class Middle(Base):
        pass

    class Leaf(Middle):
        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.shift

    f = play.jit(Leaf().apply)
    play(f, whole(3))
    play(f, whole(3))
    Middle.shift = 4
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def dunder_methods_are_replaced_on_the_class(play: Play) -> None:
    class Bag:
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> int:
            return 10 + index

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    bag = Bag()
    f = play.jit(lambda x: bag(x) * len(bag) + bag[1])
    play(f, whole(3))
    play(f, whole(3))
    Bag.__len__ = lambda self: 5  # type: ignore[method-assign]
    play(f, whole(3))
    Bag.__call__ = lambda self, x: x - 1  # type: ignore[method-assign]
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def a_property_computes_from_what_changes(play: Play) -> None:
    class Model:
        def __init__(self) -> None:
            self._heads = 2

        @property
        def width(self) -> int:
            return 8 // self._heads

    model = Model()
    f = play.jit(lambda x: x.view(-1, model.width))
    play(f, whole(8))
    play(f, whole(8))
    model._heads = 4
    play(f, whole(8))
    play(f, whole(8))


@program(traces=2)
def a_slot_changes(play: Play) -> None:
    class Point:
        __slots__ = ("x", "y")

    point = Point()
    point.x, point.y = 1.0, 2.0
    f = play.jit(lambda t: t * point.x + point.y)
    play(f, whole(3))
    play(f, whole(3))
    point.y = -2.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def an_attribute_that_getattr_made_up_comes_to_exist(play: Play) -> None:
    class Lazy:
        def __getattr__(self, name: str) -> float:
            return float(len(name))

    lazy = Lazy()
    f = play.jit(lambda x: x * lazy.scale)
    play(f, whole(3))
    play(f, whole(3))
    lazy.scale = 100.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def a_missing_attribute_appears(play: Play) -> None:
    options = SimpleNamespace()

    def f(x: torch.Tensor) -> torch.Tensor:
        return x + options.bias if hasattr(options, "bias") else x - getattr(options, "shift", 1)

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    options.bias = whole(3)
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def an_object_that_is_equal_to_everything_is_replaced(play: Play) -> None:
    class Agreeable:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __eq__(self, other: object) -> bool:
            return True

        def __hash__(self) -> int:
            return 0

    holder = SimpleNamespace(item=Agreeable(2.0))
    f = play.jit(lambda x: x * holder.item.scale)
    play(f, whole(3))
    play(f, whole(3))
    holder.item = Agreeable(3.0)
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def the_truth_of_an_object_changes(play: Play) -> None:
    class Switch:
        def __init__(self) -> None:
            self.level = 0

        def __bool__(self) -> bool:
            return self.level > 3

    switch = Switch()
    f = play.jit(lambda x: x + 1 if switch else x - 1)
    play(f, whole(3))
    play(f, whole(3))
    switch.level = 4
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def two_names_of_one_object_become_two_objects(play: Play) -> None:
    shared = [1.0]
    holder = SimpleNamespace(left=shared, right=shared)
    f = play.jit(lambda x: x * 2 if holder.left is holder.right else x * 3)
    play(f, whole(3))
    play(f, whole(3))
    holder.right = [1.0]
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def an_object_is_given_another_class(play: Play) -> None:
    class Adder:
        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1

    class Doubler:
        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    tool: Any = Adder()
    f = play.jit(lambda x: tool.apply(x) if isinstance(tool, Doubler) else tool.apply(x) - 5)
    play(f, whole(3))
    play(f, whole(3))
    tool.__class__ = Doubler
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def the_attribute_dictionary_is_written_and_replaced(play: Play) -> None:
    class Box:
        pass

    box: Any = Box()
    box.scale = 2.0
    f = play.jit(lambda x: x * box.scale)
    play(f, whole(3))
    play(f, whole(3))
    vars(box)["scale"] = 3.0
    play(f, whole(3))
    box.__dict__ = {"scale": 4.0}
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def a_descriptor_keeps_its_value_elsewhere(play: Play) -> None:
    store: dict[int, float] = {}

    class Stored:
        def __get__(self, obj: object, owner: type) -> float:
            return store[1]

        def __set__(self, obj: object, value: float) -> None:
            store[1] = value

    class Model:
        gain = Stored()

    model = Model()
    model.gain = 2.0
    f = play.jit(lambda x: x * model.gain)
    play(f, whole(3))
    play(f, whole(3))
    model.gain = 6.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def attributes_are_reached_by_computed_names(play: Play) -> None:
    config = SimpleNamespace(gain_0=2.0, gain_1=3.0, deep=SimpleNamespace(shift=1.0))
    shift = operator.attrgetter("deep.shift")

    def f(x: torch.Tensor) -> torch.Tensor:
        return sum((x * gain for gain in map(functools.partial(getattr, config), ("gain_0", "gain_1"))), shift(config))

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    config.gain_1, config.deep.shift = 7.0, 2.0
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def a_frozen_dataclass_is_changed_behind_its_back(play: Play) -> None:
    @dataclass(frozen=True)
    class Config:
        scale: float
        dims: tuple[int, ...]

    config = Config(2.0, (0, 1))
    f = play.jit(lambda x: x.sum(config.dims) * config.scale)
    play(f, whole(2, 3))
    play(f, whole(2, 3))
    object.__setattr__(config, "dims", (1,))
    play(f, whole(2, 3))
    play(f, whole(2, 3))


@program(traces=2)
def an_attribute_of_a_tensor_changes(play: Play) -> None:
    weight: Any = whole(3)
    weight.scale = 2.0
    f = play.jit(lambda x: x * weight * weight.scale)
    play(f, whole(3))
    play(f, whole(3))
    weight.scale = 3.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def a_registry_on_a_class_gets_another_entry(play: Play) -> None:
    class Registry:
        known: dict[str, Any] = {"act": torch.relu}

        @classmethod
        def get(cls, name: str) -> Any:
            return cls.known[name]

    f = play.jit(lambda x: Registry.get("act")(x) + len(Registry.known))
    play(f, whole(4))
    play(f, whole(4))
    Registry.known["act"] = torch.neg
    play(f, whole(4))
    play(f, whole(4))


@program(traces=3)
def members_of_an_enumeration_choose(play: Play) -> None:
    class Mode(enum.IntEnum):
        ADD = 1
        SCALE = 2

    def f(x: torch.Tensor, mode: Any) -> torch.Tensor:
        return x + 1 if mode is Mode.ADD else x * int(mode) if isinstance(mode, Mode) else x - mode

    jitted = play.jit(f)
    for mode in (Mode.ADD, Mode.ADD, 1, 1, Mode.SCALE, Mode.ADD, 1):
        play(jitted, whole(3), mode)


@program(traces=1)
def equal_objects_share_a_program(play: Play) -> None:
    class Layer:
        def __init__(self, seed: int) -> None:
            self.weight = whole(4, start=seed)
            self.scale = 2.0

    layers = [Layer(seed) for seed in range(4)]
    f = play.jit(lambda layer, x: x * layer.weight * layer.scale)
    play(f, layers[0], whole(4))
    for layer in layers:
        play(f, layer, whole(4))
