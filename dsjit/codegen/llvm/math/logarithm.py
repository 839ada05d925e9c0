"""float32 logarithms. The notes on polynomials in `math.exponential` hold here.

All write a positive number as `2**e * (1 + f)` with 1 + f in [0.75, 1.5), so that e = 0 around 1 and nothing cancels.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, nan

from dsjit.codegen.llvm.builder import Operand
from dsjit.codegen.llvm.math.writer import Writer

__all__ = ["log", "log1p", "log2", "log10"]


@dataclass(frozen=True, slots=True)
class _Base:
    """Logarithms in one base: `log(1 + f) = slope * f + f * (rest + f * P(f))` and `log(2) = two_high + two_low`.

    slope is a power of two and rest + slope = log(e), so that the larger term is exact; two_high is short enough for
    exact products with exponents.
    """

    slope: float
    rest: float
    two_high: float
    two_low: float
    polynomial: tuple[float, ...]


_NATURAL = _Base(
    slope=1.0,
    rest=0.0,
    two_high=0.693145751953125,
    two_low=1.428606820309417e-06,
    polynomial=(
        -0.5000005960464478,
        0.3333354890346527,
        -0.24993494153022766,
        0.19977104663848877,
        -0.1682208627462387,
        0.14983044564723969,
        -0.12070035189390182,
        0.05417336896061897,
    ),
)
"""Fit: 2**-25.1."""

_BINARY = _Base(
    slope=1.0,
    rest=0.4426950216293335,
    two_high=1.0,
    two_low=0.0,
    polynomial=(
        -0.7213483452796936,
        0.4809027910232544,
        -0.3605828881263733,
        0.28818270564079285,
        -0.2426142692565918,
        0.21628227829933167,
        -0.17473487555980682,
        0.0786767229437828,
    ),
)
"""Fit: 2**-25.0."""

_DECIMAL = _Base(
    slope=0.5,
    rest=-0.06570552289485931,
    two_high=0.301025390625,
    two_low=4.605038981195214e-06,
    polynomial=(
        -0.21714749932289124,
        0.14476607739925385,
        -0.108545683324337,
        0.08675334602594376,
        -0.07304520905017853,
        0.06510350853204727,
        -0.05253126472234726,
        0.023610442876815796,
    ),
)
"""Fit: 2**-25.1."""

_ENCODED_THREE_QUARTERS = 0x3F400000
_EXPONENT_MASK = -0x800000
_EXPONENT_UNIT = 2.0**-23


def log(w: Writer, x: Operand) -> Operand:
    return _logarithm(w, x, _NATURAL)


def log2(w: Writer, x: Operand) -> Operand:
    return _logarithm(w, x, _BINARY)


def log10(w: Writer, x: Operand) -> Operand:
    return _logarithm(w, x, _DECIMAL)


def log1p(w: Writer, x: Operand) -> Operand:
    """e is taken from u = 1 + x rounded, and `f = x * 2**-e + (2**-e - 1)` from x itself: nothing of x is lost.

    1 + x needs no care for denormals: it is 0 or at least 2**-24.
    """
    u = w.add(x, w.number(1.0))
    e, shift = _encoded_exponent(w, u)
    # 4 * 2**-e has a normal encoding for every e up to 128, 2**-e has not.
    four = w.from_bits(w.int_op("sub", w.integer(0x40800000), shift))
    scaled = w.from_bits(w.int_op("sub", w.bits(x), shift))
    f = w.add(scaled, w.fma(four, w.number(0.25), w.number(-1.0)))
    result = w.copy_sign(_combine(w, e, f, _NATURAL), x)
    return _with_special_cases(w, u, result, zero=-inf)


def _logarithm(w: Writer, x: Operand, base: _Base) -> Operand:
    one = w.number(1.0)
    if w.has_avx512:
        # These instructions know denormals, and carry 0, infinity, NaN and negative numbers to the right result.
        significand = w.get_significand(x)
        floor = w.get_exponent(x)
        e = w.select(w.less(significand, one), w.add(floor, one), floor)
        return _combine(w, e, w.sub(significand, one), base)
    tiny = w.less(x, w.number(2.0**-126))
    normal = w.select(tiny, w.mul(x, w.number(2.0**23)), x)
    e, shift = _encoded_exponent(w, normal)
    e = w.add(e, w.select(tiny, w.number(-23.0), w.number(0.0)))
    significand = w.from_bits(w.int_op("sub", w.bits(normal), shift))
    return _with_special_cases(w, x, _combine(w, e, w.sub(significand, one), base), zero=-inf)


def _encoded_exponent(w: Writer, x: Operand) -> tuple[Operand, Operand]:
    """e with x / 2**e in [0.75, 1.5) for a positive normal x: as float32, and as i32 shifted to the exponent field."""
    above = w.int_op("sub", w.bits(x), w.integer(_ENCODED_THREE_QUARTERS))
    shift = w.int_op("and", above, w.integer(_EXPONENT_MASK))
    e = w.mul(w.builder.convert("sitofp", shift, "float"), w.number(_EXPONENT_UNIT))
    return e, shift


def _combine(w: Writer, e: Operand, f: Operand, base: _Base) -> Operand:
    """`e * log(2) + log(1 + f)`: the large terms meet first and exactly, or nearly so. e = -inf and inf go through."""
    square = w.mul(f, f)
    curve = w.even_odd(f, square, base.polynomial)
    if base is _NATURAL:
        linear = w.fma(e, w.number(base.two_high), w.fma(e, w.number(base.two_low), f))
        return w.fma(square, curve, linear)
    bend = w.fma(f, curve, w.number(base.rest))
    if base is _BINARY:
        return w.fma(f, bend, w.add(e, f))
    linear = w.fma(f, w.number(base.slope), w.mul(e, w.number(base.two_high)))
    return w.add(linear, w.fma(f, bend, w.mul(e, w.number(base.two_low))))


def _with_special_cases(w: Writer, x: Operand, result: Operand, zero: float) -> Operand:
    """`result` for finite x > 0; `zero` at 0, NaN below, infinity and NaN themselves."""
    below = w.select(w.builder.compare("fcmp oeq", x, w.number(0.0)), w.number(zero), w.number(nan))
    outside = w.select(w.builder.compare("fcmp ole", x, w.number(0.0)), below, x)
    ordinary = w.int_op(
        "and",
        w.builder.compare("fcmp ogt", x, w.number(0.0)),
        w.builder.compare("fcmp olt", x, w.number(inf)),
    )
    return w.select(ordinary, result, outside)
