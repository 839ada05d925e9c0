"""Calls of changing sizes on a machine that stands for a GPU: one program, and what its kernels rely on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dsjit
from dsjit.api.jitted import Jitted
from dsjit.api.session import Session
from dsjit.codegen.sized_program import SizedProgram
from dsjit.codegen.triton.program import GpuProgram
from dsjit.config import Environment, Options
from tests.codegen.triton.machines import InterpretingDriver, cpu_for_a_gpu


@pytest.fixture
def driver() -> InterpretingDriver:
    return InterpretingDriver()


@pytest.fixture
def jitted(driver: InterpretingDriver) -> Iterator[Callable[..., Jitted]]:
    """Jits for the stand-in."""
    session = Session(Environment(check=1))

    def make(function: Callable[..., Any], **options: Any) -> Jitted:
        return Jitted(function, Options(fullgraph=True, **options), session, function.__name__)

    with cpu_for_a_gpu(driver):
        yield make


def block(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Kernels around library calls, on memory of the program's own."""
    y = F.layer_norm(x @ w, (16,)).sort(-1).values
    return (y.exp() + x[:, :1]).softmax(-1).t() @ x


def columns(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return (x.t() * 2 + 1).contiguous(), (x * 3).sum(0) + w.sum(0)


def joined(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, w, x.flip(0)])[::2].cumsum(0).argmax(0)


@pytest.mark.parametrize("function", [block, columns, joined])
def test_one_program_serves_all_sizes(
    function: Callable[..., Any], jitted: Callable[..., Jitted], driver: InterpretingDriver
) -> None:
    f, w = jitted(function), torch.randn(16, 16)
    for rows in (5, 7, 16, 48, 2, 33, 7):
        x = torch.randn(rows, 16)
        found, expected = f(x, w), function(x, w)
        torch.testing.assert_close(found, expected)
    assert f.counters.compiles == 2, "one for exact sizes, and one for all"
    assert isinstance(f.compilations[0].program, GpuProgram) and f.compilations[0].program.serves_sizes
    assert f.counters.calls_compiled == 5 and driver.launched


def test_code_relies_on_sizes_that_are_multiples_of_16(
    jitted: Callable[..., Jitted], driver: InterpretingDriver
) -> None:
    f = jitted(lambda x: (x.exp() / x.exp().sum(-1, keepdim=True)).t() + 1)
    for length in (5, 7):
        f(torch.randn(3, length))
    before = len(driver.loaded)
    for length in (9, 16, 48, 13):
        x = torch.randn(3, length)
        torch.testing.assert_close(f(x), (x.exp() / x.exp().sum(-1, keepdim=True)).t() + 1)
    assert f.counters.calls_eager == 0
    (code,) = driver.loaded[before:]
    aligned, divisible = len(code.source.params), len(code.source.sizes)
    assert eval(code.binary) == (True,) * (aligned + divisible)


def test_gradients_of_changing_sizes_take_two_programs(
    jitted: Callable[..., Jitted], driver: InterpretingDriver
) -> None:
    def loss(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return (x @ w).gelu().square().mean() if hasattr(x, "gelu") else F.gelu(x @ w).square().mean()

    f = jitted(loss)
    for rows in (5, 7, 11, 16):
        x, w = torch.randn(rows, 8), torch.randn(8, 8, requires_grad=True)
        f(x, w).backward()
        other = w.detach().clone().requires_grad_()
        loss(x, other).backward()
        torch.testing.assert_close(w.grad, other.grad)
    assert f.counters.calls_traced == 2 and f.counters.calls_eager == 0


def test_each_stream_has_memory_of_its_own(
    jitted: Callable[..., Jitted], driver: InterpretingDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    f, w = jitted(block), torch.randn(16, 16)
    for rows in (5, 7):
        f(torch.randn(rows, 16), w)
    program = f.compilations[0].program
    assert isinstance(program, GpuProgram)
    for stream in (1, 2):
        program.current_stream = lambda stream=stream: stream
        x = torch.randn(9, 16)
        torch.testing.assert_close(f(x, w), block(x, w))
    one, other = program.streams[1], program.streams[2]
    assert isinstance(one, SizedProgram) and isinstance(other, SizedProgram)
    (mine,), (yours,) = one.memories, other.memories
    assert mine.arena.data_ptr() != yours.arena.data_ptr()


def test_programs_that_are_tuned_are_exact_for_some_sizes(jitted: Callable[..., Jitted]) -> None:
    f = jitted(lambda x: x.exp() + 1, autotune="model", recompile_limit=6)
    for rows in (5, 7, 9, 11, 13, 15):
        x = torch.randn(rows)
        torch.testing.assert_close(f(x), x.exp() + 1)
    assert f.counters.compiles == 4, "three for exact sizes, and one for all"


def test_a_profile_sees_each_shape(jitted: Callable[..., Jitted]) -> None:
    f, w = jitted(block), torch.randn(16, 16)
    for rows in (5, 7):
        f(torch.randn(rows, 16), w)
    with dsjit.profile() as profile:
        for rows in (9, 11):
            f(torch.randn(rows, 16), w)
    assert profile.to_dict() is not None
    x = torch.randn(13, 16)
    torch.testing.assert_close(f(x, w), block(x, w))
