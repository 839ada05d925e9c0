"""Guards on functions, arguments, globals and torch's modes."""

from __future__ import annotations

import functools
import math
from collections import namedtuple
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole

Pair = namedtuple("Pair", ["left", "right"])
SCALE = 2.0
BRANCH = "scale"


def helper(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@program(traces=2)
def a_closure_cell_is_rebound(play: Play) -> None:
    scale = 2.0
    f = play.jit(lambda x: x * scale)
    play(f, whole(3))
    play(f, whole(3))
    scale = 3.0
    play(f, whole(3))
    play(f, whole(3))
    scale = 2.0
    play(f, whole(3))


@program(traces=2)
def a_closure_cell_is_emptied_and_filled_again(play: Play) -> None:
    scale = 2.0
    f = play.jit(lambda x: x * scale)
    play(f, whole(3))
    play(f, whole(3))
    del scale
    play(f, whole(3))
    scale = 2.0
    play(f, whole(3))


@program(traces=3)
def a_global_is_rebound_deleted_and_defined(play: Play) -> None:
    global SCALE, EXTRA
    f = play.jit(lambda x: x * SCALE + (EXTRA if "EXTRA" in globals() else 0))
    play(f, whole(3))
    play(f, whole(3))
    SCALE = 5.0
    play(f, whole(3))
    play(f, whole(3))
    EXTRA = 7
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def a_global_comes_to_hide_a_builtin(play: Play) -> None:
    global abs
    f = play.jit(lambda x: abs(x))
    play(f, whole(5))
    play(f, whole(5))
    abs = torch.neg
    play(f, whole(5))
    play(f, whole(5))


@program(traces=3)
def a_global_is_read_by_evaluated_code(play: Play) -> None:
    global SCALE
    f = play.jit(lambda x: x * eval("SCALE"))
    for scale in (2.0, 2.0, 3.0, 3.0):
        SCALE = scale
        play(f, whole(3))


@program(traces=3)
def a_global_function_is_replaced(play: Play) -> None:
    global helper
    f = play.jit(lambda x: helper(x) * 2)
    play(f, whole(3))
    play(f, whole(3))
    helper = torch.neg
    play(f, whole(3))
    helper = lambda x: x - 7  # noqa: E731
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def the_code_of_a_function_is_replaced(play: Play) -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x + 1

    f = play.jit(lambda x: inner(x))
    play(f, whole(3))
    play(f, whole(3))
    inner.__code__ = (lambda x: x * 10).__code__
    play(f, whole(3))
    play(f, whole(3))


@program(traces=4)
def defaults_are_replaced_and_changed_in_place(play: Play) -> None:
    def f(x: torch.Tensor, scales: list[float] = [2.0], *, shift: int = 1) -> torch.Tensor:  # noqa: B006
        return x * sum(scales) + shift

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    f.__kwdefaults__["shift"] = 3
    play(jitted, whole(3))
    f.__defaults__[0].append(10.0)  # type: ignore[index]
    play(jitted, whole(3))
    f.__defaults__ = ([1.0],)
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def an_attribute_of_the_function_itself_changes(play: Play) -> None:
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x * inner.scale  # type: ignore[attr-defined]

    inner.scale = 2.0  # type: ignore[attr-defined]
    f = play.jit(inner)
    play(f, whole(3))
    play(f, whole(3))
    inner.scale = 4.0  # type: ignore[attr-defined]
    play(f, whole(3))
    play(f, whole(3))


@program(traces=6)
def numbers_that_are_equal_but_not_the_same(play: Play) -> None:
    f = play.jit(lambda x, n: (x * n, n, str(n)))
    for n in (1, True, 1.0, 0.0, -0.0, 1, True, 1.0, 0.0, -0.0):
        play(f, whole(3, dtype=torch.int32), n)
    play(f, whole(3, dtype=torch.int32), np.float32(1.0))


@program(traces=2)
def an_argument_that_is_not_a_number(play: Play) -> None:
    f = play.jit(lambda x, n: x + 1 if math.isnan(n) else x * n)
    for n in (math.nan, math.nan, float("nan"), 2.0, 2.0, math.nan):
        play(f, whole(3), n)


@program(traces=3)
def lists_tuples_and_named_tuples_are_told_apart(play: Play) -> None:
    def f(pair: Any) -> Any:
        return type(pair)(*pair) if hasattr(pair, "_fields") else type(pair)([pair[0] + 1, pair[1] * 2])

    jitted = play.jit(f)
    for make in (list, tuple, Pair._make, list, tuple, Pair._make):
        play(jitted, make([whole(3), whole(2)]))


@program(traces=3)
def keywords_and_their_order_are_seen(play: Play) -> None:
    def f(x: torch.Tensor, *rest: float, **named: float) -> torch.Tensor:
        for name, value in named.items():
            x = x * value if name == "scale" else x + value
        return x + sum(rest)

    jitted = play.jit(f)
    for _ in range(2):
        play(jitted, whole(3), scale=2.0, shift=1.0)
        play(jitted, whole(3), shift=1.0, scale=2.0)
        play(jitted, whole(3), 2.0, 1.0)


@program(traces=4)
def strings_and_absent_arguments_choose(play: Play) -> None:
    def f(x: torch.Tensor, reduce: str | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        x = x if mask is None else x * mask
        return getattr(x, reduce)() if reduce else x

    jitted = play.jit(f)
    for _ in range(2):
        play(jitted, whole(4))
        play(jitted, whole(4), "sum")
        play(jitted, whole(4, start=1), "amax", whole(4) > -2)
        play(jitted, whole(4), mask=whole(4) > 0)


@program(traces=2)
def one_tensor_is_given_twice_and_then_two(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * y if x is not y else x * y * 100

    jitted = play.jit(f)
    same = whole(3)
    for _ in range(2):
        play(jitted, same, same)
        play(jitted, whole(3), whole(3))
    play(jitted, same, same)


@program(traces=4)
def arguments_come_to_share_memory(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return x + y

    jitted = play.jit(f)
    play(jitted, whole(6), whole(6))
    play(jitted, whole(6), whole(6))
    for offset in (0, 2, 2, 6):
        memory = whole(12)
        play(jitted, memory[:6], memory[offset : offset + 6])


@program(traces=2)
def a_captured_tensor_comes_to_alias_the_argument(play: Play) -> None:
    held = SimpleNamespace(state=whole(4))

    def f(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return held.state * 2

    jitted = play.jit(f)
    play(jitted, whole(4))
    play(jitted, whole(4))
    play(jitted, held.state)
    play(jitted, held.state)
    held.state = whole(4)
    play(jitted, whole(4))


@program(traces=6)
def the_layout_of_an_argument_is_asked_for(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1) if x.is_contiguous() else x.reshape(-1) + x.storage_offset() + x.stride(0)

    jitted = play.jit(f)
    for _ in range(2):
        play(jitted, whole(2, 3))
        play(jitted, whole(3, 2).t())
        play(jitted, whole(12).as_strided((2, 3), (3, 1), 4))
        play(jitted, whole(2, 6)[:, ::2])


@program(traces=5)
def dtypes_and_ranks_and_empty_tensors(play: Play) -> None:
    f = play.jit(lambda x: (x + 1, x.dtype, x.dim(), x.numel()))
    for _ in range(2):
        for x in (whole(4), whole(4, dtype=torch.int64), whole(2, 2), torch.tensor(3.0), torch.ones(0, 2)):
            play(f, x)


@program(traces=3)
def grad_mode_and_inference_mode_are_read(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, bool]:
        return x * 2, torch.is_grad_enabled() and not torch.is_inference_mode_enabled()

    jitted = play.jit(f)
    for _ in range(2):
        play(jitted, whole(3))
        with torch.enable_grad():
            play(jitted, whole(3))
        with torch.inference_mode():
            play(jitted, whole(3))


@program(traces=2)
def inference_tensors_are_not_ordinary_ones(play: Play) -> None:
    with torch.inference_mode():
        special = whole(3)
    f = play.jit(lambda x: x + 1)
    for _ in range(2):
        play(f, whole(3))
        play(f, special)


@program(traces=3, exact=False)
def autocast_is_switched_on_and_off(play: Play) -> None:
    w = whole(4, 4) / 8
    f = play.jit(lambda x: (x @ w, torch.is_autocast_enabled("cpu")))
    for _ in range(2):
        play(f, whole(2, 4))
        with torch.autocast("cpu", torch.bfloat16):
            play(f, whole(2, 4))
        with torch.autocast("cpu", torch.float16):
            play(f, whole(2, 4))


@program(traces=2)
def the_default_dtype_changes(play: Play) -> None:
    f = play.jit(lambda x: (x + torch.ones(3), torch.tensor(1.5), torch.arange(3) / 2))
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        play(f, whole(3))


@program(traces=2)
def deterministic_mode_and_matmul_precision_are_read(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        exact = torch.are_deterministic_algorithms_enabled() or torch.get_float32_matmul_precision() == "high"
        return x * 2 if exact else x * 3

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    torch.use_deterministic_algorithms(True)
    play(jitted, whole(3))
    play(jitted, whole(3))
    torch.use_deterministic_algorithms(False)
    play(jitted, whole(3))


@program(traces=3)
def a_partial_is_jitted_and_its_keywords_change(play: Play) -> None:
    def f(x: torch.Tensor, by: float, shift: float = 0.0) -> torch.Tensor:
        return x * by + shift

    bound = functools.partial(f, by=2.0)
    jitted = play.jit(bound)
    play(jitted, whole(3))
    play(jitted, whole(3))
    bound.keywords["by"] = 4.0
    play(jitted, whole(3))
    play(jitted, whole(3), shift=1.0)
    play(jitted, whole(3))


@program(traces=2)
def a_list_of_functions_over_one_loop_variable(play: Play) -> None:
    layers = []
    for number in range(3):
        layers.append(lambda x: x * 2 + number)  # noqa: B023

    def f(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x)
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    number = 10
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def the_key_of_a_sort_changes(play: Play) -> None:
    rank = {"a": 1, "b": 2, "c": 3}

    def f(x: torch.Tensor) -> torch.Tensor:
        for place, name in enumerate(sorted(rank, key=lambda n: rank[n])):
            x = x * (place + 1) + ord(name)
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    rank["a"] = 9
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def a_captured_tensor_is_changed_replaced_and_reshaped(play: Play) -> None:
    held = SimpleNamespace(w=whole(3))
    f = play.jit(lambda x: x * held.w)
    play(f, whole(3))
    held.w.add_(5)
    play(f, whole(3))
    held.w = whole(3, start=20)
    play(f, whole(3))
    held.w.data = whole(3, start=40)
    play(f, whole(3))
    held.w = whole(2, 3)
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def another_instance_of_the_class_is_bound(play: Play) -> None:
    class Scaler:
        def __init__(self, scale: float) -> None:
            self.scale = scale

        @play.jit
        def apply(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    small, large = Scaler(2.0), Scaler(9.0)
    for scaler in (small, large, small, large):
        play(scaler.apply, whole(3))
    large.scale = 2.0
    play(large.apply, whole(3))


@program(traces=9)
def more_programs_than_the_limit_change_no_answer(play: Play) -> None:
    f = play.jit(lambda x, n: x * n, recompile_limit=9)
    for n in (2, 3, 4, 5, 6, 7, 8, 9, 10, 2, 3, 4, 10):
        play(f, whole(3), n)
