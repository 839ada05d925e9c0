"""What to look at first, in words.

Each finding says which line costs what, why, and what may be done about it. `saves_ns` is the most that could be saved:
the measured time less what the step would take at the rates that this machine attains.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._ops import OpOverload

from dsjit.codegen.placement import Step
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node, Source, Value
from dsjit.ir.kernel import Kernel
from dsjit.profiler.general_findings import (
    WORTH_TELLING,
    above_bound,
    longest,
    of_calls,
    of_parts,
    place,
    products,
    slow_steps,
    small_steps,
)
from dsjit.profiler.profile import CompilerProfile, Finding, SampledLine, StepProfile, TimePart
from dsjit.profiler.traffic import reads_across
from dsjit.profiler.units import percent_text, time_text

__all__ = ["StepFacts", "copying_lines", "find", "widenings"]

aten = torch.ops.aten

_COPIES: Final[frozenset[Any]] = frozenset({aten.clone.default, aten._to_copy.default, aten.copy.default})
_SCATTERS: Final = ("scatter", "index_put", "index_add", "index_copy", "index_reduce", "put", "masked_scatter")
"""What names of ops begin with that write to places which tensors tell."""

MOST: Final = 12


@dataclass(frozen=True, slots=True)
class StepFacts:
    """What is known of a step beside its figures. kernel: of a fused step. widened: where float64 came from, in a step
    that computes in it. relaid: the line of a copy that only changes the layout. converted: of one that only changes
    the dtype. across: the line that reads memory
    with a stride. scatter: the line of a step that scatters. fast: whether numerics are "fast"."""

    kernel: Kernel | None = None
    widened: Source | None = None
    relaid: Source | None = None
    converted: Source | None = None
    across: Source | None = None
    scatter: Source | None = None
    fast: bool = False

    @classmethod
    def of(
        cls, step: Step, widened: Mapping[Value, Node], copying: frozenset[Source], views: Views, fast: bool
    ) -> StepFacts:
        """widened: see `widenings`. copying: see `copying_lines`."""
        fused = step.work if isinstance(step.work, FusedKernel) else None
        nodes = step.nodes
        values = [value for node in nodes for value in (*node.inputs(), *node.outputs)]
        wide = next((widened[value].source for value in values if value in widened), None)
        turned = reads_across(fused) if fused is not None else ()
        across = next((node.source for node in nodes for v in node.inputs() if views.base(v) in turned), None)
        relaid = converted = scatter = None
        origin = nodes[0].source if nodes[0].source in copying else None
        if all(node.op in _COPIES for node in nodes):
            if any(map(_changes_layout, nodes)):
                across, relaid = None, origin
            elif any(map(_changes_dtype, nodes)):
                converted = origin
        if fused is None and isinstance(nodes[0].op, OpOverload) and _name(nodes[0].op).startswith(_SCATTERS):
            scatter = nodes[0].source
        return cls(fused.kernel if fused is not None else None, wide, relaid, converted, across, scatter, fast)


def copying_lines(captured: Graph) -> frozenset[Source]:
    """The lines whose own ops copy; copies at others are the compiler's."""
    return frozenset(node.source for node in captured.nodes if node.op in _COPIES)


def widenings(graph: Graph, captured: Graph) -> dict[Value, Node]:
    """For each float64 Value that comes from narrower floats: the node that made float64 of them, on a line where the
    captured Graph has float64, too."""
    found: dict[Value, Node] = {}
    wide_lines = {node.source for node in captured.nodes if _is_wide(node)}
    for node in graph.nodes:
        if not _is_wide(node):
            continue
        inputs = list(node.inputs())
        before = next((found[value] for value in inputs if value in found), None)
        narrow = any(value.type.dtype in (torch.float32, torch.bfloat16, torch.float16) for value in inputs)
        wide = any(value.type.dtype is torch.float64 for value in inputs)
        origin = before or (node if narrow and not wide and node.source in wide_lines else None)
        if origin is not None:
            found.update((value, origin) for value in node.outputs)
    return found


