"""asinh and acosh of float or double operands, by the library where it can be trusted."""

from __future__ import annotations

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes
from dsjit.codegen.llvm.math.library import call_library
from dsjit.codegen.llvm.math.logarithm import log
from dsjit.codegen.llvm.math.writer import Writer
from dsjit.codegen.llvm.target import Target

__all__ = ["acosh", "asinh"]

_HUGE = 0x43B0000000000000
"""The encoding of 2**60 in float64, which is how LLVM spells float32 too. Beyond it both functions are log(2 x) to the
last bit; Sleef answers infinity from where x**2 overflows, and loses the sign of some denormals."""
_LN2 = {"float": 0x3FE62E4300000000, "double": 0x3FE62E42FEFA39EF}


def asinh(builder: FunctionBuilder, target: Target, x: Operand) -> Operand:
    magnitude = builder.intrinsic("fabs", [x])
    large = _log_of_double(builder, target, magnitude)
    result = _where_huge(builder, magnitude, large, call_library(builder, target, "asinh", [x]))
    return builder.intrinsic("copysign", [result, x])


def acosh(builder: FunctionBuilder, target: Target, x: Operand) -> Operand:
    large = _log_of_double(builder, target, x)
    return _where_huge(builder, x, large, call_library(builder, target, "acosh", [x]))


def _log_of_double(builder: FunctionBuilder, target: Target, x: Operand) -> Operand:
    """log(2 x) = log(x) + log(2)."""
    if element(x.type) == "float":
        logarithm = log(Writer(builder, target, x.type), x)
    else:
        logarithm = call_library(builder, target, "log", [x])
    return builder.binary("fadd", logarithm, _constant(x.type, _LN2[element(x.type)]))


def _where_huge(builder: FunctionBuilder, x: Operand, large: Operand, ordinary: Operand) -> Operand:
    return builder.select(builder.compare("fcmp ogt", x, _constant(x.type, _HUGE)), large, ordinary)


def _constant(type_: str, encoding: int) -> Operand:
    text = f"0x{encoding:016X}"
    return Operand(type_, f"splat ({element(type_)} {text})" if lanes(type_) > 1 else text)
