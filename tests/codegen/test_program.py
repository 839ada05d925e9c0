"""A Program is one flat function over frames: reentrant, and it lets go of what nobody wants."""

from __future__ import annotations

import threading

import torch

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.codegen.program import Program


def program_of(function: object, *args: torch.Tensor) -> Program:
    jitted = dsjit.jit(function)  # type: ignore[call-overload]
    jitted(*args)
    program: Program = jitted_of(jitted).compilations[0].program  # type: ignore[union-attr]
    return program


def layered(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return ((x @ w).softmax(-1) @ w).relu()


def test_consecutive_kernels_and_products_are_one_native_call() -> None:
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    program = program_of(layered, x, w)
    assert program.source.count("(address, threads)") == 1
    torch.testing.assert_close(program([x, w])[0], layered(x, w))  # type: ignore[index]


def test_a_library_call_splits_the_native_sequence_and_its_result_is_dropped_after_use() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        values, _ = (x + 1).sort(-1)
        return values * 2

    x = torch.randn(8, 8)
    program = program_of(f, x)
    assert program.source.count("(address, threads)") == 2
    assert "del " in program.source
    torch.testing.assert_close(program([x])[0], f(x))  # type: ignore[index]


def test_frames_are_used_again_and_grow_only_with_concurrent_runs() -> None:
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    program = program_of(layered, x, w)
    for _ in range(3):
        program([x, w])
    assert len(program.frames) == 1
    barrier = threading.Barrier(2)

    def work() -> None:
        barrier.wait()
        for _ in range(20):
            program([x, w])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 1 <= len(program.frames) <= 2
