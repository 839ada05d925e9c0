"""Runs Triton source in the interpreter that comes with Triton, on CPU tensors: slow, and no GPU is needed.

The interpreter is a patched `triton.language` on NumPy, for one thread at a time. Some things are put right while a
kernel runs: float32 is rounded to bfloat16 as hardware does, not truncated; products of bfloat16 matrices are those of
their numbers; a scalar that was compared is broadcast as a bool; the larger of a NaN and a number is the number (in
versions before 3.9); reductions by any function take whole slices, not elements; and libdevice, which the interpreter
lacks, is NumPy in the next wider float.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError

from dsjit.codegen.interpreter import WIDE_UFUNCS
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.function import load_function
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.stream import stream_of
from dsjit.codegen.triton.streaming import StreamTile, emit_stream
from dsjit.ir.kernel import Kernel

__all__ = ["INTERPRETED_LIBDEVICE", "interpret_kernel", "interpret_source"]

_PROCESSORS: Final = 1
"""Few programs of large tiles: each operation of the interpreter is one of NumPy, whatever its size."""

_STREAM_TILE: Final = StreamTile(64, 64, 4, 1)

_FLOAT8: Final = {tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}

_ONE_AT_A_TIME: Final = threading.RLock()


def interpret_kernel(
    kernel: Kernel,
    buffers: Mapping[str, torch.Tensor],
    offsets: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """As `codegen.interpreter.run_kernel`: runs `kernel` over 1-D CPU tensors, writing its stores into them.

    Nothing checks that indices stay within the buffers. Raises IndexError when a check fails.
    """
    interpret_source(_emitted(kernel), buffers, offsets, sizes)


def interpret_source(
    source: KernelSource,
    buffers: Mapping[str, torch.Tensor],
    offsets: Mapping[str, int] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> None:
    """As `interpret_kernel`, of what was emitted for some target."""
    function, kernel = _interpreted(source), source.kernel
    starts = {name: buffer[(offsets or {}).get(name, 0) :] for name, buffer in buffers.items()}
    values = sizes or {}
    taken = zip(kernel.params, source.params, strict=True)
    given = [
        starts[param.name] if own.dtype is param.dtype else starts[param.name].view(own.dtype) for param, own in taken
    ]
    args = [*given, *[values[size.name] for size in kernel.sizes]]
    with _ONE_AT_A_TIME, np.errstate(all="ignore"), _corrected():
        try:
            function[(source.schedule.program_count(values),)](*args, **dict(source.constants))
        except InterpreterError as error:
            if isinstance(error.__cause__, IndexError):
                raise error.__cause__ from None
            raise


@lru_cache(maxsize=512)
def _emitted(kernel: Kernel) -> KernelSource:
    stream = stream_of(kernel)
    if stream is not None:
        return emit_stream(kernel, stream, _STREAM_TILE)
    return emit_kernel(kernel, _PROCESSORS)


@lru_cache(maxsize=512)
def _interpreted(source: KernelSource) -> Any:
    return interpreter.InterpretedFunction(load_function(source, _plain_function, INTERPRETED_LIBDEVICE))


def _plain_function(function: Any) -> Any:
    return function


# Corrections of the interpreter


@contextmanager
def _corrected() -> Iterator[None]:
    builder = interpreter.interpreter_builder
    reduce_ops = interpreter.ReduceOps
    generic = reduce_ops.generic_reduce
    corrections = {
        "cast_impl": partial(_cast, builder),
        "create_splat": _splat,
        "create_dot": _dot,
        "create_assert": _assert,
        "create_maxnumf": lambda a, b: builder.binary_op(a, b, np.fmax),
        "create_minnumf": lambda a, b: builder.binary_op(a, b, np.fmin),
    }
    vars(builder).update(corrections)
    reduce_ops.generic_reduce = _reduce_by_halves
    options = builder.options
    builder.options = replace(options, debug=True, sanitize_overflow=False)  # with assertions, of ours alone
    patch_tensor = interpreter._patch_lang_tensor
    interpreter._patch_lang_tensor = partial(_patch_tensor, patch_tensor)
    try:
        yield
    finally:
        for name in corrections:
            delattr(builder, name)
        builder.options = options
        reduce_ops.generic_reduce = generic
        interpreter._patch_lang_tensor = patch_tensor


def _patch_tensor(patch: Callable[[Any, Any], None], tensor: Any, scope: Any) -> None:
    """The bounds of a loop are arrays of one element, which NumPy 2.4 does not take for numbers."""
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(np.squeeze(self.handle.data)))


def _cast(builder: Any, source: Any, type_: Any) -> Any:
    """`InterpreterBuilder.cast_impl`, with bfloat16 rounded to nearest even."""
    have, want = source.dtype.scalar, type_.scalar
    if have == tl.float32 and want == tl.bfloat16:
        data = np.ascontiguousarray(source.data)
        rounded = torch.from_numpy(data).to(torch.bfloat16).view(torch.int16).numpy().view(np.uint16)
        return interpreter.TensorHandle(rounded.reshape(np.shape(source.data)), want)
    return type(builder).cast_impl(builder, source, type_)


def _splat(type_: Any, scalar: Any) -> Any:
    """`InterpreterBuilder.create_splat`, by the dtype of the data: the handle of a comparison states its operands'."""
    return interpreter.TensorHandle(np.full(type_.shape, scalar.data), type_.scalar)


