"""Conversions between dtypes in Triton, as eager converts."""

from __future__ import annotations

from typing import Final

import torch

from dsjit.codegen.triton.types import TRITON_TYPES
from dsjit.ir.dtypes import is_floating

__all__ = ["cast_text"]

_HALVES: Final = (torch.bfloat16, torch.float16)

_VIA: Final[dict[torch.dtype, torch.dtype]] = {
    torch.int16: torch.int32,
    torch.int8: torch.int32,
    torch.uint8: torch.int64,
}
"""The integer through which ATen converts a float to a narrower one (`c10::static_cast_with_inter_type`)."""


def cast_text(arg: str, source: torch.dtype, to: torch.dtype) -> str:
    """The expression for `arg`, a name, of dtype `source`, in dtype `to`.

    Every conversion to or from bfloat16 or float16 goes through float32, as `c10::BFloat16` and `c10::Half` have it.
    """
    if source is to:
        return arg
    steps: list[torch.dtype] = []
    if (source in _HALVES and to is not torch.float32) or (to in _HALVES and source is not torch.float32):
        steps.append(torch.float32)
    if is_floating(source) and to in _VIA:
        steps.append(_VIA[to])
    text = arg + "".join(f".to({TRITON_TYPES[step]})" for step in steps)
    return f"{text} != 0" if to is torch.bool else f"{text}.to({TRITON_TYPES[to]})"
