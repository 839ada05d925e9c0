"""Which tiles to try for a matrix product: a model of what each costs on the target.

A program adds up one tile of the result. Time is the larger of two: arithmetic at the rate of the matrix units (a small
tile does not keep them busy), and traffic between the L2 cache and the processors, since each program reads its rows
and columns whole. Programs run in waves, one or more a processor; the last wave may be nearly empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, inf
from typing import Final

import torch

from dsjit.codegen.triton.contraction import Contraction, ProductTile
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.unpacking import depth_strides, placed
from dsjit.ir.dtypes import FLOAT8
from dsjit.ir.kernel import Apply, Load, Stmt

__all__ = ["product_tiles", "shared_bytes"]

_CHOICES: Final = 4
"""Candidates for each product: few and good."""

_SHAPES: Final = (
    (128, 256, 8), (256, 128, 8), (128, 128, 8), (128, 64, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4), (32, 64, 4),
    (32, 32, 4), (16, 64, 4), (64, 16, 4), (16, 32, 2), (16, 16, 1),
)  # fmt: skip
"""Rows, columns, warps: at most 128 sums for each thread."""

_SCALAR_SHAPES: Final = ((64, 64, 8), (64, 32, 4), (32, 64, 4), (32, 32, 4), (16, 32, 2), (16, 16, 1))
"""For exact float32, which is multiplied by ordinary units with operands in registers."""

_FLOPS_PER_CLOCK: Final = {"matrix": 4096, "tf32": 2048, "scalar": 256}
"""Of one processor of an H100: the peak rates of NVIDIA's data sheet, by processors and clock. Other targets are ranked
by the same ratios."""

_L2_BYTES_PER_CLOCK: Final = 64
"""For one processor, about."""

_FULL_RATE: Final = 128 * 128
"""Elements of a tile from which on the matrix units are kept busy, about."""

_MADE: Final = 32
"""Elements of an operand for each thread, where they are computed in registers and not just loaded."""


_REGISTERS: Final = 65536
"""Of a processor, 32 bits each."""

_OTHER_REGISTERS: Final = 96
"""Of each thread, beyond its sums, about: addresses, operands, what comes after the loop."""


def product_tiles(contraction: Contraction, target: TritonTarget) -> tuple[ProductTile, ...]:
    """At least one, the best by the model first; the pipeline of each is within the target's shared memory."""
    scalar = contraction.operand is torch.float32 and contraction.precision == "exact"
    found: list[ProductTile] = []
    for rows, columns, warps in _SCALAR_SHAPES if scalar else _SHAPES:
        for depth in (16, 32) if scalar else (32, 64, 128):
            stages = 4
            while stages > 1 and _bytes(rows, columns, depth, stages, contraction) > target.shared_bytes:
                stages -= 1
            tile = ProductTile(rows, columns, depth, warps, stages)
            fits = shared_bytes(tile, contraction) <= target.shared_bytes and _fits_registers(tile, contraction)
            if fits and _is_worth(tile, contraction):
                found.append(tile)
    found.sort(key=lambda tile: _clocks(tile, contraction, target, scalar))
    # Instructions for float8 add up 32 products at a time.
    return tuple(found[:_CHOICES]) or (ProductTile(16, 16, 32 if contraction.operand in FLOAT8 else 16, 1, 1),)


def shared_bytes(tile: ProductTile, contraction: Contraction) -> int:
    """What the pipeline of loads holds of both operands."""
    return _bytes(tile.rows, tile.columns, tile.depth, tile.stages, contraction)


def _bytes(rows: int, columns: int, depth: int, stages: int, contraction: Contraction) -> int:
    sides = ((rows, contraction.left), (columns, contraction.right))
    return sum(ceil(across * depth * _element_bytes(side[0], stages, contraction)) for across, side in sides)


def _element_bytes(statements: Sequence[Stmt], stages: int, contraction: Contraction) -> float:
    """Of what is loaded for an element of an operand, in each stage; and of the operand itself, where it is computed
    from that."""
    each = placed(statements, depth_strides(contraction.depth))
    loads = [(made.statement.dtype.itemsize, made.shared) for made in each if isinstance(made.statement, Load)]
    return stages * sum(size / (shared or inf) for size, shared in loads) + (
        contraction.operand.itemsize if len(statements) > 1 else 0
    )


def _fits_registers(tile: ProductTile, contraction: Contraction) -> bool:
    """Whether operands that are computed leave room for the sums."""
    sides = ((tile.rows, contraction.left), (tile.columns, contraction.right))
    made = [across for across, (statements, _) in sides if any(isinstance(each, Apply) for each in statements)]
    return all(across * tile.depth <= _MADE * 32 * tile.warps for across in made)


def _is_worth(tile: ProductTile, contraction: Contraction) -> bool:
    """Whether no side of the tile is twice what there is along it, or more (beyond the least that there can be)."""
    _, rows, columns, depth = contraction.sizes
    sides = ((tile.rows, rows), (tile.columns, columns), (tile.depth, depth))
    return all(side < 2 * size or side == 16 for side, size in sides)


def _clocks(tile: ProductTile, contraction: Contraction, target: TritonTarget, scalar: bool) -> float:
    batch, rows, columns, depth = contraction.sizes
    programs = batch * -(-rows // tile.rows) * -(-columns // tile.columns)
    threads = 32 * tile.warps
    held = threads * min(255, tile.rows * tile.columns // threads + _OTHER_REGISTERS)
    shared = max(1, shared_bytes(tile, contraction))
    resident = max(1, min(4, target.shared_bytes // shared, 16 // tile.warps, _REGISTERS // held))
    waves = -(-programs // (target.processors * resident))
    steps = -(-depth // tile.depth)
    kind = "scalar" if scalar else "tf32" if contraction.operand is torch.float32 else "matrix"
    busy = 1.0 if scalar else min(1.0, (tile.rows * tile.columns * resident / _FULL_RATE) ** 0.5)
    flops = 2 * tile.rows * tile.columns * tile.depth / (_FLOPS_PER_CLOCK[kind] * busy)
    traffic = tile.depth * (tile.rows + tile.columns) * contraction.operand.itemsize / _L2_BYTES_PER_CLOCK
    # Each step waits for its loads, unless enough of them are on the way.
    waiting = 400 / max(1, tile.stages * resident)
    return waves * (resident * steps * max(flops, traffic) + steps * waiting)