def _dot(a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
    """`InterpreterBuilder.create_dot`, of the numbers of bfloat16 and float8, not their bits; products are exact."""
    left, right = (_numbers(operand) for operand in (a, b))
    return interpreter.TensorHandle(np.matmul(left, right, dtype=d.data.dtype) + d.data, d.dtype.scalar)


def _assert(condition: Any, message: str) -> None:
    """`InterpreterBuilder.create_assert`, with the error that checks of Kernels raise."""
    if not np.all(condition.data):
        raise IndexError(message)


def _numbers(operand: Any) -> np.ndarray[Any, Any]:
    if operand.dtype.scalar in _FLOAT8:
        bits = torch.from_numpy(np.ascontiguousarray(operand.data).view(np.uint8))
        return bits.view(_FLOAT8[operand.dtype.scalar]).float().numpy()
    if operand.dtype.scalar == tl.bfloat16:
        bits = torch.from_numpy(np.ascontiguousarray(operand.data).view(np.int16))
        return bits.view(torch.bfloat16).float().numpy()
    return np.asarray(operand.data, np.float32 if operand.dtype.scalar == tl.float16 else None)


def _reduce_by_halves(self: Any, operands: tuple[Any, ...]) -> list[Any]:
    """`ReduceOps.generic_reduce` along one axis whose length is a power of 2."""
    axis, held = self.axis, list(operands)
    combine = getattr(self.combine_fn, "fn", self.combine_fn)
    length = held[0].handle.data.shape[axis]
    while length > 1:
        length //= 2
        low, high = (
            [_tensor(np.take(each.handle.data, where, axis), each.dtype) for each in held]
            for where in (range(length), range(length, 2 * length))
        )
        combined = combine(*low, *high)
        held = list(combined) if isinstance(combined, tuple) else [combined]
    if self.keep_dims:
        return held
    return [_tensor(each.handle.data.squeeze(axis), each.dtype) for each in held]


def _tensor(data: np.ndarray[Any, Any], dtype: Any) -> Any:
    scalar = dtype.scalar
    type_ = tl.block_type(scalar, list(data.shape)) if data.shape else scalar
    return tl.tensor(interpreter.TensorHandle(data, scalar), type_)


# libdevice


def _wider(function: Callable[..., Any]) -> Callable[..., Any]:
    """A NumPy ufunc evaluated in the next wider float and rounded to the operands' dtype."""

    def evaluate(*args: np.ndarray[Any, Any]) -> Any:
        dtype = args[0].dtype
        wide = np.float64 if dtype == np.float32 else np.longdouble
        return function(*[arg.astype(wide) for arg in args]).astype(dtype)

    return evaluate


def _pow(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Any:
    """In long double, which is C's: NumPy's vectors have pow(-inf, 0.5) as NaN."""
    return np.power(a.astype(np.longdouble), b.astype(np.longdouble)).astype(a.dtype)


def _of_torch(function: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    """A function of torch evaluated in float64."""

    def evaluate(arg: np.ndarray[Any, Any]) -> Any:
        return function(torch.from_numpy(arg.astype(np.float64))).numpy().astype(arg.dtype)

    return evaluate


def _fma(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], c: np.ndarray[Any, Any]) -> Any:
    """float32: the product is exact in float64, so that only halfway cases of the sum can be rounded twice."""
    if a.dtype == np.float32:
        return (a.astype(np.float64) * b + c).astype(np.float32)
    return (a.astype(np.longdouble) * b + c).astype(np.float64)


_FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {
    **{name: _wider(ufunc) for name, ufunc in WIDE_UFUNCS.items()},
    "pow": _pow,
    "erf": _of_torch(torch.erf),
    "erfc": _of_torch(torch.erfc),
    "lgamma": _of_torch(torch.lgamma),
    "nextafter": np.nextafter,
    "copysign": np.copysign,
    "trunc": np.trunc,
    "nearbyint": np.rint,
    "fmod": np.fmod,
    "fma": _fma,
}


def _on_tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        data = np.broadcast_arrays(*[arg.handle.data for arg in args])
        shaped = next((arg for arg in args if arg.type.is_block()), args[0])
        result = function(*data)
        return (
            _tensor(result, args[0].dtype)
            if shaped.type.is_block()
            else tl.tensor(interpreter.TensorHandle(result, args[0].dtype.scalar), args[0].type)
        )

    return call


INTERPRETED_LIBDEVICE: Final = SimpleNamespace(**{name: _on_tensors(each) for name, each in _FUNCTIONS.items()})
"""Stands for `triton.language.extra.libdevice`; has what `LIBDEVICE` names, and `fmod`."""
