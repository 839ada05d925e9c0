"""Faster entries compute what the overload computes; out variants write into the buffer that they are given."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsjit.ops.library import FAST_ENTRIES, fast_callable, out_variant

aten = torch.ops.aten


def x(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


INDEX = torch.tensor([[0, 1, 1], [1, 0, 0]])

CALLS: dict[Any, tuple[tuple[Any, ...], dict[str, Any]]] = {
    aten.mm.default: ((x(3, 4), x(4, 5)), {}),
    aten.bmm.default: ((x(2, 3, 4), x(2, 4, 5)), {}),
    aten.mv.default: ((x(3, 4), x(4)), {}),
    aten.dot.default: ((x(4), x(4)), {}),
    aten.addmm.default: ((x(5), x(3, 4), x(4, 5)), {"beta": 0.5, "alpha": 2}),
    aten.baddbmm.default: ((x(2, 3, 5), x(2, 3, 4), x(2, 4, 5)), {}),
    aten.addbmm.default: ((x(3, 5), x(2, 3, 4), x(2, 4, 5)), {"beta": 0}),
    aten.addmv.default: ((x(3), x(3, 4), x(4)), {}),
    aten.cat.default: (((x(2, 3), x(1, 3)), 0), {}),
    aten.convolution.default: ((x(1, 2, 6, 6), x(4, 2, 3, 3), x(4), (2, 2), (1, 1), (1, 1), False, (0, 0), 1), {}),
    aten.embedding.default: ((x(5, 3), torch.tensor([[0, 4], [2, 2]]), 1), {}),
    aten.index.Tensor: ((x(4, 3), (torch.tensor([2, 0, 2]),)), {}),
    aten.index_select.default: ((x(4, 3), 0, torch.tensor([2, 0])), {}),
    aten.gather.default: ((x(2, 3), 1, INDEX), {}),
    aten.scatter.src: ((x(2, 3), 0, INDEX, x(2, 3)), {}),
    aten.scatter.value: ((x(2, 3), 0, INDEX, 1.5), {}),
    aten.scatter_add.default: ((x(2, 3), 0, INDEX, x(2, 3)), {}),
    aten.index_put.default: ((x(4, 3), (None, torch.tensor([1, 2])), x(4, 2), True), {}),
    aten.topk.default: ((x(3, 9), 2), {}),
    aten.sort.default: ((x(3, 9), 1, True), {}),
    aten.sort.stable: ((x(3, 9),), {"stable": True, "dim": 0}),
    aten.cumsum.default: ((x(3, 4), 1), {}),
    aten.cumprod.default: ((x(3, 4), 1), {"dtype": torch.float64}),
    aten.roll.default: ((x(3, 4), (1,), (0,)), {}),
    aten.flip.default: ((x(3, 4), (0, 1)), {}),
    aten.tril.default: ((x(4, 4), -1), {}),
    aten.triu.default: ((x(4, 4), 1), {}),
    aten.constant_pad_nd.default: ((x(3, 4), (1, 2), 0.5), {}),
    aten.clone.default: ((x(3, 4).t(),), {"memory_format": torch.contiguous_format}),
    aten._softmax.default: ((x(3, 4), 1, False), {}),
    aten._log_softmax.default: ((x(3, 4), 1, False), {}),
    aten.native_layer_norm.default: ((x(3, 4), (4,), x(4), None, 1e-5), {}),
    aten.native_group_norm.default: ((x(2, 4, 3), x(4), x(4), 2, 4, 3, 2, 1e-5), {}),
    aten.native_batch_norm.default: ((x(2, 4, 3), x(4), x(4), x(4), x(4).abs(), False, 0.1, 1e-5), {}),
    aten.max_pool2d_with_indices.default: ((x(1, 2, 6, 6), (2, 2), (2, 2)), {}),
    aten.avg_pool2d.default: ((x(1, 2, 6, 6), (3, 3), (2, 2), (1, 1)), {}),
    aten._adaptive_avg_pool2d.default: ((x(1, 2, 6, 6), (1, 1)), {}),
    aten.upsample_nearest2d.default: ((x(1, 2, 3, 3), (6, 6)), {}),
    aten.upsample_bilinear2d.default: ((x(1, 2, 3, 3), (6, 6), False), {}),
    aten._scaled_dot_product_flash_attention_for_cpu.default: ((x(1, 2, 3, 4), x(1, 2, 3, 4), x(1, 2, 3, 4)), {}),
}

HAS_DIRECT_OUT = [
    aten.mm.default, aten.bmm.default, aten.addmm.default, aten.baddbmm.default, aten.cat.default, aten.gather.default,
    aten.index_select.default, aten.cumsum.default, aten.scatter_add.default, aten.avg_pool2d.default,
]  # fmt: skip

COPIES_INTO_OUT = [aten.convolution.default, aten.embedding.default, aten.constant_pad_nd.default, aten.roll.default]


def flat(result: Any) -> list[torch.Tensor]:
    return [t for t in (result if isinstance(result, tuple) else (result,)) if isinstance(t, torch.Tensor)]


def test_every_fast_entry_is_tried() -> None:
    assert set(CALLS) == set(FAST_ENTRIES)


@pytest.mark.parametrize("op", CALLS, ids=str)
def test_a_fast_entry_computes_what_the_overload_computes(op: Any) -> None:
    args, kwargs = CALLS[op]
    for actual, expected in zip(flat(fast_callable(op)(*args, **kwargs)), flat(op(*args, **kwargs)), strict=True):
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()


@pytest.mark.parametrize("op", CALLS, ids=str)
def test_an_out_variant_fills_the_given_buffer(op: Any) -> None:
    function = out_variant(op)
    args, kwargs = CALLS[op]
    expected = op(*args, **kwargs)
    if function is None:
        assert op not in HAS_DIRECT_OUT
        return
    buffer = torch.empty_strided(expected.shape, expected.stride(), dtype=expected.dtype)
    address = buffer.data_ptr()
    function(*args, **kwargs, out=buffer)
    assert buffer.data_ptr() == address
    assert torch.equal(buffer, expected)


@pytest.mark.parametrize("op", COPIES_INTO_OUT, ids=str)
def test_an_out_overload_that_only_copies_counts_as_absent(op: Any) -> None:
    assert out_variant(op) is None


def test_an_op_with_several_results_has_no_out_variant() -> None:
    assert out_variant(aten.topk.default) is None


def test_an_op_without_an_entry_is_called_as_it_is() -> None:
    assert fast_callable(aten.digamma.default) is aten.digamma.default


INDEXED: dict[str, tuple[torch.Tensor, tuple[torch.Tensor | None, ...]]] = {
    "rows": (x(5, 3), (torch.tensor([4, 0, 4]),)),
    "no rows": (x(5, 3), (torch.tensor([], dtype=torch.int64),)),
    "rows by int32": (x(5, 3), (torch.tensor([4, 0], dtype=torch.int32),)),
    "rows from the end": (x(5, 3), (torch.tensor([-1, 2, -5]),)),
    "rows of a mask": (x(5, 3), (torch.tensor([True, False, True, False, False]),)),
    "a table of rows": (x(5, 3), (torch.tensor([[1, 2], [3, 4]]),)),
    "columns": (x(5, 3), (None, torch.tensor([2, 0]))),
    "elements": (x(5, 3), (torch.tensor([1, 2]), torch.tensor([2, 0]))),
    "elements of a list": (x(5), (torch.tensor([1, 2]),)),
    "rows of a transposed matrix": (x(3, 5).t(), (torch.tensor([1, 2]),)),
    "rows of many dimensions": (x(4, 2, 3), (torch.tensor([3, 1, 1]),)),
}


@pytest.mark.parametrize("name", INDEXED)
def test_index_takes_all_that_the_overload_takes(name: str) -> None:
    tensor, indices = INDEXED[name]
    expected = aten.index.Tensor(tensor, indices)
    assert torch.equal(FAST_ENTRIES[aten.index.Tensor](tensor, indices), expected)
    variant = out_variant(aten.index.Tensor)
    assert variant is not None
    out = torch.full_like(expected, 7)
    variant(tensor, indices, out=out)
    assert torch.equal(out, expected)


def test_index_out_of_range_is_refused_as_the_overload_refuses_it() -> None:
    with pytest.raises(IndexError) as expected:
        aten.index.Tensor(x(5, 3), (torch.tensor([0, 5]),))
    with pytest.raises(IndexError) as found:
        FAST_ENTRIES[aten.index.Tensor](x(5, 3), (torch.tensor([0, 5]),))
    assert str(found.value) == str(expected.value)
