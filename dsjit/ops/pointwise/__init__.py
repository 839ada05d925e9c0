"""Rows of pointwise ops, by family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dsjit.ops.pointwise import activation, arithmetic, gradient, logic, selection, transcendental
from dsjit.ops.row import OpRow

__all__ = ["POINTWISE_ROWS"]

POINTWISE_ROWS: Final[Mapping[str, OpRow]] = {
    **arithmetic.ROWS,
    **transcendental.ROWS,
    **logic.ROWS,
    **selection.ROWS,
    **activation.ROWS,
    **gradient.ROWS,
}
