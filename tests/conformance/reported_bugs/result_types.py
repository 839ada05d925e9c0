"""Types of results: promotion, explicit dtypes, and calls that eager refuses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from tests.conformance.harness import Play, program


@program()
def cumulative_sum_of_ones_with_a_dtype(play: Play) -> None:
    """pytorch/pytorch#189518: the dtype given to a `cumsum` of ones was dropped."""

    def run() -> tuple[torch.Tensor, ...]:
        ones = torch.ones((2, 4, 4), dtype=torch.bool)
        return ones.cumsum(1, dtype=torch.bfloat16), ones.cumsum(1), ones.sum(1, dtype=torch.float16), ones.sum()

    f = play.jit(run)
    for _ in range(3):
        play(f)


@program(traces=4)
def exponent_of_another_type(play: Play) -> None:
    """pytorch/pytorch#197091: `ldexp` took the dtype of its first operand, or float32."""
    f = play.jit(lambda x, y: torch.ldexp(x, y))
    types = (
        (torch.bool, torch.float16), (torch.int64, torch.bfloat16), (torch.float16, torch.float32),
        (torch.float32, torch.int32),
    )  # fmt: skip
    for first, second in types:
        for _ in range(2):
            play(f, torch.arange(4).to(first), torch.arange(4).to(second))


@program(traces=2)
def product_of_matrices_of_two_types(play: Play) -> None:
    """pytorch/pytorch#177630: a batched product of float16 and float32 matrices was computed; eager refuses it."""
    f = play.jit(lambda a, b: torch.matmul(a, b) + 1)
    for dtype in (torch.float32, torch.float32, torch.float16, torch.float32):
        play(f, torch.ones(2, 3, 4, dtype=dtype), torch.ones(2, 4, 3))


@program(traces=2, exact=False)
def cumulative_operation_on_an_unsupported_scalar(play: Play) -> None:
    """pytorch/pytorch#197807: `logcumsumexp` of a 0-dim uint8 gave its argument back; eager has no such op."""
    f = play.jit(lambda x: torch.logcumsumexp(x, dim=0))
    for dtype in (torch.float32, torch.float32, torch.uint8, torch.float32):
        play(f, torch.tensor(0, dtype=dtype))


@program(traces=3)
def selection_between_a_tensor_and_a_number(play: Play) -> None:
    """Lightning-AI/lightning-thunder#833: `where` with Python numbers was float64 where eager gives float32."""
    f = play.jit(lambda x, y: (torch.where(x > 0, -y, y), torch.where(x > 0, x, y), torch.where(x > 0, 1, y)))
    for number in (0.5, 0.5, 2, 2, True, True):
        play(f, torch.arange(-2.0, 2.0), number)


@program(traces=3)
def concatenation_of_two_types(play: Play) -> None:
    """pytorch/torchdynamo#1659: `cat` of tensors of several dtypes did not promote them."""
    f = play.jit(lambda a, b: (torch.cat([a, b]) + 1, torch.stack([b, a]) * 2, torch.hstack([a, a, b])))
    for first, second in ((torch.float16, torch.float32), (torch.int32, torch.bfloat16), (torch.uint8, torch.int8)):
        for _ in range(2):
            play(f, torch.arange(3).to(first), torch.arange(3).to(second))


@program(traces=2)
def numbers_and_scalars_beside_tensors(play: Play) -> None:
    """pytorch/pytorch#143729: products of tensors of two dtypes could not be compiled, since they were not promoted."""

    def run(x: torch.Tensor, scalar: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * scalar, x + 1, x + 1.5, x * True, scalar + 2.5, x / 2, torch.add(x, scalar, alpha=2), x**2

    f = play.jit(run)
    for dtype in (torch.int32, torch.int32, torch.float16, torch.float16):
        play(f, torch.arange(4).to(dtype), torch.tensor(3.0, dtype=torch.float64))


@program(traces=2)
def float_written_into_integers(play: Play) -> None:
    """pytorch/pytorch#143717: an in-place division of integers, which eager refuses, was done and rounded."""

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.add_(1).div_(y)

    f = play.jit(run)
    for dtype in (torch.float32, torch.float32, torch.int64, torch.float32):
        play(f, torch.arange(4).to(dtype), torch.tensor([2.0]))


@program(traces=2)
def sum_into_a_bool(play: Play) -> None:
    """pytorch/pytorch#197106: `sum` and `prod` with `dtype=torch.bool` failed."""
    f = play.jit(lambda x: (x.sum(dtype=torch.bool), x.prod(dtype=torch.bool), x.sum(1, dtype=torch.bool)))
    for dtype in (torch.float16, torch.float16, torch.float32, torch.float32):
        play(f, torch.arange(-6, 6).view(3, 4).to(dtype))


@program()
def reductions_of_a_scalar(play: Play) -> None:
    """pytorch/pytorch#102546: reductions of a 0-dim tensor along a given dimension failed."""
    f = play.jit(lambda x: (x.mean(0), x.sum(-1), x.amax(0), x.softmax(0), x.cumsum(0), *x.max(0), x.argmax()))
    for number in (5.0, 5.0, -2.0):
        play(f, torch.tensor(number))


@program(traces=2)
def attention_mask_of_another_type(play: Play) -> None:
    """pytorch/pytorch#171191: a product of mixed types inside attention, which eager refuses, was computed."""

    def attend(scores: torch.Tensor, mask: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return torch.bmm(scores + mask, values)

    f = play.jit(attend)
    for dtype in (torch.float32, torch.float32, torch.float64, torch.float32):
        play(f, torch.ones(2, 3, 3), torch.arange(3, dtype=dtype), torch.ones(2, 3, 4))


@program(traces=2)
def module_converted_between_calls(play: Play) -> None:
    """pytorch/pytorch#159492: bfloat16 layers met float32 tensors in a fused op that eager does not have."""
    layer = nn.Linear(2, 2, bias=False)
    nn.init.constant_(layer.weight, 2.0)
    bias = torch.tensor([0.125, 3.0])
    f = play.jit(lambda x: layer(x) + bias)
    for dtype in (torch.float32, torch.float32, torch.bfloat16, torch.bfloat16):
        layer.to(dtype)
        play(f, torch.ones(3, 2, dtype=dtype))


@program(traces=2)
def tensor_of_a_list_in_the_function(play: Play) -> None:
    """pytorch/pytorch#184405: tensors made of Python numbers inside follow what the numbers are."""

    def run(values: list[float]) -> torch.Tensor:
        return torch.tensor(values) * 2

    f = play.jit(run)
    for values in ([1.0, 2.0], [1.0, 2.0], [1, 2], [1, 2]):
        play(f, values)


@program(traces=2)
def operator_given_as_an_argument(play: Play) -> None:
    """pytorch/pytorch#197811: the same as for closures, with the operator handed to the function."""

    def run(operation: Callable[..., torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return operation(x, x + 1)

    f = play.jit(run)
    for operation in (torch.Tensor.__sub__, torch.Tensor.__sub__, torch.Tensor.__mul__, torch.Tensor.__mul__):
        play(f, operation, torch.arange(3.0))
