"""From a recorded Graph on a GPU to a Program: as `api.compile`, with Triton's kernels."""

from __future__ import annotations

import torch

from dsjit.api.compile import Compilation, StageTimer, lower_units, print_stages
from dsjit.api.compile_sizes import assemble_sizes, lower_template
from dsjit.codegen.assemble import assemble
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.llvm.executor import DeviceKernel
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.sized_program import SizeSource
from dsjit.codegen.steps import choose_steps
from dsjit.codegen.target import gpu_target
from dsjit.codegen.templates.attention import FusedAttention
from dsjit.codegen.templates.attention_backends import AttentionBackend
from dsjit.codegen.templates.fuse import fuse_templates
from dsjit.codegen.templates.product import FusedProduct
from dsjit.codegen.triton.attention_choice import choose_attention
from dsjit.codegen.triton.machine import GpuMachine
from dsjit.codegen.triton.program import GpuProgram, gpu_executor
from dsjit.codegen.triton.replay import ReplayedProgram, can_be_replayed, replayed
from dsjit.codegen.triton.tuning import measured_preference, saves_traffic
from dsjit.config import Autotune, Environment, Numerics
from dsjit.dump import Dump
from dsjit.errors import BackendError
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import plan_fusion
from dsjit.ir.graph import Graph, Node
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.print_graph import op_name
from dsjit.ir.print_kernel import print_kernel
from dsjit.ir.verify_graph import verify_graph
from dsjit.ir.verify_kernel import verify_kernel
from dsjit.passes.fuel import Fuel, Rewrite
from dsjit.passes.pipeline import run_passes
from dsjit.trace.looks.outcome import SMALLEST

__all__ = ["choose_libraries", "compile_gpu_graph", "compile_gpu_template", "gpu_of"]


def gpu_of(graph: Graph) -> torch.device | None:
    """The GPU whose tensors the Graph computes with; None when there are none. Raises BackendError for several."""
    values = [*graph.inputs, *graph.constants, *[value for node in graph.nodes for value in node.outputs]]
    devices = dict.fromkeys(value.type.device for value in values if value.type.device.type == "cuda")
    if len(devices) > 1:
        raise BackendError(f"{graph.name} computes on several GPUs: {', '.join(map(str, devices))}")
    return next(iter(devices), None)


def choose_libraries(graph: Graph, machine: GpuMachine, fuel: Fuel | None) -> Graph:
    """`graph` with the fastest op of those that libraries have for one thing, measured. A forward that keeps something
    for a backward is not replaced without it: of those that will be cut apart, the whole is to be given first."""
    if machine.tuner is None:
        return graph

    def may(node: Node, backend: AttentionBackend) -> bool:
        rewrite = Rewrite("library", str(node.op), node.source, f"by {op_name(backend.forward)}")
        return fuel is None or fuel.burn(rewrite)

    return choose_attention(graph, machine.tuner, machine.attention, may)


