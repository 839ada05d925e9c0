"""The Kernel interpreter: the slow definition of what a Kernel means.

One point at a time, one NumPy scalar at a time. Emitters are tested against it, so it is written to be plainly
right: float sums are exactly rounded, float32 transcendentals are computed in float64 and rounded once, float64
ones in the platform's long double where NumPy has the function.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from dsjit.ir.dtypes import FLOAT8, is_floating
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Check,
    Constant,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    SizeParam,
    Stmt,
    Store,
    bind_sizes,
    known,
)

__all__ = ["INTERPRETED", "WIDE_UFUNCS", "Scalar", "cast_scalar", "run_kernel"]

Scalar: TypeAlias = Any
"""A NumPy scalar. A bfloat16 or float8 value is an `np.float32` that these can hold; a bool is an `np.bool_`."""

_NUMPY: Final[dict[torch.dtype, type[np.generic]]] = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.bfloat16: np.float32,
    torch.float16: np.float16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


def run_kernel(
    kernel: Kernel,
    buffers: Mapping[str, torch.Tensor | np.ndarray[Any, Any]],
    offsets: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """Runs `kernel` over `buffers`, writing its stores into them.

    buffers: by param name, a 1-D contiguous CPU tensor of the param's dtype, or a 1-D NumPy array of it (for
        bfloat16: of uint16, the raw bits).
    offsets: by param name, the position in the buffer of the element that the Kernel calls index 0 (default 0).
    sizes: by name, the values of the Kernel's sizes.

    Raises IndexError when a statement touches an element outside of its buffer, and when a check fails.
    """
    if kernel.sizes:
        kernel = bind_sizes(kernel, sizes or {})
    memory = {
        param.name: _Memory(param, buffers[param.name], (offsets or {}).get(param.name, 0)) for param in kernel.params
    }
    with np.errstate(all="ignore"):
        for point in _points(kernel.outer):
            visible: dict[str, Scalar] = {}
            rows: dict[str, _Row] = {}
            for block in kernel.blocks:
                _run_block(block, point, visible, rows, memory)


@dataclass(slots=True)
class _Row:
    """What a reduction over some axes gave at each point of the others."""

    axes: tuple[str, ...]
    gathered: dict[tuple[int, ...], list[tuple[Scalar, int]]] = field(default_factory=dict)
    values: dict[tuple[int, ...], Scalar] = field(default_factory=dict)

    def place(self, point: Mapping[str, int]) -> tuple[int, ...]:
        return tuple([point[axis] for axis in self.axes])


class _Memory:
    """A buffer whose elements are read and written as Scalars."""

    def __init__(self, param: Param, buffer: torch.Tensor | np.ndarray[Any, Any], offset: int) -> None:
        self.name = param.name
        self.is_bfloat16 = param.dtype is torch.bfloat16
        self.float8 = param.dtype if param.dtype in FLOAT8 else None
        if isinstance(buffer, torch.Tensor):
            raw = buffer.detach()
            raw = raw.view(torch.uint8) if self.float8 is not None else raw
            buffer = (raw.view(torch.int16) if self.is_bfloat16 else raw).numpy()
        self.array = buffer.view(np.uint16) if self.is_bfloat16 else buffer
        self.offset = offset

    def position(self, index: int) -> int:
        position = index + self.offset
        if not 0 <= position < len(self.array):
            raise IndexError(f"{self.name}[{index}] is outside of a buffer of {len(self.array)} elements")
        return position

    def read(self, index: int) -> Scalar:
        value = self.array[self.position(index)]
        if self.float8 is not None:
            return torch.tensor([value]).view(self.float8).float().numpy()[0]
        return (np.uint32(value) << np.uint32(16)).view(np.float32) if self.is_bfloat16 else value

    def write(self, index: int, value: Scalar) -> None:
        if self.float8 is not None:
            value = torch.tensor([float(value)]).to(self.float8).view(torch.uint8).numpy()[0]
        if self.is_bfloat16:
            value = np.uint16(value.view(np.uint32) >> np.uint32(16))
        self.array[self.position(index)] = value


def _points(axes: Sequence[Axis]) -> Iterator[dict[str, int]]:
    for values in itertools.product(*(range(known(axis.size)) for axis in axes)):
        yield dict(zip((axis.name for axis in axes), values, strict=True))


def _run_block(
    block: Block,
    outer: dict[str, int],
    visible: dict[str, Scalar],
    rows: dict[str, _Row],
    memory: Mapping[str, _Memory],
) -> None:
    gathered: dict[str, list[tuple[Scalar, int]]] = {}
    made: dict[str, _Row] = {}
    for statement in block.body:
        if isinstance(statement, Reduce) and statement.over is not None:
            made[statement.result] = _Row(tuple([a.name for a in block.axes if a.name not in statement.over]))
        elif isinstance(statement, Reduce):
            gathered[statement.result] = []
    names = {axis.name for axis in block.axes}
    known_rows = {name: row for name, row in rows.items() if names.issuperset(row.axes)}
    for point in _points(block.axes):
        scope = visible if not block.axes else dict(visible)
        for name, row in known_rows.items():
            scope[name] = row.values[row.place(point)]
        here = {name: row.gathered.setdefault(row.place(point), []) for name, row in made.items()}
        for statement in block.body:
            _run_statement(statement, {**outer, **point}, scope, memory, {**gathered, **here})
    for statement in block.body:
        if not isinstance(statement, Reduce):
            continue
        if statement.over is None:
            visible[statement.result] = _reduce(statement, gathered[statement.result])
        else:
            row = rows[statement.result] = made[statement.result]
            row.values = {place: _reduce(statement, elements) for place, elements in row.gathered.items()}


def _run_statement(
    statement: Stmt,
    point: Mapping[str, int],
    scope: dict[str, Scalar],
    memory: Mapping[str, _Memory],
    gathered: Mapping[str, list[tuple[Scalar, int]]],
) -> None:
    match statement:
        case Load():
            if statement.mask is None or scope[statement.mask]:
                place = _evaluate(statement.index, point)
                place += sum(int(scope[name]) * known(coefficient) for name, coefficient in statement.gathered)
                scope[statement.result] = memory[statement.param].read(place)
            else:
                scope[statement.result] = cast_scalar(_python_scalar(statement.other), statement.dtype)
        case Constant():
            scope[statement.result] = cast_scalar(_python_scalar(_number(statement)), statement.dtype)
        case IndexValue():
            scope[statement.result] = np.int64(_evaluate(statement.index, point))
        case InRange():
            inside = known(statement.low) <= _evaluate(statement.index, point) < known(statement.high)
            scope[statement.result] = np.bool_(inside)
        case Apply():
            result = INTERPRETED[statement.op](*(scope[arg] for arg in statement.args))
            scope[statement.result] = _NUMPY[statement.dtype](result)
        case Cast():
            scope[statement.result] = cast_scalar(scope[statement.arg], statement.dtype)
        case Reduce():
            index = 0 if statement.index is None else _evaluate(statement.index, point)
            gathered[statement.result].append((scope[statement.arg], index))
        case Store():
            memory[statement.param].write(_evaluate(statement.index, point), scope[statement.arg])
        case Check():
            if not scope[statement.condition]:
                raise IndexError("an index is out of range")


def _evaluate(index: Index, point: Mapping[str, int]) -> int:
    return known(index.offset) + sum(point[axis] * known(coefficient) for axis, coefficient in index.terms)


def _number(statement: Constant) -> float | int | bool:
    return known(statement.value) if isinstance(statement.value, SizeParam) else statement.value


def _python_scalar(value: float | int | bool) -> Scalar:
    """A Python number as the widest NumPy scalar of its kind."""
    if isinstance(value, bool):
        return np.bool_(value)
    return np.int64(value) if isinstance(value, int) else np.float64(value)


@np.errstate(all="ignore")
def cast_scalar(value: Scalar, dtype: torch.dtype) -> Scalar:
    """`value` converted to `dtype` as eager does: through float32 on the way to what is narrower, and with this
    machine's answer for a float that the integer dtype cannot hold."""
    if dtype is torch.bool:
        return np.bool_(value != 0)
    if isinstance(value, np.floating) and not is_floating(dtype) and dtype not in FLOAT8:
        return torch.from_numpy(np.array([value])).to(dtype).numpy()[0]
    if dtype is torch.bfloat16 or dtype in FLOAT8:
        return torch.tensor([float(np.float32(value))], dtype=torch.float32).to(dtype).to(torch.float32).numpy()[0]
    if dtype is torch.float16:
        return np.float16(np.float32(value))
    return np.array([value]).astype(_NUMPY[dtype])[0]


