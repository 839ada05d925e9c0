"""From a recorded Graph to a Program: the whole compiler, top to bottom."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from dsjit.codegen.assemble import assemble, assemble_parts
from dsjit.codegen.footprint import Footprint, Timeline, footprint, memory_timeline
from dsjit.codegen.llvm.engine import CompiledKernel, KernelCache, Lookup
from dsjit.codegen.llvm.executor import DeviceKernel
from dsjit.codegen.llvm.templates.emit import Template
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.placement import Step
from dsjit.codegen.program import Program
from dsjit.codegen.sized_program import SizedProgram, SizeSource, kernels_for_sizes, make_sized_program
from dsjit.codegen.steps import NativePlan, choose_steps, templates_of
from dsjit.codegen.target import CPU_TARGET, Target
from dsjit.codegen.triton.program import GpuProgram
from dsjit.codegen.triton.replay import ReplayedProgram
from dsjit.codegen.watch import StepWatch
from dsjit.config import Environment, Numerics
from dsjit.dump import Dump
from dsjit.fusion.drop_roundings import drop_roundings
from dsjit.fusion.group import Group
from dsjit.fusion.lower import FusedKernel, lower_group
from dsjit.fusion.planner import FusionPlan, LibraryUnit, plan_fusion
from dsjit.ir.graph import Graph, Node
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.polynomial import PolynomialFit
from dsjit.ir.print_graph import print_graph
from dsjit.ir.print_kernel import print_kernel
from dsjit.ir.probes import LOWEST
from dsjit.ir.template import Mismatch
from dsjit.ir.verify_kernel import verify_kernel
from dsjit.passes.fuel import Fuel
from dsjit.passes.pipeline import SIZED_PASSES, run_passes
from dsjit.trace.looks.outcome import SMALLEST

__all__ = [
    "Compilation",
    "Lowered",
    "StageTimer",
    "compile_graph",
    "compile_part",
    "compile_template",
    "lower_graph",
    "lower_units",
    "print_stages",
]

PROBED_FROM: Final = (LOWEST, 4 * LOWEST, 16 * LOWEST)
"""Least sizes of the points at which a template is probed. Passes choose by sizes here and there (a reduction is split
from so many elements on). Where the points lie on both sides of such a bound, others are tried, beyond it."""

_MOST_CHECKED: Final = 243
"""Choices of small sizes for which a program for all sizes is looked at: all there are for five open sizes."""


@dataclass(slots=True)
class StageTimer:
    """Seconds spent in each stage of a compile, in order."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Compilation:
    """Everything that compiling one Graph produced.

    captured, optimized: the Graph before and after the passes (of typical sizes, where sizes are open).
    steps: in the order in which they run. native: library nodes that run as native steps.
    compiled: the machine code of fused kernels, and of nodes that have a template.
    generated, reused: kernels compiled now, and found in the cache.
    stages: the captured Graph, and the Graph after each pass, by its name, under DSJIT_CHECK=2.
    low_memory: of the Program, when it is to take little memory.
    """

    captured: Graph
    optimized: Graph
    plan: FusionPlan
    steps: tuple[Step, ...]
    compiled: Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel]
    native: Mapping[Node, NativePlan]
    program: Program | SizedProgram | GpuProgram | ReplayedProgram
    generated: int
    reused: int
    timer: StageTimer
    stages: tuple[tuple[str, Graph], ...] = ()
    low_memory: LowMemory | None = None

    @property
    def kernels(self) -> dict[FusedKernel, CompiledKernel | DeviceKernel]:
        """The machine code of the fused kernels."""
        return {work: code for work, code in self.compiled.items() if isinstance(work, FusedKernel)}


@dataclass(frozen=True, slots=True)
class Lowered:
    """A Graph that went through passes, fusion and lowering; nothing is emitted yet. The fields are those of
    `Compilation`; units: of fusion, kernels lowered."""

    captured: Graph
    optimized: Graph
    plan: FusionPlan
    units: tuple[FusedKernel | LibraryUnit, ...]
    steps: tuple[Step, ...]
    native: Mapping[Node, NativePlan]

    def footprint(self, low_memory: LowMemory) -> Footprint:
        """What its Program will take."""
        return footprint(self.optimized, self.steps, self.native, self.plan.views, low_memory)

    def timeline(self, low_memory: LowMemory) -> Timeline:
        """The same, step by step."""
        return memory_timeline(self.optimized, self.steps, self.native, self.plan.views, low_memory)


def lower_graph(
    graph: Graph,
    numerics: Numerics,
    target: Target,
    timer: StageTimer,
    *,
    check: bool = False,
    on_stage: Callable[[str, Graph], None] | None = None,
    fuel: Fuel | None = None,
) -> Lowered:
    """Optimise, fuse and lower `graph`. check, on_stage: of `run_passes`. Raises VerificationError."""
    with timer.stage("passes"):
        optimized = run_passes(graph, check=check, on_stage=on_stage, passes=target.passes, fuel=fuel)
    with timer.stage("fusion"):
        plan = plan_fusion(optimized, target.limits, target.device, fuel)
    with timer.stage("lowering"):
        units = lower_units(plan, numerics == "fast")
        steps, native = choose_steps(units, plan.views)
    return Lowered(graph, optimized, plan, tuple(units), tuple(steps), native)


