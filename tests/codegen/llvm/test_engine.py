"""Compiling modules, and the cache of kernels."""

from __future__ import annotations

import re
import threading
from dataclasses import replace

import pytest
import torch

from dsjit.codegen.llvm.engine import KernelCache, assembly, compile_module
from dsjit.codegen.llvm.target import AARCH64_NEON, X86_64_AVX512, Target, host_target
from dsjit.codegen.structure import kernel_structure
from dsjit.errors import BackendError
from dsjit.ir.graph import Source
from dsjit.ir.kernel import Apply, Constant, Load, Param, Store
from tests.codegen.kernels import at, pointwise, reads, row_reduce, softmax, writes

f32 = torch.float32


def scaled(factor: float, names: str = "abc", source: Source | None = None):
    a, b, c = names
    body = (
        Load(a, "x", at(i0=1), f32),
        Constant(b, factor, f32),
        Apply(c, "mul", (a, b), f32, source),
        Store("y", at(i0=1), c),
    )
    return pointwise(64, body, reads("x") + writes("y"))


def test_malformed_ir_is_a_backend_error_with_llvms_message():
    with pytest.raises(BackendError, match="expected instruction opcode"):
        compile_module("define void @f() { nonsense }", host_target())


def test_an_unknown_external_function_is_named():
    name = "no_such_function_anywhere"
    text = f"declare void @{name}()\ndefine void @f() {{ call void @{name}() ret void }}"
    with pytest.raises(BackendError, match=name):
        compile_module(text, host_target())


def test_functions_of_libm_and_torch_are_found():
    text = "declare float @cosf(float)\ndefine float @f(float %x) {\n %y = call float @cosf(float %x)\n ret float %y\n}"
    assert compile_module(text, host_target()).address("f") != 0


def test_an_unknown_architecture_is_a_backend_error():
    with pytest.raises(BackendError, match="nonesuch"):
        assembly("define void @f() { ret void }", Target("nonesuch-unknown-linux", "generic", "", 16))


@pytest.mark.parametrize("target", [AARCH64_NEON, X86_64_AVX512], ids=lambda t: t.triple)
def test_assembly_is_for_the_target_asked_for(target):
    text = assembly(f'target triple = "{target.triple}"\ndefine void @f() {{ ret void }}', target)
    assert re.search(r"\tretq?\n", text)


def test_equal_kernels_are_compiled_once_whatever_their_names_and_sources():
    cache = KernelCache()
    first = cache.compile_kernels([scaled(2.0), scaled(2.0, "pqr", Source("model.py", 3, "f"))])
    second = cache.compile_kernels([replace(scaled(2.0), name="other"), scaled(3.0)])
    assert (first.generated, first.reused, second.generated, second.reused) == (1, 1, 1, 1)
    assert first.kernels[0] is first.kernels[1] is second.kernels[0]
    assert (cache.generated, cache.reused) == (2, 2)
    assert not cache.compile_kernels([scaled(3.0)]).ir_text


def test_the_two_numerics_share_no_code():
    cache = KernelCache()
    kernels = {fast: cache.compile_kernels([scaled(2.0)], fast).kernels[0] for fast in (False, True)}
    assert (cache.generated, cache.reused) == (2, 0)
    assert kernels[True].address != kernels[False].address
    for fast, kernel in kernels.items():
        assert cache.compile_kernels([scaled(2.0)], fast).kernels[0] is kernel


def test_all_new_kernels_go_into_one_module():
    lookup = KernelCache().compile_kernels([softmax(4, 32), row_reduce("sum", 4, 32), scaled(1.0)])
    assert lookup.ir_text.count("define void") == 3
    assert len({id(kernel.module) for kernel in lookup.kernels}) == 1
    assert len({kernel.address for kernel in lookup.kernels}) == 3


def test_a_kernel_that_fails_to_compile_leaves_the_cache_usable():
    cache = KernelCache(replace(host_target(), triple="nonesuch-unknown-linux"))
    with pytest.raises(BackendError):
        cache.compile_kernels([scaled(2.0)])
    assert (cache.generated, cache.reused) == (0, 0)


def test_threads_share_one_compilation():
    cache = KernelCache()
    threads = [threading.Thread(target=cache.compile_kernels, args=([softmax(4, 32)],)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (cache.generated, cache.reused) == (1, 3)


@pytest.mark.parametrize(
    "other",
    [
        softmax(4, 33),
        softmax(5, 32),
        replace(softmax(4, 32), params=softmax(4, 32).params[:1] + (Param("y", f32, "readwrite"),)),
        replace(softmax(4, 32), blocks=softmax(4, 32).blocks[:2]),
    ],
)
def test_kernels_that_differ_in_meaning_differ_in_structure(other):
    assert kernel_structure(other) != kernel_structure(softmax(4, 32))


@pytest.mark.parametrize(("x", "y"), [(0.0, -0.0), (1.0, 1), (1, True), (0.0, float("nan"))])
def test_constants_that_differ_in_bits_or_type_differ_in_structure(x, y):
    assert kernel_structure(scaled(x)) != kernel_structure(scaled(y))
    assert kernel_structure(scaled(y)) == kernel_structure(scaled(y))