# Reductions


def _reduce(statement: Reduce, elements: Sequence[tuple[Scalar, int]]) -> Scalar:
    values = [value for value, _ in elements]
    dtype = statement.dtype
    match statement.kind:
        case "sum":
            return _exact_sum(values, dtype) if is_floating(dtype) else _wrapped_sum(values)
        case "prod":
            return (
                _NUMPY[dtype](math.prod(np.longdouble(v) for v in values))
                if is_floating(dtype)
                else _wrapped(math.prod(int(v) for v in values))
            )
        case "max" | "min":
            return _extreme(statement, values)
        case "any":
            return np.bool_(any(values))
        case "all":
            return np.bool_(all(values))
        case "argmax" | "argmin":
            return np.int64(_first_extreme(elements, largest=statement.kind == "argmax"))


def _exact_sum(values: Sequence[Scalar], dtype: torch.dtype) -> Scalar:
    """The sum rounded once to float64, then to `dtype`."""
    if not all(np.isfinite(value) for value in values):
        return _NUMPY[dtype](sum(float(value) for value in values if not np.isfinite(value)))
    try:
        return _NUMPY[dtype](math.fsum(float(value) for value in values))
    except OverflowError:
        return _NUMPY[dtype](math.copysign(math.inf, sum((Fraction(float(v)) for v in values), Fraction(0))))


