"""Elements picked by numbers (`x[rows]`, `index_select`, `embedding`, `gather`): compiled calls are eager's."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import dsjit
from tests.api.checks import assert_same, call_compiled, check, counters_of

DTYPES = [
    torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool, torch.complex64,
]  # fmt: skip
SOURCE = torch.randn(11, 6, 5, generator=torch.Generator().manual_seed(0)) * 50
ROWS = torch.tensor([3, 0, 10, 3])
PLACES = torch.tensor([[[4, 0, 1, 1, 2]] * 6] * 11)

PICKS: dict[str, Callable[..., Any]] = {
    "rows": lambda x: x[ROWS],
    "rows from the end": lambda x: x[ROWS - 11],
    "a dimension within": lambda x: x[:, ROWS % 6],
    "a grid": lambda x: x[ROWS[:, None], ROWS % 6],
    "dimensions apart": lambda x: x[ROWS[:, None], :, ROWS % 5],
    "all dimensions": lambda x: x[ROWS, ROWS % 6, ROWS % 5],
    "one row": lambda x: x[torch.tensor(2)],
    "index_select": lambda x: x.index_select(1, ROWS % 6),
    "embedding": lambda x: F.embedding(ROWS.view(2, 2), x[:, 0]),
    "gather": lambda x: x.gather(2, PLACES),
    "gather of fewer": lambda x: x.gather(1, PLACES[:4, :2]),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pick", PICKS)
def test_elements_of_any_dtype(pick: str, dtype: torch.dtype) -> None:
    check(PICKS[pick], SOURCE.to(dtype), exact=True, calls=1)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(0, 2).contiguous().transpose(0, 2),
    "every second": lambda x: x.repeat_interleave(2, 2)[..., ::2],
    "one column, expanded": lambda x: x[..., :1].expand(11, 6, 5),
    "channels last": lambda x: x[None].to(memory_format=torch.channels_last)[0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pick", PICKS)
def test_sources_of_any_layout(pick: str, layout: str) -> None:
    check(lambda x: PICKS[pick](x) * 2, LAYOUTS[layout](SOURCE), exact=True, calls=1)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_numbers_of_both_widths_and_any_layout(dtype: torch.dtype) -> None:
    numbers = torch.arange(-11, 11, dtype=dtype).view(2, 11).t()
    check(lambda x, i: x[i] + 1, SOURCE, numbers, exact=True)
    check(lambda x, i: x[i[:, :1].expand(11, 3)] + 1, SOURCE, numbers, exact=True)


@pytest.mark.parametrize("source", [SOURCE[:0], SOURCE[:, :0]], ids=["no rows", "empty rows"])
def test_nothing(source: Tensor) -> None:
    none = torch.empty(0, dtype=torch.int64)
    check(lambda x, i: x[i] + 1, source, none, exact=True)
    check(lambda x, i: x.index_select(1, i) + 1, SOURCE, none, exact=True)


def test_numbers_that_a_kernel_computes() -> None:
    check(lambda x, i: x[(i * 7 + 3) % 11].exp(), SOURCE, ROWS)
    check(lambda x: x.gather(2, x.argmax(2, keepdim=True)) - x.amax(2, keepdim=True), SOURCE)
    check(lambda x: x.gather(1, x.argsort(dim=1, stable=True)), SOURCE, exact=True)


def test_what_is_padded_is_not_checked() -> None:
    def function(x: Tensor, i: Tensor) -> Tensor:
        return torch.cat((x[i + 5], x[i]))

    check(function, SOURCE, torch.tensor([0, 5, 5, 2, 1]), exact=True)
    check(lambda x, i: F.pad(x[i + 5], (1, 1)), SOURCE, torch.tensor([0, 5, 5]), exact=True)


WRONG: dict[str, tuple[Callable[..., Any], int]] = {
    "rows, above": (lambda x, i: x[i] * 2, 11),
    "rows, below": (lambda x, i: x[i] * 2, -12),
    "index_select, negative": (lambda x, i: x.index_select(0, i) * 2, -1),
    "embedding, negative": (lambda x, i: F.embedding(i, x[:, 0]) * 2, -1),
    "gather, negative": (lambda x, i: x[:, 0, 0].gather(0, i) * 2, -1),
    "gather, above": (lambda x, i: x[:, 0, 0].gather(0, i) * 2, 11),
    "by far": (lambda x, i: x[i] * 2, 2**62),
    "a reduction": (lambda x, i: x[i].amax((1, 2)), 11),
    "a result that nobody reads": (lambda x, i: (x[i], x + 1)[1], 11),
    "numbers that are computed": (lambda x, i: x[i - 1] * 2, -11),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_number_out_of_range_is_eagers_error_at_the_users_line(case: str) -> None:
    function, wrong = WRONG[case]
    jitted = dsjit.jit(function)
    jitted(SOURCE, ROWS)
    call_compiled(jitted, SOURCE, ROWS)
    numbers = torch.tensor([3, 0, wrong, 3])
    for _ in range(2):
        with pytest.raises((IndexError, RuntimeError)) as expected:
            function(SOURCE, numbers)
        with pytest.raises(type(expected.value)) as found:
            jitted(SOURCE, numbers)
        assert str(found.value) == str(expected.value)
        last = [f for f in traceback.extract_tb(found.value.__traceback__) if f.filename == __file__][-1]
        assert last.lineno == function.__code__.co_firstlineno
        assert_same(call_compiled(jitted, SOURCE, ROWS), function(SOURCE, ROWS))


def test_a_call_that_is_refused_has_written_nothing() -> None:
    def function(state: Tensor, x: Tensor, i: Tensor) -> Tensor:
        state.add_(1)
        y = x[i] + state[0]
        state.mul_(2)
        return y

    jitted = dsjit.jit(function)
    mine, theirs = torch.zeros(4), torch.zeros(4)
    for numbers in (ROWS, ROWS, torch.tensor([0, 11]), torch.tensor([0, 1, 2, 99]), ROWS):
        outcomes = []
        for call, state in ((jitted, mine), (function, theirs)):
            try:
                outcomes.append(call(state, SOURCE, numbers))
            except IndexError as error:
                outcomes.append(str(error))
        assert_same(outcomes[0], outcomes[1])
        assert torch.equal(mine, theirs)
    assert counters_of(jitted).calls_compiled >= 2


def test_the_source_is_written_over_after_it_was_read() -> None:
    def function(x: Tensor, i: Tensor) -> Tensor:
        y = x[i] + 1
        x.copy_(y)
        return y

    check(function, torch.arange(12.0).view(4, 3), torch.tensor([3, 2, 1, 0]), exact=True)

    def chained(x: Tensor, i: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.cumsum(x, 0)[i] * 2
        return x

    check(chained, torch.arange(12.0).view(4, 3), torch.tensor([3, 2, 1, 0]), exact=True)


def test_arguments_that_share_memory() -> None:
    numbers = torch.tensor([3, 2, 0, 1])
    jitted = dsjit.jit(lambda x, i: x[i] + i)
    for _ in range(3):
        assert torch.equal(jitted(numbers, numbers), numbers[numbers] + numbers)

    def function(whole: Tensor, part: Tensor) -> Tensor:
        part.add_(1)
        return whole[part % 4] * 2

    for call in (function, dsjit.jit(function)):
        whole = torch.tensor([0, 3, 1, 2])
        results = [call(whole, whole[1:3]) for _ in range(3)]
        if call is function:
            expected = results, whole
    assert_same((results, whole), expected)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, i: x[i] + 1,
        lambda x, i: x[:, i].sum(0),
        lambda x, i: x.index_select(0, i.int()).sum(1),
        lambda x, i: F.layer_norm(F.embedding(i, x), (x.shape[1],)),
        lambda x, i: torch.cat((x[i], x[i - 1] * 2)),
    ],
    ids=["rows", "columns", "index_select", "embedding", "a concatenation"],
)
def test_one_program_for_all_sizes(function: Callable[..., Any]) -> None:
    jitted = dsjit.jit(function, dynamic=True)
    for rows, columns, count in ((50, 30, 12), (60, 33, 40), (61, 34, 5), (9, 70, 100), (33, 20, 33)):
        x, i = torch.randn(rows, columns), torch.randint(0, 3, (count,))
        assert_same(jitted(x, i), function(x, i))
        i[-1] = rows + columns
        with pytest.raises((IndexError, RuntimeError)):
            jitted(x, i)
    assert counters_of(jitted).compiles <= 2


def test_the_derivative_of_what_is_picked() -> None:
    def step(table: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        table = table.detach().requires_grad_()
        loss = (table[rows] * F.embedding(rows, table)).tanh().sum()
        loss.backward()
        return loss.detach(), table.grad

    check(step, torch.randn(11, 6), ROWS)


def test_the_interpreter_of_triton() -> None:
    x, i = torch.randn(11, 6), ROWS
    for function in (lambda x, i: x[i] + 1, lambda x, i: x.index_select(0, i).sum(1)):
        jitted = dsjit.jit(function, backend="triton-interpret")
        assert_same([jitted(x, i), jitted(x, i)], [function(x, i)] * 2)
        with pytest.raises((IndexError, RuntimeError)):
            jitted(x, i + 1)
