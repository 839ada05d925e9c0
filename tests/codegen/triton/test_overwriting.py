"""Which tensors of the caller's a kernel on a GPU writes over, and when."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.triton.overwriting import writes_over
from dsjit.codegen.triton.program import GpuProgram
from dsjit.config import Environment
from dsjit.ir.kernel import Apply, Axis, Block, Index, Kernel, Load, Param, Reduce, Store
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine

F32 = torch.float32
AXIS = Axis("i", 8)
HERE, NEXT = Index(0, (("i", 1),)), Index(1, (("i", 1),))
LOAD, OTHER = Load("a", "x", HERE, F32), Load("b", "z", HERE, F32)


def kernel(*body: Any) -> Kernel:
    params = (Param("x", F32, "read"), Param("z", F32, "read"), Param("y", F32, "write"))
    return Kernel("k", params, (), (Block((AXIS,), body),), "i")


@pytest.mark.parametrize(
    ("case", "allowed"),
    [
        (kernel(LOAD, OTHER, Apply("c", "add", ("b", "a"), F32), Store("y", HERE, "c")), True),
        (kernel(LOAD, OTHER, Store("y", HERE, "b")), False),
        (kernel(Load("a", "x", NEXT, F32), Store("y", HERE, "a")), False),
        (kernel(LOAD, Reduce("c", "sum", "a", F32, None), Store("y", HERE, "a")), False),
    ],
    ids=["map", "what is stored does not depend on what is read", "shifted", "rows"],
)
def test_a_map_may_write_over_what_its_results_depend_on(case: Kernel, allowed: bool) -> None:
    assert writes_over(case, "x", "y") is allowed


def program_of(
    function: Callable[..., object], state: torch.Tensor, x: torch.Tensor, low_memory: LowMemory | None = None
) -> tuple[GpuProgram, list[torch.Tensor]]:
    """The program, and what it takes."""
    captured = capture(function, (state, x), {}, "f")
    graph, machine = captured.segments[0].graph, interpreting_machine(InterpretingDriver())
    compilation = compile_gpu_graph(
        graph, "eager", Environment(check=1), machine, StageTimer(), None, low_memory=low_memory
    )
    assert isinstance(compilation.program, GpuProgram)
    given = dict(zip(captured.inputs, captured.given, strict=True))
    return compilation.program, [given[value.id] for value in graph.inputs]


def momentum(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    state.mul_(0.9).add_(x)
    return x[0].sum()


def test_a_step_writes_over_its_states_and_needs_no_memory_for_new_ones() -> None:
    state, x = torch.randn(4, 8), torch.randn(4, 8)
    program, inputs = program_of(momentum, state, x)
    before, version = state.clone(), state._version
    torch.testing.assert_close(program(inputs)[0], x[0].sum())
    torch.testing.assert_close(state, before * 0.9 + x)
    assert state._version > version and ".copy_(" not in program.source
    assert program.arena_bytes < state.nbytes


def ends_in_the_library(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    state.mul_(0.9).add_(x)
    return x.sort(-1).values


def returns_much_at_the_end(state: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    state.mul_(0.9).add_(x)
    return x[:2].exp()


@pytest.mark.parametrize(
    ("function", "low_memory", "in_place"),
    [
        (ends_in_the_library, None, False),
        (returns_much_at_the_end, None, True),
        (returns_much_at_the_end, LowMemory(), True),
    ],
)
def test_nothing_is_written_over_before_what_may_still_fail(
    function: Callable[..., object], low_memory: LowMemory | None, in_place: bool
) -> None:
    """A library call, or a tensor for which there may be no memory: the call would go on eagerly."""
    state, x = torch.randn(4, 8), torch.randn(4, 8)
    program, inputs = program_of(function, state, x, low_memory)
    assert (".copy_(" not in program.source) is in_place
    if in_place:
        assert program.source.rindex("empty_strided(") < program.source.index("(address, threads)")
    twin = state.clone()
    torch.testing.assert_close(program(inputs)[0], function(twin, x))
    torch.testing.assert_close(state, twin)
