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

aten = torch.ops.aten

ROWS, FEATURES, CLASSES = 100, 8, 96
CHUNKS = 3


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(chunk_cross_entropy, "SMALLEST_LOGITS", 1)
    monkeypatch.setattr(chunk_cross_entropy, "has_matrix_units", lambda dtype: False)
    monkeypatch.setattr(spread_cross_entropy, "CHUNK_BYTES", 1)
    monkeypatch.setattr(spread_cross_entropy, "LEAST_ROWS", 36)  # 34 rows, so that the last chunk is shorter


FORMS = {
    "float32": (torch.float32, False),
    "bfloat16": (torch.bfloat16, False),
    "float16": (torch.float16, False),
    "bfloat16, converted": (torch.bfloat16, True),
    "float16, converted": (torch.float16, True),
}
"""dtypes, and whether logits are converted to float32."""

forms = pytest.mark.parametrize(("dtype", "widened"), FORMS.values(), ids=FORMS)


def layer(hidden, weight, bias, target):
    return F.cross_entropy(F.linear(hidden, weight, bias), target)


def converting_layer(hidden, weight, bias, target):
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), target)


def operands(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    shapes = ((ROWS, FEATURES), (CLASSES, FEATURES), (CLASSES,))
    tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
    target = torch.randint(0, CLASSES, (ROWS,), generator=generator)
    target[[3, 90]] = -100
    return tensors, target


def graph(dtype, reduction, bias, wanted, widened=False):
    results = ", ".join(f"t{number}" for number in range(4, 6 + sum(wanted)))
    name = SHORT_NAMES[dtype]
    return graph_from_text(
        f"def graph(x0: {name}[{ROWS}, {FEATURES}], x1: {name}[{FEATURES}, {CLASSES}], x2: {name}[{CLASSES}], "
        f"x3: i64[{ROWS}]):\n"
        f"    {results} = linear_cross_entropy("
        f"x0, x1, {'x2' if bias else None}, x3, {reduction}, -100, {list(wanted)}, {widened})\n"
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

    def best(self, what, runs, prepare=None):
        return int(what[0] == "library or kernel")


@forms
def test_a_program_of_four_kernels_for_each_chunk_is_as_precise_as_the_op(tmp_path, dtype, widened):
    before = graph(dtype, MEAN, True, (True, True, False), widened)
    driver = InterpretingDriver()
    machine = interpreting_machine(driver, NoLibrary(FakeMeter(float), Choices(tmp_path / "choices.json")))
    compilation = compile_gpu_graph(
        before, "eager", Environment(check=1), machine, StageTimer(), None, autotune="measure"
    )
    given = inputs(dtype)
    wide = [tensor.double() if tensor.is_floating_point() else tensor for tensor in given]
    exact = run_reference(graph(torch.float64, MEAN, True, (True, True, False)), wide)
    expected = run_reference(before, given)
    for _ in range(2):
        for found, one, truth in zip(compilation.program(given), expected, exact, strict=True):
            assert found.dtype is one.dtype
            error, allowed = ((each - truth).square().mean().sqrt() for each in (found, one))
            assert error <= max(1.5 * allowed, torch.finfo(found.dtype).eps * truth.abs().max())
    before_and_after = 3 if dtype is torch.float16 else 4  # its shares are divided by the count at the end
    assert len(driver.launched) == 2 * (4 * CHUNKS + before_and_after)


@forms
def test_a_chunk_is_three_products_and_one_kernel_along_its_rows(dtype, widened):
    (hidden, weight, _), target = operands(dtype)
    units = list(gpu_units(converting_layer if widened else layer, (hidden, weight, None, target)))
    calls = [unit for unit in units if isinstance(unit, str)]
    assert calls.count("aten.mm.default") + calls.count("wide_product") == 3 * CHUNKS
    along_rows = {aten.amax.default, aten.exp.default, aten.log.default}
    kernels = [{node.op for node in unit.nodes} for unit in units if isinstance(unit, FusedKernel)]
    assert sum(along_rows <= ops for ops in kernels) == sum(bool(along_rows & ops) for ops in kernels) == CHUNKS


@forms
@pytest.mark.parametrize("target", KNOWN_TARGETS)
def test_its_kernels_compile_without_spills(target, dtype, widened):
    machine = TritonTarget.parse(target)
    tensors, classes = operands(dtype)
    for unit in gpu_units(converting_layer if widened else layer, (*tensors, classes)):
        if isinstance(unit, FusedKernel):
            code = compile_source(emit_for_target(unit.kernel, machine), machine)
            assert resources(code).spills == 0, code.source.text


def test_a_target_that_is_no_class_is_an_error():
    after = spread_cross_entropy.spread_cross_entropy(graph(torch.float32, MEAN, False, (False, False, False)))
    given = inputs(torch.float32)
    given[3][5] = CLASSES
    with pytest.raises(IndexError):
        run_reference(after, given)