def _wrapped(value: int) -> Scalar:
    return np.uint64(value % 2**64).astype(np.int64)


def _wrapped_sum(values: Sequence[Scalar]) -> Scalar:
    return _wrapped(sum(int(value) for value in values))


def _extreme(statement: Reduce, values: Sequence[Scalar]) -> Scalar:
    """Of no elements: the least (for max) or largest (for min) value of the dtype."""
    if not values:
        largest = statement.kind == "min"
        if is_floating(statement.dtype):
            return _NUMPY[statement.dtype](math.inf if largest else -math.inf)
        limits = torch.iinfo(statement.dtype)
        return _NUMPY[statement.dtype](limits.max if largest else limits.min)
    combine = INTERPRETED["maximum" if statement.kind == "max" else "minimum"]
    result = values[0]
    for value in values[1:]:
        result = combine(result, value)
    return result


def _first_extreme(elements: Sequence[tuple[Scalar, int]], largest: bool) -> int:
    """The least index of an extreme element; of no elements: 0."""
    nans = [index for value, index in elements if value != value]
    if nans or not elements:
        return min(nans, default=0)
    best = (max if largest else min)(value for value, _ in elements)
    return min(index for value, index in elements if value == best)


# Scalar ops


def _fma(a: Scalar, b: Scalar, c: Scalar) -> Scalar:
    """a * b + c, rounded once: the nearest of the dtype's numbers around the exact rational, ties to even."""
    kind = type(a)
    if not (np.isfinite(a) and np.isfinite(b) and np.isfinite(c)):
        return c if np.isfinite(a) and np.isfinite(b) else a * b + c
    exact = Fraction(float(a)) * Fraction(float(b)) + Fraction(float(c))
    if exact == 0:
        return a * b + c
    try:
        guess = kind(float(exact))
    except OverflowError:
        guess = kind(math.copysign(math.inf, exact))
    if not np.isfinite(guess):
        return guess
    around = [guess, np.nextafter(guess, kind(-math.inf)), np.nextafter(guess, kind(math.inf))]
    finite = [number for number in around if np.isfinite(number)]

    def preference(number: Scalar) -> tuple[Fraction, int]:
        odd = int(number.view(np.uint32 if kind is np.float32 else np.uint64)) & 1
        return abs(Fraction(float(number)) - exact), odd

    return min(finite, key=preference)


def _trunc_div(a: Scalar, b: Scalar) -> Scalar:
    if b == 0:
        return type(a)(0)
    quotient = abs(int(a)) // abs(int(b))
    return _wrap_to(type(a), quotient if (a < 0) == (b < 0) else -quotient)