def find(
    steps: Sequence[StepProfile],
    facts: Sequence[StepFacts],
    parts: Sequence[TimePart],
    compiler: CompilerProfile,
    sampled: Sequence[SampledLine],
) -> tuple[Finding, ...]:
    """The findings, those with a known cause and a large effect first; what is well as it is comes last."""
    whole = sum(part.ns for part in parts)
    known: list[Finding] = []
    told: set[int] = set()
    for kind in _KINDS:
        grouped: dict[tuple[str, int, str], list[StepProfile]] = {}
        for step, fact in zip(steps, facts, strict=True):
            source = kind.source(fact)
            if source is not None and step.number not in told and step.count:
                grouped.setdefault((source.file, source.line, source.function), []).append(step)
        for (file, line, function), group in grouped.items():
            saves = sum(kind.saves(step) for step in group)
            if saves >= WORTH_TELLING * whole:
                known.append(_of_line(kind, Source(file, line, function), group, saves, whole))
                told.update(step.number for step in group)
    known += of_calls(parts, compiler, sampled)
    known.sort(key=lambda finding: -finding.saves_ns)
    others = [*small_steps(steps, whole), *slow_steps(steps, told, whole), *of_parts(parts, compiler, sampled)]
    others.sort(key=lambda finding: -finding.saves_ns)
    return tuple([*known, *others, *products(steps, whole)][:MOST])


@dataclass(frozen=True, slots=True)
class _Kind:
    """A cause that is recognised. title: begins with the line. source, saves: of a step; saves in ns."""

    kind: str
    title: str
    text: str
    source: Callable[[StepFacts], Source | None]
    saves: Callable[[StepProfile], float]


_KINDS: Final = (
    _Kind(
        "float64",
        "turns narrower floats into float64, and what follows computes in it",
        "Twice the bytes move, and half as many numbers fit into a register. If the precision is not meant, keep the "
        "dtype (a Python float, numpy's default dtype or .double() are the usual causes); if it is, narrow right after "
        "the op that needs it.",
        lambda facts: facts.widened,
        lambda step: step.total_ns / 2,
    ),
    _Kind(
        "layout",
        "copies a tensor only to change its layout",
        "The same elements are written again in another order (contiguous(), reshape of a transposed view). Let the op "
        "before it write that layout, or use ops that take strides (matmul and einsum do).",
        lambda facts: facts.relaid,
        lambda step: step.total_ns,
    ),
    _Kind(
        "conversion",
        "does nothing but convert a dtype",
        "The whole tensor is read and written again, as no op before or after it is in the same kernel. Make the "
        "tensor in the dtype that is wanted, or convert next to an op that can be fused; convert weights once.",
        lambda facts: facts.converted,
        lambda step: step.total_ns,
    ),
    _Kind(
        "scatter",
        "scatters into memory, in a step of its own",
        "An op that writes to places which a tensor tells is not fused, and often runs on one thread. Sort the indices "
        "and sum the segments, use a matrix product with a one-hot matrix for few targets, or gather instead.",
        lambda facts: facts.scatter,
        above_bound,
    ),
    _Kind(
        "stride",
        "reads memory across its rows",
        "Neighbouring lanes take elements that are far apart: of each cache line that is loaded, a part is used. Put "
        "the dimension that varies fastest last, or transpose the smaller operand once.",
        lambda facts: facts.across,
        above_bound,
    ),
)


def _of_line(kind: _Kind, source: Source, group: Sequence[StepProfile], saves: float, whole: float) -> Finding:
    ns = sum(step.total_ns for step in group)
    steps = "1 step" if len(group) == 1 else f"{len(group)} steps"
    title = f"{place(source.file, source.line)} {kind.title}: {percent_text(ns / whole)} of the time"
    text = f"{steps}, {time_text(ns)} in all; up to {time_text(saves)} could be saved. {kind.text}"
    return Finding(
        kind.kind, title, text, saves, source.file, source.line, tuple(step.number for step in longest(group))
    )


def _is_wide(node: Node) -> bool:
    return any(value.type.dtype is torch.float64 for value in node.outputs)


def _changes_layout(node: Node) -> bool:
    source = next(node.inputs(), None)
    if source is None or source.type.dtype is not node.output.type.dtype:
        return False
    return source.type.strides != node.output.type.strides and node.output.type.numel > 1


def _changes_dtype(node: Node) -> bool:
    source = next(node.inputs(), None)
    return source is not None and source.type.dtype is not node.output.type.dtype


def _name(op: OpOverload) -> str:
    return op._schema.name.partition("::")[2].lstrip("_")
