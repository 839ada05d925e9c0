"""`dsjit.compile_for`: code for GPUs that are not at hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import dsjit
from dsjit.codegen.triton.target import KNOWN_TARGETS
from dsjit.errors import CaptureError, OptionError
from tests.codegen.triton.canonical import CANONICAL
from tests.models.test_models import ResidualNet, bert, built, gpt2, llama


@pytest.mark.parametrize("name", CANONICAL)
def test_no_kernel_of_the_canonical_list_spills_on_an_h100(name: str) -> None:
    function, arguments = CANONICAL[name]
    compiled = dsjit.compile_for(function, arguments, target="cuda:sm_90")
    assert compiled.kernels
    for kernel in compiled.kernels:
        assert kernel.resources.spills == 0, f"{kernel.resources}\n{kernel.source.text}"
        assert 0 < kernel.resources.registers <= 255


@pytest.mark.parametrize("make", [bert, gpt2, llama, ResidualNet])
def test_no_kernel_of_a_model_spills_on_an_h100(make: Callable[[], nn.Module]) -> None:
    given = torch.randn(2, 3, 16, 16) if make is ResidualNet else torch.arange(10).reshape(2, 5)
    with torch.no_grad():
        compiled = dsjit.compile_for(built(make, torch.float32), (given,), target="cuda:sm_90")
    assert compiled.kernels
    assert [kernel.name for kernel in compiled.kernels if kernel.resources.spills] == []


@pytest.mark.parametrize("target", KNOWN_TARGETS)
def test_every_target_gets_machine_code(target: str) -> None:
    function, arguments = CANONICAL["softmax"]
    (kernel,) = dsjit.compile_for(function, arguments, target=target).kernels
    assert kernel.code.binary.startswith(b"\x7fELF")
    assert (".target sm_" if target.startswith("cuda") else ".amdgcn_target") in kernel.code.assembly
    assert [source.function for source in kernel.sources] == ["softmax"]


def test_multiply_adds_are_contracted_only_when_asked_to() -> None:
    def f(x, y, z):
        return x * y + z

    arguments = (torch.randn(4096), torch.randn(4096), torch.randn(4096))
    for numerics, expected in (("eager", False), ("fast", True)):
        (kernel,) = dsjit.compile_for(f, arguments, target="cuda:sm_90", numerics=numerics).kernels
        assert ("fma.rn" in kernel.code.assembly) is expected


def test_the_backward_is_there_where_gradients_are_wanted() -> None:
    x = torch.randn(64, 64, requires_grad=True)
    compiled = dsjit.compile_for(lambda x: x.sigmoid() * x.exp(), (x,), target="cuda:sm_90")
    assert len(compiled.kernels) == 2


def test_products_are_kernels_when_the_model_prefers_them() -> None:
    arguments = tuple(torch.randn(64, 64, dtype=torch.bfloat16) for _ in range(3))
    compiled = dsjit.compile_for(lambda x, y, z: (x @ y).relu() + z, arguments, target="cuda:sm_90", autotune="model")
    (kernel,) = compiled.kernels
    assert compiled.library == () and "tl.dot" in kernel.source.text and kernel.resources.spills == 0
    with pytest.raises(OptionError, match="measures nothing"):
        dsjit.compile_for(torch.relu, (torch.ones(2),), target="cuda:sm_90", autotune="measure")


def test_library_calls_are_named() -> None:
    compiled = dsjit.compile_for(
        lambda x, y: (x @ y).relu(), (torch.randn(8, 8), torch.randn(8, 8)), target="cuda:sm_80"
    )
    assert compiled.library == ("aten.mm.default",)
    assert "aten.mm.default" in str(compiled) and "registers" in str(compiled)


def test_modules_are_called_and_stay_as_they_are() -> None:
    module = torch.nn.LayerNorm(32).eval()
    with torch.no_grad():
        assert dsjit.compile_for(module, (torch.randn(4, 32),), target="cuda:sm_90").kernels
    assert module._compiled_call_impl is None


def test_what_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(OptionError, match="sm_<number>"):
        dsjit.compile_for(torch.relu, (torch.randn(3),), target="tpu")
    with pytest.raises(CaptureError, match="cannot be captured"):
        dsjit.compile_for(lambda x: open("/dev/null").close() or x + 1, (torch.randn(3),), target="cuda:sm_90")
