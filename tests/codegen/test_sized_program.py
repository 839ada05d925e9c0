"""One Program for many shapes: what one shape leaves in memory does not reach the next."""

from __future__ import annotations

import threading

import pytest
import torch

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.codegen.program import Program
from dsjit.codegen.sized_program import SizedProgram

WEIGHT = torch.randn(48, 24)


def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = torch.relu(x @ WEIGHT + 1)
    return y.softmax(-1).sum(0), y.cumsum(0) * y.mean()


@pytest.fixture
def sized() -> SizedProgram:
    call = dsjit.jit(function)
    for rows in (20, 33):
        call(torch.randn(rows, 48))
    (program,) = [
        compilation.program
        for tree in jitted_of(call).trees
        for compilation in tree.compilations
        if isinstance(compilation.program, SizedProgram)
    ]
    return program


def check(program: SizedProgram, rows: int) -> None:
    x = torch.randn(rows, 48)
    inputs = [x, WEIGHT] if program.example.source.split("\n")[1].count("a") == 2 else [x]
    for found, expected in zip(program(inputs), function(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_shapes_take_turns_in_the_same_memory(sized: SizedProgram) -> None:
    for rows in (30, 31, 30, 500, 3, 31, 2, 500):
        check(sized, rows)
    assert len(sized.memories) == 1
    assert len(sized.memories[0].frames) < len(sized.fillings)


def test_threads_run_different_shapes_at_once(sized: SizedProgram) -> None:
    errors: list[BaseException] = []

    def run(rows: int) -> None:
        try:
            for step in range(20):
                check(sized, rows + step % 3)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rows,)) for rows in (10, 40, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_each_shape_has_a_program_of_its_own_while_somebody_wants_to_see_it(sized: SizedProgram) -> None:
    told: list[Program] = []
    sized.on_program = told.append
    for rows in (7, 8, 7):
        check(sized, rows)
    assert told == list(sized.programs.values()) and len(told) == 2
    sized.on_program = None
    check(sized, 9)
    assert len(told) == 2


def test_shapes_that_were_not_met_lately_are_forgotten(sized: SizedProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsjit.codegen.sized_program.KEPT_SHAPES", 4)
    for rows in range(2, 40, 3):
        check(sized, rows)
    assert len(sized.fillings) <= 4 and len(sized.plans) <= 4
    check(sized, 2)


def test_sizes_among_familiar_ones_are_filled_in_ahead(sized: SizedProgram) -> None:
    for rows in (30, 34, 38, 42, 46, 50):
        check(sized, rows)
    ahead = set(sized.fillings)
    assert (47,) in ahead and max(ahead) == (50,)
    check(sized, 47)
    assert set(sized.fillings) == ahead


def test_sizes_that_lie_far_apart_are_filled_in_one_by_one(sized: SizedProgram) -> None:
    before = len(sized.fillings)
    for rows in range(100, 2000, 100):
        check(sized, rows)
    assert len(sized.fillings) == before + 19
