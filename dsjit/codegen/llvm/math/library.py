"""Calls to the vector math of Sleef, which torch carries and exports, and to libm where Sleef has no such function.

Sleef's names tell precision, lanes and error bound: `Sleef_sinf16_u10` takes 16 floats and errs by at most 1.0 ulp.
https://sleef.org/2-references/libm/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes
from dsjit.codegen.llvm.math.registers import by_register
from dsjit.codegen.llvm.target import Target

__all__ = ["LIBRARY", "call_library"]

LIBRARY: Final[dict[str, str]] = {
    "exp": "u10",
    "exp2": "u10",
    "expm1": "u10",
    "log": "u10",
    "log2": "u10",
    "log10": "u10",
    "log1p": "u10",
    "sin": "u10",
    "cos": "u10",
    "tan": "u10",
    "asin": "u10",
    "acos": "u10",
    "atan": "u10",
    "atan2": "u10",
    "sinh": "u10",
    "cosh": "u10",
    "tanh": "u10",
    "asinh": "u10",
    "acosh": "u10",
    "atanh": "u10",
    "erf": "u10",
    "erfc": "u15",
    "lgamma": "u10",
    "pow": "u10",
    "hypot": "u05",
}
"""The functions that Sleef and libm share under one name, with the accuracy that eager PyTorch uses."""

_PURE = "nounwind willreturn memory(none)"


def call_library(builder: FunctionBuilder, target: Target, name: str, args: Sequence[Operand]) -> Operand:
    """`name` of float or double operands: by Sleef, one register at a time, or else by libm, one lane at a time.

    name: a key of `LIBRARY`, or sigmoid, which is made of exp.
    """
    if name == "sigmoid":
        return _sigmoid(builder, target, args[0])
    widths = _sleef_widths(target, name, element(args[0].type))
    if not widths:
        return _call_libm(builder, name, args)

    def one_register(parts: list[Operand]) -> Operand:
        symbol = _sleef_symbol(name, element(parts[0].type), lanes(parts[0].type))
        return builder.call(parts[0].type, symbol, parts, _PURE)

    return by_register(builder, args, widths, one_register)


def _sigmoid(builder: FunctionBuilder, target: Target, x: Operand) -> Operand:
    """`1 / (1 + exp(-x))`, as eager PyTorch has it: 0 where exp(-x) overflows."""
    number = f"{element(x.type)} 1.0"
    one = Operand(x.type, f"splat ({number})" if lanes(x.type) > 1 else "1.0")
    e = call_library(builder, target, "exp", [builder.assign(x.type, f"fneg {x}")])
    return builder.binary("fdiv", one, builder.binary("fadd", one, e))


def _sleef_widths(target: Target, name: str, element_type: str) -> list[int]:
    """The lane counts, no wider than a register, for which Sleef has the function."""
    widest = target.lanes if element_type == "float" else target.lanes // 2
    return [
        width
        for width in (16, 8, 4, 2)
        if width <= widest and target.has_symbol(_sleef_symbol(name, element_type, width))
    ]


def _sleef_symbol(name: str, element_type: str, width: int) -> str:
    return f"Sleef_{name}{'f' if element_type == 'float' else 'd'}{width}_{LIBRARY[name]}"


def _call_libm(builder: FunctionBuilder, name: str, args: Sequence[Operand]) -> Operand:
    type_, scalar = args[0].type, element(args[0].type)
    symbol = name + ("f" if scalar == "float" else "")
    if type_ == scalar:
        return builder.call(scalar, symbol, list(args), _PURE)
    result = Operand(type_, "poison")
    for lane in range(lanes(type_)):
        parts = [builder.assign(scalar, f"extractelement {arg}, i32 {lane}") for arg in args]
        value = builder.call(scalar, symbol, parts, _PURE)
        result = builder.assign(type_, f"insertelement {result}, {value}, i32 {lane}")
    return result
