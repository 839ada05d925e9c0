"""The float32 error function. The notes on polynomials in `math.exponential` hold here."""

from __future__ import annotations

from dsjit.codegen.llvm.builder import Operand
from dsjit.codegen.llvm.math.exponential import one_minus_exp
from dsjit.codegen.llvm.math.piecewise import ERF, saturating
from dsjit.codegen.llvm.math.writer import Writer

__all__ = ["erf"]

_LIMIT = 3.93
"""From here on erf rounds to 1."""

_EXPONENT = (
    0.12837916612625122,
    0.6366195678710938,
    0.10277630388736725,
    -0.01914782077074051,
    -0.00016951491124927998,
    0.0016756969271227717,
    -0.0006373810465447605,
    0.00011886823631357402,
    -9.388972102897242e-06,
)
"""(-log(1 - erf(x)) - x) / x on 0 <= x <= 3.93, fitted to the relative error which it causes in erf: 2**-27.8."""


def erf(w: Writer, x: Operand) -> Operand:
    """By table with AVX-512, else `1 - exp(-t)` with t = |x| + |x| P(|x|), where the errors of a large t vanish."""
    if w.has_avx512:
        return saturating(w, x, ERF)
    magnitude = w.at_most(w.absolute(x), _LIMIT)
    exponent = w.fma(magnitude, w.even_odd(magnitude, w.mul(magnitude, magnitude), _EXPONENT), magnitude)
    return w.copy_sign(one_minus_exp(w, exponent), x)
