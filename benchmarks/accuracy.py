"""Errors of transcendental functions in units in the last place, compiled and eager: `python -m benchmarks.accuracy`.

    python -m benchmarks.accuracy                          every function, in float32 on 2**20 numbers
    python -m benchmarks.accuracy --bits 28 --keep FILE    2**28 of the 2**32 float32 numbers; goes on where FILE ends
    python -m benchmarks.accuracy --keep FILE --table      the table of docs/numerics.md, from FILE

bfloat16 and float16: all numbers. float32: equally spaced encodings and the neighbours of powers of two. float64:
2**18 random encodings, and as many numbers between -20 and 20. Functions of two arguments take pairs of these (bfloat16
and float16: 2**20 pairs); the numbers of `pow` keep its result finite mostly.

The reference of float32 and less is torch's float64, whose own error is below 2**-28 of a float32 ulp. That of float64
is the C library's long double, of 64 bits: its error is some 2**-11 of a float64 ulp. The ulp of a number is the
distance between the two floats around it; below the smallest normal number it is the smallest float, above the largest
one it is that of the largest, and infinity counts as the next number there would be.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import dsjit

__all__ = ["DTYPES", "NAMES", "Row", "bound", "markdown", "measure"]

Array = npt.NDArray[Any]

ONE_ARGUMENT: Final = (
    "exp", "exp2", "expm1", "log", "log2", "log10", "log1p", "sin", "cos", "tan", "asin", "acos", "atan", "sinh",
    "cosh", "tanh", "asinh", "acosh", "atanh", "sigmoid", "erf", "erfc", "lgamma", "rsqrt",
)  # fmt: skip
TWO_ARGUMENTS: Final = ("atan2", "hypot", "pow")
NAMES: Final = (*ONE_ARGUMENT, *TWO_ARGUMENTS)
"""Functions of torch."""

DTYPES: Final = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

_CHUNK: Final = 2**17
_BIAS: Final = 1023


BOUND: Final = {
    "exp": 1.1, "exp2": 1.1, "expm1": 1.4, "log": 1.5, "log2": 1.7, "log10": 1.8, "log1p": 1.8, "sinh": 1.7,
    "cosh": 1.4, "tanh": 1.7, "asinh": 1.5, "acosh": 1.5, "sigmoid": 2.0, "erf": 1.9, "erfc": 1.5, "rsqrt": 1.5,
    "lgamma": math.inf,
}  # fmt: skip
"""In ulp, of float32; 1.01 for what is not named. `lgamma` is the library's that eager calls, whose bound is absolute
around the zeros of the function: it is held to eager's error."""

BOUND_OF_DOUBLE: Final = {"rsqrt": 1.5, "lgamma": math.inf, "sigmoid": math.inf}
"""In ulp, of float64; 1.01 for what is not named. Where the exponential in `sigmoid` overflows, it gives 0 too early,
as eager does: it is held to eager's error."""


def bound(name: str, dtype: torch.dtype) -> float:
    """What no error of ours may exceed, in ulp, unless eager's is larger."""
    if dtype is torch.float64:
        return BOUND_OF_DOUBLE.get(name, 1.01)
    return BOUND.get(name, 1.01) if dtype is torch.float32 else 0.501 if name != "lgamma" else math.inf


@dataclass(frozen=True, slots=True)
class Format:
    """digits: of the significand, the leading one included. lowest, highest: exponents of the smallest normal number,
    and of the first power of two beyond the largest number."""

    digits: int
    lowest: int
    highest: int


FORMATS: Final = {
    torch.float64: Format(53, -1022, 1024),
    torch.float32: Format(24, -126, 128),
    torch.bfloat16: Format(8, -126, 128),
    torch.float16: Format(11, -14, 16),
}


@dataclass(frozen=True, slots=True)
class Row:
    """The largest errors that were found of one function in one dtype, in ulp, the arguments of ours, and how many
    numbers (or pairs) were tried."""

    name: str
    dtype: str
    ours: float
    at: tuple[float, ...]
    eager: float
    tried: int


