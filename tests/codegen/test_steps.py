"""Which steps a Program takes for library nodes, by where their tensors are."""

from __future__ import annotations

import torch

from dsjit.codegen.steps import choose_steps
from dsjit.codegen.target import CPU_TARGET, Target, gpu_target
from dsjit.fusion.planner import LibraryUnit, plan_fusion
from dsjit.trace.capture import capture

META = torch.device("meta")
"""Stands for a device that is not the CPU."""


def planned(target: Target, x: torch.Tensor, y: torch.Tensor) -> tuple[list[bool], int]:
    """Which library nodes get planned memory, and how many run natively."""
    captured = capture(lambda x, y: (x @ x, y @ y), (x, y), {}, "f")
    (segment,) = captured.segments
    plan = plan_fusion(segment.graph, target.limits, target.device)
    steps, native = choose_steps([unit for unit in plan.units if isinstance(unit, LibraryUnit)], plan.views, target)
    return [step.planned for step in steps], len(native)


def test_what_is_on_another_device_has_no_memory_of_the_programs() -> None:
    cpu, other = torch.ones(4, 4), torch.ones(4, 4, device=META)
    assert planned(CPU_TARGET, cpu, other) == ([True, False], 1)
    assert planned(gpu_target(META), cpu, other) == ([False, True], 0)
