"""A cross entropy in chunks is few products and kernels for each chunk, where kernels are for a GPU."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.api.cross_compile import gpu_units
from dsjit.codegen.triton.choices import Choices
from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emit import emit_for_target
from dsjit.codegen.triton.target import KNOWN_TARGETS, TritonTarget
from dsjit.codegen.triton.tuning import Tuner
from dsjit.config import Environment
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.dtypes import SHORT_NAMES
from dsjit.ops.cross_entropy import MEAN, SUM
from dsjit.passes import chunk_cross_entropy, spread_cross_entropy
from dsjit.passes.reference import run_reference
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine
from tests.codegen.triton.test_tuning import FakeMeter
from tests.graphs import graph_from_text

ROWS, FEATURES, CLASSES = 100, 8, 96
CHUNKS = 3


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunk_cross_entropy, "SMALLEST_LOGITS", 1)
    monkeypatch.setattr(spread_cross_entropy, "CHUNK_BYTES", 1)
    monkeypatch.setattr(spread_cross_entropy, "LEAST_ROWS", 36)  # 34 rows, so that the last chunk is shorter


def layer(hidden, weight, bias, target):
    return F.cross_entropy(F.linear(hidden, weight, bias), target)


def operands(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    tensors = [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]
    target = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    target[[3, 90]] = -100
    return tensors, target


def graph(dtype, reduction, bias, wanted):
    results = ", ".join(f"t{number}" for number in range(4, 6 + sum(wanted)))
    name = SHORT_NAMES[dtype]
    return graph_from_text(
        f"def graph(x0: {name}[{ROWS}, {FEATURES}], x1: {name}[{FEATURES}, {CLASSES}], x2: {name}[{CLASSES}], "
        f"x3: i64[{ROWS}]):\n"
        f"    {results} = linear_cross_entropy("
        f"x0, x1, {'x2' if bias else None}, x3, {reduction}, -100, {list(wanted)})\n"
        f"    return {results}\n"
    )


def inputs(dtype):
    (hidden, weight, bias), target = operands(dtype)
    return [hidden.detach(), weight.detach().t().contiguous(), bias.detach(), target]


@pytest.mark.parametrize("wanted", [(True, True, True), (False, True, False), (False, False, False)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("reduction", [MEAN, SUM])
def test_is_what_the_op_is(reduction, bias, wanted):
    """Both as the reference executor runs them; nothing is as large as all logits."""
    before, given = graph(torch.float64, reduction, bias, wanted), inputs(torch.float64)
    after = spread_cross_entropy.spread_cross_entropy(before)
    for found, expected in zip(run_reference(after, given), run_reference(before, given), strict=True):
        torch.testing.assert_close(found, expected)
    assert max(value.type.numel for node in after.nodes for value in node.outputs) < ROWS * CLASSES


class NoLibrary(Tuner):
    """Takes products as Kernels, in the best tiles by the model."""

    def best(self, what, runs):
        return int(what[0] == "library or kernel")


def test_a_program_of_four_kernels_for_each_chunk_is_as_precise_as_the_op(tmp_path):
    before = graph(torch.float32, MEAN, True, (True, True, False))
    driver = InterpretingDriver()
    machine = interpreting_machine(driver, NoLibrary(FakeMeter(float), Choices(tmp_path / "choices.json")))
    compilation = compile_gpu_graph(
        before, "eager", Environment(check=1), machine, StageTimer(), None, autotune="measure"
    )
    exact = run_reference(graph(torch.float64, MEAN, True, (True, True, False)), inputs(torch.float64))
    single = [tensor.float() if tensor.is_floating_point() else tensor for tensor in inputs(torch.float64)]
    for _ in range(2):
        eager = run_reference(before, single)
        for found, one, truth in zip(compilation.program(single), eager, exact, strict=True):
            error, allowed = ((each - truth).square().mean().sqrt() for each in (found, one))
            assert error <= max(1.5 * allowed, torch.finfo(torch.float32).eps * truth.abs().max())
    before_and_after = 4
    assert len(driver.launched) == 2 * (4 * CHUNKS + before_and_after)


def test_a_chunk_is_three_products_and_one_kernel_along_its_rows():
    tensors, target = operands()
    units = list(gpu_units(layer, (*tensors, target)))
    assert units.count("aten.mm.default") == 3 * CHUNKS
    kernels = [unit.kernel for unit in units if isinstance(unit, FusedKernel)]
    assert sum("amax" in kernel.name for kernel in kernels) == CHUNKS


@pytest.mark.parametrize("target", KNOWN_TARGETS)
def test_its_kernels_compile_without_spills(target):
    machine = TritonTarget.parse(target)
    tensors, classes = operands()
    for unit in gpu_units(layer, (*tensors, classes)):
        if isinstance(unit, FusedKernel):
            code = compile_source(emit_for_target(unit.kernel, machine), machine)
            assert resources(code).spills == 0, code.source.text


def test_a_target_that_is_no_class_is_an_error():
    after = spread_cross_entropy.spread_cross_entropy(graph(torch.float32, MEAN, False, (False, False, False)))
    given = inputs(torch.float32)
    given[3][5] = CLASSES
    with pytest.raises(IndexError):
        run_reference(after, given)