def errors(results: Sequence[torch.Tensor], reference: torch.Tensor, format_: Format) -> list[torch.Tensor]:
    """|result - reference| in ulp, of float64 tensors, for each result; infinite where one is NaN alone."""
    limit = 2.0**format_.highest
    wanted = reference.clamp(-limit, limit)
    exponent = (wanted.view(torch.int64) >> 52).bitwise_and_(0x7FF)
    exponent.clamp_(_BIAS + format_.lowest, _BIAS + format_.highest - 1)
    # 2 ** (digits - 1 - exponent), made of its bits.
    per_ulp = exponent.neg_().add_(2 * _BIAS + format_.digits - 1).bitwise_left_shift_(52).view(torch.float64)
    found: list[torch.Tensor] = []
    for result in results:
        error = result.clamp(-limit, limit).sub_(wanted).abs_().mul_(per_ulp)
        if error.sum().isnan():
            alone = result.isnan() != reference.isnan()
            error.nan_to_num_(nan=0.0, posinf=float("inf")).masked_fill_(alone, float("inf"))
        found.append(error)
    return found


def errors_of_double(found: Array, reference: Array) -> torch.Tensor:
    """The same of a float64 result against a long double."""
    format_ = FORMATS[torch.float64]
    limit = np.ldexp(np.longdouble(1), format_.highest)
    wanted, given = np.clip(reference, -limit, limit), np.clip(found.astype(np.longdouble), -limit, limit)
    exponent = np.clip(np.frexp(wanted)[1], format_.lowest + 1, format_.highest)
    with np.errstate(invalid="ignore", over="ignore"):
        error = np.ldexp(np.abs(given - wanted), format_.digits - exponent)
    nans = np.isnan(found).astype(int) + np.isnan(reference)
    return torch.from_numpy(np.choose(nans, [error.astype(np.float64), np.inf, 0.0]))


# -- arguments -------------------------------------------------------------------------------------------------------


def arguments(name: str, dtype: torch.dtype, bits: int) -> Iterator[list[torch.Tensor]]:
    """Chunks of arguments. bits: 2**bits float32 numbers are tried."""
    if name in TWO_ARGUMENTS:
        yield from _pairs(name, dtype)
    elif dtype is torch.float32:
        yield [_edges()]
        step = 2 ** (32 - bits)
        for start in range(0, 2**32, step * _CHUNK):
            encodings = np.arange(start + step // 3, min(start + step * _CHUNK, 2**32), step, dtype=np.uint64)
            yield [torch.from_numpy(encodings.astype(np.uint32).view(np.float32))]
    elif dtype is torch.float64:
        draw = np.random.default_rng(0)
        yield [torch.from_numpy(draw.integers(0, 2**64, 2**18, np.uint64).view(np.float64))]
        yield [torch.from_numpy(draw.uniform(-20, 20, 2**18))]
    else:
        yield [torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)]


def _edges() -> torch.Tensor:
    """The float32 numbers around each power of two, and half-way between them."""
    exponents = np.arange(512, dtype=np.int64) << 23
    around = np.concatenate([exponents, exponents + (1 << 22)])[:, None] + np.arange(-64, 64)
    return torch.from_numpy((around.ravel() % 2**32).astype(np.uint32).view(np.float32))


def _pairs(name: str, dtype: torch.dtype) -> Iterator[list[torch.Tensor]]:
    draw = np.random.default_rng(1)
    for spread in (1, 20) if name == "pow" else (1, 60):
        x, y = (np.exp2(draw.uniform(-spread, spread, 2**19)) for _ in range(2))
        signs = draw.choice([-1.0, 1.0], (2, 2**19))
        if name == "pow":
            y = draw.uniform(-40, 40, 2**19) / np.maximum(np.abs(np.log2(x)), 0.1)
            yield [torch.from_numpy(x).to(dtype), torch.from_numpy(y).to(dtype)]
        else:
            yield [torch.from_numpy(x * signs[0]).to(dtype), torch.from_numpy(y * signs[1]).to(dtype)]


# -- references ------------------------------------------------------------------------------------------------------

_NUMPY: Final = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh",
    "atan2": "arctan2", "pow": "power",
}  # fmt: skip
_OF_C: Final = {"erf": "erfl", "erfc": "erfcl", "lgamma": "lgammal"}