def _floor_div(a: Scalar, b: Scalar) -> Scalar:
    return type(a)(0) if b == 0 else _wrap_to(type(a), int(a) // int(b))


def _trunc_rem(a: Scalar, b: Scalar) -> Scalar:
    if isinstance(a, np.floating):
        return np.fmod(a, b)
    if b == 0:
        return type(a)(0)
    remainder = abs(int(a)) % abs(int(b))
    return type(a)(-remainder if a < 0 else remainder)


def _floor_rem(a: Scalar, b: Scalar) -> Scalar:
    """torch.remainder: fmod, moved by b when the signs of a non-zero remainder and b differ."""
    if isinstance(a, np.floating):
        remainder = np.fmod(a, b)
        return remainder + b if remainder != 0 and (remainder < 0) != (b < 0) else remainder
    return type(a)(0) if b == 0 else type(a)(int(a) % int(b))


def _wrap_to(kind: type[np.integer[Any]], value: int) -> Scalar:
    bits = np.iinfo(kind).bits
    value %= 2**bits
    return kind(value - 2**bits if np.iinfo(kind).min < 0 and value >= 2 ** (bits - 1) else value)


def _maximum(a: Scalar, b: Scalar) -> Scalar:
    return a if a != a or a > b else b


def _minimum(a: Scalar, b: Scalar) -> Scalar:
    return a if a != a or a < b else b


def _fmax(a: Scalar, b: Scalar) -> Scalar:
    return b if a != a or a < b else a


def _fmin(a: Scalar, b: Scalar) -> Scalar:
    return b if a != a or a > b else a


def _shift_left(a: Scalar, b: Scalar) -> Scalar:
    width = np.iinfo(type(a)).bits
    return type(a)(0) if b < 0 or b >= width else _wrap_to(type(a), int(a) << int(b))


def _shift_right(a: Scalar, b: Scalar) -> Scalar:
    limits = np.iinfo(type(a))
    places = limits.bits if b < 0 or b >= limits.bits else int(b)
    return _wrap_to(type(a), int(a) >> places)


WIDE_UFUNCS: Final[Mapping[str, np.ufunc]] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "tanh": np.tanh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "hypot": np.hypot,
}
"""Functions that are evaluated in the next wider float, and rounded once."""


def _wider(function: Callable[..., Any]) -> Callable[..., Scalar]:
    """A NumPy ufunc evaluated in the next wider float and rounded to the operands' dtype."""

    def evaluate(*args: Scalar) -> Scalar:
        wide = np.float64 if isinstance(args[0], np.float32) else np.longdouble
        return type(args[0])(function(*(wide(arg) for arg in args)))

    return evaluate


def _pow(a: Scalar, b: Scalar) -> Scalar:
    """In long double, which is C's powl: NumPy's float64 has pow(-inf, 0.5) as NaN."""
    return type(a)(np.power(np.longdouble(a), np.longdouble(b)))


def _in_float64(function: Callable[[float], float]) -> Callable[[Scalar], Scalar]:
    def evaluate(a: Scalar) -> Scalar:
        return type(a)(function(float(a)))

    return evaluate


def _lgamma(a: float) -> float:
    """ATen's: Python's own loses digits near the roots at 1 and 2."""
    return float(torch.lgamma(torch.tensor(a, dtype=torch.float64)).item())


def _sigmoid(a: Scalar) -> Scalar:
    return 1 / (1 + np.exp(-a))


INTERPRETED: Final[dict[str, Callable[..., Scalar]]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "neg": lambda a: -a,
    "abs": abs,
    "fma": _fma,
    "sqrt": np.sqrt,
    "trunc_div": _trunc_div,
    "floor_div": _floor_div,
    "trunc_rem": _trunc_rem,
    "floor_rem": _floor_rem,
    "maximum": _maximum,
    "minimum": _minimum,
    "fmax": _fmax,
    "fmin": _fmin,
    "copysign": np.copysign,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "round": np.rint,
    "eq": lambda a, b: a == b,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "select": lambda condition, a, b: a if condition else b,
    "signbit": np.signbit,
    "and": lambda a, b: a & b,
    "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b,
    "not": lambda a: ~a,
    "shl": _shift_left,
    "shr": _shift_right,
    **{name: _wider(ufunc) for name, ufunc in WIDE_UFUNCS.items()},
    "sigmoid": _wider(_sigmoid),
    "erf": _in_float64(math.erf),
    "erfc": _in_float64(math.erfc),
    "lgamma": _in_float64(_lgamma),
    "pow": _pow,
    "nextafter": np.nextafter,
}
"""By name of the row of `SCALAR_OPS`: NumPy scalars of the operands' dtype to the result."""
