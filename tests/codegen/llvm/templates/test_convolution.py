"""The convolution template: against exact sums, on every target that this machine runs, and in machine code."""

from __future__ import annotations

import re

import hypothesis
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dsjit.codegen.llvm.engine import assembly
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2, Target, host_target
from dsjit.codegen.llvm.templates.convolution import choose_tile, emit_convolution
from tests.codegen.convolutions import Settings, convolve

TARGETS = {"AVX-512": X86_64_AVX512, "AVX2": X86_64_AVX2, "SSE2": X86_64_SSE2, "NEON": AARCH64_NEON}


def runs_here(target: Target) -> bool:
    host = host_target()
    return target.triple.split("-")[0] == host.triple.split("-")[0] and all(
        host.has_feature(feature[1:]) for feature in target.features.split(",") if feature
    )


RUNNING = [name for name, target in TARGETS.items() if runs_here(target)]


def tensors(batch, channels, height, width, out_channels, window):
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(batch, channels, height, width, generator=generator)
    return image, torch.randn(out_channels, channels, *window, generator=generator)


def assert_sums_up(image, weight, settings, chunk=16, target=None):
    """Each element is within the bound for a sum in any order: n * u * sum |x||w| (Higham, 2002, section 4.2)."""
    actual = convolve(image, weight, settings, chunk, target)
    exact = settings.torch(image.double(), weight.double())
    products = weight[0].numel()
    bound = settings.torch(image.double().abs(), weight.double().abs()) * (products + 1) * 2**-24 * 1.01
    assert actual.shape == exact.shape
    assert ((actual - exact).abs() <= bound).all()


SHAPES = {
    "3x3": (2, 64, 9, 11, 64, (3, 3), Settings(padding=(1, 1))),
    "7x7, stride 2, three channels": (1, 3, 23, 21, 64, (7, 7), Settings((2, 2), (3, 3))),
    "one pixel, stride 2": (2, 40, 9, 8, 48, (1, 1), Settings((2, 2))),
    "odd channels": (1, 17, 5, 7, 15, (3, 3), Settings(padding=(1, 1))),
    "more channels out than in blocks": (3, 37, 6, 8, 70, (3, 5), Settings((2, 3), (1, 2))),
    "one channel": (1, 1, 8, 8, 1, (5, 5), Settings()),
    "dilation": (1, 20, 13, 12, 33, (3, 3), Settings(padding=(2, 2), dilation=(2, 2))),
    "dilation across, few channels": (1, 5, 9, 14, 17, (2, 3), Settings(dilation=(1, 3))),
    "an image of one pixel": (2, 18, 1, 1, 16, (3, 3), Settings(padding=(1, 1))),
    "more padding than image": (1, 16, 2, 3, 16, (3, 3), Settings(padding=(4, 5))),
    "stride 3": (1, 16, 10, 13, 32, (2, 2), Settings((3, 3))),
    "a wide image": (1, 8, 2, 300, 16, (3, 3), Settings(padding=(1, 1))),
    "many images of few pixels": (9, 16, 4, 4, 16, (3, 3), Settings(padding=(1, 1))),
}


@pytest.mark.parametrize("target", RUNNING)
@pytest.mark.parametrize("shape", SHAPES)
def test_sums(shape, target):
    *sizes, settings = SHAPES[shape]
    assert_sums_up(*tensors(*sizes), settings, target=TARGETS[target])


def pair(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@hypothesis.settings(max_examples=50)
@given(
    batch=st.integers(1, 3), channels=st.integers(1, 40), size=pair(1, 12), out_channels=st.integers(1, 70),
    window=pair(1, 4), stride=pair(1, 3), padding=pair(0, 3), dilation=pair(1, 2), chunk=st.sampled_from([16, 32]),
)  # fmt: skip
def test_any_sizes(batch, channels, size, out_channels, window, stride, padding, dilation, chunk):
    reach = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    size = [max(n, r - 2 * p) for n, r, p in zip(size, reach, padding, strict=True)]
    assert_sums_up(*tensors(batch, channels, *size, out_channels, window), Settings(stride, padding, dilation), chunk)


def test_nothing_to_do_is_done():
    image, weight = tensors(0, 3, 5, 5, 16, (3, 3))
    assert convolve(image, weight, Settings()).shape == (0, 16, 3, 3)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf"), -0.0])
@pytest.mark.parametrize("padding", [0, 1])
def test_special_values_of_the_image_reach_what_they_reach_in_eager(special, padding):
    image, weight = tensors(1, 20, 8, 8, 18, (3, 3))
    image[0, 3, 4, 5] = image[0, 7, 0, 0] = special
    settings = Settings(padding=(padding, padding))
    actual, expected = convolve(image, weight, settings), settings.torch(image, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("special", [float("nan"), float("inf"), float("-inf")])
def test_special_values_of_the_weight_reach_what_they_reach_in_eager(special):
    image, weight = tensors(1, 20, 8, 8, 18, (3, 3))
    weight[4, 5, 1, 2] = special
    actual, expected = convolve(image, weight, Settings()), Settings().torch(image, weight)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def test_zeros_have_the_sign_of_eager():
    image, weight = -torch.zeros(1, 20, 4, 4), torch.ones(16, 20, 3, 3)
    actual, expected = convolve(image, weight, Settings()), Settings().torch(image, weight)
    assert torch.equal(actual.signbit(), expected.signbit())


def test_the_bits_do_not_depend_on_the_number_of_threads():
    image, weight = tensors(2, 48, 20, 20, 80, (3, 3))
    settings = Settings(padding=(1, 1))
    one, three = (convolve(image, weight, settings, threads=threads) for threads in (1, 3))
    assert torch.equal(one, three)


def test_no_further_from_exact_than_eager():
    """On row-major images, where eager's sums are short, too."""
    image, weight = tensors(2, 512, 7, 7, 64, (3, 3))
    settings = Settings(padding=(1, 1))
    exact = settings.torch(image.double(), weight.double())
    actual, eager = convolve(image, weight, settings), settings.torch(image, weight)
    assert (actual - exact).square().mean() <= (eager - exact).square().mean() * 1.05**2


def innermost(text: str) -> str:
    """The block of assembly with most multiply-adds, without its branch."""
    blocks = re.split(r"\n\.L\w+:|\n\tj\w+\t|\n\tb\.\w+\t", text)
    return max(blocks, key=lambda block: len(re.findall(MULTIPLY_ADD, block)))


MULTIPLY_ADD = r"\tv?fmadd\d+ps|\tfmla|\tmulps"
ON_STACK = r"\(%r[sb][px]\)|\[(?:sp|x19|x29)"


@pytest.mark.parametrize("width", [16, 32, 48, 64])
@pytest.mark.parametrize("target", TARGETS)
def test_the_sums_stay_in_registers(target, width):
    tile = choose_tile(width, TARGETS[target])
    loop = innermost(assembly(emit_convolution("convolution", tile, TARGETS[target]), TARGETS[target]))
    assert len(re.findall(MULTIPLY_ADD, loop)) == tile.rows * tile.vectors
    assert not re.findall(ON_STACK, loop)
    assert width % (tile.vectors * tile.lanes) == 0
