"""float32 exponentials and what is made of them. `Writer.fma` rounds once where the hardware can.

Each function takes a `Writer` and operands of its type. Polynomials are minimax fits in relative error (Lawson's
iteratively reweighted least squares on Chebyshev nodes), their coefficients rounded to float32 one after the other
with the rest refitted; "fit" below is the largest relative error of the rounded polynomial in exact arithmetic.
`python -m benchmarks.ulp` measures the error of the whole.
"""

from __future__ import annotations

from dsjit.codegen.llvm.builder import Operand
from dsjit.codegen.llvm.math.piecewise import TANH, saturating
from dsjit.codegen.llvm.math.writer import Writer

__all__ = ["cosh", "exp", "exp2", "expm1", "one_minus_exp", "sigmoid", "sinh", "tanh"]

_LOG2_E = 1.4426950408889634
_LN2_HIGH = 0.693145751953125
"""ln 2 to 15 bits, so that its product with an exponent of at most 9 bits is exact without fma."""
_LN2_LOW = 1.428606820309417e-06

_LN2 = 0.6931471805599453

_EXP_TAIL = (0.4999999403953552, 0.1666652113199234, 0.04166826605796814, 0.008368677459657192, 0.001382073387503624)
"""(e**r - 1 - r) / r**2 on |r| <= ln 2 / 2. Fit of e**r: 2**-28.2."""

_EXP2 = (
    1.0,
    0.6931471824645996,
    0.24022647738456726,
    0.05550359562039375,
    0.00961849931627512,
    0.0013390970416367054,
    0.0001532927853886671,
)
"""2**r on |r| <= 1/2. Fit: 2**-28.3."""

_UNDERFLOW = -104.0
"""e**-104 and everything below it rounds to 0; 2**-150 does too."""


def exp(w: Writer, x: Operand) -> Operand:
    """`2**k * e**r` with k = round(x / ln 2), |r| <= ln 2 / 2 (Cody and Waite's two-part reduction)."""
    return _exp(w, _within_exponent_range(w, x, _UNDERFLOW, 89.0), halvings=0)


def exp2(w: Writer, x: Operand) -> Operand:
    """`2**k * 2**r` with k = round(x); r is exact."""
    x = _within_exponent_range(w, x, -151.0, 129.0)
    k, bits = w.round_to_integer(x, 1.0)
    return w.scale_by_power(w.horner(w.sub(x, k), _EXP2), k, bits)


def expm1(w: Writer, x: Operand) -> Operand:
    """`2**k * ((e**r - 1 - r) + (r + (1 - 2**-k)))`: nothing cancels for k = 0, and 1 - 2**-k is exact for k < 25."""
    bounded = w.at_most(w.at_least(x, -20.0), 89.0)
    k, bits, r = _reduce(w, bounded)
    square = w.mul(r, r)
    tail = w.mul(square, w.even_odd(r, square, _EXP_TAIL))
    shifted = w.int_op("shl", bits, w.integer(23))
    # 2**-128 has no normal encoding; it is as good as 0.
    inverse = w.builder.intrinsic("smax", [w.int_op("sub", w.integer(0x3F800000), shifted), w.integer(0)])
    rest = w.sub(w.number(1.0), w.from_bits(inverse))
    return w.copy_sign(w.scale_by_power(w.add(tail, w.add(r, rest)), k, bits), x)


def sigmoid(w: Writer, x: Operand) -> Operand:
    """`e / (1 + e)` for x < 0, `1 / (1 + e)` otherwise, with e = exp(-|x|) <= 1: full precision down to denormals."""
    e = _exp(w, w.at_least(w.negate(w.absolute(x)), _UNDERFLOW), halvings=0)
    one = w.number(1.0)
    numerator = w.select(w.less(x, w.number(0.0)), e, one)
    denominator = w.add(one, e)
    return _quotient(w, numerator, denominator, w.add(w.sub(one, denominator), e))


_TANH_TAIL = (
    -0.33333316445350647,
    0.133325457572937,
    -0.053847867995500565,
    0.021052740514278412,
    -0.006246797274798155,
)
"""(tanh(x) - x) / x**3 in x**2, on |x| <= 0.55. Fit of tanh(x): 2**-29.7."""


