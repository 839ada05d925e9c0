"""Exceptions: eager's type, message and lines, and every object as eager leaves it."""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=3)
def torch_raises_on_shapes_that_do_not_fit(play: Play) -> None:
    f = play.jit(lambda x, y: (x + 1) @ y)
    play(f, whole(2, 3), whole(3, 2))
    play(f, whole(2, 3), whole(3, 2))
    play(f, whole(2, 3), whole(2, 3))
    play(f, whole(2, 3), whole(2, 3))
    play(f, whole(2, 3), whole(3, 2))


@program(traces=2)
def an_exception_midway_leaves_what_was_done(play: Play) -> None:
    state = SimpleNamespace(w=whole(3), mode="add")
    log: list[str] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        log.append("entered")
        state.w.mul_(2)
        if state.mode == "fail":
            raise ValueError("mode", state.mode)
        log.append("left")
        return x + state.w

    jitted = play.jit(f)
    for mode in ("add", "add", "add", "fail", "fail", "add"):
        state.mode = mode
        play(jitted, whole(3))


@program(traces=2)
def an_exception_depends_on_a_value(play: Play) -> None:
    def check(x: torch.Tensor) -> None:
        if x.min() < 0:
            raise ValueError(f"negative value {x.min().item()}")

    def f(x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        check(x)
        x.add_(1)
        return x

    jitted = play.jit(f)
    for start in (0, 1, -5, 0, -5, -1):
        play(jitted, whole(3, start=start))


@program(traces=2)
def an_exception_is_raised_from_another(play: Play) -> None:
    table = {"a": 1}

    def f(x: torch.Tensor, key: str) -> torch.Tensor:
        try:
            return x * table[key]
        except KeyError as error:
            error.add_note("looked up by f")
            raise RuntimeError(f"no entry {key}") from error

    jitted = play.jit(f)
    for key in ("a", "a", "b", "b", "a"):
        play(jitted, whole(3), key)


@program()
def an_exception_is_caught_inside(play: Play) -> None:
    def f(x: torch.Tensor) -> Any:
        try:
            y = x.view(7)
        except RuntimeError:
            y = x + 1
        with contextlib.suppress(IndexError):
            y = y * 2
            y[10]
        try:
            return y + 1
        finally:
            x.zero_()

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(3))


@program(traces=2)
def a_class_of_its_own_and_a_group(play: Play) -> None:
    class Refused(Exception):
        def __init__(self, reason: str, code: int) -> None:
            super().__init__(reason, code)
            self.code = code

    def f(x: torch.Tensor, code: int) -> torch.Tensor:
        if code:
            raise ExceptionGroup("all", [Refused("first", code), TypeError("second")])
        return x + 1

    jitted = play.jit(f)
    for code in (0, 0, 1, 1, 0):
        play(jitted, whole(3), code)


@program(traces=1)
def a_module_is_usable_after_its_hook_raised(play: Play) -> None:
    net = play.jit(nn.Sequential(nn.ReLU(), nn.Identity()))
    play(net, whole(3))
    play(net, whole(3))

    def refuse(module: Any, args: Any) -> None:
        raise PermissionError("not now")

    handle = net[1].register_forward_pre_hook(refuse)
    play(net, whole(3))
    handle.remove()
    play(net, whole(3))
    play(net, whole(3))


@program(compiled=False)
def an_exception_in_the_very_first_call(play: Play) -> None:
    state = SimpleNamespace(ready=False, calls=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        state.calls += 1
        x.add_(1)
        with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
            if not state.ready:
                raise RuntimeError("not ready")
        return x * 2

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    state.ready = True
    for _ in range(3):
        play(jitted, whole(3))


@program(traces=3)
def wrong_arguments_are_refused_as_by_the_function(play: Play) -> None:
    def f(x: torch.Tensor, *, scale: float) -> torch.Tensor:
        return x * scale

    jitted = play.jit(f)
    play(jitted, whole(3), scale=2.0)
    play(jitted, whole(3))
    play(jitted, whole(3), 2.0)
    play(jitted, whole(3), scale=2.0, shift=1)
    play(jitted, whole(3), scale="two")
    play(jitted, whole(3), scale=2.0)


@program(traces=3)
def an_index_out_of_range_depends_on_a_value(play: Play) -> None:
    table = whole(4)
    f = play.jit(lambda i: table[i] * 2 + table.gather(0, i))
    for index in ((0, 1), (3, 2), (4, 0), (0, -1), (1, 1)):
        play(f, torch.tensor(index))


@program()
def a_warning_made_an_error_stops_the_call_there(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        warnings.warn("halfway", stacklevel=1)
        x.mul_(10)
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    warnings.simplefilter("error")
    play(jitted, whole(3))
    warnings.simplefilter("ignore")
    play(jitted, whole(3))


@program(traces=2)
def recursion_without_end_is_reported(play: Play) -> None:
    def deeper(x: torch.Tensor, level: int) -> torch.Tensor:
        if level == 0:
            raise RecursionError("deep enough")
        return deeper(x + 1, level - 1)

    f = play.jit(lambda x, level: deeper(x, level) if level else x * 2)
    for level in (0, 0, 3, 3, 0):
        play(f, whole(2), level)


@program(exact=False, traces=2)
def division_and_conversion_by_values_raise(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x * (1 / x.sum().item()) + int(x.max())

    jitted = play.jit(f)
    for values in ((1.0, 1.0), (1.0, 3.0), (1.0, -1.0), (float("nan"), 1.0), (float("inf"), 1.0), (2.0, 2.0)):
        play(jitted, torch.tensor(values))