def compile_graph(
    graph: Graph,
    numerics: Numerics,
    environment: Environment,
    cache: KernelCache,
    timer: StageTimer,
    dump: Dump | None,
    fuel: Fuel | None = None,
    low_memory: LowMemory | None = None,
    lowered: Lowered | None = None,
) -> Compilation:
    """Optimise, fuse, lower, emit and assemble `graph`.

    fuel: bounds the rewrites. Without it, all are done. low_memory: see `assemble`.
    lowered: of the same Graph, when there is one; it is taken unless the stages on the way to it have a reader.

    Raises VerificationError (under DSJIT_CHECK=1) and BackendError.
    """

    stages: list[tuple[str, Graph]] = []

    def on_stage(name: str, stage: Graph) -> None:
        if environment.check > 1:
            stages.append((name, stage))
        if dump is not None:
            dump.write_stage(name, stage)

    fast = numerics == "fast"
    on_stage("trace", graph)
    burnt = len(fuel.done) if fuel is not None else 0
    checks = environment.check > 0
    if lowered is None or checks or dump is not None or fuel is not None:
        lowered = lower_graph(graph, numerics, CPU_TARGET, timer, check=checks, on_stage=on_stage, fuel=fuel)
    _dump_rewrites(dump, fuel, burnt)
    optimized, plan, steps, native = lowered.optimized, lowered.plan, lowered.steps, lowered.native
    fused = [unit for unit in lowered.units if isinstance(unit, FusedKernel)]
    if environment.check:
        for kernel in fused:
            verify_kernel(kernel.kernel)
    if dump is not None:
        for kernel in fused:
            dump.write_kernel(print_kernel(kernel.kernel))
    with timer.stage("codegen"):
        templates = templates_of(native)
        result = cache.compile_kernels([*[kernel.kernel for kernel in fused], *templates.values()], fast)
        compiled = _by_work(fused, templates, result)
    if dump is not None and result.ir_text:
        dump.write("module.ll", result.ir_text)
    with timer.stage("assembly"):
        watch = StepWatch() if checks else None
        program = assemble(optimized, steps, native, plan.views, compiled, watch, checks, low_memory=low_memory)
    if dump is not None:
        dump.write("program.py", program.source)
    compilation = Compilation(
        graph, optimized, plan, steps, compiled, native, program, result.generated, result.reused, timer,
        tuple(stages), low_memory,
    )  # fmt: skip
    print_stages(compilation, environment.debug, result.ir_text)
    return compilation


def _by_work(
    fused: Sequence[FusedKernel], templates: Mapping[Node, Template], result: Lookup
) -> dict[FusedKernel | Node, CompiledKernel]:
    """The machine code of each fused kernel, and of each node that has a template."""
    return {
        **dict(zip(fused, result.kernels[: len(fused)], strict=True)),
        **dict(zip(templates, result.kernels[len(fused) :], strict=True)),
    }


def _dump_rewrites(dump: Dump | None, fuel: Fuel | None, burnt: int) -> None:
    """Which rewrites were done after the first `burnt` of the process, each with its number."""
    if dump is not None and fuel is not None:
        lines = [f"{burnt + number}: {rewrite}\n" for number, rewrite in enumerate(fuel.done[burnt:], 1)]
        dump.write("rewrites.txt", "".join(lines))


def lower_units(plan: FusionPlan, fast: bool) -> list[FusedKernel | LibraryUnit]:
    """The Kernel of each group, and what stays a library call. fast: values stay in float32 from op to op."""

    def lower(group: Group) -> FusedKernel:
        fused = lower_group(group, plan.info, plan.views)
        return replace(fused, kernel=drop_roundings(fused.kernel)) if fast else fused

    return [lower(unit) if isinstance(unit, Group) else unit for unit in plan.units]


def compile_part(graph: Graph, numerics: Numerics, cache: KernelCache) -> Program:
    """A Program for a part of a Graph that the passes have seen. Raises BackendError."""
    fast = numerics == "fast"
    plan = plan_fusion(graph, CPU_TARGET.limits, CPU_TARGET.device)
    units = lower_units(plan, fast)
    steps, native = choose_steps(units, plan.views)
    fused = [unit for unit in units if isinstance(unit, FusedKernel)]
    templates = templates_of(native)
    result = cache.compile_kernels([*[kernel.kernel for kernel in fused], *templates.values()], fast)
    return assemble(graph, steps, native, plan.views, _by_work(fused, templates, result))


