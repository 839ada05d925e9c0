"""What a profile as a whole is told of: in words, with what to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.profiler.findings import StepFacts, copying_lines
from dsjit.profiler.general_findings import of_parts, products, slow_steps, small_steps
from dsjit.profiler.profile import CompilerProfile, SampledLine, StepProfile, TimePart
from tests.profiler.programs import MACHINE

COMPILER = CompilerProfile({"trace": 0.5, "codegen": 2.0}, 0, 0, 0, 0, ())


@pytest.fixture(scope="module")
def product() -> StepProfile:
    """The step of one matrix product."""
    jitted = dsjit.jit(torch.mm)
    x, y = torch.randn(256, 256), torch.randn(256, 256)
    jitted(x, y)
    found = dsjit.Profile("product", machine=MACHINE)
    with found:
        jitted(x, y)
    (step,) = found.data.steps
    return step


def taking(step: StepProfile, number: int, median_ns: float, bound_ns: float, count: int = 10) -> StepProfile:
    return replace(
        step, number=number, count=count, median_ns=median_ns, bound_ns=bound_ns, total_ns=count * median_ns,
        launch_ns=0.0,
    )  # fmt: skip


@pytest.mark.parametrize(("attained", "told"), [(0.9, True), (0.5, False)])
def test_products_at_the_rate_of_the_machine_are_well_as_they_are(
    product: StepProfile, attained: float, told: bool
) -> None:
    steps = [taking(product, number, 1e6, attained * 1e6) for number in range(3)]
    found = list(products(steps, whole=4e7))
    assert [finding.kind for finding in found] == ["products"] * told
    if told:
        assert found[0].title == (
            "75 % of the time is matrix products and convolutions, at 90 % of what this machine attains"
        )
        assert found[0].saves_ns == 0 and "nothing to fuse" in found[0].text


def test_products_that_take_little_of_the_time_are_not_told(product: StepProfile) -> None:
    assert list(products([taking(product, 0, 1e6, 1e6)], whole=1e8)) == []


@pytest.mark.parametrize(("count", "told"), [(12, 1), (3, 0)])
def test_many_steps_that_do_next_to_nothing_are_told(product: StepProfile, count: int, told: int) -> None:
    steps = [taking(product, number, 2e3, 1e3) for number in range(count)]
    found = list(small_steps(steps, whole=3e5))
    assert [finding.kind for finding in found] == ["small"] * told
    assert all(f"{count} of {count} steps take less than 5 µs each" in finding.title for finding in found)


def test_steps_of_one_kind_that_are_slow_are_one_finding(product: StepProfile) -> None:
    steps = [taking(product, number, 1e6, 1e5) for number in range(3)]
    (found,) = slow_steps(steps, {2}, whole=3e7)
    assert found.kind == "slow" and found.steps == (0, 1)
    assert "with 1 other like it, reaches 10 %" in found.text


def test_a_large_part_is_told_with_its_lines() -> None:
    part = TimePart("outside jitted calls", 8e6, 0.8, "your Python")
    lines = [
        SampledLine(part.name, "optimizer", "/models/train.py", 7, "train", "optimizer.step()", 6e6, 0.6, 6),
        SampledLine(part.name, "torch", "/models/train.py", 9, "train", "", 2e6, 0.2, 2),
    ]
    (found,) = of_parts([part, TimePart("kernels and library calls", 2e6, 0.2, "")], COMPILER, lines)
    assert found.title == "80 % of the time is outside jitted calls"
    assert "train.py:7 (optimizer) 75 %, train.py:9 (torch) 25 %" in found.text
    assert (found.file, found.line) == ("/models/train.py", 7)


def test_the_longest_stage_of_the_compiler_is_told() -> None:
    (found,) = of_parts([TimePart("tracing and compiling", 1e9, 1.0, "first calls")], COMPILER, ())
    assert "longest stage is codegen, with 2 s" in found.text


@pytest.mark.parametrize(
    ("changed", "told"),
    [(lambda x: x.to(torch.bfloat16), True), (lambda x: x.exp().to(torch.bfloat16), False)],
    ids=["nothing else", "after another op"],
)
def test_a_kernel_that_only_converts_a_dtype_is_known(changed: Callable[[Tensor], Tensor], told: bool) -> None:
    jitted = dsjit.jit(lambda x: changed(x).sort(-1).values)
    jitted(torch.randn(20, 3))
    (compilation,) = jitted_of(jitted).compilations
    views, copying = compilation.plan.views, copying_lines(compilation.captured)
    facts = [StepFacts.of(step, {}, copying, views, False) for step in compilation.steps]
    lines = [fact.converted.line for fact in facts if fact.converted is not None]
    assert lines == [changed.__code__.co_firstlineno] * told
