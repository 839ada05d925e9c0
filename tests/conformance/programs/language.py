"""What Python offers beside functions and loops: patterns, data classes, descriptors, metaclasses, iterators."""

from __future__ import annotations

import contextlib
import enum
import functools
import itertools
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


class Kind(enum.Enum):
    DOUBLE = "double"
    SHIFT = "shift"


class Flags(enum.Flag):
    NONE = 0
    DOUBLE = enum.auto()
    SHIFT = enum.auto()


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0


class Batch(NamedTuple):
    data: torch.Tensor
    mask: torch.Tensor | None = None


@program(traces=5)
def cases_are_matched(play: Play) -> None:
    def f(x: torch.Tensor, command: Any) -> torch.Tensor:
        match command:
            case {"scale": factor, **rest}:
                return x * factor + len(rest)
            case ["add", amount] | ("plus", amount):
                return x + amount
            case Point(x=0.0, y=shift):
                return x + shift
            case str() as name if name.startswith("neg"):
                return -x
            case Kind.DOUBLE:
                return x * 2
            case _:
                return x

    jitted = play.jit(f)
    commands: tuple[Any, ...] = ({"scale": 2, "other": 1}, ["add", 3], Point(0.0, 4.0), "negative", Kind.DOUBLE)
    for command in (*commands, *commands):
        play(jitted, whole(3), command)


@program(traces=None)
def a_named_tuple_goes_through(play: Play) -> None:
    def f(batch: Batch) -> Batch:
        data, mask = batch
        if mask is not None:
            data = data * mask
        return batch._replace(data=data + 1)

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, Batch(whole(3)))
        play(jitted, Batch(whole(3), torch.tensor([1.0, 0.0, 1.0])))


@program(traces=3)
def a_configuration_is_replaced_inside(play: Play) -> None:
    @dataclass
    class Config:
        width: int = 2
        kind: Kind = Kind.DOUBLE
        extra: dict[str, float] = field(default_factory=dict)

        def __post_init__(self) -> None:
            self.extra.setdefault("bias", 1.0)

    def f(x: torch.Tensor, config: Config) -> dict[str, Any]:
        changed = replace(config, width=config.width * 2, extra=dict(config.extra))
        out = x * changed.width + changed.extra["bias"]
        return {"out": out, "config": changed, "entries": asdict(changed)}

    jitted = play.jit(f)
    for config in (Config(), Config(), Config(3), Config(3, Kind.SHIFT), Config(3)):
        play(jitted, whole(3), config)


@program(traces=None)
def a_stack_of_scopes_is_entered_and_left(play: Play) -> None:
    class Scope:
        stack: ClassVar[list[Scope]] = []

        def __init__(self, scale: float) -> None:
            self.scale = scale

        def __enter__(self) -> Scope:
            Scope.stack.append(self)
            return self

        def __exit__(self, *error: object) -> bool:
            Scope.stack.pop()
            return error[0] is KeyError

    def inner(x: torch.Tensor) -> torch.Tensor:
        for scope in Scope.stack:
            x = x * scope.scale
        return x

    def f(x: torch.Tensor, fail: bool) -> torch.Tensor:
        with Scope(2.0), Scope(3.0) as last:
            x = inner(x) + last.scale
            if fail:
                raise KeyError("left early")
            x = x + 1
        return x + len(Scope.stack)

    jitted = play.jit(f)
    play.watch(scopes=Scope)
    for fail in (False, False, True, True, False):
        play(jitted, whole(3), fail)


@program(traces=2)
def functions_of_functools(play: Play) -> None:
    @functools.singledispatch
    def scaled(by: Any, x: torch.Tensor) -> torch.Tensor:
        return x

    @scaled.register
    def _(by: int, x: torch.Tensor) -> torch.Tensor:
        return x * by

    @scaled.register
    def _(by: str, x: torch.Tensor) -> torch.Tensor:
        return x + len(by)

    layers = [functools.partial(torch.mul, other=2), functools.partial(torch.add, other=1)]

    def f(x: torch.Tensor, by: Any) -> torch.Tensor:
        x = functools.reduce(lambda value, layer: layer(value), layers, x)
        return scaled(by, x)

    jitted = play.jit(f)
    for by in ("abc", 2, "abc", 2):
        play(jitted, whole(3), by)


