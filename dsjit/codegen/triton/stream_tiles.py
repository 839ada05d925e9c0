"""Which tiles to try for a Kernel of kept rows: a model of what each costs on the target.

A program holds rows, and the stream passes by. What it holds must be in registers: the sums, and the tiles of scores
between the products. As for products, time is arithmetic at a rate that small tiles do not reach, or waiting for loads.
"""

from __future__ import annotations

from typing import Final

import torch

from dsjit.codegen.triton.stream import Stream
from dsjit.codegen.triton.streaming import StreamTile, short_block
from dsjit.codegen.triton.target import TritonTarget
from dsjit.ir.kernel import Load

__all__ = ["stream_shared_bytes", "stream_tiles"]

_CHOICES: Final = 4
"""Candidates for each Kernel: few and good."""

_SHAPES: Final = (
    (128, 128, 8), (128, 64, 8), (128, 64, 4), (128, 32, 4), (64, 128, 4), (64, 64, 4), (64, 32, 4), (64, 64, 8),
    (64, 32, 8), (32, 64, 4), (32, 32, 4), (16, 128, 4), (16, 64, 4), (16, 32, 4), (16, 16, 4), (16, 32, 2),
)  # fmt: skip
"""Rows, places of the stream, warps."""

_SCALAR_SHAPES: Final = (
    (32, 32, 8),
    (16, 32, 8),
    (32, 16, 8),
    (16, 32, 4),
    (16, 16, 4),
    (16, 16, 8),
    (16, 32, 16),
    (16, 16, 16),
)
"""For exact float32, which is multiplied by ordinary units with operands in registers."""

_REGISTERS: Final = {"cuda": 168, "hip": 70}
"""32-bit values of one thread for sums and scores; the others hold operands and addresses (of 255, and of 512, half of
which only matrix units write to)."""

_SCALAR_REGISTERS: Final = 55
"""With operands, which ordinary units take from registers, in several copies."""

_SCALAR_REGISTERS_OF_SUMS: Final = 40
"""The same where there are several sums, whose products are not done one after the other."""

_FLOPS_PER_CLOCK: Final = 4096
"""Of one processor of an H100 with bfloat16, by NVIDIA's data sheet."""

_L2_BYTES_PER_CLOCK: Final = 64
"""For one processor, about."""

_FULL_RATE: Final = 128 * 128
"""Elements of a tile of scores from which on the matrix units are kept busy, about."""


def stream_tiles(stream: Stream, target: TritonTarget) -> tuple[StreamTile, ...]:
    """At least one, the best by the model first; the pipeline of each is within the target's shared memory."""
    scalar = _is_scalar(stream)
    found: list[StreamTile] = []
    for rows, along, warps in _SCALAR_SHAPES if scalar else _SHAPES:
        stages = 1 if scalar else 3
        while stages > 1 and _bytes(rows, along, stages, stream) > target.shared_bytes:
            stages -= 1
        tile = StreamTile(rows, along, warps, stages)
        fits = stream_shared_bytes(tile, stream) <= target.shared_bytes
        most = _most_scalar_registers(stream, warps) if scalar else _REGISTERS[target.backend]
        if fits and _registers(tile, stream) <= most and _is_worth(tile, stream):
            found.append(tile)
    found.sort(key=lambda tile: _clocks(tile, stream, target))
    return tuple(found[:_CHOICES]) or (StreamTile(16, 16, 8, 1),)


def stream_shared_bytes(tile: StreamTile, stream: Stream) -> int:
    """What the pipeline of loads and the held operands take."""
    return _bytes(tile.rows, tile.along, tile.stages, stream)


def _bytes(rows: int, along: int, stages: int, stream: Stream) -> int:
    size = stream.operand.itemsize
    held = _held(stream)
    return size * (rows * held + stages * along * sum(_streamed(stream)))


def _streamed(stream: Stream) -> list[int]:
    """Elements at each place of the stream; an operand that two products read is loaded once."""
    loads = {str([(s.param, s.index) for s in dot.right[0] if isinstance(s, Load)]): dot.short for dot in stream.dots}
    return [short_block(axis) for axis in loads.values()]


def _registers(tile: StreamTile, stream: Stream) -> float:
    sums = sum(short_block(dot.short) for dot in stream.dots if not dot.inner)
    scores = 1 + sum(1 for dot in stream.dots if dot.inner)
    elements: float = tile.rows * (sums + scores * tile.along)
    words: float = stream.operand.itemsize / 4
    if _is_scalar(stream) or tile.stages == 1:  # what is loaded goes through registers
        elements += tile.along * sum(_streamed(stream)) * words
    if _is_scalar(stream) or tile.rows < 64:  # the instructions for more rows take operands from shared memory
        elements += tile.rows * _held(stream) * words
    return elements / (32 * tile.warps)


def _most_scalar_registers(stream: Stream, warps: int) -> int:
    """Of 16 warps, each thread has half of the registers: too few for the operands of a product that is held alone."""
    if sum(not dot.inner for dot in stream.dots) > 1:
        return _SCALAR_REGISTERS_OF_SUMS
    return _SCALAR_REGISTERS if warps < 16 else 0


def _is_scalar(stream: Stream) -> bool:
    return stream.operand is torch.float32 and stream.dots[0].reduce.matrix == "exact"


def _held(stream: Stream) -> int:
    """Elements of each row that is held."""
    return sum(short_block(dot.short) for dot in stream.dots if dot.inner)


def _is_worth(tile: StreamTile, stream: Stream) -> bool:
    """Whether neither side of the tile is twice what there is along it, or more (beyond the least there can be)."""
    _, rows, along = stream.sizes
    return all(side < 2 * size or side == 16 for side, size in ((tile.rows, rows), (tile.along, along)))


def _clocks(tile: StreamTile, stream: Stream, target: TritonTarget) -> float:
    batch, rows, along = stream.sizes
    programs = batch * -(-rows // tile.rows)
    shared = max(1, stream_shared_bytes(tile, stream))
    resident = max(1, min(4, target.shared_bytes // shared, 16 // tile.warps))
    waves = -(-programs // (target.processors * resident))
    steps = -(-along // tile.along)
    # Instructions for less than 64 rows reach half the rate.
    busy: float = min(1.0, (tile.rows * tile.along * resident / _FULL_RATE) ** 0.5) * (1.0 if tile.rows >= 64 else 0.5)
    shorts = sum(short_block(dot.short) for dot in stream.dots)
    flops = 2 * tile.rows * tile.along * shorts / (_FLOPS_PER_CLOCK * busy)
    traffic = tile.along * sum(_streamed(stream)) * stream.operand.itemsize / _L2_BYTES_PER_CLOCK
    # Exponentials: 16 a clock; and what goes on between the products.
    between = tile.rows * tile.along * (1 / 16 + 8 / 128)
    waiting = 400 / max(1, tile.stages * resident)
    return waves * steps * (resident * max(flops + between, traffic) + waiting)
