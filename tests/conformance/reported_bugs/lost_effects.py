"""Changes to Python objects, or their order, that were lost or doubled, and Python iteration that went wrong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program


@program()
def list_of_a_class(play: Play) -> None:
    """pytorch/pytorch#169253: what was appended to a list in a class attribute was dropped."""

    class Model(nn.Module):
        items: list[torch.Tensor] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Model.items.append(x)
            return x + 1

    f, x = play.jit(Model()), torch.ones(2)
    play.watch(items=Model.items)
    for _ in range(4):
        play(f, x)
    Model.items.clear()
    play(f, x)


@program()
def containers_of_nested_classes(play: Play) -> None:
    """pytorch/pytorch#169253: the same for a class in a class, and for containers of a metaclass."""

    class Meta(type):
        names: list[str] = []

    class Registry(metaclass=Meta):
        table: dict[str, int] = {}

        class Inner:
            log: list[int] = []
            count = 0

    def run(x: torch.Tensor) -> torch.Tensor:
        Registry.table["calls"] = Registry.table.get("calls", 0) + 1
        Registry.Inner.log.append(x.shape[0])
        Registry.Inner.count += 1
        Meta.names.append("run")
        return x + 1

    f, x = play.jit(run), torch.ones(2)
    play.watch(registry=Registry, inner=Registry.Inner, meta=Meta)
    for _ in range(4):
        play(f, x)


@program(traces=2)
def length_of_a_list_of_a_class(play: Play) -> None:
    """pytorch/pytorch#169253: the same where the result depends on what has been appended."""

    class Model:
        items: list[int] = []

        def step(self, x: torch.Tensor) -> torch.Tensor:
            if not Model.items:
                Model.items.append(1)
                return x - 100
            return x + len(Model.items)

    f, x = play.jit(Model().step), torch.ones(2)
    for _ in range(3):
        play(f, x)
    Model.items.clear()
    for _ in range(3):
        play(f, x)


@program()
def containers_changed_by_methods_of_a_local_class(play: Play) -> None:
    """pytorch/pytorch#197896: changes of closed-over containers by a class defined in the function were dropped."""
    log: list[str] = []
    state: dict[str, Any] = {"calls": 0, "last": ""}

    def step(x: torch.Tensor) -> torch.Tensor:
        class Helper:
            def touch(self, name: str) -> None:
                log.append(name)
                state["calls"] += 1
                state["last"] = name

        helper = Helper()
        helper.touch("first")
        helper.touch("second")
        return x + 1

    f = play.jit(step)
    for _ in range(4):
        play(f, torch.ones(2))


@program()
def list_that_grows_while_it_is_iterated(play: Play) -> None:
    """pytorch/pytorch#175855: elements appended to a list during its iteration were not visited."""

    def total(x: torch.Tensor) -> torch.Tensor:
        values = [x.sum()]

        def growing() -> Iterator[torch.Tensor]:
            for value in values:
                if len(values) < 3:
                    values.append(value + 1)
                yield value

        return torch.stack(list(growing())).sum()

    f = play.jit(total)
    for number in (1.0, 2.0, 3.0):
        play(f, torch.full((1,), number))


@program()
def list_extended_by_a_generator_over_itself(play: Play) -> None:
    """pytorch/pytorch#133063: `list.extend` of a generator that reads the list saw the list as it was before."""

    def chain(x: torch.Tensor) -> list[torch.Tensor]:
        values = [x, x]
        values.extend(values[-1] + 1 for _ in range(3))
        return values

    f = play.jit(chain)
    for _ in range(3):
        play(f, torch.zeros(2))


@program(traces=2)
def order_of_an_ordered_dictionary(play: Play) -> None:
    """pytorch/pytorch#198189: `OrderedDict.move_to_end` was dropped, so that a cache evicted the wrong entry."""
    cache = OrderedDict(a=torch.ones(1), b=torch.ones(1) * 2)

    def touch(entries: OrderedDict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        entries.move_to_end("a")
        return x + entries["b"]

    f = play.jit(touch)
    for _ in range(3):
        play(f, cache, torch.ones(1))
    cache.popitem(last=False)
    cache["b"] = torch.ones(1) * 5
    for _ in range(2):
        play(f, cache, torch.ones(1))


@program()
def element_of_a_nested_list(play: Play) -> None:
    """pytorch/pytorch#103563: a tensor stored in a list of lists was not seen by later reads of that list."""

    def fill(x: torch.Tensor) -> Any:
        table: list[list[Any]] = [[1, 2, 3], [4, 5, 6]]
        for column in range(3):
            table[0][column] = x if column == 0 else table[0][column - 1] + 1
        return table[0][-1], table

    f = play.jit(fill)
    for _ in range(3):
        play(f, torch.ones(2))


@program()
def context_manager_that_appends(play: Play) -> None:
    """pytorch/pytorch#128651: the part of a `contextmanager` after its `yield` did not happen."""
    log: list[str] = []

    @contextmanager
    def logged() -> Iterator[None]:
        log.append("enter")
        try:
            yield
        finally:
            log.append("exit")

    def run(x: torch.Tensor) -> torch.Tensor:
        with logged():
            log.append("body")
            return x + len(log)

    f = play.jit(run)
    for _ in range(3):
        log.clear()
        play(f, torch.ones(2))


@program()
def counter_inside_a_context_manager(play: Play) -> None:
    """pytorch/pytorch#133483: a counter was read as if the context manager around the read had not been entered."""
    depth = 0

    @contextmanager
    def deeper() -> Iterator[None]:
        nonlocal depth
        depth += 1
        try:
            yield
        finally:
            depth -= 1

    def run(x: torch.Tensor) -> torch.Tensor:
        with deeper(), deeper():
            y = x + depth
        return y * 10 + depth

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.ones(2))