@program(traces=2)
def iterators_of_the_standard_library(play: Play) -> None:
    def f(x: torch.Tensor) -> list[torch.Tensor]:
        rows = list(x.unbind())
        pairs = [a * b for a, b in itertools.pairwise(rows)]
        running = list(itertools.accumulate(rows, operator.add))
        grid = [a + b for a, b in itertools.product(rows[:2], rows[1:])]
        flat = list(itertools.chain.from_iterable([pairs, running]))
        groups = {k: list(g) for k, g in itertools.groupby(range(len(rows)), lambda n: n // 2)}
        chosen = list(itertools.islice(itertools.cycle(flat), 1, 6, 2))
        mixed = [a - b for a, b in itertools.zip_longest(rows, rows[1:], fillvalue=rows[0])]
        return [*chosen, *grid, *mixed, rows[groups[1][0]], *map(operator.neg, rows)]

    jitted = play.jit(f)
    for start in range(3):
        play(jitted, whole(3, 2, start=start))


@program(traces=2)
def a_generator_is_consumed_partly_inside(play: Play) -> None:
    def halves(x: torch.Tensor) -> Iterator[torch.Tensor]:
        try:
            while True:
                x = x / 2
                yield x
        finally:
            closed.append(1)

    closed: list[int] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        steps = halves(x)
        first, second = next(steps), next(steps)
        third = next(step for step in steps if step.dim() == 1)
        steps.close()
        return first + second * third

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(3, start=start))


@program(traces=3)
def missing_keys_and_attributes_have_defaults(play: Play) -> None:
    settings: dict[str, float] = {}
    holder = SimpleNamespace()

    def f(x: torch.Tensor) -> torch.Tensor:
        try:
            scale = settings["scale"]
        except KeyError:
            scale = 2.0
        with contextlib.suppress(AttributeError):
            x = x + holder.shift
        try:
            return x * scale
        finally:
            settings.pop("once", None)

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    settings["scale"] = 3.0
    play(jitted, whole(3))
    holder.shift = 1.0
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=None)
def getters_and_callers_of_operator(play: Play) -> None:
    state = SimpleNamespace(layer=SimpleNamespace(scale=2.0), table={"shift": 1.0})
    scale, shift = operator.attrgetter("layer.scale"), operator.itemgetter("shift")
    total = operator.methodcaller("sum", 0)

    def f(x: torch.Tensor) -> torch.Tensor:
        return total(x * scale(state) + shift(state.table))

    jitted = play.jit(f)
    play(jitted, whole(2, 3))
    play(jitted, whole(2, 3))
    state.layer.scale = 3.0
    play(jitted, whole(2, 3))
    state.table["shift"] = 2.0
    play(jitted, whole(2, 3))
    play(jitted, whole(2, 3))


@program(traces=2)
def a_call_is_counted_by_a_decorator(play: Play) -> None:
    def counted(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            wrapper.calls += 1
            wrapper.last = kwargs
            return function(*args, **kwargs)

        wrapper.calls = 0
        wrapper.last = None
        return wrapper

    @counted
    def inner(x: torch.Tensor, *, factor: float) -> torch.Tensor:
        return x * factor

    jitted = play.jit(lambda x: inner(x, factor=2.0) + 1)
    for _ in range(5):
        play(jitted, whole(3))
        play.note("calls", inner.calls)


@program(traces=2)
def names_of_layers_are_parsed(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for number in range(3):
                setattr(self, f"scale{number}", nn.Parameter(torch.tensor(float(number + 1))))
            self.bias0 = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for name, parameter in sorted(self.named_parameters()):
                found = re.fullmatch(r"(scale|bias)(\d+)", name)
                assert found is not None
                x = x * parameter if found[1] == "scale" else x + parameter
            return x + sum(getattr(self, f"scale{n}") for n in range(3) if hasattr(self, f"scale{n}"))

    net = Net()
    f = play.jit(net)
    play(f, whole(3))
    play(f, whole(3))
    with torch.no_grad():
        net.scale1.mul_(2)
    play(f, whole(3))
    del net.scale2
    play(f, whole(3))
    play(f, whole(3))


@program(traces=4)
def flags_are_combined(play: Play) -> None:
    def f(x: torch.Tensor, flags: Flags) -> torch.Tensor:
        if Flags.DOUBLE in flags:
            x = x * 2
        return x + 1 if flags & Flags.SHIFT else x

    jitted = play.jit(f)
    for flags in (Flags.NONE, Flags.DOUBLE, Flags.SHIFT, Flags.DOUBLE | Flags.SHIFT) * 2:
        play(jitted, whole(3), flags)


@program(traces=2)
def arguments_are_unpacked_in_every_way(play: Play) -> None:
    def inner(a: torch.Tensor, /, b: float, *rest: float, scale: float = 1.0, **more: float) -> torch.Tensor:
        return a * b + sum(rest) * scale + sum(more.values())

    def f(x: torch.Tensor, numbers: list[float], names: dict[str, float]) -> torch.Tensor:
        first, *middle, last = numbers
        if (total := sum(middle)) > 2:
            return inner(x, first, *middle, **names, other=last)
        return inner(x, *numbers, **names) - total

    jitted = play.jit(f)
    for numbers in ([1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 4.0]) * 2:
        play(jitted, whole(3), numbers, {"scale": 2.0, "z": 1.0})