def compile_gpu_graph(
    graph: Graph,
    numerics: Numerics,
    environment: Environment,
    machine: GpuMachine,
    timer: StageTimer,
    dump: Dump | None,
    fuel: Fuel | None = None,
    autotune: Autotune = "off",
    low_memory: LowMemory | None = None,
    cuda_graphs: bool = False,
) -> Compilation:
    """Optimise, fuse, lower, emit and assemble `graph` for the GPU that its tensors are on.

    fuel: bounds the rewrites. Without it, all are done. autotune, cuda_graphs: as the options have them.
    low_memory: see `assemble`; what offloads is not recorded.
    Raises VerificationError (under DSJIT_CHECK=1) and BackendError.
    """
    target, fast = gpu_target(machine.device), numerics == "fast"
    checks = environment.check > 0

    def on_stage(name: str, stage: Graph) -> None:
        if dump is not None:
            dump.write_stage(name, stage)

    on_stage("trace", graph)
    with timer.stage("passes"):
        optimized = run_passes(graph, check=checks, passes=target.passes, fuel=fuel, on_stage=on_stage)
    if autotune == "measure":
        with timer.stage("libraries"):
            optimized = choose_libraries(optimized, machine, fuel)
        on_stage("choose_libraries", optimized)
        if checks:
            verify_graph(optimized, run_ops=True)
    with timer.stage("fusion"):
        plan = plan_fusion(optimized, target.limits, target.device, fuel)
    with timer.stage("lowering"):
        tuner = machine.tuner if autotune == "measure" else None
        prefers = saves_traffic if tuner is None else measured_preference(tuner, machine.kernels, fast)
        units = lower_units(plan, fast)
        if autotune != "off":

            def may(choice: FusedProduct | FusedAttention) -> bool:
                node = choice.node
                return prefers(choice) and (fuel is None or fuel.burn(Rewrite("kernel", str(node.op), node.source)))

            units = fuse_templates(units, plan.views, optimized, fast, may)
        steps, native = choose_steps(units, plan.views, target)
    fused = [step.work for step in steps if isinstance(step.work, FusedKernel)]
    for unit in fused:
        if checks:
            verify_kernel(unit.kernel)
        if dump is not None:
            dump.write_kernel(print_kernel(unit.kernel))
    with timer.stage("codegen"):
        found = machine.kernels.compile_kernels([unit.kernel for unit in fused], fast, tuner)
        compiled: dict[FusedKernel | Node, CompiledKernel | DeviceKernel] = dict(zip(fused, found.kernels, strict=True))
    with timer.stage("assembly"):
        program = assemble(
            optimized, steps, native, plan.views, compiled, check=checks, executor=gpu_executor(machine.device),
            low_memory=low_memory,
        )  # fmt: skip
    if dump is not None:
        dump.write("kernels.py", found.text)
        dump.write("program.py", program.source)
    launched = GpuProgram(program, machine.device_guard, machine.current_stream, machine.new_event)
    runs: GpuProgram | ReplayedProgram = launched
    recorder = machine.recorder if cuda_graphs and (low_memory is None or low_memory.tier is None) else None
    if recorder is not None and can_be_replayed(optimized, steps, machine.device):
        runs = replayed(launched, recorder, optimized, low_memory)
    compilation = Compilation(
        graph, optimized, plan, tuple(steps), compiled, native, runs, found.generated, found.reused, timer,
        low_memory=low_memory,
    )  # fmt: skip
    print_stages(compilation, environment.debug, found.text)
    return compilation


def compile_gpu_template(
    template: GraphTemplate,
    sources: tuple[SizeSource, ...],
    typical: tuple[int, ...],
    numerics: Numerics,
    environment: Environment,
    machine: GpuMachine,
    timer: StageTimer,
    dump: Dump | None,
    fuel: Fuel | None = None,
    smallest: int = SMALLEST,
) -> Compilation:
    """As `compile_gpu_graph`, for all sizes: see `compile_template`. Products and attention are library calls."""
    target = gpu_target(machine.device)
    lowered = lower_template(template, typical, numerics, environment, target, timer, dump, fuel, smallest)
    with timer.stage("codegen"):
        found = machine.kernels.compile_kernels(lowered.kernels_to_compile, numerics == "fast")
    with timer.stage("assembly"):
        compiled: list[dict[FusedKernel | Node, CompiledKernel | DeviceKernel]] = [
            dict(zip(each, found.kernels, strict=True)) for each in lowered.fused
        ]
        program = assemble_sizes(lowered, compiled, sources, gpu_executor(machine.device))
    if dump is not None:
        dump.write("kernels.py", found.text)
        dump.write("program.py", program.source)
    launched = GpuProgram(program, machine.device_guard, machine.current_stream, machine.new_event)
    compilation = Compilation(
        lowered.captured[0], lowered.optimized[0], lowered.plans[0], lowered.steps[0], compiled[0], lowered.native[0],
        launched, found.generated, found.reused, timer,
    )  # fmt: skip
    print_stages(compilation, environment.debug, found.text)
    return compilation