def compile_template(
    template: GraphTemplate,
    sources: tuple[SizeSource, ...],
    typical: tuple[int, ...],
    numerics: Numerics,
    environment: Environment,
    cache: KernelCache,
    timer: StageTimer,
    dump: Dump | None,
    fuel: Fuel | None = None,
    smallest: int = SMALLEST,
) -> Compilation:
    """As `compile_graph`, for all sizes from `smallest` on: the pipeline runs at a few choices of sizes, and what
    differs between the results is a polynomial in the sizes. typical: what to optimise for; sources: where the sizes
    are read.

    Raises Mismatch when the choices lead to programs of different structure, and what `compile_graph` raises.
    """
    fast = numerics == "fast"
    with timer.stage("passes"):
        for lowest in PROBED_FROM:
            fit = template.probes(typical, lowest)
            points = fit.points
            captured = [template.at(point) for point in points]
            fuels = [None if fuel is None else fuel.fork() for _ in points]
            optimized = [
                run_passes(graph, check=environment.check > 0, passes=SIZED_PASSES, fuel=own)
                for graph, own in zip(captured, fuels, strict=True)
            ]
            if all(_same_ops(graph, optimized[0]) for graph in optimized):
                break
        else:
            raise Mismatch("other sizes are optimised in another way")
    with timer.stage("fusion"):
        limits, device = CPU_TARGET.limits, CPU_TARGET.device
        plans = [plan_fusion(optimized[0], limits, device, fuels[0])]
        for graph, own in zip(optimized[1:], fuels[1:], strict=True):
            plans.append(plan_fusion(graph, limits, device, own, like=plans[0]))
    if fuel is not None and fuels[0] is not None:
        burnt = len(fuel.done)
        fuel.adopt(fuels[0])
        _dump_rewrites(dump, fuel, burnt)
    with timer.stage("lowering"):
        units = [lower_units(plan, fast) for plan in plans]
        chosen = [choose_steps(each, plan.views) for each, plan in zip(units, plans, strict=True)]
        fused = [[unit for unit in each if isinstance(unit, FusedKernel)] for each in units]
        kernels = kernels_for_sizes([[unit.kernel for unit in each] for each in fused], fit, typical)
        _require_margins([[margin for unit in each for margin in unit.margins] for each in fused], fit, smallest)
    if environment.check:
        for kernel in kernels:
            verify_kernel(kernel.kernel)
    if dump is not None:
        dump.write_stage("trace", captured[0])
        for kernel in kernels:
            dump.write_kernel(print_kernel(kernel.kernel))
    with timer.stage("codegen"):
        templates = [templates_of(native) for _, native in chosen]
        result = cache.compile_kernels([*[kernel.kernel for kernel in kernels], *templates[0].values()], fast)
    compiled = [_by_work(each, nodes, result) for each, nodes in zip(fused, templates, strict=True)]
    with timer.stage("assembly"):
        sizes = [
            {unit: tuple([size.at(point) for size in kernel.sizes]) for unit, kernel in zip(each, kernels, strict=True)}
            for each, point in zip(fused, points, strict=True)
        ]
        parts = [
            assemble_parts(optimized[number], *chosen[number], plans[number].views, compiled[number], sizes[number])
            for number in range(len(points))
        ]
        program = make_sized_program(parts, fit, sources, typical)
    if dump is not None:
        dump.write("module.ll", result.ir_text)
        dump.write("program.py", program.source)
    steps, native = chosen[0]
    compilation = Compilation(
        captured[0], optimized[0], plans[0], tuple(steps), compiled[0], native, program, result.generated,
        result.reused, timer,
    )  # fmt: skip
    print_stages(compilation, environment.debug, result.ir_text)
    return compilation


def _require_margins(columns: Sequence[Sequence[int]], fit: PolynomialFit, smallest: int) -> None:
    """columns: the margins of all Kernels at each point of `fit`, which are large sizes: `x.reshape(-1)[:4]` is in the
    first row there. Raises Mismatch where it need not be so for smaller ones."""
    sizes = itertools.product((smallest, smallest + 1, 2 * LOWEST), repeat=len(fit.points[0]))
    checked = list(itertools.islice(sizes, _MOST_CHECKED))
    for margins in set(zip(*columns, strict=True)):
        if min(margins) < 0 or len(set(margins)) == 1:  # read under a condition only; the same for all sizes
            continue
        margin = fit.find(margins)
        if margin is None or any(margin.at(point) < 0 for point in checked):
            raise Mismatch("for small sizes, elements that are read in one row lie in several")


def _same_ops(graph: Graph, other: Graph) -> bool:
    return [node.op for node in graph.nodes] == [node.op for node in other.nodes]


def print_stages(compilation: Compilation, level: int, text: str) -> None:
    """What DSJIT_DEBUG asks for, on standard error. text: of the kernels, as they were emitted."""
    if level < 1:
        return
    seconds = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in compilation.timer.seconds.items())
    lines = [
        f"[dsjit] {compilation.captured.name}: {len(compilation.captured.nodes)} ops -> "
        f"{len(compilation.kernels)} kernels and {len(compilation.steps) - len(compilation.kernels)} library calls "
        f"({seconds})"
    ]
    if level >= 2:
        lines += [print_graph(compilation.captured), print_graph(compilation.optimized)]
    if level >= 3:
        lines += [print_kernel(kernel.kernel) for kernel in compilation.kernels]
        lines += [f"not fused: {reason}" for reason in compilation.plan.reasons]
    if level >= 4:
        lines.append(text)
    print("\n".join(lines), file=sys.stderr)
