"""Whole random programs are as eager, in everything that can be seen; and the fuzzer would tell.

`tests/property` is for chains of ops alone, of which every bit is eager's.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from tests.fuzz.draw import numbered_program, programs
from tests.fuzz.play import play_program
from tests.fuzz.program import FuzzProgram
from tests.fuzz.reduce import reduced

pytestmark = pytest.mark.filterwarnings("ignore")


@settings(max_examples=15)
@given(programs())
def test_a_program_is_as_eager(program: FuzzProgram) -> None:
    differences = play_program(program).differences
    assert not differences, "\n".join([program.source, *differences])


@pytest.mark.parametrize("number", range(4))
def test_a_program_is_as_eager_in_the_kernel_interpreter(number: int) -> None:
    program = numbered_program(0, number)
    differences = play_program(program, backend="interpreter").differences
    assert not differences, "\n".join([program.source, *differences])


def test_numbered_programs_are_always_the_same_and_differ_from_each_other() -> None:
    texts = [numbered_program(3, number).text for number in range(20)]
    assert texts == [numbered_program(3, number).text for number in range(20)]
    assert len(set(texts)) == len(texts)


WRONG = {
    "values": ("return x + 1", "return x + 1.0000001"),
    "the sign of a zero": ("return x * 0", "return x * -0.0"),
    "strides": ("return x.clone()", "return x.t().contiguous().t()"),
    "aliasing": ("return x", "return x.clone()"),
    "what is written": ("x.add_(1)\nreturn 0", "return 0"),
    "an exception": ("return x.view(-1, 7)", "return x"),
    "its text": ("raise ValueError('a')", "raise ValueError('b')"),
    "the random state": ("return torch.rand(3)", "return torch.rand(6)[:3].clone()"),
    "an attribute": ("function.n = 1\nreturn x", "function.n = 2\nreturn x"),
    "a sum too far off": ("return x.sum(0)", "return x.sum(0) * 1.00001"),
}


@pytest.mark.parametrize(("right", "wrong"), WRONG.values(), ids=WRONG)
def test_every_kind_of_difference_is_seen(right: str, wrong: str) -> None:
    body = (
        "class Thing:",
        "    def __call__(function, x):",
        "        if jit.__name__ == '_not_jitted' or jit.__name__ == '<lambda>':",
        *[f"            {line}" for line in right.splitlines()],
        *[f"        {line}" for line in wrong.splitlines()],
        "x = TensorSpec((4, 4)).make()",
        "thing = Thing()",
        "yield jit(thing), (x,)",
    )
    assert play_program(FuzzProgram(body)).differences


def test_sums_in_another_order_and_functions_of_another_last_bit_are_right() -> None:
    body = (
        "x = TensorSpec((400,)).make()",
        "f = jit(lambda x: (x.exp().sum(), x.softmax(0)))",
        "yield f, (x,)",
        "yield f, (x,)",
    )
    played = play_program(FuzzProgram(body))
    assert not played.differences
    assert played.judged


def test_a_program_that_differs_is_made_smaller() -> None:
    body = (
        "def f(x):",
        "    y = x * 2",
        "    z = x.exp()",
        "    return (y, z) if jit.__name__ == 'jit' else (y + 1, z)",
        "x = TensorSpec((3,)).make()",
        "unused = torch.ones(3)",
        "function = jit(f)",
        "yield function, (x,)",
        "yield function, (x,)",
    )
    smaller = reduced(FuzzProgram(body))
    assert play_program(smaller).differences
    assert len(smaller.body) < len(body)
