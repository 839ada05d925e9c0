"""Generators of the caller's: what a compiled call draws, and the state in which it leaves them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import dsjit
from dsjit.ops.calls import draw, fill

Draw = Callable[[torch.Tensor, torch.Generator], Any]

GENERATOR = torch.Generator()

DRAWS: dict[str, Draw] = {
    "rand": lambda x, g: x + torch.rand(4, generator=g),
    "randn": lambda x, g: torch.randn(2, 3, generator=g, dtype=torch.float64),
    "randint": lambda x, g: torch.randint(0, 9, (5,), generator=g),
    "randperm": lambda x, g: x[torch.randperm(4, generator=g)],
    "multinomial": lambda x, g: torch.multinomial(x.softmax(-1), 2, generator=g),
    "bernoulli": lambda x, g: torch.bernoulli(x.sigmoid(), generator=g),
    "normal_": lambda x, g: x.clone().normal_(generator=g),
    "uniform_": lambda x, g: torch.empty(3).uniform_(-1, 1, generator=g),
    "twice": lambda x, g: (torch.rand(2, generator=g), x * torch.rand(4, generator=g)),
    "beside the default": lambda x, g: (torch.rand(2), torch.rand(2, generator=g), torch.rand(2)),
    "in a branch": lambda x, g: torch.rand(2, generator=g) if x.sum() > 0 else torch.rand(3, generator=g) + 1,
}


@pytest.mark.parametrize("function", DRAWS.values(), ids=DRAWS)
def test_a_compiled_call_draws_eagers_stream(function: Draw) -> None:
    jitted = dsjit.jit(function)
    dsjit.reset_stats()
    with torch.no_grad():
        for number in range(6):
            x = torch.arange(4.0) - 2 * (number % 2)
            one, two = torch.Generator().manual_seed(number), torch.Generator().manual_seed(number)
            torch.manual_seed(number)
            expected, drawn = function(x, one), torch.get_rng_state()
            torch.manual_seed(number)
            found = jitted(x, two)
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
            assert torch.equal(one.get_state(), two.get_state())
            assert torch.equal(torch.get_rng_state(), drawn)
    assert dsjit.stats().total.calls_eager == 0
    assert dsjit.stats().total.calls_compiled >= 4


def test_a_program_that_raises_has_drawn_nothing() -> None:
    generator = torch.Generator().manual_seed(1)
    jitted = dsjit.jit(lambda x, i: (torch.rand(2, generator=generator), x[i]))
    with torch.no_grad():
        jitted(torch.ones(3), torch.tensor([0]))
        state = generator.get_state()
        expected = torch.rand(2, generator=torch.Generator().set_state(state) and generator)
        generator.set_state(state)
        with pytest.raises(IndexError):
            jitted(torch.ones(3), torch.tensor([7]))
        generator.set_state(state)
        assert torch.equal(jitted(torch.ones(3), torch.tensor([1]))[0], expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x + torch.rand(3, generator=torch.Generator().manual_seed(3)),
        lambda x: x + torch.rand(3, generator=GENERATOR.manual_seed(4)),
    ],
    ids=["made in the call", "seeded in the call"],
)
def test_other_uses_of_generators_run_eagerly(function: Callable[[torch.Tensor], torch.Tensor]) -> None:
    jitted = dsjit.jit(function)
    with torch.no_grad(), pytest.warns(dsjit.DsjitWarning, match="runs eagerly"):
        for _ in range(3):
            assert torch.equal(jitted(torch.ones(3)), function(torch.ones(3)))


def test_draw_and_fill_are_functions_of_tensors() -> None:
    state = torch.Generator().manual_seed(5).get_state()
    drawn, after = draw(torch.ops.aten.rand.generator, state, [3])
    again, _ = draw(torch.ops.aten.rand.generator, after, [3])
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(drawn, torch.rand(3, generator=generator))
    assert torch.equal(again, torch.rand(3, generator=generator))
    with pytest.raises(NotImplementedError):
        draw(torch.ops.aten.rand.generator, state.to("meta"), [3])
    out = torch.zeros(3, dtype=torch.int32)
    fill(torch.ops.aten.cumsum.out, out, torch.tensor([0.75, 0.5, 2.75]), 0)
    assert out.tolist() == [0, 0, 2]
