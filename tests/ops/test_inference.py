"""Promotion, broadcasting and the Builder, against torch."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch

from dsjit.ir.graph import Source, TensorType, Value
from dsjit.ops.builder import Builder
from dsjit.ops.inference import broadcast_shape, dense_strides, promoted_dtype
from tests.ops.torch_scalars import type_of

aten = torch.ops.aten

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
DTYPES = (*FLOATS, torch.int64, torch.int32, torch.uint8, torch.bool)


def value(tensor: torch.Tensor) -> Value:
    return Value(0, type_of(tensor))


def operands() -> list[Any]:
    return [*(torch.ones(2, dtype=d) for d in DTYPES), *(torch.ones((), dtype=d) for d in DTYPES), True, 2, 2.5, 1j]


def test_promotes_every_pair_of_operands_as_torch_does() -> None:
    for a, b in product(operands(), repeat=2):
        if not isinstance(a, torch.Tensor) and not isinstance(b, torch.Tensor):
            continue
        args = [value(x) if isinstance(x, torch.Tensor) else x for x in (a, b)]
        assert promoted_dtype(args) is torch.result_type(a, b), (a, b)


def test_three_operands_promote_by_level() -> None:
    args = [value(torch.ones(2, dtype=torch.bfloat16)), value(torch.ones((), dtype=torch.float64)), 2.5, None]
    assert promoted_dtype(args) is torch.bfloat16


def test_promotion_follows_the_default_dtype() -> None:
    integers = value(torch.ones(2, dtype=torch.int64))
    torch.set_default_dtype(torch.float64)
    try:
        assert promoted_dtype([integers, 1.5]) is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (3,)), ((2, 1), (1, 3)), ((), (4,)), ((1,), (0,)), ((5, 1, 1), (2, 3), ())]
)
def test_broadcasts_as_torch_does(shapes: tuple[tuple[int, ...], ...]) -> None:
    assert broadcast_shape(shapes) == tuple(torch.broadcast_shapes(*shapes))


def test_shapes_that_do_not_broadcast_are_refused() -> None:
    with pytest.raises(ValueError, match="do not broadcast"):
        broadcast_shape([(2, 3), (4,)])


@pytest.mark.parametrize(
    "tensors",
    [
        (torch.empty(2, 3), torch.empty(2, 3)),
        (torch.empty(3, 2).t(), torch.empty(3, 2).t()),
        (torch.empty(3, 2).t(), torch.empty(3)),
        (torch.empty(2, 3, 4, 5).contiguous(memory_format=torch.channels_last), torch.empty(1, 3, 1, 1)),
        (torch.empty(2, 6)[:, ::2], torch.empty(2, 3)),
    ],
)
def test_strides_of_a_pointwise_result(tensors: tuple[torch.Tensor, ...]) -> None:
    result = tensors[0] + tensors[1]
    assert dense_strides(tuple(result.shape), [type_of(t) for t in tensors]) == result.stride()


@pytest.mark.parametrize(
    ("op", "args", "kwargs"),
    [
        (aten.add.Tensor, (torch.ones(2, 3), 1), {}),
        (aten.div.Tensor, (torch.ones(2, dtype=torch.int64), 2), {}),
        (aten.exp.default, (torch.ones(2, dtype=torch.int64),), {}),
        (aten.lt.Scalar, (torch.ones(2, 3), 1), {}),
        (aten.where.self, (torch.ones(2, 1, dtype=torch.bool), torch.ones(3), torch.ones((), dtype=torch.float64)), {}),
        (aten._to_copy.default, (torch.ones(3, 2).t(),), {"dtype": torch.bfloat16}),
        (aten.clone.default, (torch.ones(3, 2).t(),), {"memory_format": torch.contiguous_format}),
        (aten.clone.default, (torch.ones(2, 3, 4, 5),), {"memory_format": torch.channels_last}),
        (aten.full.default, ([2, 3], 1.5), {}),
        (aten.full.default, ([2], True), {}),
        (aten.zeros.default, ([2, 3],), {"dtype": torch.int32}),
        (aten.full_like.default, (torch.ones(2, dtype=torch.int32), 1.5), {}),
        (aten.scalar_tensor.default, (2,), {}),
        (aten.sum.dim_IntList, (torch.ones(2, 3, dtype=torch.bool), [-1], True), {}),
        (aten.argmax.default, (torch.ones(2, 3),), {}),
        (aten.view.default, (torch.ones(2, 3), [6]), {}),
        (aten.expand.default, (torch.ones(1, 3), [2, -1]), {}),
    ],
)
def test_builder_infers_what_torch_returns(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    builder = Builder(first_id=10)
    given = [value(a) if isinstance(a, torch.Tensor) else tuple(a) if isinstance(a, list) else a for a in args]
    assert builder.call(op, *given, **kwargs).type == type_of(op(*args, **kwargs))


def test_builder_collects_nodes_in_order_with_ids_and_source() -> None:
    source = Source("model.py", 3, "forward")
    builder = Builder(first_id=7, source=source)
    x = value(torch.ones(2, 3))
    first = builder.call(aten.exp.default, x)
    second, third = builder.call_typed(aten.topk.default, (x.type, x.type), first, 3)
    assert [v.id for v in (first, second, third)] == [7, 8, 9]
    assert builder.next_id == 10
    assert [node.op for node in builder.nodes] == [aten.exp.default, aten.topk.default]
    assert all(node.source is source for node in builder.nodes)


def test_builder_needs_a_row_to_infer_a_type() -> None:
    with pytest.raises(ValueError, match="use call_typed"):
        Builder(first_id=0).call(aten.mm.default, value(torch.ones(2, 2)), value(torch.ones(2, 2)))


def test_tensor_types_compare_by_content() -> None:
    assert type_of(torch.ones(2)) == TensorType((2,), torch.float32, (1,), torch.device("cpu"))