@program()
def generator_that_changes_the_default_dtype(play: Play) -> None:
    """pytorch/pytorch#134030: a generator ran to its end when it was made, so that what it had set was gone again."""

    def wide() -> Iterator[torch.Tensor]:
        try:
            torch.set_default_dtype(torch.float64)
            yield torch.ones(2)
        finally:
            torch.set_default_dtype(torch.float32)

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values = wide()
        before = torch.ones(2)
        return x + next(values) + before, torch.ones(2)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.ones(2))


@program()
def iterator_consumed_in_part(play: Play) -> None:
    """pytorch/pytorch#196211: `iter()` of a `reversed` iterator that was partly consumed started again."""

    def split(x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        values = reversed([x, x * 2, x * 3])
        first = next(values)
        return first, list(iter(values))

    f = play.jit(split)
    for _ in range(3):
        play(f, torch.ones(2))


@program(compiled=False, grad=True)
def detach_in_place(play: Play) -> None:
    """pytorch/pytorch#176854: `detach_` did not change the `requires_grad` that Python reads after it."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        y = x * 2.0
        y.detach_()
        return y + 1.0, y.requires_grad

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(4.0).requires_grad_())


@program(compiled=False, grad=True)
def gradients_enabled_inside(play: Play) -> None:
    """pytorch/pytorch#114338: results made under `enable_grad` inside `no_grad` did not require gradients."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.enable_grad():
            tracked = x + 1
        return tracked, x + 1

    f = play.jit(run)
    for _ in range(3):
        with torch.no_grad():
            play(f, torch.arange(4.0).requires_grad_())


@program(compiled=False, grad=True)
def equal_results_with_and_without_gradients(play: Play) -> None:
    """pytorch/pytorch#114344: equal expressions under different grad modes became one tensor."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            plain = x + 1
        return plain, x + 1

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(4.0).requires_grad_())


@program(traces=2)
def condition_on_the_length_of_a_global_log(play: Play) -> None:
    """pytorch/pytorch#133483: the same for a function that reads the state which its own call changes."""
    log: list[int] = []

    def run(x: torch.Tensor) -> torch.Tensor:
        log.append(x.shape[0])
        return x * 2 if len(log) % 2 else x + 100

    f = play.jit(run)
    for _ in range(4):
        play(f, torch.ones(3))
        if len(log) == 2:
            log.clear()


@program()
def function_made_and_called_inside(play: Play) -> None:
    """Lightning-AI/lightning-thunder#132: what functions inside read from the jitted one was bound at compile time."""

    def outer(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        scale = 2.0

        def times() -> torch.Tensor:
            return x * scale

        first = times()
        scale = 5.0

        def rebind(value: float) -> None:
            nonlocal scale
            scale = value

        second = times()
        rebind(7.0)
        return first, second, times()

    f = play.jit(outer)
    for number in (1.0, 2.0, 3.0):
        play(f, torch.full((2,), number))


@program(traces=4)
def callables_in_a_table(play: Play) -> None:
    """pytorch/pytorch#178365: the same with functions of equal code that are found in a table."""

    def make(offset: float) -> Callable[[torch.Tensor], torch.Tensor]:
        def shift(x: torch.Tensor, by: float = offset) -> torch.Tensor:
            return x + by

        return shift

    table = {"small": make(1.0), "large": make(100.0)}
    f = play.jit(lambda x, name: table[name](x))
    for name in ("small", "small", "large", "large", "small"):
        play(f, torch.ones(2), name)
    table["small"] = make(3.0)
    for name in ("small", "small", "large"):
        play(f, torch.ones(2), name)