def tanh(w: Writer, x: Operand) -> Operand:
    """By table with AVX-512, else `n / (2 - n)` with n = 1 - exp(-2 |x|), and an odd polynomial below 0.55."""
    if w.has_avx512:
        return saturating(w, x, TANH)
    magnitude = w.absolute(x)
    n = one_minus_exp(w, w.at_most(magnitude, 10.0), factor=2.0)
    two = w.number(2.0)
    denominator = w.sub(two, n)
    large = _quotient(w, n, denominator, w.sub(w.sub(two, denominator), n))
    # The tail's first coefficient is negative: of x itself, -0.0 would become 0.0.
    small = _odd(w, magnitude, _TANH_TAIL)
    return w.copy_sign(w.select(w.less(magnitude, w.number(0.55)), small, large), x)


_SINH_TAIL = (0.1666666716337204, 0.00833331048488617, 0.00019842895562760532, 2.7822131869469468e-06)
"""(sinh(x) - x) / x**3 in x**2, on |x| <= 1. Fit of sinh(x): 2**-31.6."""


def sinh(w: Writer, x: Operand) -> Operand:
    """`h - 1 / (4 h)` with h = exp(|x|) / 2 for |x| >= 1; an odd polynomial below, where that would cancel."""
    magnitude = w.absolute(x)
    half = _exp(w, w.at_most(magnitude, 90.0), halvings=1)
    large = w.copy_sign(w.sub(half, w.div(w.number(0.25), half)), x)
    return w.select(w.less(magnitude, w.number(1.0)), _odd(w, x, _SINH_TAIL), large)


def cosh(w: Writer, x: Operand) -> Operand:
    """`h + 1 / (4 h)` with h = exp(|x|) / 2."""
    half = _exp(w, w.at_most(w.absolute(x), 90.0), halvings=1)
    return w.add(half, w.div(w.number(0.25), half))


def one_minus_exp(w: Writer, t: Operand, factor: float = 1.0) -> Operand:
    """`1 - exp(-factor * t)` for t >= 0 with factor * t <= 80; factor is a power of two.

    With k = round(-factor * t / ln 2) it is `(1 - 2**k) - 2**k * (e**r - 1)`, which does not cancel. ln 2 needs no low
    part: the error of its high one is multiplied by k 2**k.
    """
    k, bits = w.round_to_integer(t, -factor * _LOG2_E)
    r = w.fma(k, w.number(-_LN2), w.mul(t, w.number(-factor)) if factor != 1.0 else w.negate(t))
    square = w.mul(r, r)
    growth = w.fma(square, w.even_odd(r, square, _EXP_TAIL), r)
    scaled = w.int_op("shl", bits, w.integer(23))
    negative_power = w.from_bits(w.int_op("add", scaled, w.integer(-0x40800000)))
    return w.fma(negative_power, growth, w.add(negative_power, w.number(1.0)))


def _odd(w: Writer, x: Operand, tail: tuple[float, ...]) -> Operand:
    """`x + x**3 * P(x**2)`."""
    square = w.mul(x, x)
    return w.fma(w.mul(x, square), w.horner(square, tail), x)


def _quotient(w: Writer, numerator: Operand, denominator: Operand, error: Operand) -> Operand:
    """`numerator / (denominator + error)`, error being what the rounding of a denominator in [1, 2] lost.

    To first order a quotient q loses q * error / denominator. The denominator is left out: where it is far from 1 the
    error is small against an ulp of the quotient.
    """
    quotient = w.div(numerator, denominator)
    return w.fma(w.negate(quotient), error, quotient)


def _within_exponent_range(w: Writer, x: Operand, low: float, high: float) -> Operand:
    """x clamped to where the result is neither certainly 0 nor certainly infinite.

    AVX-512 needs no upper bound: `vscalefps` takes any exponent, answers infinity for (NaN, infinity) too, and the
    even-degree polynomial of a huge remainder is positive.
    """
    x = w.at_least(x, low)
    return x if w.has_avx512 else w.at_most(x, high)


def _reduce(w: Writer, x: Operand) -> tuple[Operand, Operand, Operand]:
    """k (as float32 and as low bits of i32) and r with x = k ln 2 + r. A zero keeps its sign in r."""
    k, bits = w.round_to_integer(x, _LOG2_E)
    r = w.fma(k, w.number(-_LN2_HIGH), x)
    return k, bits, w.fma(k, w.number(-_LN2_LOW), r)


def _exp(w: Writer, x: Operand, halvings: int) -> Operand:
    """`e**x / 2**halvings` (0 or 1), for x already in range."""
    k, bits, r = _reduce(w, x)
    scale = 0.5**halvings
    significand = w.horner(r, tuple(scale * c for c in (1.0, 1.0, *_EXP_TAIL)))
    return w.scale_by_power(significand, k, bits)
