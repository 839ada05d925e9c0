"""Divides the time of a step over the ops that it fused.

What a kernel's machine code does for one op cannot be told from another's: their instructions are interleaved. So the
measured time is divided in proportion to a cost model: the bytes that an op alone makes the kernel load and store, and
its scalar operations. The sum is the measured time, whatever the model says.
"""

from __future__ import annotations

from typing import Final

from dsjit.codegen.placement import Step
from dsjit.fusion.costs import Costs
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.operands import NodeInfo, NodeKind
from dsjit.fusion.planner import FusionPlan
from dsjit.ir.graph import Node, Value
from dsjit.ir.print_graph import op_name
from dsjit.ops.gathers import GATHERS
from dsjit.profiler.profile import OpShare

__all__ = ["op_shares"]

NS_PER_BYTE: Final = 0.1
NS_PER_OPERATION: Final = 0.02
"""Of the model: some 10 GB/s from memory, and 50 additions a nanosecond in vector registers. An exponential counts as
`fusion.costs` has it. Only their ratio matters."""


def op_shares(step: Step, plan: FusionPlan, costs: Costs) -> tuple[OpShare, ...]:
    """The ops of a step with their shares of its time, which add up to 1; views and free ops have none."""
    if not isinstance(step.work, FusedKernel):
        return (_share(step.work.node, 1.0),)
    inside = {value for node in step.work.nodes for value in node.outputs}
    stored = set(step.work.writes)
    weights: list[float] = []
    for node in step.work.nodes:
        info = plan.info.get(node)
        moved = sum(value.type.nbytes for value in node.outputs if value in stored)
        moved += sum(
            _bytes_read(node, value) for value in dict.fromkeys(node.inputs()) if plan.views.base(value) not in inside
        )
        operations = _operations(node, info, costs) if info is not None else 0
        weights.append(NS_PER_BYTE * moved + NS_PER_OPERATION * operations)
    total = sum(weights)
    if not total:
        weights, total = [1.0] * len(weights), float(len(weights))
    return tuple([_share(node, weight / total) for node, weight in zip(step.work.nodes, weights, strict=True)])


def _bytes_read(node: Node, value: Value) -> int:
    """Of a table, as much as is picked."""
    picks = node.op in GATHERS and value is node.args[0]
    return min(value.type.nbytes, node.output.type.nbytes) if picks else value.type.nbytes


def _operations(node: Node, info: NodeInfo, costs: Costs) -> int:
    if info.kind is NodeKind.REDUCTION and info.operands:
        return info.operands[0].value.type.numel
    return costs.of(node, info) * node.output.type.numel


def _share(node: Node, share: float) -> OpShare:
    source = node.source
    return OpShare(op_name(node.op), source.file, source.line, source.function, source.scope, share)
