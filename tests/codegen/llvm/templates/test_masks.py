"""The templates that pack masks and unpack them: every element, whatever the size, and their machine code."""

from __future__ import annotations

import pytest
import torch

from dsjit.codegen.llvm.engine import KernelCache, assembly
from dsjit.codegen.llvm.executor import KernelCall, build_sequence
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX2, X86_64_AVX512, X86_64_SSE2
from dsjit.codegen.llvm.templates.masks import emit_bits
from dsjit.codegen.templates.masks import BLOCK, BitsTemplate
from dsjit.ops.masks import pack_mask, unpack_mask


def run(packs, source, output, elements, threads):
    (kernel,) = KernelCache().compile_kernels([BitsTemplate(packs)]).kernels
    sequence = build_sequence([KernelCall(kernel, (0, 1), (0, 0), (elements,), zero=2)])
    table = torch.tensor([output.data_ptr(), source.data_ptr(), 0])
    sequence.run(table.data_ptr(), threads)
    return output


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("elements", [1, 7, 8, 9, 31, 64, 65, 1000, BLOCK, BLOCK + 1, 3 * BLOCK + 77])
def test_bits_are_those_of_the_op_and_nothing_else_is_written(elements, threads):
    mask = torch.rand(elements, generator=torch.Generator().manual_seed(elements)) < 0.5
    size = -(-elements // 8)
    bits = run(True, mask, torch.full((size + 1,), 77, dtype=torch.uint8), elements, threads)
    assert torch.equal(bits[:-1], pack_mask(mask)) and bits[-1] == 77
    whole = run(False, bits, torch.full((elements + 1,), 55, dtype=torch.uint8), elements, threads)
    assert torch.equal(whole[:-1].bool(), unpack_mask(bits[:-1], (elements,))) and whole[-1] == 55
    assert torch.equal(whole[:-1].bool(), mask) and whole[:-1].max() <= 1


@pytest.mark.parametrize(
    ("target", "packs", "unpacks"),
    [
        (X86_64_AVX512, "vptestmb", "vpshufb"),
        (X86_64_AVX2, "vpmovmskb", "vpshufb"),
        (X86_64_SSE2, "pmovmskb", "pcmpeqb"),
        (AARCH64_NEON, "addv", "tbl"),
    ],
    ids=["AVX-512", "AVX2", "SSE2", "NEON"],
)
def test_targets_take_a_register_at_once(target, packs, unpacks):
    assert packs in assembly(emit_bits(BitsTemplate(True), "f", target), target)
    assert unpacks in assembly(emit_bits(BitsTemplate(False), "f", target), target)
