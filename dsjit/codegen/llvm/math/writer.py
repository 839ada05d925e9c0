"""Arithmetic on lanes of float32, written as LLVM IR: the vocabulary of the inlined functions."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand, lanes, with_element
from dsjit.codegen.llvm.math.registers import by_register
from dsjit.codegen.llvm.target import Target

__all__ = ["Writer"]


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes float32 and int32 arithmetic on operands of one shape.

    `type` is `float` or `<n x float>`. Integers are `i32` of as many lanes.
    """

    builder: FunctionBuilder
    target: Target
    type: str

    @property
    def has_avx512(self) -> bool:
        """Whether the AVX-512 instructions exist at all three register widths."""
        return self.target.has_feature("avx512f") and self.target.has_feature("avx512vl")

    def look_up(self, numbers: tuple[float, ...], index: Operand) -> Operand:
        """AVX-512 `vpermi2ps`: the one of 32 numbers that the low 5 bits of each lane of `index` (i32) name."""
        low, high = (
            Operand("<16 x float>", f"<{', '.join(f'float {_spelling(number)}' for number in half)}>")
            for half in (numbers[:16], numbers[16:])
        )

        def one_register(parts: list[Operand]) -> Operand:
            return self.builder.call(low.type, "llvm.x86.avx512.vpermi2var.ps.512", [low, *parts, high])

        return by_register(self.builder, [index], (16,), one_register)

    def number(self, value: float) -> Operand:
        """`value` rounded to float32, in every lane."""
        return self._splat(self.type, "float", _spelling(value))

    def integer(self, value: int) -> Operand:
        """`value` in every lane, as i32 in two's complement."""
        return self._splat(with_element(self.type, "i32"), "i32", str(value))

    def add(self, a: Operand, b: Operand) -> Operand:
        return self.builder.binary("fadd", a, b)

    def sub(self, a: Operand, b: Operand) -> Operand:
        return self.builder.binary("fsub", a, b)

    def mul(self, a: Operand, b: Operand) -> Operand:
        return self.builder.binary("fmul", a, b)

    def div(self, a: Operand, b: Operand) -> Operand:
        return self.builder.binary("fdiv", a, b)

    def fma(self, a: Operand, b: Operand, c: Operand) -> Operand:
        """`a * b + c`, rounded once where the target can."""
        if self.target.has_fma:
            return self.builder.intrinsic("fma", [a, b, c])
        return self.add(self.mul(a, b), c)

    def negate(self, a: Operand) -> Operand:
        return self.builder.assign(a.type, f"fneg {a}")

    def absolute(self, a: Operand) -> Operand:
        return self.builder.intrinsic("fabs", [a])

    def horner(self, x: Operand, coefficients: tuple[float, ...]) -> Operand:
        """The polynomial `coefficients[0] + coefficients[1] * x + ...`, in the fewest instructions."""
        result = self.number(coefficients[-1])
        for coefficient in reversed(coefficients[:-1]):
            result = self.fma(result, x, self.number(coefficient))
        return result

    def even_odd(self, x: Operand, square: Operand, coefficients: tuple[float, ...]) -> Operand:
        """The same polynomial given x**2, as `E(x**2) + x * O(x**2)`: as many instructions in half the latency.

        A chain of 25 dependent instructions fills the scheduler before the next vectors' instructions enter it.
        """
        return self.fma(x, self.horner(square, coefficients[1::2]), self.horner(square, coefficients[0::2]))

    def at_least(self, x: Operand, bound: float) -> Operand:
        """The larger of x and `bound`; NaN stays NaN. One `maxps` on x86."""
        limit = self.number(bound)
        return self.builder.select(self.builder.compare("fcmp ogt", limit, x), limit, x)

    def at_most(self, x: Operand, bound: float) -> Operand:
        """The smaller of x and `bound`; NaN stays NaN. One `minps` on x86."""
        limit = self.number(bound)
        return self.builder.select(self.builder.compare("fcmp olt", limit, x), limit, x)

    def less(self, a: Operand, b: Operand) -> Operand:
        """`a < b` lane by lane; false for NaN."""
        return self.builder.compare("fcmp olt", a, b)

    def select(self, condition: Operand, a: Operand, b: Operand) -> Operand:
        return self.builder.select(condition, a, b)

    def bits(self, a: Operand) -> Operand:
        """The IEEE encoding, as i32."""
        return self.builder.convert("bitcast", a, "i32")

    def from_bits(self, a: Operand) -> Operand:
        """The float32 with the encoding `a`."""
        return self.builder.convert("bitcast", a, "float")

    def int_op(self, instruction: str, a: Operand, b: Operand) -> Operand:
        """`add`, `shl`, `and`, ... on i32 lanes."""
        return self.builder.binary(instruction, a, b)

    def copy_sign(self, magnitude: Operand, sign: Operand) -> Operand:
        return self.builder.intrinsic("copysign", [magnitude, sign])

    def scale_by_power(self, significand: Operand, exponent: Operand, exponent_bits: Operand) -> Operand:
        """`significand * 2**exponent` for a significand of moderate size, rounded once: denormal results are exact.

        exponent: integral float32; exponent_bits: an i32 whose low bits are the exponent in two's complement
        (`round_to_integer` gives both). Without AVX-512 the exponent must lie in [-252, 254].
        """
        if self.has_avx512:
            return self.avx512(_scalef, [significand, exponent])
        low = self.int_op("shl", self.int_op("ashr", exponent_bits, self.integer(1)), self.integer(23))
        high = self.int_op("sub", self.int_op("shl", exponent_bits, self.integer(23)), low)
        one = self.integer(0x3F800000)
        first = self.mul(significand, self.from_bits(self.int_op("add", low, one)))
        return self.mul(first, self.from_bits(self.int_op("add", high, one)))

    def round_to_integer(self, x: Operand, factor: float) -> tuple[Operand, Operand]:
        """`x * factor` rounded to the nearest integer, for magnitudes below 2**22: as float32, and as low bits of i32.

        Adding 1.5 * 2**23 leaves no fraction bits, and the integer in the low bits of the encoding.
        """
        magic = self.number(12582912.0)
        shifted = self.add(x, magic) if factor == 1.0 else self.fma(x, self.number(factor), magic)
        return self.sub(shifted, magic), self.bits(shifted)

    def get_exponent(self, x: Operand) -> Operand:
        """AVX-512 `vgetexpps`: floor(log2(|x|)) as float32, denormals included; -inf at 0, inf at infinities."""
        return self.avx512(_getexp, [x])

    def get_significand(self, x: Operand) -> Operand:
        """AVX-512 `vgetmantps`: x / 2**n in [0.75, 1.5); 1 at 0 and at infinity, NaN below 0."""
        return self.avx512(_getmant, [x])

    def avx512(self, instruction: _Avx512, args: list[Operand]) -> Operand:
        def one_register(parts: list[Operand]) -> Operand:
            width = lanes(parts[0].type)
            return self.builder.call(parts[0].type, *instruction.call(parts, width))

        return by_register(self.builder, args, (16, 8, 4), one_register)

    def _splat(self, type_: str, element: str, text: str) -> Operand:
        return Operand(type_, f"splat ({element} {text})" if lanes(type_) > 1 else text)


