"""Conversions between dtypes in Triton, as eager converts."""

from __future__ import annotations

from typing import Final

import torch

from dsjit.codegen.triton.spellings import Use
from dsjit.codegen.triton.types import TRITON_TYPES
from dsjit.ir.dtypes import FLOAT8, float8_beyond, is_floating

__all__ = ["cast_text"]

_HALVES: Final = (torch.bfloat16, torch.float16)

_FROM_FLOAT8: Final = {torch.float8_e4m3fn: "from_float8_e4m3fn", torch.float8_e5m2: "from_float8_e5m2"}
_TO_FLOAT8: Final = {torch.float8_e4m3fn: "to_float8_e4m3fn", torch.float8_e5m2: "to_float8_e5m2"}

_VIA: Final[dict[torch.dtype, torch.dtype]] = {
    torch.int16: torch.int32,
    torch.int8: torch.int32,
    torch.uint8: torch.int64,
}
"""The integer through which ATen converts a float to a narrower one (`c10::static_cast_with_inter_type`)."""


def cast_text(arg: str, source: torch.dtype, to: torch.dtype, use: Use, as_bits: bool) -> str:
    """The expression for `arg`, a name, of dtype `source`, in dtype `to`. as_bits: numbers of float8 are uint8 here.

    Every conversion to or from what is narrower goes through float32, as `c10::BFloat16` and its like have it. Those of
    float8 are helpers': the hardware's differ from eager's beyond the range, and older GPUs have none.
    """
    if source is to:
        return arg
    if source in FLOAT8:
        bits = arg if as_bits else f"{arg}.to(tl.uint8, bitcast=True)"
        wide = f"{use(_FROM_FLOAT8[source])}({bits}.to(tl.int32))"
        return wide if to is torch.float32 else cast_text(wide, torch.float32, to, use, as_bits)
    if to in FLOAT8:
        wide = cast_text(arg, source, torch.float32, use, as_bits)
        bits = f"{use(_TO_FLOAT8[to])}({wide}, {float8_beyond(to)}).to(tl.uint8)"
        return bits if as_bits else f"{bits}.to({TRITON_TYPES[to]}, bitcast=True)"
    steps: list[torch.dtype] = []
    if (source in _HALVES and to is not torch.float32) or (to in _HALVES and source is not torch.float32):
        steps.append(torch.float32)
    if is_floating(source) and to in _VIA:
        steps.append(_VIA[to])
    text = arg + "".join(f".to({TRITON_TYPES[step]})" for step in steps)
    return f"{text} != 0" if to is torch.bool else f"{text}.to({TRITON_TYPES[to]})"
