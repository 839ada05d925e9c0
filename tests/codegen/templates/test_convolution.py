"""How convolutions are cut into blocks, and which nodes have a template."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest
import torch

from dsjit.codegen.templates.convolution import (
    ARGUMENTS,
    ConvolutionSizes,
    ConvolutionTemplate,
    ConvolutionWork,
    Tile,
    choose_blocks,
    plan_convolution,
)
from dsjit.fusion.views import Views
from dsjit.ops.direct_convolution import block_width, direct_convolution
from tests.graphs import GraphRecorder

TILE = Tile(rows=6, vectors=4, lanes=16, width=64)
STAGE = ConvolutionSizes(2, 56, 56, 64, 56, 56, 64, 3, 3, 1, 1, 1, 1, 1, 1, chunks=4, chunk=16)
LAST_STAGE = replace(STAGE, height=7, width=7, out_height=7, out_width=7, channels=512, out_channels=512, chunks=32)
HUGE = replace(STAGE, height=1024, width=1031, out_height=1024, out_width=1031)
DILATED = replace(STAGE, pad_height=15, pad_width=15, dilation_height=15, dilation_width=15)


@pytest.mark.parametrize("sizes", [STAGE, LAST_STAGE, HUGE, DILATED], ids=["56", "7", "1024", "dilated"])
def test_what_a_block_copies_fits_a_cache(sizes):
    blocks = choose_blocks(sizes, TILE)
    assert blocks.images * blocks.scratch_height * blocks.scratch_width * sizes.chunk * 4 <= 64 * 1024
    assert blocks.images * blocks.height * blocks.width <= 256


def test_whole_tiles_are_preferred():
    """7 by 7 pixels of one image leave 5 of 54 rows of the tiles empty, those of two images 4 of 102."""
    blocks = choose_blocks(LAST_STAGE, TILE)
    assert (blocks.images, blocks.height, blocks.width) == (2, 7, 7)


def test_work_items_are_blocks_of_pixels_times_blocks_of_channels():
    work = ConvolutionWork(TILE)
    for out_channels in (64, 130, 1024):
        sizes = replace(STAGE, out_channels=out_channels)
        blocks = choose_blocks(sizes, TILE)
        pixels = -(-sizes.batch // blocks.images) * -(-56 // blocks.height) * -(-56 // blocks.width)
        assert work.item_count(asdict(sizes)) == pixels * -(-out_channels // (64 * blocks.channels))
    assert work.item_count(asdict(replace(STAGE, batch=0))) == 0


def test_what_is_copied_serves_several_blocks_of_channels_while_there_is_work_for_all():
    pixel = replace(STAGE, channels=256, out_channels=512, window_height=1, window_width=1, chunks=2, chunk=128)
    assert choose_blocks(pixel, TILE).channels > 1
    assert choose_blocks(LAST_STAGE, TILE).channels == 1
    assert ConvolutionWork(TILE).item_count(asdict(pixel)) >= 8


def test_a_large_weight_is_read_once():
    order = ARGUMENTS.index("channels_outer")
    assert [ConvolutionWork(TILE).arguments(asdict(sizes))[order] for sizes in (STAGE, LAST_STAGE)] == [0, 1]


def test_taps_of_few_channels_are_one_run_of_memory():
    few = replace(STAGE, channels=3, chunks=1, chunk=3)
    assert few.merged == 3
    assert STAGE.merged == 1
    assert replace(few, dilation_width=2).merged == 1


@pytest.mark.parametrize(
    ("out_channels", "width"), [(1, 16), (16, 16), (17, 32), (33, 48), (70, 48), (64, 64), (96, 48), (512, 64)]
)
def test_blocks_of_output_channels_are_wide_and_full(out_channels, width):
    assert block_width(out_channels) == width


def planned(image, weight):
    r = GraphRecorder()
    x, w = (r.input(t.shape, t.dtype, t.stride()) for t in (image, weight))
    out = r.call(direct_convolution, x, w, 20, (1, 1), (1, 1), (1, 1))
    graph = r.graph(out)
    return plan_convolution(graph.nodes[-1], Views(graph.producers(), {}))


def test_a_direct_convolution_has_a_template():
    image = torch.empty(2, 5, 6, 7).to(memory_format=torch.channels_last)
    plan = planned(image, torch.empty(1, 1, 3, 3, 5, 32))
    assert plan.template == ConvolutionTemplate(32)
    assert plan.sizes == ConvolutionSizes(2, 6, 7, 5, 6, 7, 20, 3, 3, 1, 1, 1, 1, 1, 1, 1, 5)


def test_operands_must_be_dense_and_in_the_order_of_the_template():
    assert planned(torch.empty(2, 5, 6, 7), torch.empty(1, 1, 3, 3, 5, 32)) is None
    image = torch.empty(2, 5, 6, 7).to(memory_format=torch.channels_last)
    assert planned(image, torch.empty(1, 1, 3, 3, 32, 5).transpose(4, 5)) is None


def test_other_ops_have_none():
    r = GraphRecorder()
    graph = r.graph(r.aten.relu.default(r.input((2, 3))))
    assert plan_convolution(graph.nodes[0], Views(graph.producers(), {})) is None