def long_double(name: str, args: list[torch.Tensor]) -> Array:
    """The function of float64 tensors, in the C library's long double."""
    wide = [x.numpy().astype(np.longdouble) for x in args]
    with np.errstate(all="ignore"):
        if name == "sigmoid":
            return 1 / (1 + np.exp(-wide[0]))
        if name == "rsqrt":
            return np.where(wide[0] == 0, np.copysign(np.inf, wide[0]), 1 / np.sqrt(wide[0]))
        if name in _OF_C:
            function = getattr(ctypes.CDLL("libm.so.6"), _OF_C[name])
            function.restype, function.argtypes = ctypes.c_longdouble, [ctypes.c_longdouble]
            return _by_element(function, wide[0])
        return getattr(np, _NUMPY.get(name, name))(*wide)


def _by_element(function: Callable[[float], float], x: Array) -> Array:
    """ctypes gives long doubles as Python floats, so that the reference may itself be half a float64 ulp off."""
    return np.array([function(float(each)) for each in x], np.longdouble)


# -- measuring -------------------------------------------------------------------------------------------------------


def measure(name: str, dtype: torch.dtype, bits: int) -> Row:
    """Compare compiled and eager results with the reference."""
    function = getattr(torch, name)
    jitted = dsjit.jit(lambda *args: function(*args), dynamic=False)
    ours, at, eager, tried = 0.0, (0.0,), 0.0, 0
    length = 0
    with torch.no_grad():
        for args in arguments(name, dtype, bits):
            if len(args[0]) != length:
                length = len(args[0])
                jitted(*args)  # the first call of a shape is eager's own
            own, theirs = _errors(name, args, [jitted(*args), function(*args)])
            eager = max(eager, float(theirs.max()))
            worst = int(own.argmax())
            if own[worst] > ours:
                ours, at = float(own[worst]), tuple(float(x[worst]) for x in args)
            tried += len(own)
    return Row(name, str(dtype).removeprefix("torch."), ours, at, eager, tried)


def _errors(name: str, args: list[torch.Tensor], results: list[torch.Tensor]) -> list[torch.Tensor]:
    dtype = args[0].dtype
    if dtype is torch.float64:
        exact = long_double(name, args)
        return [errors_of_double(result.numpy(), exact) for result in results]
    wide = getattr(torch, name)(*[x.double() for x in args])
    return errors([result.double() for result in results], wide, FORMATS[dtype])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--op", action="append", choices=NAMES, help="measure this function (may repeat)")
    parser.add_argument("--bits", type=int, default=20, help="of the number of float32 numbers; 32: all there are")
    parser.add_argument("--keep", type=Path, help="a file for the results; what is in it is not measured again")
    parser.add_argument("--table", action="store_true", help="print the table of what is kept, in Markdown")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept: list[Row] = []
    if options.keep and options.keep.exists():
        kept = [Row(**each | {"at": tuple(each["at"])}) for each in json.loads(options.keep.read_text())]
    known = {(row.name, row.dtype) for row in kept}
    wanted = [(name, dtype) for dtype in DTYPES[::-1] for name in options.op or NAMES]
    missing = [each for each in wanted if (each[0], str(each[1]).removeprefix("torch.")) not in known]
    if options.table:
        print(markdown(kept))
        return
    for name, dtype in track(missing, "functions", transient=True):
        kept.append(measure(name, dtype, options.bits))
        if options.keep:
            options.keep.write_text(json.dumps([asdict(row) for row in kept], indent=1))
    Console().print(_table(kept))


def markdown(rows: Sequence[Row]) -> str:
    """A line for each function: the bound of float32, then ours and eager's error in each dtype."""
    names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    by_key = {(row.name, row.dtype): row for row in rows}
    lines = [f"| function | bound | {' | '.join(f'{name} | eager' for name in names)} |"]
    lines.append("|---|---|" + "---|---|" * len(names))
    for name in NAMES:
        found = [by_key[name, dtype] for dtype in names]
        cells = [text for row in found for text in (_shown(row.ours), _shown(row.eager))]
        lines.append(f"| {name} | {_shown(bound(name, torch.float32))} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _shown(error: float) -> str:
    return f"{math.ceil(error * 1000 - 1e-6) / 1000:.3f}" if error < 100 else f"{error:.1e}"


def _table(rows: list[Row]) -> Table:
    table = Table("function", "dtype", "ulp", "at", "eager's ulp", "tried")
    for row in rows:
        at = ", ".join(f"{x:.9g}" for x in row.at)
        table.add_row(row.name, row.dtype, f"{row.ours:.3f}", at, f"{row.eager:.3f}", str(row.tried))
    return table


if __name__ == "__main__":
    main()