def _spelling(value: float) -> str:
    """`value` rounded to float32, as LLVM spells it: the encoding in float64."""
    (rounded,) = struct.unpack("<f", struct.pack("<f", value))
    (encoding,) = struct.unpack("<Q", struct.pack("<d", rounded))
    return f"0x{encoding:016X}"


@dataclass(frozen=True, slots=True)
class _Avx512:
    """An AVX-512 intrinsic of LLVM with its merge source and mask (unused: all lanes), by register width."""

    name: str
    immediate: int | None = None

    def call(self, args: list[Operand], width: int) -> tuple[str, list[Operand]]:
        """The symbol and the operands for vectors of `width` lanes."""
        middle = [] if self.immediate is None else [Operand("i32", str(self.immediate))]
        mask = Operand(f"i{max(width, 8)}", "-1")
        operands = [*args, *middle, Operand(args[0].type, "zeroinitializer"), mask]
        if width == 16:
            operands.append(Operand("i32", "4"))  # the current rounding mode
        return f"llvm.x86.avx512.mask.{self.name}.ps.{32 * width}", operands


_scalef = _Avx512("scalef")
_getexp = _Avx512("getexp")
_getmant = _Avx512("getmant", immediate=0b1111)
"""Immediate: interval [0.75, 1.5) in bits 0-1, "NaN for negative, sign dropped" in bits 2-3."""
