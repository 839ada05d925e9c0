"""Values from the first call that were used again although Python's state had changed."""

from __future__ import annotations

import contextvars
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.conformance.harness import Play, program

NUMBERS: list[float] = [1.0, 2.0, 3.0]
CURRENT: Any = None


@program(traces=2)
def closures_of_one_factory(play: Play) -> None:
    """pytorch/pytorch#197811: closures of one factory over `Tensor.__add__` and `Tensor.__mul__` shared a program."""

    def make(operation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def apply(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return operation(x, y)

        return apply

    add, multiply = play.jit(make(torch.Tensor.__add__)), play.jit(make(torch.Tensor.__mul__))
    for _ in range(3):
        play(add, torch.tensor([6.0]), torch.tensor([3.0]))
        play(multiply, torch.tensor([6.0]), torch.tensor([3.0]))


@program(traces=2)
def attribute_of_a_class(play: Play) -> None:
    """pytorch/pytorch#176851: a class attribute that was changed between calls kept its first value."""

    class Settings:
        factor = 1.0

    f = play.jit(lambda x: x * Settings.factor)
    for factor in (1.0, 1.0, 10.0, 10.0, 1.0):
        Settings.factor = factor
        play(f, torch.tensor([4.0]))


@program(traces=2)
def attribute_of_a_class_by_a_computed_name(play: Play) -> None:
    """pytorch/pytorch#176851: the same where the name of the attribute is computed."""

    class Settings:
        factor_of_two = 2.0

    f = play.jit(lambda x, name: x * getattr(Settings, f"factor_of_{name}"))
    for factor in (2.0, 2.0, 20.0, 20.0, 2.0):
        Settings.factor_of_two = factor
        play(f, torch.tensor([4.0]), "two")


@program(traces=3)
def defaults_of_a_function(play: Play) -> None:
    """pytorch/pytorch#178365: functions that differ in the defaults of their parameters only shared a program."""

    def make(amount: float) -> Callable[..., torch.Tensor]:
        def shift(x: torch.Tensor, by: float = amount) -> torch.Tensor:
            return x + by

        return shift

    shift = make(1.0)
    f = play.jit(lambda x: shift(x) * 2)
    for _ in range(2):
        play(f, torch.ones(3))
    shift = make(5.0)
    for _ in range(2):
        play(f, torch.ones(3))
    shift.__defaults__ = (7.0,)
    for _ in range(2):
        play(f, torch.ones(3))


@program(traces=3)
def float_argument_of_clamp(play: Play) -> None:
    """pytorch/pytorch#194976: the limits of a clamp, floats that change from call to call, kept an earlier value."""

    def clamped(x: torch.Tensor, limit: float) -> torch.Tensor:
        gate, up = torch.chunk(x, 2, dim=-1)
        return gate.clamp(max=limit) * up.clamp(min=-limit, max=limit)

    f = play.jit(clamped)
    for limit in (1.0, 2.5, 4.0, 2.5, 1.0, 4.0):
        play(f, torch.arange(-6.0, 6.0).view(2, 6), limit)


@program(traces=3)
def float_in_closures_of_its_own(play: Play) -> None:
    """pytorch/pytorch#194976: the same with one compiled closure for each limit."""

    def make(limit: float) -> Any:
        return play.jit(lambda x: x.clamp(-limit, limit) + limit)

    closures = [make(limit) for limit in (1.0, 2.5, 4.0)]
    for _ in range(2):
        for closure in closures:
            play(closure, torch.arange(-6.0, 6.0))


@program(traces=4)
def argument_that_is_a_global_list(play: Play) -> None:
    """pytorch/pytorch#120861: guards on a list that was met as a global and as an argument covered only one of both."""
    f = play.jit(lambda values, x: x + NUMBERS[-1] + values[-1])
    for values in (NUMBERS, NUMBERS, list(reversed(NUMBERS)), [1.0, 2.0], [1.0, 2.0, 3.0, 2.0], NUMBERS):
        play(f, values, torch.ones(1))


@program(compiled=False)
def context_variable(play: Play) -> None:
    """Lightning-AI/lightning-thunder#1464: the value of a `ContextVar` became a constant without any check."""
    offset = contextvars.ContextVar("offset", default=1.0)
    f = play.jit(lambda x: x + offset.get())
    for value in (1.0, 1.0, 2.0, 2.0, 1.0):
        offset.set(value)
        play(f, torch.ones(3))


@program(compiled=False)
def cached_function(play: Play) -> None:
    """pytorch/pytorch#146598: a function under `functools.cache` ran again although its result was cached."""
    calls = 0

    @functools.cache
    def cached(number: int) -> int:
        nonlocal calls
        calls += 1
        return number + 10 * calls

    f = play.jit(lambda x, number: x + cached(number))
    for number in (3, 3, 4, 3, 4):
        play(f, torch.ones(2), number)
    cached.cache_clear()
    for number in (3, 3, 4):
        play(f, torch.ones(2), number)


@program(traces=2)
def hashable_argument_that_is_changed(play: Play) -> None:
    """jax-ml/jax#13992: an argument whose hash changed with its value found a program made for the other value."""

    class Static:
        def __init__(self, value: float) -> None:
            self.value = value

        def __hash__(self) -> int:
            return hash(self.value)

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Static) and self.value == other.value

    f = play.jit(lambda static, y: y + static.value)
    static = Static(100.0)
    for value in (100.0, 0.0, 0.0, 100.0, 0.0):
        static.value = value
        play(f, static, torch.ones(2))


@program()
def sum_in_a_list_of_the_closure(play: Play) -> None:
    """jax-ml/jax#12773: a sum kept in a list of the closure was read from the first call for ever."""
    total = [torch.zeros(2)]

    def increment(x: torch.Tensor) -> torch.Tensor:
        total[0] = total[0] + x
        return total[0]

    f = play.jit(increment)
    for amount in (1.0, 2.0, 3.0, 4.0):
        play(f, torch.full((2,), amount))


@program(traces=2)
def order_of_a_dictionary(play: Play) -> None:
    """pytorch/pytorch#189042 (review): a dictionary whose keys came in another order used the first one's value."""
    f = play.jit(lambda config, x: x * next(iter(config.values())))
    for config in ({"a": 2.0, "b": 3.0}, {"a": 2.0, "b": 3.0}, {"b": 3.0, "a": 2.0}, {"b": 3.0, "a": 2.0}):
        play(f, config, torch.ones(2))


@program(traces=3)
def dtype_as_an_argument(play: Play) -> None:
    """Lightning-AI/lightning-thunder#406: a dtype given as an argument was kept from an earlier call."""
    f = play.jit(lambda x, dtype: x.to(dtype) + 1)
    for dtype in (torch.float64, torch.float64, torch.int32, torch.bfloat16, torch.int32, torch.float64):
        play(f, torch.arange(4.0), dtype)


@program()
def tensor_in_a_list(play: Play) -> None:
    """tinygrad/tinygrad#10850: a tensor inside a list argument was taken from the second call from then on."""
    f = play.jit(lambda tensors: tensors[0] + 1)
    for number in range(5):
        play(f, [torch.tensor([number])])


@program(traces=2)
def global_that_the_call_rebinds(play: Play) -> None:
    """pytorch/pytorch#191821: a helper saw the first value of a global that its caller's loop rebinds."""
    global CURRENT

    @dataclass
    class Region:
        hidden: torch.Tensor

    def region() -> torch.Tensor:
        hidden: torch.Tensor = CURRENT.hidden
        return hidden + 1

    def run(hidden: torch.Tensor) -> torch.Tensor:
        global CURRENT
        for _ in range(3):
            CURRENT = Region(hidden)
            hidden = region()
        return hidden

    CURRENT = Region(torch.tensor(0))
    f = play.jit(run)
    for number in range(4):
        play(f, torch.tensor(number))


@program(traces=2)
def default_dtype(play: Play) -> None:
    """pytorch/pytorch#184405: factories without a dtype kept the default dtype of the first call."""

    def factories() -> tuple[torch.Tensor, ...]:
        return torch.ones(2), torch.tensor([1.0, 2.0]), torch.arange(2.0), torch.zeros(2) + 0.5

    f = play.jit(factories)
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        play(f)


@program(traces=2)
def default_dtype_as_a_value(play: Play) -> None:
    """pytorch/pytorch#109458: `torch.get_default_dtype()` was a constant from the first call on."""
    f = play.jit(lambda x: (x.to(torch.get_default_dtype()), torch.result_type(x, 1.0) is torch.get_default_dtype()))
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64):
        torch.set_default_dtype(dtype)
        play(f, torch.arange(3))


