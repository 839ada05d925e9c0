"""Networks of convolutions, compiled: precise, with one template for layers of many shapes, and open batch sizes."""

from __future__ import annotations

from math import prod

import pytest
import torch
from torch.nn.functional import conv2d

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.codegen.interpret import InterpretedProgram
from dsjit.profiler.timing import time_steps
from tests.api.checks import call_compiled, check

STEP = "direct_convolution"


def network(x: torch.Tensor, *weights: torch.Tensor) -> torch.Tensor:
    """A convolution with stride 2, one with a bias, and one of one pixel in the middle."""
    first, second, pixel, third, bias = weights
    x = torch.relu(conv2d(x, first, stride=2, padding=1))
    x = torch.relu(conv2d(x, second, bias, padding=1))
    return conv2d(conv2d(x, pixel), third, padding=2, dilation=2)


def arguments(batch: int = 2) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    shapes = [(32, 3, 3, 3), (20, 32, 3, 3), (24, 20, 1, 1), (18, 24, 3, 3), (20,)]
    weights = [torch.randn(shape) / prod(shape[1:]) ** 0.5 for shape in shapes]
    return torch.randn(batch, 3, 13, 12), *weights


@pytest.fixture
def inference():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_results_and_strides_are_those_of_eager(inference, layout):
    x, *weights = arguments()
    check(network, x.contiguous(memory_format=layout), *weights)


def test_convolutions_run_without_python_in_between(inference):
    explanation = dsjit.explain(network)(*arguments())
    calls = [call for call in explanation.library_calls if call.op == STEP]
    assert [call.native for call in calls] == [True] * 3
    assert all(call.source.file == __file__ for call in calls)
    assert explanation.program.count("q0(") == 1
    assert "q1(" not in explanation.program


def test_layers_share_their_template(inference):
    """Blocks of 32 output channels serve 32, 20 and 18 of them."""
    jitted = dsjit.jit(network)
    jitted(*arguments())
    [compilation] = jitted_of(jitted).trees[0].compilations
    addresses = [code.address for work, code in compilation.compiled.items() if work in compilation.native]
    assert len(addresses) == 3
    assert len(set(addresses)) == 1


def test_a_batch_that_was_never_met_compiles_nothing(inference):
    jitted = dsjit.jit(network)
    for batch in (2, 3):
        jitted(*arguments(batch))
    for batch in (5, 9):
        result = call_compiled(jitted, *arguments(batch))
        torch.testing.assert_close(result, network(*arguments(batch)))


def test_parameters_may_change_in_place(inference):
    jitted, args = dsjit.jit(network), arguments()
    jitted(*args)
    args[2].mul_(2)
    torch.testing.assert_close(call_compiled(jitted, *args), network(*args))


def test_each_convolution_is_timed_and_interpreted(inference):
    jitted, args = dsjit.jit(network), arguments()
    jitted(*args)
    [tree] = jitted_of(jitted).trees
    inputs = tree.guard.check(args, {})
    [found] = tree.compilations
    times = time_steps(found.program, found.steps, found.native, inputs, repeats=2)
    assert [time.nanoseconds > 0 for time in times if time.name == STEP] == [True] * 3
    (interpreted,) = InterpretedProgram(found.optimized, found.steps, found.plan.views)(inputs)
    torch.testing.assert_close(interpreted, call_compiled(jitted, *args))
