"""Calls for every pointwise row: operands that hold special values, and the other arguments of each op."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product
from typing import Any

import torch

from dsjit.ops.row import OpRow, Pointwise

Tensor = torch.Tensor

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32, torch.uint8)
DTYPES = (*FLOATS, *INTEGERS, torch.bool)
MIXED = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)

NUMBERS: tuple[float | int | bool, ...] = (2, -3, 0, 0.1, math.inf, math.nan, True)
"""Python numbers that stand where a tensor operand could."""

PARAMETERS: dict[str, list[dict[str, Any]]] = {
    "add.Tensor": [{}, {"alpha": 3}, {"alpha": -0.3}],
    "sub.Tensor": [{}, {"alpha": 3}, {"alpha": -0.3}],
    "rsub.Tensor": [{}, {"alpha": 0.7}],
    "add.Scalar": [{}, {"alpha": 3}],
    "sub.Scalar": [{}, {"alpha": 3}],
    "rsub.Scalar": [{}, {"alpha": 0.7}],
    "div.Tensor_mode": [{"rounding_mode": mode} for mode in (None, "trunc", "floor")],
    "div.Scalar_mode": [{"rounding_mode": mode} for mode in (None, "trunc", "floor")],
    "addcmul.default": [{}, {"value": 3.14}, {"value": 2}],
    "addcdiv.default": [{}, {"value": 3.14}],
    "round.decimals": [{"decimals": d} for d in (0, 1, 3, -2)],
    "pow.Tensor_Scalar": [
        {"exponent": e} for e in (0, 1, 2, 3, 4, 7, -1, -2, 0.5, -0.5, 1.5, 2.0, 3.0, -3, 63, math.inf)
    ],
    "pow.Scalar": [{"self": base} for base in (2, 1, 0.3, -2.5, 10, 0)],
    "nan_to_num.default": [{}, {"nan": 1.5, "posinf": 7.0, "neginf": -7.0}],
    "logit.default": [{}, {"eps": 0.01}],
    "elu.default": [{}, {"alpha": 0.7, "scale": 1.1, "input_scale": 0.9}],
    "celu.default": [{}, {"alpha": 0.7}],
    "gelu.default": [{}, {"approximate": "tanh"}],
    "gelu_backward.default": [{}, {"approximate": "tanh"}],
    "softplus.default": [{}, {"beta": 0.7, "threshold": 3}],
    "hardtanh.default": [{}, {"min_val": -0.3, "max_val": 2}],
    "leaky_relu.default": [{}, {"negative_slope": 0.3}],
    "hardshrink.default": [{}, {"lambd": 0.3}],
    "softshrink.default": [{}, {"lambd": 0.3}],
    "threshold.default": [{"threshold": 0.1, "value": 20}],
    "threshold_backward.default": [{"threshold": 0}, {"threshold": 0.3}],
    "leaky_relu_backward.default": [{"negative_slope": 0.3, "self_is_result": False}],
    "hardtanh_backward.default": [{"min_val": -1, "max_val": 1}],
    "hardshrink_backward.default": [{"lambd": 0.3}],
    "softshrink_backward.default": [{"lambd": 0.3}],
    "softplus_backward.default": [{"beta": 1, "threshold": 20}, {"beta": 0.7, "threshold": 3}],
    "elu_backward.default": [
        {"alpha": 0.7, "scale": 1.1, "input_scale": 0.9, "is_result": is_result} for is_result in (False, True)
    ],
    "native_dropout_backward.default": [{"scale": 1.25}],
    "_to_copy.default": [{"dtype": dtype} for dtype in (None, *FLOATS, torch.int64, torch.bool)],
    "rrelu.default": [{}],
    "clamp.default": [{"min": -1}, {"max": 0.3}, {"min": -0.3, "max": 2.5}, {"min": 2, "max": 1}],
    "clamp_min.default": [{"min": 1}, {"min": -0.3}],
    "clamp_max.default": [{"max": 1}, {"max": -0.3}],
    "full.default": [{"size": (2, 3), "fill_value": value} for value in (1.5, 3, True)],
    "zeros.default": [{"size": (2, 3)}, {"size": (), "dtype": torch.int32}],
    "ones.default": [{"size": (2, 3)}, {"size": (4,), "dtype": torch.bfloat16}],
    "full_like.default": [{"fill_value": 2.5}, {"fill_value": 3, "dtype": torch.float16}],
    "new_full.default": [{"size": (2,), "fill_value": 2}],
    "new_zeros.default": [{"size": (2, 0)}],
    "new_ones.default": [{"size": (2,), "dtype": torch.bool}],
    "fill.Scalar": [{"value": 2.5}],
    "copy.default": [{"src": torch.tensor(2.5)}, {"src": torch.tensor(3)}],
    "fill.Tensor": [{"value": torch.tensor(2.5)}],
    "masked_fill.Tensor": [{"value": torch.tensor(0.1)}, {"value": torch.tensor(2)}],
    "scalar_tensor.default": [{"s": 2.5}, {"s": 2, "dtype": torch.int64}],
    "masked_fill.Scalar": [{"value": 0.1}, {"value": 2}],
}


def special_values(dtype: torch.dtype) -> Tensor:
    """Special values, each twice: 64 floats, a multiple of what ATen's vectorised loops take at once."""
    if dtype is torch.bool:
        return torch.tensor([True, False, True, False])
    if dtype.is_floating_point:
        limits = torch.finfo(dtype)
        return torch.tensor(
            [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 2.0, 3.0, -3.0, 0.1, -0.3, 0.9, 1.75, 2.5, -2.5, 6.0, -7.25, 19.0, 21.0,
             50.0, -50.0, math.inf, -math.inf, math.nan, limits.max, limits.min, limits.tiny, limits.tiny / 4,
             1.25, -0.75, 4.5, -5.0] * 2,
            dtype=dtype,
        )  # fmt: skip
    whole = torch.iinfo(dtype)
    numbers = [0, 1, 2, 3, 5, 7, 8, 31, 64, 100, whole.max]
    if whole.min:
        numbers += [-1, -2, -7, -64, whole.min + 1]
    return torch.tensor(numbers * 2, dtype=dtype)


