"""Threads, jit inside jit, recursion, generators, context managers, decorators, custom operators."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

import dsjit
from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program()
def a_jitted_function_calls_another(play: Play) -> None:
    calls = SimpleNamespace(shift=1.0)
    inner = play.jit(lambda x: x * 2 + calls.shift)
    outer = play.jit(lambda x: inner(x) - inner(x + 1))
    for _ in range(3):
        play(outer, whole(3))


@program(traces=5)
def a_jitted_function_is_called_alone_and_inside(play: Play) -> None:
    held = SimpleNamespace(scale=2.0)
    inner = play.jit(lambda x: x * held.scale)
    outer = play.jit(lambda x: inner(x) + 1)
    for scale in (2.0, 2.0, 5.0, 5.0):
        held.scale = scale
        for f in (inner, outer, inner, outer):
            play(f, whole(3))


@program(traces=4)
def recursion_through_the_jitted_function(play: Play) -> None:
    def f(x: torch.Tensor, depth: int) -> torch.Tensor:
        return x if depth == 0 else jitted(x * 2 + depth, depth - 1)

    jitted = play.jit(f)
    for depth in (3, 3, 0, 3, 1, 1):
        play(jitted, whole(2), depth)


@program(traces=4)
def recursion_whose_depth_is_a_value(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x if x.max() > 20 else jitted(x * 2)

    jitted = play.jit(f)
    for start in (4, 4, 15, 30, 15, 4):
        play(jitted, whole(2, start=start))


@program(traces=4)
def a_jitted_module_inside_a_jitted_module(play: Play) -> None:
    inner = play.jit(nn.Sequential(nn.ReLU(), nn.BatchNorm1d(3)).eval())
    outer = play.jit(nn.Sequential(inner, nn.Hardtanh()).eval())
    for _ in range(2):
        play(outer, whole(2, 3))
        play(inner, whole(2, 3))
    inner[0] = nn.Identity()
    for _ in range(2):
        play(outer, whole(2, 3))
        play(inner, whole(2, 3))


@program()
def a_generator_runs_inside(play: Play) -> None:
    def pairs(x: torch.Tensor) -> Iterator[torch.Tensor]:
        previous = yield x[0]
        for row in x[1:]:
            previous = yield row + (0 if previous is None else previous)

    def f(x: torch.Tensor) -> list[torch.Tensor]:
        source = pairs(x)
        first = next(source)
        return [first, source.send(first * 2), *source, *(row * 3 for row in x)]

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(3, 2))


@program(compiled=False)
def a_generator_is_returned_and_consumed_later(play: Play) -> None:
    f = play.jit(lambda x: (row * 2 for row in x + 1))
    for _ in range(3):
        made = f(whole(3, 2))
        play(list, made)


@program(traces=2)
def context_managers_are_entered_and_left(play: Play) -> None:
    log: list[str] = []
    settings = SimpleNamespace(scale=1.0)

    @contextlib.contextmanager
    def scaled(by: float) -> Iterator[float]:
        before, settings.scale = settings.scale, by
        try:
            yield by
        finally:
            settings.scale = before

    def f(x: torch.Tensor) -> torch.Tensor:
        with scaled(3.0) as by, torch.no_grad(), contextlib.ExitStack() as stack:
            stack.callback(log.count, "x")
            inside = x * settings.scale + by
        return inside * settings.scale

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    settings.scale = 2.0
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(exact=False)
def torchs_own_context_managers_inside(play: Play) -> None:
    w = whole(3, 3) / 4

    def f(x: torch.Tensor) -> list[Any]:
        with torch.autocast("cpu", torch.bfloat16):
            low = x @ w
            with torch.autocast("cpu", enabled=False):
                high = x @ w
        with torch.enable_grad():
            enabled = torch.is_grad_enabled()
        return [low, high, enabled, torch.is_grad_enabled()]

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(2, 3))


@program(traces=4)
def class_methods_static_methods_and_partial_methods(play: Play) -> None:
    class Tool:
        scale = 2.0

        @classmethod
        @play.jit
        def by_class(cls, x: torch.Tensor) -> torch.Tensor:
            return x * cls.scale

        @staticmethod
        @play.jit
        def static(x: torch.Tensor) -> torch.Tensor:
            return x + 1

        def shift(self, x: torch.Tensor, by: int) -> torch.Tensor:
            return x + by

        shift_two = functools.partialmethod(shift, by=2)

    class Sub(Tool):
        scale = 3.0

    shifted = play.jit(Tool().shift_two)
    for _ in range(2):
        for f in (Tool.by_class, Sub.by_class, Tool.static, Sub().static, shifted):
            play(f, whole(3))


@program(traces=2)
def decorators_wrap_the_function(play: Play) -> None:
    def logged(f: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(f)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return {"of": f.__name__, "result": f(*args, **kwargs)}

        return wrapper

    @play.jit
    @logged
    def inside(x: torch.Tensor, n: int = 2) -> torch.Tensor:
        return x * n

    @logged
    @play.jit
    def outside(x: torch.Tensor, n: int = 3) -> torch.Tensor:
        return x * n

    for _ in range(3):
        play(inside, whole(3))
        play(outside, whole(3))


@program(traces=3)
def threads_call_one_function(play: Play) -> None:
    f = play.jit(lambda x, n: (x * n).sum() + x)

    def work(start: int, results: list[Any]) -> None:
        for n in range(1, 4):
            results.append(f(whole(4, start=start), n))

    def run() -> list[list[Any]]:
        results: list[list[Any]] = [[] for _ in range(4)]
        threads = [threading.Thread(target=work, args=(n, results[n])) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    for _ in range(3):
        play(run)


@program(traces=3)
def threads_have_modes_of_their_own(play: Play) -> None:
    f = play.jit(lambda x: (x * 2, torch.is_grad_enabled(), torch.is_inference_mode_enabled()))
    results: dict[str, Any] = {}

    def work(mode: str) -> None:
        with torch.inference_mode(mode == "inference"), torch.set_grad_enabled(mode == "grad"):
            results[mode] = f(whole(3))

    def run() -> dict[str, Any]:
        results.clear()
        for mode in ("inference", "grad", "plain"):
            thread = threading.Thread(target=work, args=(mode,))
            thread.start()
            thread.join()
        return results

    for _ in range(3):
        play(run)
        play(f, whole(3))


@program(traces=2)
def a_hook_calls_the_jitted_module_again(play: Play) -> None:
    net = nn.Sequential(nn.ReLU())
    entered = SimpleNamespace(depth=0)

    def again(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        if entered.depth:
            return output
        entered.depth += 1
        try:
            return output + net(args[0] - 1)
        finally:
            entered.depth -= 1

    net.register_forward_hook(again)
    jitted = play.jit(net)
    for _ in range(4):
        play(jitted, whole(4))


@program(traces=2)
def disable_gives_the_original_inside_and_outside(play: Play) -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        return x * 2

    inner = play.jit(plain)
    outer = play.jit(lambda x: dsjit.disable(inner)(x) + inner(x))
    for _ in range(3):
        play(outer, whole(3))
    play.note("same", dsjit.disable(inner) is plain)
    play(outer, whole(3))


@program()
def a_custom_operator_with_a_declared_mutation(play: Play) -> None:
    with torch.library._scoped_library("conformance", "FRAGMENT") as library:
        library.define("scale(Tensor x, float by) -> Tensor")
        library.define("count_(Tensor(a!) state, Tensor x) -> ()")
        library.impl("scale", lambda x, by: torch.from_numpy(x.numpy() * by), "CPU")
        library.impl("count_", lambda state, x: state.numpy().__iadd__(x.numpy().sum()) and None, "CPU")
        state = torch.zeros(1)

        def f(x: torch.Tensor) -> torch.Tensor:
            y = torch.ops.conformance.scale(x + 1, 2.0)
            torch.ops.conformance.count_(state, y)
            return y + state

        jitted = play.jit(f)
        for start in range(4):
            play(jitted, whole(3, start=start))


@program()
def an_operator_made_of_a_python_function(play: Play) -> None:
    @torch.library.custom_op("conformance::reverse", mutates_args=())
    def reverse(x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(x.numpy()[::-1].copy())

    f = play.jit(lambda x: reverse(x * 2) + x)
    for start in range(4):
        play(f, whole(3, start=start))


@program(grad=True)
def a_function_with_its_own_backward(play: Play) -> None:
    class Clip(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            ctx.save_for_backward(x)
            return x.clamp(-1, 1)

        @staticmethod
        def backward(ctx: Any, grad: torch.Tensor) -> torch.Tensor:
            return grad * 10

    f = play.jit(lambda x: Clip.apply(x) * 2)
    for _ in range(3):
        play(f, whole(3))


@program(traces=2)
def data_classes_go_in_and_out(play: Play) -> None:
    @dataclass
    class Batch:
        x: torch.Tensor
        scale: float = 1.0

        def scaled(self) -> torch.Tensor:
            return self.x * self.scale

    f = play.jit(lambda batch: (Batch(batch.scaled(), batch.scale + 1), batch))
    for scale in (2.0, 2.0, 3.0, 3.0):
        play(f, Batch(whole(3), scale))


@program(traces=2)
def functions_are_made_and_called_inside(play: Play) -> None:
    def f(x: torch.Tensor, n: int) -> tuple[torch.Tensor, torch.Tensor]:
        class Adder:
            amount = n

            def __radd__(self, other: torch.Tensor) -> torch.Tensor:
                return other + self.amount

        compose = functools.reduce(lambda a, b: lambda y: b(a(y)), [lambda y, k=k: y * k for k in range(1, n + 1)])
        return compose(x), [*map(lambda y: y - 1, (x,))][0] + Adder().amount  # noqa: C417, RUF015

    jitted = play.jit(f)
    for n in (2, 2, 3, 3, 2):
        play(jitted, whole(3), n)


@program(compiled=False)
def functions_are_returned(play: Play) -> None:
    def f(x: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        scaled = x * 2
        return lambda y: scaled + y

    jitted = play.jit(f)
    for start in range(3):
        made = play(jitted, whole(3, start=start))
        play(made, whole(3))
