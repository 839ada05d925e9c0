"""Every form of kernel of the benchmark's models, those that are trained too, and of the canonical list: in Triton's
interpreter it equals the definition. Those of the models compile for an H100 without spills, as those of the list do
(`test_cross_compile`).

Kernels of one form differ in numbers alone: the interpreters run a window of each, and the compiler gets the sizes that
the model has. Language models have one layer here, since all their layers are alike; so are the blocks of ResNets of 50
and of 152 layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import pytest
import torch

from benchmarks.training import models
from benchmarks.training.catalog import TRAINING
from benchmarks.training.catalog import find as find_training
from benchmarks.training.workload import Trainee
from benchmarks.workloads import language
from benchmarks.workloads.catalog import WORKLOADS, find
from dsjit.api.cross_compile import gpu_units
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.target import TritonTarget
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.kernel import Kernel
from tests.codegen.triton.canonical import CANONICAL
from tests.codegen.triton.running import outputs
from tests.codegen.triton.windows import buffers, form, window

ONE_LAYER: Final[dict[str, Callable[[], Any]]] = {
    "bert": language.bert(1),
    "gpt2": language.gpt2(1),
    "llama": language.llama(1),
}
ALIKE_IN_TRAINING: Final[dict[str, Callable[[], torch.nn.Module]]] = {
    "train_bert": models.bert_classifier(1),
    "train_gpt2": models.gpt2(1),
    "train_resnet152": models.image_classifier(50),
    "train_step_bert": models.bert_classifier(1),
}
SMALLEST: Final = 1
"""The input shape of each workload that is cheapest to run."""

H100: Final = TritonTarget.parse("cuda:sm_90")


def kernels(function: Callable[..., Any], arguments: tuple[Any, ...]) -> list[Kernel]:
    """One of each form."""
    units = [unit.kernel for unit in gpu_units(function, arguments) if isinstance(unit, FusedKernel)]
    return list({form(kernel): kernel for kernel in units}.values())


def equals_the_definition(kernel: Kernel) -> None:
    small = window(kernel)
    expected, actual = outputs(small, *buffers(small))
    for one, other in zip(expected, actual, strict=True):
        torch.testing.assert_close(other, one, equal_nan=True)


def compiles_without_spills(kernel: Kernel) -> None:
    code = compile_source(emit_kernel(kernel, H100.processors), H100)
    assert resources(code).spills == 0, code.source.text


@pytest.mark.parametrize("name", [workload.name for workload in WORKLOADS])
def test_the_kernels_of_a_workload(name: str) -> None:
    torch.manual_seed(20)
    workload = find(name)
    program = ONE_LAYER.get(name, workload.model)()
    if isinstance(program, torch.nn.Module):
        program.eval()
    with torch.no_grad():
        found = kernels(program, workload.arguments(torch.float32, SMALLEST))
    assert found
    for kernel in found:
        equals_the_definition(kernel)
        compiles_without_spills(kernel)


@pytest.mark.parametrize("name", [workload.name for workload in TRAINING])
def test_the_kernels_of_a_training_workload(name: str) -> None:
    """Of forward and backward, or of a whole step once the optimizer has its state."""
    workload = find_training(name)
    workload = replace(workload, model=ALIKE_IN_TRAINING.get(name, workload.model))
    trainee = Trainee(workload, *workload.build())
    if workload.whole_step:
        trainee.step()
    found = kernels(trainee.loss, trainee.inputs)
    assert found
    for kernel in found:
        equals_the_definition(kernel)
        compiles_without_spills(kernel)


@pytest.mark.parametrize("name", CANONICAL)
def test_the_kernels_of_the_canonical_list(name: str) -> None:
    found = kernels(*CANONICAL[name])
    assert found
    for kernel in found:
        equals_the_definition(kernel)
