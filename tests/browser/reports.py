"""The profiles whose reports are opened: models, a training step, branches, names that want to be markup."""

from __future__ import annotations

import linecache
import time
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from transformers import BertConfig, BertModel

import dsjit
from benchmarks.workloads.residual import resnet
from dsjit.profiler.profile import SCHEMA, OpShare
from tests.profiler.programs import MACHINE

HOSTILE = "<script>document.title='run'</script>\"'&amp;</script><!-- \u202e\u2028ünï\U0001f525" + "長" * 80


def _profile(title: str, step: Callable[[], Any], seconds: float = 0.0) -> dsjit.Profile:
    """Of three calls of the step at least, and of `seconds` of them."""
    for _ in range(2):
        step()
    found = dsjit.Profile(title, machine=MACHINE)
    with found:
        begin, calls = time.perf_counter(), 0
        while calls < 3 or time.perf_counter() - begin < seconds:
            step()
            calls += 1
    return found


def bert() -> dsjit.Profile:
    model = dsjit.jit(BertModel(BertConfig(num_hidden_layers=2, hidden_size=96, intermediate_size=192)).eval())
    ids = torch.randint(0, 1000, (2, 32))
    return _profile("BERT", lambda: _without_gradients(model, ids))


def resnet50() -> dsjit.Profile:
    model, images = dsjit.jit(resnet().eval()), torch.randn(1, 3, 64, 64)
    return _profile("ResNet-50", lambda: _without_gradients(model, images))


def _without_gradients(model: Any, *inputs: Any) -> None:
    with torch.no_grad():
        model(*inputs)


def training() -> dsjit.Profile:
    model = dsjit.jit(BertModel(BertConfig(num_hidden_layers=1, hidden_size=96, intermediate_size=192)).eval())
    ids = torch.randint(0, 1000, (2, 32))
    return _profile("a training step", lambda: model(ids).last_hidden_state.square().mean().backward())


def branches() -> dsjit.Profile:
    @dsjit.jit
    def halved(x: torch.Tensor) -> torch.Tensor:
        while x.abs().max() > 1:
            x = x * 0.5
        return x.sort().values if x.sum() > 0 else x.exp()

    inputs = [torch.full((64,), value) for value in (0.5, -0.5, 3.0, -9.0)]
    found = dsjit.Profile("branches", machine=MACHINE)
    with found:
        for each in inputs * 3:
            halved(each)
        halved(torch.ones(3, 3))
    return found


def eager() -> dsjit.Profile:
    """A function that runs eagerly, an optimizer, and Python beside them."""

    @dsjit.jit
    def noisy(x: torch.Tensor) -> torch.Tensor:
        seconds = time.time()
        return torch.linalg.svdvals(x).sort().values * seconds

    layer, matrix = dsjit.jit(torch.nn.Linear(256, 256)), torch.randn(120, 120)
    optimizer = torch.optim.AdamW(layer.parameters(), foreach=False)

    def step() -> None:
        noisy(matrix)
        layer(torch.randn(64, 256)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dsjit.DsjitWarning)
        # What is sampled needs looks that find it: one in some 50 ms at worst, and half of them see a Program run.
        return _profile("eager calls", step, seconds=2.0)


def hostile() -> dict[str, Any]:
    """A profile in which every name that is not dsjit's own is one that a careless page would run."""
    file = f"/tmp/{HOSTILE}.py"
    source = f"def f(x):\n    return x.exp()  # {HOSTILE}\n"
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), namespace)
    namespace["f"].__qualname__ = HOSTILE
    jitted, x = dsjit.jit(namespace["f"]), torch.ones(8)
    data = _profile(HOSTILE, lambda: jitted(x)).data
    steps = [replace(each, name=HOSTILE, reasons=(HOSTILE,), ops=_renamed(each.ops)) for each in data.steps]
    return replace(data, steps=tuple(steps)).to_dict()


def _renamed(ops: tuple[OpShare, ...]) -> tuple[OpShare, ...]:
    return tuple([replace(op, scope=HOSTILE, op=HOSTILE) for op in ops])


def large(count: int = 5000) -> dict[str, Any]:
    """A profile of so many steps, made from one that has a few."""
    data = training().to_dict()
    assert data["schema"] == SCHEMA
    steps, program = data["steps"], data["programs"][0]
    many = [{**steps[n % len(steps)], "number": n, "program": 0, "position": n} for n in range(count)]
    for number, step in enumerate(many):
        step["ops"] = [{**op, "scope": f"layers.{number // 50}.block.{number % 50}"} for op in step["ops"]]
        step["total_ns"] *= 1 + (number * 7919 % 100) / 100
    live = [program["memory"]["live"][n % len(program["memory"]["live"])] for n in range(count)]
    memory = {**program["memory"], "live": live}
    return {
        **data,
        "steps": many,
        "programs": [{**program, "steps": list(range(count)), "memory": memory}],
        "spans": [],
    }
