"""A Program for little memory frees, makes, stores and fetches its tensors when it has to, as its footprint tells."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.autograd.profiler import profile

from dsjit.api.compile import Compilation, StageTimer, compile_graph
from dsjit.codegen.footprint import footprint
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.low_memory import LARGE_BUFFER, LowMemory
from dsjit.codegen.offload.files import StoredTensor
from dsjit.codegen.offload.stores import file_in
from dsjit.codegen.program import GuestProgram
from dsjit.config import Environment
from dsjit.ir.graph import Graph
from tests.graphs import trace

SIZE = 512
MIB = 2**20
"""Of a square matrix."""

f32 = torch.float32


def matrix() -> torch.Tensor:
    return torch.randn(SIZE, SIZE)


def products(x: torch.Tensor, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Each of the last three is read by one step, whose product is a result."""
    y = x @ a
    z = y @ b
    return y, z, z @ c


GRAPH = trace(products, *[matrix() for _ in range(4)])


def compiled(graph: Graph, low_memory: LowMemory | None) -> Compilation:
    return compile_graph(graph, "eager", Environment(), KernelCache(), StageTimer(), None, low_memory=low_memory)


def handed_over(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    while tensors:
        yield tensors.pop(0)


def peak(compilation: Compilation, made: int, given: list[torch.Tensor]) -> int:
    """Bytes at once, at most, with those of `made` more inputs, which only the Program holds."""
    alive = most = 0
    with profile(profile_memory=True) as recorded:
        inputs = given + [torch.empty(SIZE, SIZE) for _ in range(made)]
        found = compilation.program(handed_over(inputs))
    assert found
    for event in recorded.kineto_results.events():
        if event.name() == "[memory]":
            alive += event.nbytes()
            most = max(most, alive)
    return most


@pytest.mark.parametrize(("released", "expected"), [({1, 2, 3}, 4), (set(), 6)])
def test_released_inputs_make_room_for_results(released, expected):
    low_memory = LowMemory(frozenset(released))
    compilation = compiled(GRAPH, low_memory)
    measured = peak(compilation, 3, [matrix()])
    told = footprint(compilation.optimized, compilation.steps, compilation.native, compilation.plan.views, low_memory)
    assert measured - compilation.program.arena_bytes <= expected * MIB + 4096
    assert measured == pytest.approx(told.arena + told.tensors + (3 - len(released)) * MIB, abs=4096)


def test_results_are_those_of_the_ordinary_program():
    inputs = [matrix() for _ in range(4)]
    low = compiled(GRAPH, LowMemory(frozenset({1, 2, 3}))).program
    for one, other in zip(low(iter(inputs)), compiled(GRAPH, None).program(inputs), strict=True):
        assert torch.equal(one, other)


def test_inputs_that_the_caller_holds_stay_as_they_are():
    inputs = [matrix() for _ in range(4)]
    before = [tensor.clone() for tensor in inputs]
    compiled(GRAPH, LowMemory(frozenset({1, 2, 3}))).program(iter(inputs))
    assert all(torch.equal(one, other) for one, other in zip(inputs, before, strict=True))


@pytest.mark.parametrize("rows", [LARGE_BUFFER // 4096 // 4, 64])
def test_large_buffers_are_no_part_of_the_arena(rows):
    x = torch.randn(rows, 4096)
    graph = trace(lambda x: (x.sort(-1)[0] * 2).sort(-1)[0] + 1, x)
    low, ordinary = (compiled(graph, low_memory).program for low_memory in (LowMemory(), None))
    if rows == 64:
        assert low.arena_bytes == ordinary.arena_bytes
    else:
        assert low.arena_bytes <= ordinary.arena_bytes and low.arena_bytes < LARGE_BUFFER
    assert torch.equal(low([x])[0], ordinary([x])[0])


def test_stored_outputs_come_as_files_and_fetched_inputs_are_read_from_them(tmp_path):
    inputs = [matrix() for _ in range(4)]
    storing = compiled(GRAPH, LowMemory(stored=frozenset({0, 1}), tier=file_in(str(tmp_path)))).program
    expected = compiled(GRAPH, None).program(inputs)
    found = storing(inputs)
    assert [isinstance(each, StoredTensor) for each in found] == [True, True, False]
    fetching = compiled(GRAPH, LowMemory(frozenset({1, 2}), fetched=frozenset({1, 2}))).program
    again = fetching(iter([inputs[0], found[0], found[1], inputs[3]]))
    plain = compiled(GRAPH, None).program([inputs[0], expected[0], expected[1], inputs[3]])
    assert all(torch.equal(one, other) for one, other in zip(again, plain, strict=True))


def test_a_guest_runs_in_the_arena_of_its_host():
    softmax = trace(lambda x, w: (x @ w).softmax(-1) @ w, matrix(), matrix())
    host = compiled(softmax, None).program
    guest = compiled(trace(lambda x, w: ((x @ w).sigmoid() @ w).softmax(-1) @ w, matrix(), matrix()), None).program
    inputs = [matrix() / SIZE, matrix()]
    expected = host(inputs)[0], guest(inputs)[0]
    guest.frames.clear()
    shared = GuestProgram(guest, host)
    for _ in range(2):
        assert torch.equal(host(inputs)[0], expected[0])
        assert torch.equal(shared(inputs)[0], expected[1])
    assert len(host.frames) == 1 and not guest.frames
    assert host.frames[0].arena.numel() >= max(host.arena_bytes, guest.arena_bytes)


def grows(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Its last step makes results of 8 MiB, of which the arena holds nothing."""
    y = (x @ w).relu() @ w
    return y, torch.cat([y] * 8)


def test_the_arena_is_let_go_where_what_follows_would_make_the_peak():
    inputs = [matrix(), matrix()]
    compilation = compiled(trace(grows, *inputs), LowMemory())
    told = footprint(compilation.optimized, compilation.steps, compilation.native, compilation.plan.views, LowMemory())
    assert told.arena >= MIB and told.alone >= told.tensors + 8 * MIB
    for _ in range(2):  # the second run takes the memory of the arena anew
        for found, expected in zip(compilation.program(iter(inputs)), grows(*inputs), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-2)
        (frame,) = compilation.program.frames
        assert frame.arena.untyped_storage().nbytes() == 0
    assert peak(compilation, 0, inputs) == pytest.approx(max(told.arena + told.tensors, told.alone), abs=4096)


def test_a_host_takes_the_arena_anew_that_its_guest_let_go():
    inputs = [matrix() / SIZE, matrix()]
    host = compiled(trace(lambda x, w: (x[:64] @ w).softmax(-1) @ w, *inputs), None).program
    guest = GuestProgram(compiled(trace(grows, *inputs), LowMemory()).program, host)
    assert host.arena_bytes < guest.program.arena_bytes
    expected = host(inputs)[0].clone()
    for _ in range(2):
        torch.testing.assert_close(guest(iter(inputs))[1], grows(*inputs)[1], rtol=1e-4, atol=1e-2)
        assert torch.equal(host(inputs)[0], expected)
