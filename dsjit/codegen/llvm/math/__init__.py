"""Vector math: a spelling in LLVM IR for each transcendental row of `ir.scalar`.

float32 is written inline, branch-free, where that beats a call; the rest, and float64, call Sleef or libm. Operands
are `float`, `double`, or vectors of them with any number of lanes, and so is the result. Errors in ulp are measured
by `python -m benchmarks.ulp`. What is inlined gives an element the same bits at every number of lanes; Sleef's sin,
cos and tan may take another path, and differ in the last bit, when another lane of the register is large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element
from dsjit.codegen.llvm.math import error_function, exponential, inverse_hyperbolic, logarithm, neighbour
from dsjit.codegen.llvm.math.library import LIBRARY, call_library
from dsjit.codegen.llvm.math.writer import Writer
from dsjit.codegen.llvm.target import Target

__all__ = ["INLINE", "MATH", "Emitter"]

Emitter: TypeAlias = Callable[[FunctionBuilder, Target, Sequence[Operand]], Operand]

INLINE: Final[dict[str, Callable[[Writer, Operand], Operand]]] = {
    "exp": exponential.exp,
    "exp2": exponential.exp2,
    "expm1": exponential.expm1,
    "sigmoid": exponential.sigmoid,
    "tanh": exponential.tanh,
    "sinh": exponential.sinh,
    "cosh": exponential.cosh,
    "log": logarithm.log,
    "log2": logarithm.log2,
    "log10": logarithm.log10,
    "log1p": logarithm.log1p,
    "erf": error_function.erf,
}
"""The float32 functions of one argument that are written inline."""


def _emitter(name: str) -> Emitter:
    inline = INLINE.get(name)

    def emit(builder: FunctionBuilder, target: Target, args: Sequence[Operand]) -> Operand:
        if inline is not None and element(args[0].type) == "float":
            return inline(Writer(builder, target, args[0].type), args[0])
        return call_library(builder, target, name, args)

    return emit


def _nextafter(builder: FunctionBuilder, target: Target, args: Sequence[Operand]) -> Operand:
    a, b = args
    return neighbour.nextafter(builder, a, b)


def _asinh(builder: FunctionBuilder, target: Target, args: Sequence[Operand]) -> Operand:
    (x,) = args
    return inverse_hyperbolic.asinh(builder, target, x)


def _acosh(builder: FunctionBuilder, target: Target, args: Sequence[Operand]) -> Operand:
    (x,) = args
    return inverse_hyperbolic.acosh(builder, target, x)


MATH: Final[dict[str, Emitter]] = {
    **{name: _emitter(name) for name in (*LIBRARY, "sigmoid")},
    "asinh": _asinh,
    "acosh": _acosh,
    "nextafter": _nextafter,
}
"""From the name of a transcendental row of `ir.scalar` to its emitter: (builder, target, operands) -> result."""
