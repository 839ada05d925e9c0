"""Where the operands of native steps lie in memory."""

from __future__ import annotations

from dataclasses import dataclass

from dsjit.fusion.affine import Affine, NotAffine, linearize
from dsjit.fusion.views import Views
from dsjit.ir.graph import Value

__all__ = ["Operand", "operand_of"]


@dataclass(frozen=True, slots=True)
class Operand:
    """A tensor inside the buffer of `base`, `offset` elements after its start."""

    base: Value
    offset: int


def operand_of(value: Value, views: Views) -> Operand | None:
    """Where `value` lies, with the strides of its type; None when it is a view without an affine index."""
    try:
        base, index = views.follow(value, (Affine(),) * len(value.type.shape), {})
    except NotAffine:
        return None
    return Operand(base, linearize(index, base.type.strides).offset)