@program(traces=2)
def ambient_autocast(play: Play) -> None:
    """pytorch/pytorch#112260: whether the caller had autocast on was not checked."""
    f = play.jit(lambda x: x @ x)
    for enabled in (False, False, True, True, False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            play(f, torch.arange(4.0).view(2, 2))


@program(traces=2)
def ambient_dtype_of_autocast(play: Play) -> None:
    """pytorch/pytorch#191110 (review): autocast without a dtype of its own used the dtype of the first call."""

    def product(x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return x @ x

    f = play.jit(product)
    before = torch.get_autocast_dtype("cpu")
    try:
        for dtype in (torch.bfloat16, torch.bfloat16, torch.float16, torch.float16, torch.bfloat16):
            torch.set_autocast_dtype("cpu", dtype)
            play(f, torch.arange(4.0).view(2, 2))
    finally:
        torch.set_autocast_dtype("cpu", before)


@program(traces=2)
def identity_of_attributes(play: Play) -> None:
    """pytorch/pytorch#196173: a branch on which object an attribute is was taken as before when it was rebound."""

    class Node:
        pass

    class Holder:
        def __init__(self) -> None:
            self.left, self.right = Node(), Node()
            self.current = self.left

    holder = Holder()

    def step(x: torch.Tensor) -> torch.Tensor:
        if holder.current is holder.left:
            holder.current = holder.right
            return x + 1
        holder.current = holder.left
        return x - 1

    f = play.jit(step)
    for _ in range(6):
        play(f, torch.zeros(2))


@program(traces=4)
def numbers_beside_tensors(play: Play) -> None:
    """pytorch/pytorch#117496: the value of a number, in an attribute or as an argument, was ignored after a call."""

    class Sampler:
        def __init__(self) -> None:
            self.temperature = 8.0

        def scale(self, x: torch.Tensor) -> torch.Tensor:
            return x / self.temperature

    sampler = Sampler()
    method, free = play.jit(sampler.scale), play.jit(lambda x, temperature: x / temperature)
    for temperature in (8.0, 8.0, 4.0, 4.0, 8.0):
        sampler.temperature = temperature
        play(method, torch.arange(4.0))
        play(free, torch.arange(4.0), temperature)


@program(traces=2)
def property_that_makes_a_new_object(play: Play) -> None:
    """Lightning-AI/lightning-thunder#729: reading an attribute twice failed, since it was taken to give one object."""

    class Source:
        base = 1.0

        @property
        def fresh(self) -> torch.Tensor:
            return torch.full((2,), self.base)

    source = Source()
    f = play.jit(lambda x: (x + source.fresh, source.fresh, source.fresh))
    for base in (1.0, 1.0, 3.0, 3.0):
        source.base = base
        play(f, torch.ones(2))


@program(traces=1)
def tensor_attribute_that_is_replaced(play: Play) -> None:
    """pytorch/pytorch#115774: a tensor attribute was the one of the first call after it had been replaced."""

    class Cache:
        def __init__(self) -> None:
            self.cells = torch.tensor([0, 0])

        def write(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
            self.cells[position] = x
            return self.cells

    cache = Cache()
    f = play.jit(cache.write)
    play(f, torch.tensor([2]), torch.tensor([0]))
    cache.cells = torch.tensor([0, 0])
    play(f, torch.tensor([1]), torch.tensor([1]))
    cache.cells = torch.tensor([5, 5])
    play(f, torch.tensor([4]), torch.tensor([0]))


@program(traces=None)
def counter_that_selects(play: Play) -> None:
    """pytorch/pytorch#125387: a counter in an attribute was right when returned, and stood still as an index."""

    class Toy:
        def __init__(self) -> None:
            self.count = 0
            self.table = torch.arange(10) * 3

        def next(self) -> tuple[int, torch.Tensor]:
            self.count += 1
            return self.count, self.table[self.count]

    f = play.jit(Toy().next)
    for _ in range(7):
        play(f)