def operands(count: int, dtypes: tuple[torch.dtype, ...]) -> list[Tensor]:
    """`count` tensors that broadcast to all pairs of special values (a third one has its own mixture of them)."""
    values = [special_values(dtype) for dtype in dtypes]
    shaped = [values[0][: len(values[0]) // 2].reshape(-1, 1) if count > 1 else values[0]]
    if count > 1:
        shaped.append(values[1].reshape(1, -1))
    if count > 2:
        size = (len(shaped[0]), len(values[1]))
        generator = torch.Generator().manual_seed(0)
        picks = torch.randint(0, len(values[2]), size, generator=generator)
        shaped.append(values[2][picks])
    return shaped


def calls(row: OpRow, op: Any) -> Iterator[dict[str, Any]]:
    """Keyword arguments for calls of `op`, over dtypes; torch itself may refuse some of them."""
    assert isinstance(row.rule, Pointwise)
    name = row.name.removeprefix("aten.")
    arguments = {argument.name: str(argument.type) for argument in op._schema.arguments}
    for parameters in PARAMETERS.get(name, [{}]):
        named = (*row.rule.shape_only, *row.rule.tensors)
        tensor_like = [n for n in named if "Tensor" in arguments[n] and n not in parameters]
        extra_tensors = [n for n in arguments if n not in named and arguments[n] == "Tensor"]
        absent = [n for n in row.rule.tensors if n not in tensor_like and n not in parameters]
        required = {a.name for a in op._schema.arguments if not a.has_default_value()}
        free = [n for n in absent if n in required]
        for number in NUMBERS if free else (None,):
            numbers = dict.fromkeys(free, number) if free else {}
            if not tensor_like and not extra_tensors:
                yield {**parameters, **numbers}
                continue
            for dtype in DTYPES:
                names = [*tensor_like, *extra_tensors]
                dtypes = tuple(torch.bool if n in row.rule.conditions else dtype for n in names)
                tensors = dict(zip(names, operands(len(names), dtypes), strict=False))
                yield {**tensors, **parameters, **numbers}


def mixed_calls(row: OpRow, op: Any) -> Iterator[dict[str, Any]]:
    """Calls of a binary `op` whose operands differ in dtype and rank: promotion, and wider 0-dim operands."""
    assert isinstance(row.rule, Pointwise)
    weighed = [n for n in row.rule.tensors if n not in row.rule.conditions]
    arguments = {argument.name: str(argument.type) for argument in op._schema.arguments}
    if len(weighed) != 2 or any(arguments[n] != "Tensor" for n in weighed):
        return
    conditions = {n: torch.tensor([[True], [False]]) for n in row.rule.conditions}
    parameters = PARAMETERS.get(row.name.removeprefix("aten."), [{}])[0]
    first, second = weighed
    for dtype, other in product(MIXED, repeat=2):
        x = special_values(dtype).reshape(1, -1)
        for y in (special_values(other)[:8].reshape(-1, 1, 1), torch.tensor(1.1).to(other), torch.tensor(3).to(other)):
            if y.dim() and dtype is other:
                continue
            yield {first: x, second: y, **conditions, **parameters}
            if not y.dim():
                yield {first: y, second: x, **conditions, **parameters}


def overload(name: str) -> Any:
    """The `OpOverload` of `aten.add.Tensor`."""
    _, packet, overload_name = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload_name)
