"""Products with weights of 4 bits, written out as their users write them: unpacked where a tile reads them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.contraction import contraction_of
from dsjit.codegen.triton.emit import candidates
from dsjit.codegen.triton.interpret import interpret_source
from dsjit.codegen.triton.target import KNOWN_TARGETS, TritonTarget
from dsjit.codegen.triton.unpacking import without_masks
from dsjit.ir.kernel import Apply, Axis, Index, InRange, Load, Stmt
from tests.codegen.triton.test_products import H100, close, kernel_of, units_of

f32, bf16 = torch.float32, torch.bfloat16

Arguments = tuple[torch.Tensor, ...]


def bytes_of_pairs(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor) -> torch.Tensor:
    """(out, in / 2) bytes, groups along the input."""
    w = torch.stack((packed & 0xF, packed >> 4), -1).view(*scales.shape, -1)
    w = (w.to(x.dtype) - zeros[..., None]) * scales[..., None]
    return F.linear(x, w.flatten(1))


def signed_halves(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """(out, in / 2) bytes, the first half of a row in the low bits; one scale for each row."""
    w = torch.cat((packed & 0xF, packed >> 4), -1).to(torch.int8) - 8
    return F.silu(F.linear(x, w.to(x.dtype) * scales[:, :1]))


def words_along_the_sum(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """GPTQ's (in / 8, out) words, and zeros as words of eight columns."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    w = (packed[:, None, :] >> shifts[:, None]) & 0xF
    z = ((zeros[:, :, None] >> shifts) & 0xF).flatten(1)
    w = w.reshape(scales.shape[0], -1, scales.shape[1])
    return x @ ((w - z[:, None]).to(x.dtype) * scales[:, None]).flatten(0, 1)


def words_along_columns(
    x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor
) -> torch.Tensor:
    """AWQ's (in, out / 8) words."""
    shifts = torch.arange(0, 32, 4, dtype=torch.int32)
    w = (torch.bitwise_right_shift(packed[:, :, None], shifts) & 0xF).flatten(1)
    z = (torch.bitwise_right_shift(zeros[:, :, None], shifts) & 0xF).flatten(1)
    w = w.view(scales.shape[0], -1, scales.shape[1])
    return x @ ((w - z[:, None]) * scales[:, None]).to(x.dtype).flatten(0, 1)


def drawn(function: Callable[..., torch.Tensor], m: int, k: int, n: int, group: int, dtype: torch.dtype) -> Arguments:
    generator = torch.Generator().manual_seed(0)

    def words(*shape: int) -> torch.Tensor:
        return torch.randint(-(2**31), 2**31 - 1, shape, generator=generator, dtype=torch.int32)

    def numbers(*shape: int) -> torch.Tensor:
        return (torch.rand(shape, generator=generator) / 8).to(dtype)

    x = torch.randn(m, k, generator=generator).to(dtype)
    if function in (bytes_of_pairs, signed_halves):
        packed = torch.randint(0, 256, (n, k // 2), generator=generator, dtype=torch.uint8)
        zeros = torch.randint(0, 16, (n, k // group), generator=generator).to(dtype)
        return x, packed, numbers(n, k // group), zeros
    packed = words(k // 8, n) if function is words_along_the_sum else words(k, n // 8)
    return x, packed, numbers(k // group, n), words(k // group, n // 8)


SPELLINGS = (bytes_of_pairs, signed_halves, words_along_the_sum, words_along_columns)


@pytest.mark.parametrize("dtype", [f32, bf16])
@pytest.mark.parametrize("group", [16, 24, 48])
@pytest.mark.parametrize("function", SPELLINGS)
def test_a_matrix_of_4_bits_is_unpacked_where_it_is_read(
    function: Callable[..., torch.Tensor], group: int, dtype: torch.dtype
) -> None:
    arguments = drawn(function, 3, 48, 16, group, dtype)
    fused, buffers, result = kernel_of(function, arguments)
    assert contraction_of(fused.kernel) is not None
    exact = function(*[each.double() if each.is_floating_point() else each for each in arguments])
    run_kernel(fused.kernel, buffers)
    close(result, exact, dtype)
    for source in candidates(fused.kernel, H100):
        result.zero_()
        interpret_source(source, buffers)
        close(result, exact, dtype)


@pytest.mark.parametrize("target", KNOWN_TARGETS)
@pytest.mark.parametrize("rows", [16, 512])
@pytest.mark.parametrize("function", SPELLINGS)
def test_the_best_candidate_fits_the_target(function: Callable[..., torch.Tensor], rows: int, target: str) -> None:
    fused, _, _ = kernel_of(function, drawn(function, rows, 1024, 1024, 128, bf16))
    chosen = TritonTarget.parse(target)
    code = compile_source(candidates(fused.kernel, chosen)[0], chosen)
    assert resources(code).spills == 0, code.source.text
    assert code.shared <= chosen.shared_bytes


@pytest.mark.parametrize(("function", "elements"), [(bytes_of_pairs, 2), (words_along_the_sum, 8)])
def test_each_word_is_loaded_once(function: Callable[..., torch.Tensor], elements: int) -> None:
    fused, _, _ = kernel_of(function, drawn(function, 64, 1024, 1024, 128, bf16))
    text = candidates(fused.kernel, H100)[0].text
    loads = [line for line in text.splitlines() if f"kb_{elements}" in line and "tl.load" in line]
    assert len(loads) == 1 and f"kb_{elements} = k_start // {elements} + tl.arange" in text


def test_a_matrix_of_4_bits_that_something_else_reads_is_made() -> None:
    def both(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> Arguments:
        w = (torch.stack((packed & 0xF, packed >> 4), -1).flatten(1).to(x.dtype) - 8) * scales[:, :1]
        return F.linear(x, w), w

    units, _, _ = units_of(both, drawn(bytes_of_pairs, 17, 64, 24, 32, bf16)[:3])
    assert len(units) == 2


def test_masks_that_a_choice_repeats_are_dropped() -> None:
    """Before and after of `without_masks`; a mask whose values are seen where it is false stays."""
    low, high = InRange("m0", Index(0, (("k", 1),)), 0, 1), InRange("m2", Index(0, (("k", 1),)), 1, 2)
    one = Load("x1", "t0", Index(0, (("i", 1),)), torch.uint8, "m0")
    other = Load("x3", "t0", Index(0, (("i", 1),)), torch.uint8, "m2")
    choice = Apply("v4", "select", ("m0", "x1", "x3"), torch.uint8)
    before: tuple[Stmt, ...] = (low, one, high, other, choice)
    x1, x3 = (Load(each.result, "t0", each.index, torch.uint8) for each in (one, other))
    assert without_masks(before, "v4", {"k": Axis("k", 2)}) == (low, x1, x3, choice)
    assert without_masks(before, "v4", {"k": Axis("k", 3)}) == (low, x1, high, other, choice)
    added = (low, one, high, other, Apply("v4", "add", ("x1", "x3"), torch.uint8))
    assert without_masks(added, "v4", {"k": Axis("k", 2)}) == added
