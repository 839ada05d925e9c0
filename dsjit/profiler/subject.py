"""A Program that is profiled, with what it was made from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from dsjit.codegen.placement import Step
from dsjit.fusion.planner import FusionPlan
from dsjit.ir.graph import Graph, Node, Value
from dsjit.profiler.profile import Phase
from dsjit.profiler.recording import ProgramSamples

__all__ = ["Subject"]


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """name: of the function. captured, optimized, plan, steps, native: see `api.compile.Compilation`.

    samples: one for each shape that ran; Graphs and sizes are those of the typical one.
    arena_bytes, intermediate_bytes: of the Program. source: its text.
    saved: what the forward keeps. recomputed: nodes that the backward does again.
    fast: whether `numerics="fast"`. triton: text of its kernels for a GPU, by their names.
    """

    name: str
    phase: Phase
    captured: Graph
    optimized: Graph
    plan: FusionPlan
    steps: Sequence[Step]
    native: Collection[Node]
    samples: Sequence[ProgramSamples]
    arena_bytes: int
    intermediate_bytes: int
    source: str
    fast: bool = False
    triton: Mapping[str, str] = field(default_factory=dict)
    saved: Sequence[Value] = ()
    recomputed: Iterable[Node] = ()

    @property
    def on_device(self) -> bool:
        """Whether a GPU runs it."""
        return any(samples.timed.on_device for samples in self.samples)

    def reasons(self) -> Mapping[Node, list[str]]:
        """Why nodes were not fused, by producer and by consumer."""
        found: dict[Node, list[str]] = {}
        for reason in self.plan.reasons:
            for node in filter(None, (reason.producer, reason.consumer)):
                found.setdefault(node, []).append(str(reason))
        return found
