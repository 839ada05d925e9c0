"""Rows of ops that are written with other rows, by family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dsjit.ops.decompositions import linear, losses, movement, norms, softmax, statistics, structure
from dsjit.ops.row import OpRow

__all__ = ["DECOMPOSITION_ROWS"]

DECOMPOSITION_ROWS: Final[Mapping[str, OpRow]] = {
    **linear.ROWS,
    **losses.ROWS,
    **movement.ROWS,
    **norms.ROWS,
    **softmax.ROWS,
    **statistics.ROWS,
    **structure.ROWS,
}
