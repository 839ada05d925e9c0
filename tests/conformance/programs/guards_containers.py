"""Guards on containers, and on state that lives outside objects: in C code, in the interpreter, in the process."""

from __future__ import annotations

import collections
import contextvars
import os
import sys
import threading
import types
import weakref
from typing import Any

import numpy as np
import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=3)
def keys_of_a_dictionary_appear_and_change_places(play: Play) -> None:
    weights = {"a": 1.0, "b": 2.0}

    def f(x: torch.Tensor) -> torch.Tensor:
        for name, weight in weights.items():
            x = x * weight + len(name)
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    weights["a"] = weights.pop("a")
    play(jitted, whole(3))
    weights["ccc"] = 3.0
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=3)
def a_nested_list_is_changed_in_place(play: Play) -> None:
    plan = {"steps": [("add", 1), ("mul", 2)]}

    def f(x: torch.Tensor) -> torch.Tensor:
        for kind, amount in plan["steps"]:
            x = getattr(x, kind)(amount)
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    plan["steps"].reverse()
    play(jitted, whole(3))
    plan["steps"][0] = ("sub", 5)
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=4)
def sets_deques_and_counters_change(play: Play) -> None:
    active, recent, counts = {"a"}, collections.deque([1, 2], maxlen=2), collections.Counter("aab")

    def f(x: torch.Tensor) -> torch.Tensor:
        return (x * counts["a"] if "b" in active else x * counts["b"]) + recent[0]

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    active.add("b")
    play(jitted, whole(3))
    recent.append(9)
    play(jitted, whole(3))
    counts.update("aaa")
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def a_pattern_is_matched_against_what_changes(play: Play) -> None:
    message: dict[str, Any] = {"kind": "scale", "by": 2}

    def f(x: torch.Tensor) -> torch.Tensor:
        match message:
            case {"kind": "scale", "by": by}:
                return x * by
            case {"kind": "shift", **rest}:
                return x + rest["by"]
        return x

    jitted = play.jit(f)
    play(jitted, whole(3))
    play(jitted, whole(3))
    message["kind"] = "shift"
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def a_context_variable_is_set_and_reset(play: Play) -> None:
    scale = contextvars.ContextVar("scale", default=2.0)
    f = play.jit(lambda x: x * scale.get())
    play(f, whole(3))
    play(f, whole(3))
    token = scale.set(3.0)
    play(f, whole(3))
    play(f, whole(3))
    scale.reset(token)
    play(f, whole(3))


@program(traces=2)
def an_attribute_of_a_thread_local_object_changes(play: Play) -> None:
    local = threading.local()
    local.shift = 1.0
    f = play.jit(lambda x: x + local.shift)
    play(f, whole(3))
    play(f, whole(3))
    local.shift = 4.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def buffers_and_arrays_of_numbers_change(play: Play) -> None:
    buffer, array = bytearray([1, 2]), np.array([1.0, 2.0])
    f = play.jit(lambda x: x * buffer[1] + float(array[0]))
    play(f, whole(3))
    play(f, whole(3))
    buffer[1] = 9
    play(f, whole(3))
    array[0] = 50.0
    play(f, whole(3))
    play(f, whole(3))


@program(traces=2)
def what_a_weak_reference_points_at_dies(play: Play) -> None:
    class Target:
        scale = 3.0

    target = Target()
    reference = weakref.ref(target)

    def f(x: torch.Tensor) -> torch.Tensor:
        alive = reference()
        return x if alive is None else x * alive.scale

    jitted = play.jit(f)
    play.note("alive", jitted(whole(3)))
    play.note("alive", jitted(whole(3)))
    del target
    play(jitted, whole(3))
    play(jitted, whole(3))


@program(traces=2)
def an_environment_variable_changes(play: Play) -> None:
    name = "CONFORMANCE_SCALE"
    f = play.jit(lambda x: x * int(os.environ.get(name, "1")))
    try:
        play(f, whole(3))
        play(f, whole(3))
        os.environ[name] = "4"
        play(f, whole(3))
        play(f, whole(3))
    finally:
        os.environ.pop(name, None)


@program(traces=2)
def a_module_imported_inside_is_replaced(play: Play) -> None:
    name = "conformance_settings"

    def make(scale: float) -> types.ModuleType:
        module = types.ModuleType(name)
        module.SCALE = scale  # type: ignore[attr-defined]
        return module

    def f(x: torch.Tensor) -> torch.Tensor:
        import conformance_settings  # noqa: PLC0415

        return x * conformance_settings.SCALE

    jitted = play.jit(f)
    try:
        for scale in (2.0, 2.0, 3.0, 3.0):
            if scale != getattr(sys.modules.get(name), "SCALE", None):
                sys.modules[name] = make(scale)
            play(jitted, whole(3))
    finally:
        sys.modules.pop(name, None)
