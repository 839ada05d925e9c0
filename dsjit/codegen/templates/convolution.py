"""How a direct convolution on channels-last images cuts up its work. What it computes is `ops.direct_convolution`.

Precision: sums in registers take up the products of one chunk of input channels; then they are added to the output. So
one element is a sum of short chains, whose rounding error grows with the square root of the length of a chain and of
the number of chains (Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 4). Each element is added up
by one thread in one order, whatever the blocks are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields, replace
from functools import lru_cache
from typing import ClassVar, Final

from dsjit.codegen.templates.operand import Operand, operand_of
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, TensorType, Value
from dsjit.ops.direct_convolution import direct_convolution

__all__ = [
    "ARGUMENTS",
    "BUFFERS",
    "Blocks",
    "ConvolutionPlan",
    "ConvolutionSizes",
    "ConvolutionTemplate",
    "ConvolutionWork",
    "Tile",
    "choose_blocks",
    "plan_convolution",
]

_SCRATCH_FLOATS: Final = 1 << 14
"""What one block may copy of a chunk: 64 KiB on the stack of a thread, most of which its L1 cache holds."""

_FEWEST_PIXELS: Final = 48
_MOST_PIXELS: Final = 256
"""Of a block: few pixels have to wait for the weights, many fill the cache with their sums."""

_MOST_SUMS: Final = 1 << 16
"""Elements of the output that one work item adds up: 256 KiB, in the L2 cache."""

_GROUPS: Final = (1, 2, 4, 8)
"""How many blocks of output channels to try for one work item."""

_LENGTHS: Final = (4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64)
"""Heights and widths of a block to try, about."""

_LARGE_WEIGHT: Final = 1 << 18
"""Elements of a weight beyond which it is read once, and images again and again: half of a large L2 cache."""

BUFFERS: Final = ("image", "weight", "output")
"""The first args of the function: addresses."""


@dataclass(frozen=True, slots=True)
class Tile:
    """The sums that stay in registers: of `rows` pixels by `vectors` registers of `lanes` output channels.

    width: output channels in one block of the weight, a multiple of vectors * lanes.
    """

    rows: int
    vectors: int
    lanes: int
    width: int


@dataclass(frozen=True, slots=True)
class ConvolutionSizes:
    """The sizes of a convolution, in elements. chunks: of `chunk` input channels, the last of which may have fewer."""

    batch: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    out_channels: int
    window_height: int
    window_width: int
    stride_height: int
    stride_width: int
    pad_height: int
    pad_width: int
    dilation_height: int
    dilation_width: int
    chunks: int
    chunk: int

    @property
    def merged(self) -> int:
        """Taps in a row that are one run of memory: all or one."""
        whole = self.channels == self.chunk and self.dilation_width == 1 and self.window_width > 1
        return self.window_width if whole else 1

    @property
    def is_empty(self) -> bool:
        """Whether the output has no elements."""
        return self.batch * self.out_channels * self.out_height * self.out_width == 0

    @property
    def multiply_adds(self) -> int:
        pixels = self.batch * self.out_height * self.out_width
        return pixels * self.out_channels * self.channels * self.window_height * self.window_width


@dataclass(frozen=True, slots=True)
class Blocks:
    """A block of output pixels by `channels` blocks of output channels: one work item, and what it reads of the image.

    skip, step: pixels between those that are copied, and between the copies that neighbours read. A window of one
        pixel copies only what it reads.
    """

    images: int
    height: int
    width: int
    channels: int
    scratch_height: int
    scratch_width: int
    skip: tuple[int, int]
    step: tuple[int, int]

    @staticmethod
    def of(sizes: ConvolutionSizes, images: int, height: int, width: int, channels: int = 1) -> Blocks:
        skip_y, step_y, rows = _span(height, sizes.window_height, sizes.stride_height, sizes.dilation_height)
        skip_x, step_x, columns = _span(width, sizes.window_width, sizes.stride_width, sizes.dilation_width)
        return Blocks(images, height, width, channels, rows, columns, (skip_y, skip_x), (step_y, step_x))

    @property
    def pixels(self) -> int:
        return self.images * self.height * self.width

    @property
    def scratch_pixels(self) -> int:
        return self.images * self.scratch_height * self.scratch_width

    def count(self, sizes: ConvolutionSizes) -> int:
        """How many blocks of pixels there are."""
        down, across = -(-sizes.out_height // self.height), -(-sizes.out_width // self.width)
        return -(-sizes.batch // self.images) * down * across

    def groups(self, sizes: ConvolutionSizes, tile: Tile) -> int:
        """How many groups of `channels` blocks of output channels there are."""
        return -(-sizes.out_channels // (tile.width * self.channels))


def _span(count: int, window: int, stride: int, dilation: int) -> tuple[int, int, int]:
    """skip, step, and how many pixels are copied, along one dimension."""
    if window == 1:
        return stride, 1, count
    return 1, stride, (count - 1) * stride + (window - 1) * dilation + 1


ARGUMENTS: Final = (
    "batch", "height", "width", "channels", "out_height", "out_width", "out_channels", "window_height", "window_width",
    "stride_height", "stride_width", "pad_height", "pad_width", "dilation_height", "dilation_width", "chunks", "chunk",
    "merged", "taps_across", "block_images", "block_height", "block_width", "block_channels", "scratch_height",
    "scratch_width", "skip_height", "skip_width", "step_height", "step_width", "blocks_down", "blocks_across",
    "channel_blocks", "inner_items", "channels_outer",
)  # fmt: skip
"""The other args of the function: integers."""


@dataclass(frozen=True, slots=True)
class ConvolutionTemplate:
    """What all convolutions whose weight comes in blocks of `width` output channels have in common: their code."""

    width: int
    name: ClassVar[str] = "direct_convolution"


@dataclass(frozen=True, slots=True)
class ConvolutionPlan:
    """`output = convolution(image, weight)`."""

    image: Operand
    weight: Operand
    output: Operand
    template: ConvolutionTemplate
    sizes: ConvolutionSizes

    @property
    def operands(self) -> tuple[Operand, ...]:
        return self.image, self.weight, self.output

    @property
    def buffers(self) -> tuple[Value, ...]:
        """Those that it reads and writes."""
        return tuple(operand.base for operand in self.operands)


def plan_convolution(node: Node, views: Views) -> ConvolutionPlan | None:
    """How the template computes `node`; None when it is no direct convolution, or its operands are no dense buffers."""
    if node.op is not direct_convolution:
        return None
    out_channels, stride, padding, dilation = node.args[2:]
    image, weight = operand_of(node.args[0], views), operand_of(node.args[1], views)
    if image is None or weight is None or not node.args[1].type.is_contiguous:
        return None
    if not _is_channels_last(node.args[0].type) or not _is_channels_last(node.output.type):
        return None
    batch, channels, height, width = node.args[0].type.shape
    _, chunks, window_height, window_width, chunk, block = node.args[1].type.shape
    _, _, out_height, out_width = node.output.type.shape
    sizes = ConvolutionSizes(
        batch=batch,
        height=height,
        width=width,
        channels=channels,
        out_height=out_height,
        out_width=out_width,
        out_channels=out_channels,
        window_height=window_height,
        window_width=window_width,
        stride_height=stride[0],
        stride_width=stride[1],
        pad_height=padding[0],
        pad_width=padding[1],
        dilation_height=dilation[0],
        dilation_width=dilation[1],
        chunks=chunks,
        chunk=chunk,
    )
    return ConvolutionPlan(image, weight, Operand(node.output, 0), ConvolutionTemplate(block), sizes)


def _is_channels_last(type_: TensorType) -> bool:
    """Whether the elements lie densely in memory, the channels of a pixel side by side."""
    shape, strides = ([numbers[d] for d in (0, 2, 3, 1)] for numbers in (type_.shape, type_.strides))
    return replace(type_, shape=tuple(shape), strides=tuple(strides)).is_contiguous


# What a step costs, in cycles of a core that starts two vector multiply-adds in each (measured on AVX-512).
_TILE_CYCLES: Final = 60.0
_COPY_CYCLES: Final = 8.0
_ROW_CYCLES: Final = 60.0
_WEIGHT_CYCLES: Final = 3.0
_CYCLES_PER_NS: Final = 2.5
_FEW_ITEMS: Final = 8
"""Items that are shared evenly by 2, 4 or 8 threads."""


@lru_cache(maxsize=4096)
def choose_blocks(sizes: ConvolutionSizes, tile: Tile) -> Blocks:
    """The blocks of output pixels that cost least: whole tiles, little of the image copied twice, work for all."""
    shapes = [Blocks.of(sizes, 1, height, width) for height, width in _shapes(sizes)]
    whole = sizes.out_height * sizes.out_width
    for images in range(2, min(sizes.batch, _MOST_PIXELS // whole) + 1):
        shapes.append(Blocks.of(sizes, images, sizes.out_height, sizes.out_width))
    fitting = [blocks for blocks in shapes if blocks.scratch_pixels * sizes.chunk <= _SCRATCH_FLOATS]
    candidates = [
        replace(blocks, channels=count)
        for blocks in fitting or [Blocks.of(sizes, 1, 1, 1)]
        for count in _GROUPS
        if count == 1
        or ((count - 1) * tile.width < sizes.out_channels and count * blocks.pixels * tile.width <= _MOST_SUMS)
    ]
    return min(candidates, key=lambda blocks: _cycles(sizes, tile, blocks))


def _shapes(sizes: ConvolutionSizes) -> Iterator[tuple[int, int]]:
    """Heights and widths to try: the image cut evenly, but not into blocks that are too small to be worth a chunk."""
    for width in _even_cuts(sizes.out_width):
        for height in _even_cuts(sizes.out_height):
            pixels = height * width
            if pixels <= _MOST_PIXELS and (pixels >= _FEWEST_PIXELS or height == sizes.out_height):
                yield height, width


def _even_cuts(size: int) -> list[int]:
    """Lengths near those of `_LENGTHS` that cut `size` into pieces of nearly one length."""
    return list(dict.fromkeys([-(-size // -(-size // length)) for length in _LENGTHS]))


def _cycles(sizes: ConvolutionSizes, tile: Tile, blocks: Blocks) -> float:
    """A rough estimate for the whole convolution, and one chunk, as if `_FEW_ITEMS` threads shared it."""
    taps = sizes.window_height * sizes.window_width
    registers = tile.width // tile.lanes
    channel_blocks = -(-sizes.out_channels // tile.width)
    groups = blocks.groups(sizes, tile)
    row = blocks.scratch_width * max(1.0, sizes.chunk / 16) * _COPY_CYCLES + _ROW_CYCLES
    copy = groups * blocks.scratch_height * row
    weight = registers * sizes.chunk * taps * _WEIGHT_CYCLES
    each_tile = tile.rows * registers * sizes.chunk * taps / 2 + _TILE_CYCLES
    total = 0.0
    for images, many_images in _cut(sizes.batch, blocks.images):
        for rows, many_rows in _cut(sizes.out_height, blocks.height):
            for columns, many_columns in _cut(sizes.out_width, blocks.width):
                tiles = -(-images * rows * columns // tile.rows)
                each = channel_blocks * (tiles * each_tile + weight) + images * copy
                total += many_images * many_rows * many_columns * each
    items = blocks.count(sizes) * groups
    return total * (-(-items // _FEW_ITEMS) * _FEW_ITEMS / items)


def _cut(size: int, length: int) -> tuple[tuple[int, int], ...]:
    """Pieces of `length`, and what is left: (length, how many)."""
    whole, rest = divmod(size, length)
    return (length, whole), (rest, 1 if rest else 0)


@dataclass(frozen=True, slots=True)
class ConvolutionWork:
    """How much a convolution has to do, by the values of its `ConvolutionSizes`."""

    tile: Tile

    def item_count(self, values: Mapping[str, int]) -> int:
        """Independent pieces of work: blocks of output pixels times groups of blocks of output channels."""
        sizes = ConvolutionSizes(**values)
        if sizes.is_empty:
            return 0
        blocks = choose_blocks(sizes, self.tile)
        return blocks.count(sizes) * blocks.groups(sizes, self.tile)

    def item_cost(self, values: Mapping[str, int]) -> int:
        """A rough estimate of the nanoseconds that one work item takes, at least 1."""
        sizes = ConvolutionSizes(**values)
        cycles = sizes.multiply_adds / (2 * self.tile.lanes) / max(1, self.item_count(values))
        return max(1, round(cycles / _CYCLES_PER_NS))

    def arguments(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The `ARGUMENTS` of the function."""
        sizes = ConvolutionSizes(**values)
        if sizes.is_empty:
            return (0,) * len(ARGUMENTS)
        blocks = choose_blocks(sizes, self.tile)
        weight = sizes.channels * sizes.window_height * sizes.window_width * sizes.out_channels
        outer = weight > _LARGE_WEIGHT
        known = dict(zip([field.name for field in fields(sizes)], astuple(sizes), strict=True))
        known |= {
            "merged": sizes.merged,
            "taps_across": sizes.window_width // sizes.merged,
            "block_images": blocks.images,
            "block_height": blocks.height,
            "block_width": blocks.width,
            "block_channels": blocks.channels,
            "channel_blocks": -(-sizes.out_channels // self.tile.width),
            "scratch_height": blocks.scratch_height,
            "scratch_width": blocks.scratch_width,
            "skip_height": blocks.skip[0],
            "skip_width": blocks.skip[1],
            "step_height": blocks.step[0],
            "step_width": blocks.step[1],
            "blocks_down": -(-sizes.out_height // blocks.height),
            "blocks_across": -(-sizes.out_width // blocks.width),
            "inner_items": blocks.count(sizes) if outer else blocks.groups(sizes, self.tile),
            "channels_outer": int(outer),
        }
        return tuple([known[name] for name in ARGUMENTS])
