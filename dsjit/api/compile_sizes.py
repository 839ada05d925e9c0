"""From a Graph with open sizes to a Program for all of them.

The compiler knows nothing of symbols: the pipeline runs at a few choices of sizes, its points, and what differs between
the results is a polynomial in the sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dsjit.api.compile import Compilation, StageTimer, by_work, dump_rewrites, lower_units, print_stages
from dsjit.codegen.assemble import assemble_parts
from dsjit.codegen.llvm.engine import CompiledKernel, KernelCache
from dsjit.codegen.llvm.executor import DeviceKernel
from dsjit.codegen.placement import Step
from dsjit.codegen.program import CPU_EXECUTOR, Executor
from dsjit.codegen.sized_program import (
    KernelForSizes,
    SizedProgram,
    SizeSource,
    kernels_for_sizes,
    make_sized_program,
)
from dsjit.codegen.steps import NativePlan, choose_steps, templates_of
from dsjit.codegen.target import CPU_TARGET, Target
from dsjit.config import Environment, Numerics
from dsjit.dump import Dump
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import FusionPlan, plan_fusion
from dsjit.ir.graph import Graph, Node
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.kernel import Kernel
from dsjit.ir.polynomial import PolynomialFit
from dsjit.ir.print_kernel import print_kernel
from dsjit.ir.probes import LOWEST
from dsjit.ir.template import Mismatch
from dsjit.ir.verify_kernel import verify_kernel
from dsjit.passes.fuel import Fuel
from dsjit.passes.pipeline import passes_for_sizes, run_passes
from dsjit.trace.looks.outcome import SMALLEST

__all__ = ["LoweredSizes", "assemble_sizes", "compile_template", "lower_template"]

PROBED_FROM: Final = (LOWEST, 4 * LOWEST, 16 * LOWEST)
"""Least sizes of the points at which a template is probed. Passes choose by sizes here and there (a reduction is split
from so many elements on). Where the points lie on both sides of such a bound, others are tried, beyond it."""

_MOST_CHECKED: Final = 243
"""Choices of small sizes for which a program for all sizes is looked at: all there are for five open sizes."""


@dataclass(frozen=True, slots=True)
class LoweredSizes:
    """A Graph with open sizes that went through passes, fusion and lowering; nothing is emitted yet.

    fit: at its points. captured, optimized: the Graphs of the points. plans, steps, native, fused: of each of these.
    kernels: with open sizes, in the order of `fused`. typical: what to optimise for.
    """

    fit: PolynomialFit
    typical: tuple[int, ...]
    captured: tuple[Graph, ...]
    optimized: tuple[Graph, ...]
    plans: tuple[FusionPlan, ...]
    steps: tuple[tuple[Step, ...], ...]
    native: tuple[Mapping[Node, NativePlan], ...]
    fused: tuple[tuple[FusedKernel, ...], ...]
    kernels: tuple[KernelForSizes, ...]

    @property
    def kernels_to_compile(self) -> list[Kernel]:
        return [kernel.kernel for kernel in self.kernels]


def lower_template(
    template: GraphTemplate,
    typical: tuple[int, ...],
    numerics: Numerics,
    environment: Environment,
    target: Target,
    timer: StageTimer,
    dump: Dump | None,
    fuel: Fuel | None = None,
    smallest: int = SMALLEST,
) -> LoweredSizes:
    """Optimise, fuse and lower, for all sizes from `smallest` on.

    Raises Mismatch when the choices of sizes lead to programs of different structure, and VerificationError (under
    DSJIT_CHECK=1).
    """
    passes = passes_for_sizes(target.passes)
    with timer.stage("passes"):
        for lowest in PROBED_FROM:
            fit = template.probes(typical, lowest)
            captured = tuple([template.at(point) for point in fit.points])
            fuels = [None if fuel is None else fuel.fork() for _ in fit.points]
            optimized = tuple([
                run_passes(graph, check=environment.check > 0, passes=passes, fuel=own)
                for graph, own in zip(captured, fuels, strict=True)
            ])  # fmt: skip
            if all(_same_ops(graph, optimized[0]) for graph in optimized):
                break
        else:
            raise Mismatch("other sizes are optimised in another way")
    with timer.stage("fusion"):
        limits, device = target.limits, target.device
        plans = [plan_fusion(optimized[0], limits, device, fuels[0])]
        for graph, own in zip(optimized[1:], fuels[1:], strict=True):
            plans.append(plan_fusion(graph, limits, device, own, like=plans[0]))
    if fuel is not None and fuels[0] is not None:
        burnt = len(fuel.done)
        fuel.adopt(fuels[0])
        dump_rewrites(dump, fuel, burnt)
    with timer.stage("lowering"):
        units = [lower_units(plan, numerics == "fast") for plan in plans]
        chosen = [choose_steps(each, plan.views, target) for each, plan in zip(units, plans, strict=True)]
        fused = tuple([tuple([unit for unit in each if isinstance(unit, FusedKernel)]) for each in units])
        kernels = kernels_for_sizes([[unit.kernel for unit in each] for each in fused], fit, typical)
        _require_margins([[margin for unit in each for margin in unit.margins] for each in fused], fit, smallest)
    if environment.check:
        for kernel in kernels:
            verify_kernel(kernel.kernel)
    if dump is not None:
        dump.write_stage("trace", captured[0])
        for kernel in kernels:
            dump.write_kernel(print_kernel(kernel.kernel))
    return LoweredSizes(
        fit, typical, captured, optimized, tuple(plans), tuple([tuple(steps) for steps, _ in chosen]),
        tuple([native for _, native in chosen]), fused, tuple(kernels),
    )  # fmt: skip


def assemble_sizes(
    lowered: LoweredSizes,
    compiled: Sequence[Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel]],
    sources: tuple[SizeSource, ...],
    executor: Executor,
) -> SizedProgram:
    """compiled: machine code by what it is for, at each point. sources: where the sizes are read. Raises Mismatch."""
    parts = []
    for number, point in enumerate(lowered.fit.points):
        sizes = {
            unit: tuple([size.at(point) for size in kernel.sizes])
            for unit, kernel in zip(lowered.fused[number], lowered.kernels, strict=True)
        }
        made = assemble_parts(
            lowered.optimized[number], lowered.steps[number], lowered.native[number], lowered.plans[number].views,
            compiled[number], sizes, executor,
        )  # fmt: skip
        parts.append(made)
    return make_sized_program(parts, lowered.fit, sources, lowered.typical)


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
    """As `compile_graph`, for all sizes from `smallest` on, on the CPU. typical: what to optimise for; sources: where
    the sizes are read.

    Raises what `lower_template` and `compile_graph` raise.
    """
    lowered = lower_template(template, typical, numerics, environment, CPU_TARGET, timer, dump, fuel, smallest)
    with timer.stage("codegen"):
        templates = [templates_of(native) for native in lowered.native]
        result = cache.compile_kernels([*lowered.kernels_to_compile, *templates[0].values()], numerics == "fast")
    with timer.stage("assembly"):
        compiled = [by_work(each, nodes, result) for each, nodes in zip(lowered.fused, templates, strict=True)]
        program = assemble_sizes(lowered, compiled, sources, CPU_EXECUTOR)
    if dump is not None:
        dump.write("module.ll", result.ir_text)
        dump.write("program.py", program.source)
    compilation = Compilation(
        lowered.captured[0], lowered.optimized[0], lowered.plans[0], lowered.steps[0], compiled[0], lowered.native[0],
        program, result.generated, result.reused, timer,
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
