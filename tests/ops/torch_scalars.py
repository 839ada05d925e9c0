"""A `ScalarBuilder` whose scalars are whole torch tensors: evaluates a row on all elements of its operands at once."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

import numpy
import torch

from dsjit.ir.graph import Node, TensorType, Value, map_values
from dsjit.ir.scalar import SCALAR_OPS, accepts

Tensor = torch.Tensor


def _c_fma(name: str, number: type) -> Callable[..., numpy.ndarray]:
    function = ctypes.CDLL(ctypes.util.find_library("m"))[name]
    function.argtypes = [number] * 3
    function.restype = number
    return numpy.vectorize(function, otypes=[number])


C_FMA = {torch.float32: _c_fma("fmaf", ctypes.c_float), torch.float64: _c_fma("fma", ctypes.c_double)}


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    shape = torch.broadcast_shapes(a.shape, b.shape, c.shape)
    if 0 in shape:
        return a.new_empty(shape)
    with numpy.errstate(all="ignore"):
        return torch.from_numpy(numpy.asarray(C_FMA[a.dtype](a.numpy(), b.numpy(), c.numpy()))).to(a.dtype)


def _trunc_rem(a: Tensor, b: Tensor) -> Tensor:
    """C's fmod: torch's vectorised one gives NaN where the quotient overflows."""
    if not a.is_floating_point():
        return torch.fmod(a, b)
    with numpy.errstate(all="ignore"):
        return torch.from_numpy(numpy.asarray(numpy.fmod(a.numpy(), b.numpy())))


def _floor_rem(a: Tensor, b: Tensor) -> Tensor:
    remainder = _trunc_rem(a, b)
    return torch.where((remainder != 0) & ((remainder < 0) != (b < 0)), remainder + b, remainder)


def _sqrt(a: Tensor) -> Tensor:
    """Correctly rounded: torch's own is so on some processors only, where it calls MKL's vector math."""
    with numpy.errstate(invalid="ignore"):
        return torch.from_numpy(numpy.asarray(numpy.sqrt(a.numpy())))


TORCH_SPELLINGS: dict[str, Callable[..., Tensor]] = {
    "fma": _fma,
    "trunc_div": lambda a, b: torch.div(a, b, rounding_mode="trunc"),
    "floor_div": lambda a, b: torch.div(a, b, rounding_mode="floor"),
    "trunc_rem": _trunc_rem,
    "floor_rem": _floor_rem,
    "sqrt": _sqrt,
    "and": torch.bitwise_and,
    "or": torch.bitwise_or,
    "xor": torch.bitwise_xor,
    "not": torch.bitwise_not,
    "shl": torch.bitwise_left_shift,
    "shr": torch.bitwise_right_shift,
    "select": torch.where,
}


class TorchScalars:
    """Implements `ops.row.ScalarBuilder`; `used` names the scalar ops that were applied."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def op(self, name: str, *args: Tensor) -> Tensor:
        self.used.add(name)
        row = SCALAR_OPS[name]
        assert len(args) == row.arity, f"{name} takes {row.arity} operands"
        if name == "select":
            assert args[0].dtype is torch.bool, "select needs a bool condition"
        operands = args[1:] if name == "select" else args
        dtypes = {a.dtype for a in operands}
        assert len(dtypes) == 1, f"{name} got operands of {dtypes}"
        assert accepts(row.domain, operands[0].dtype), f"{name} does not take {operands[0].dtype}"
        result = TORCH_SPELLINGS.get(name, getattr(torch, name, None))(*args)
        assert result.dtype is (torch.bool if row.result == "bool" else operands[0].dtype)
        return result

    def const(self, value: Any, like: Tensor) -> Tensor:
        return self.constant(value, like.dtype)

    def constant(self, value: Any, dtype: torch.dtype) -> Tensor:
        assert dtype not in (torch.bfloat16, torch.float16), "constants are in compute dtypes"
        return torch.tensor(value, dtype=dtype)

    def cast(self, a: Tensor, dtype: torch.dtype) -> Tensor:
        return a.to(dtype)

    def dtype_of(self, a: Tensor) -> torch.dtype:
        return a.dtype


def type_of(tensor: Tensor) -> TensorType:
    return TensorType(tuple(tensor.shape), tensor.dtype, tuple(tensor.stride()), tensor.device)


def as_arg(value: Any, tensors: dict[Value, Tensor]) -> Any:
    """`value` as a Node argument; tensors become Values, entered in `tensors`."""
    if isinstance(value, Tensor):
        known = next((v for v, t in tensors.items() if t is value), None)
        if known is None:
            known = Value(len(tensors), type_of(value))
            tensors[known] = value
        return known
    if isinstance(value, (list, tuple)):
        return tuple(as_arg(item, tensors) for item in value)
    return value


def node_of(op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[Node, dict[Value, Tensor]]:
    """The Node of a call that gave `result`, and the tensors of its Values."""
    tensors: dict[Value, Tensor] = {}
    node_args = as_arg(args, tensors)
    node_kwargs = {name: as_arg(value, tensors) for name, value in kwargs.items()}
    results = result if isinstance(result, (tuple, list)) else (result,)
    outputs = tuple(Value(1000 + i, type_of(t)) for i, t in enumerate(results))
    return Node(op, node_args, node_kwargs, outputs), tensors


def run_nodes(nodes: list[Node], tensors: dict[Value, Tensor]) -> dict[Value, Tensor]:
    """Run Nodes with torch, checking each result against the type that its Value claims."""
    known = dict(tensors)
    for node in nodes:
        args = [map_values(arg, known.__getitem__) for arg in node.args]
        kwargs = {name: map_values(arg, known.__getitem__) for name, arg in node.kwargs.items()}
        result = node.op(*args, **kwargs)
        results = result if isinstance(result, (tuple, list)) else (result,)
        for value, tensor in zip(node.outputs, results, strict=True):
            assert (value.type.shape, value.type.dtype) == (tuple(tensor.shape), tensor.dtype), node
            known[value] = tensor
    return known
