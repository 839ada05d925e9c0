"""Which steps a Program takes for its units of work, and which library nodes run natively."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import torch

from dsjit.codegen.gemm import MatmulPlan, plan_matmul
from dsjit.codegen.llvm.executor import gemm_available
from dsjit.codegen.llvm.templates.emit import Template
from dsjit.codegen.placement import Step
from dsjit.codegen.templates.convolution import ConvolutionPlan, plan_convolution
from dsjit.codegen.templates.masks import BitsPlan, plan_bits
from dsjit.codegen.templates.rows import AddRowsPlan, plan_add_rows
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.graph import Node, Value, is_dense
from dsjit.ops.library import out_variant
from dsjit.ops.properties import is_dynamic
from dsjit.ops.strided import strided_view

__all__ = ["NativePlan", "choose_steps", "library_aliases", "never_raising", "templates_of"]

NativePlan: TypeAlias = MatmulPlan | ConvolutionPlan | AddRowsPlan | BitsPlan
"""How a library node runs as a native step."""


def choose_steps(
    units: Sequence[FusedKernel | LibraryUnit], views: Views, device: torch.device
) -> tuple[list[Step], dict[Node, NativePlan]]:
    """The steps of a Program, and which library nodes run as native matrix products or templates.

    device: where planned memory is. What lies elsewhere, as numbers of the host's beside tensors of a GPU, the library
    makes.
    """
    native: dict[Node, NativePlan] = {}
    steps: list[Step] = []
    for unit in units:
        planned = False
        if isinstance(unit, LibraryUnit) and not unit.view and not unit.node.mutates:
            plan = _plan_native(unit.node, views)
            if plan is not None:
                native[unit.node] = plan
            planned = plan is not None or _takes_out(unit.node, device)
        steps.append(Step(unit, planned))
    return steps, native


def library_aliases(steps: Sequence[Step]) -> dict[Value, Value]:
    """The results of library calls that are views, and what each is a view of."""
    found: dict[Value, Value] = {}
    for step in steps:
        if isinstance(step.work, LibraryUnit) and not step.planned and (step.work.view or _aliases(step.work.node)):
            found.update((value, step.work.node.args[0]) for value in step.work.node.outputs)
    return found


def templates_of(native: Mapping[Node, NativePlan]) -> dict[Node, Template]:
    """The templates that have to be compiled, by node."""
    return {node: plan.template for node, plan in native.items() if not isinstance(plan, MatmulPlan)}


def never_raising(native: Mapping[Node, NativePlan]) -> frozenset[Node]:
    """The native steps that no content of their operands makes refuse the run."""
    return frozenset(node for node, plan in native.items() if not isinstance(plan, AddRowsPlan))


def _plan_native(node: Node, views: Views) -> NativePlan | None:
    if gemm_available() and (product := plan_matmul(node, views)) is not None:
        return product
    return plan_convolution(node, views) or plan_add_rows(node, views) or plan_bits(node, views)


def _takes_out(node: Node, device: torch.device) -> bool:
    if len(node.outputs) != 1 or node.effect or node.output.type.numel == 0 or node.output.type.device != device:
        return False
    if is_dynamic(node):  # `out=` would be resized, away from the buffer
        return False
    return out_variant(node.op) is not None and is_dense(node.output.type.shape, node.output.type.strides)


def _aliases(node: Node) -> bool:
    schema = getattr(node.op, "_schema", None)
    if schema is None:
        return node.op is strided_view
    return any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
