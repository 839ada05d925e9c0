"""The next representable number, of float or double operands, on their encodings."""

from __future__ import annotations

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, element, lanes

__all__ = ["nextafter"]


def nextafter(builder: FunctionBuilder, a: Operand, b: Operand) -> Operand:
    """C's nextafter. Encodings of one sign are ordered as their magnitudes: away from 0 is +1, towards 0 is -1."""
    bits = "i32" if element(a.type) == "float" else "i64"
    zero = Operand(a.type, "zeroinitializer" if lanes(a.type) > 1 else "0.0")
    encoding = builder.convert("bitcast", a, bits)
    upwards = builder.compare("fcmp olt", a, b)
    positive = builder.compare("fcmp ogt", a, zero)
    outwards = builder.binary("xor", upwards, positive)
    # outwards is 1 where the magnitude shrinks.
    shrink = builder.convert("sext", outwards, bits)
    one = _integer(encoding.type, 1)
    step = builder.binary("or", shrink, one)
    moved = builder.convert("bitcast", builder.binary("add", encoding, step), element(a.type))
    # From 0: the smallest denormal with the sign of b.
    smallest = builder.convert("bitcast", one, element(a.type))
    signed = builder.intrinsic("copysign", [smallest, b])
    moved = builder.select(builder.compare("fcmp oeq", a, zero), signed, moved)
    moved = builder.select(builder.compare("fcmp oeq", a, b), b, moved)
    return builder.select(builder.compare("fcmp uno", a, b), builder.binary("fadd", a, b), moved)


def _integer(type_: str, value: int) -> Operand:
    return Operand(type_, f"splat ({element(type_)} {value})" if lanes(type_) > 1 else str(value))
