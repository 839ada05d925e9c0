"""The programs of one jitted function: found among those of the session, or compiled."""

from __future__ import annotations

import functools
import gc
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

import torch

from dsjit.api.checking import checked_program
from dsjit.api.compile import Compilation, Lowered, StageTimer, compile_graph, lower_graph
from dsjit.api.compile_gpu import choose_libraries, compile_gpu_graph, compile_gpu_template, gpu_of
from dsjit.api.compile_sizes import compile_template
from dsjit.api.hosted_program import hosted_program
from dsjit.api.memory_budget import low_memory, offloadable, plan_training
from dsjit.api.session import Session
from dsjit.api.split_program import SplitProgram, run_behind
from dsjit.api.stats import Counters
from dsjit.api.trace_nodes import Runner, Step
from dsjit.api.training import make_training
from dsjit.api.training_groups import OpenTraining
from dsjit.codegen.interpret import InterpretedProgram, KernelRunner
from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.offload.stores import HOST_MEMORY, OffloadTier, file_in
from dsjit.codegen.program import Program
from dsjit.codegen.sized_program import SizedProgram, SizeSource
from dsjit.codegen.target import CPU_TARGET, gpu_target
from dsjit.codegen.templates.attention_backends import enabled_backends
from dsjit.codegen.triton.load import triton_interpreter
from dsjit.config import Options, parse_bytes
from dsjit.dump import Dump, open_dump
from dsjit.ir.graph import Graph
from dsjit.ir.graph_template import GraphTemplate, make_graph_template
from dsjit.ir.joint_graph import JointGraph, JointTemplate
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import TemplateMaker
from dsjit.oracle.checked import CheckedProgram
from dsjit.passes.partition import partition
from dsjit.passes.pipeline import JOINT_PASSES, hand_over, run_passes
from dsjit.passes.reference import run_reference
from dsjit.passes.segments import checkpointed_nodes
from dsjit.passes.split_host import split_host
from dsjit.passes.split_step import split_step
from dsjit.trace.looks.outcome import SMALLEST
from dsjit.trace.looks.segments import Segment
from dsjit.trace.shapes.open_shapes import OpenShapes

__all__ = ["Builder", "no_collection"]

_INTERPRETERS: Final[dict[str, Callable[[], KernelRunner]]] = {
    "interpreter": lambda: run_kernel,
    "triton-interpret": triton_interpreter,
}
"""By the option `backend`: makes what runs Kernels in place of machine code."""


@dataclass(slots=True, eq=False)
class Builder:
    """name: how dumps call the function. counters: are told what was compiled, and what was found."""

    options: Options
    session: Session
    name: str
    counters: Counters
    lock: threading.RLock = field(default_factory=threading.RLock)

    def segment(self, segment: Segment, timer: StageTimer) -> Step:
        """The program of a segment, or what the option `backend` runs in its place. Raises Mismatch when it has open
        sizes, and no program serves them all."""
        if segment.sizes is not None and segment.sizes.template.sizes:
            compilation = self._open_sizes(segment.sizes, timer)
            return Step(segment, compilation, compilation.program)
        return self._hosted(segment, timer) or self._unhosted(segment, timer)

    def _unhosted(self, segment: Segment, timer: StageTimer) -> Step:
        """All of a segment of known sizes, on one device."""
        split = self._split(segment, timer)
        if split is not None:
            return split
        compilation = self._graph(segment.graph, timer)
        run: Runner = compilation.program
        if self.options.backend == "eager":
            run = functools.partial(_run_eagerly, compilation.captured)
        elif self.options.backend in _INTERPRETERS:
            runner = _INTERPRETERS[self.options.backend]()
            run = InterpretedProgram(compilation.optimized, compilation.steps, compilation.plan.views, runner)
        elif compilation.stages:
            run = self._checked(compilation)
        return Step(segment, compilation, run)

    def _checked(self, compilation: Compilation) -> CheckedProgram:
        return checked_program(compilation, self.options.numerics, self.session.kernels)

    def _hosted(self, segment: Segment, timer: StageTimer) -> Step | None:
        """What the host computes for a GPU, and then the rest; None where the host computes nothing."""
        gpu = gpu_of(segment.graph) if self.options.backend == "triton" else None
        found = None if gpu is None else split_host(segment.graph, gpu)
        if found is None:
            return None
        session = self.session
        host = self._found_or_made(
            (graph_structure(found.host),),
            lambda dump: compile_graph(
                found.host, self.options.numerics, session.environment, session.kernels, timer, dump, session.fuel
            ),
        )
        assert isinstance(host.program, Program)
        step = self._unhosted(replace(segment, graph=found.device), timer)
        run = hosted_program(found, host.program, step.run)
        return replace(step, segment=segment, run=run, ahead=(host, *step.ahead))

    def _split(self, segment: Segment, timer: StageTimer) -> Step | None:
        """A whole step in two Programs; None when one is better, or something else than machine code runs."""
        graph = segment.graph
        checked = self.session.environment.check > 1
        elsewhere = self.options.backend != "triton" and gpu_of(graph) is not None
        if checked or self.options.backend in ("eager", *_INTERPRETERS) or elsewhere:
            return None
        with timer.stage("partition"):
            found = split_step(graph, functools.partial(run_passes, passes=JOINT_PASSES))
            if found is None:
                return None
            halves = hand_over(found)
        handed_on = frozenset(range(len(halves.forward.outputs)))
        forward = self._graph(halves.forward, timer, LowMemory(handed_on=handed_on))
        own = range(len(graph.inputs), len(halves.backward.inputs))
        backward = self._graph(halves.backward, timer, LowMemory(frozenset(own)))
        assert not isinstance(forward.program, SizedProgram) and not isinstance(backward.program, SizedProgram)
        run = SplitProgram(forward.program, run_behind(forward.program, backward.program))
        return Step(segment, backward, run, ahead=(forward,))

    def training(self, joint: JointGraph, timer: StageTimer) -> Step:
        """A forward, compiled now, and its backward, which is compiled when it is first wanted."""
        session = self.session
        options = self.options
        budget = None if options.memory_budget is None else parse_bytes(options.memory_budget)
        key = (options.numerics, self._gpu_options, budget, options.offload_dir, options.offload_to_host)
        structure = (*key, graph_structure(joint.graph), joint.key, joint.regions)
        training = session.trainings.get(structure)
        if training is None:
            with timer.stage("passes"):
                simple = run_passes(joint.graph, check=session.environment.check > 0, passes=JOINT_PASSES)
            gpu = self._gpu(simple)
            if gpu is not None and options.autotune == "measure":
                with timer.stage("libraries"):
                    simple = choose_libraries(simple, session.gpu(gpu), session.fuel)
            simplified = replace(joint, graph=simple)
            tier = offload_tier(options, gpu_of(simple) is not None)
            memory = None
            lowered: tuple[Lowered | None, Lowered | None] = (None, None)
            if budget is None:
                with timer.stage("partition"):
                    halves = hand_over(partition(simplified, checkpointed_nodes(simplified)))
                stored = () if tier is None else offloadable(halves, tier)
                ways = low_memory(halves, joint.results, stored, tier)
            else:
                with timer.stage("memory_plan"):
                    plan = plan_training(simplified, budget, self._lower, tier)
                halves, memory, ways = plan.partition, plan.memory, (plan.forward, plan.backward)
                lowered = plan.lowered
            forward = self._graph(halves.forward, timer, ways[0], lowered[0])
            backward = functools.partial(self._backward, lowered=lowered[1])
            checked = self._checked if forward.stages else None
            training = make_training(
                simplified, halves, forward, backward, low_memory=ways[1], memory=memory, checked=checked
            )
            session.trainings[structure] = training
        return Step(Segment(training.partition.forward, None), training.forward, training)

    def open_training(self, sizes: OpenShapes, joint: JointTemplate, timer: StageTimer) -> Step:
        """The same for many sizes. sizes: of the segment. Raises Mismatch when no program serves them all."""
        session = self.session
        key = (
            self.options.numerics, self._gpu_options, joint.example.structure, joint.example.regions, joint.sources,
            joint.template.quotients,
        )  # fmt: skip
        structure = (*key, *map(graph_structure, joint.template.canonical()))
        training = session.trainings.get(structure)
        if training is None:
            typical = joint.typical
            fit = joint.template.probes(typical)
            with timer.stage("passes"):
                joints = [joint.at(point) for point in fit.points]
                simplified = [replace(each, graph=run_passes(each.graph, passes=JOINT_PASSES)) for each in joints]
            with timer.stage("partition"):
                regions = [checkpointed_nodes(each) for each in simplified]
                first = partition(simplified[0], regions[0])
                rest = zip(simplified[1:], regions[1:], strict=True)
                halves = [first, *[partition(each, chosen, like=first) for each, chosen in rest]]
                forwards, backwards = (
                    make_graph_template([getattr(each, half) for each in halves], TemplateMaker(fit))
                    for half in ("forward", "backward")
                )
            forward = self._template(forwards, joint.sources, typical, timer)

            def compile(graph: Graph | GraphTemplate, low_memory: LowMemory | None) -> Compilation:
                assert isinstance(graph, GraphTemplate) and low_memory is None
                with self.lock, no_collection():
                    return self._template(graph, (), typical, StageTimer())

            training = make_training(simplified[0], halves[0], forward, compile, sizes=OpenTraining(joint, backwards))
            session.trainings[structure] = training
        return Step(Segment(training.partition.forward, None, sizes=sizes), training.forward, training)

    def _open_sizes(self, sizes: OpenShapes, timer: StageTimer) -> Compilation:
        return self._template(sizes.template, sizes.sources, sizes.typical, timer, sizes.smallest)

    def _template(
        self,
        template: GraphTemplate,
        places: tuple[tuple[int, int], ...],
        typical: tuple[int, ...],
        timer: StageTimer,
        smallest: int = SMALLEST,
    ) -> Compilation:
        """places: where the sizes are read. smallest: of them. Raises Mismatch."""
        session = self.session
        sources = tuple([SizeSource(*place) for place in places])
        structure = (places, smallest, template.quotients, *map(graph_structure, template.canonical()))
        gpu = self._gpu(template.example)
        if gpu is not None:
            return self._found_or_made(
                ("triton", *structure),
                lambda dump: compile_gpu_template(
                    template, sources, typical, self.options.numerics, session.environment, session.gpu(gpu), timer,
                    dump, session.fuel, smallest,
                ),
            )  # fmt: skip
        return self._found_or_made(
            structure,
            lambda dump: compile_template(
                template, sources, typical, self.options.numerics, session.environment, session.kernels, timer,
                dump, session.fuel, smallest,
            ),
        )  # fmt: skip

    def _backward(
        self, graph: Graph | GraphTemplate, low_memory: LowMemory | None, lowered: Lowered | None = None
    ) -> Compilation:
        """lowered: of the backward of all results."""
        assert isinstance(graph, Graph)
        with self.lock, no_collection():
            known = lowered if lowered is not None and lowered.captured is graph else None
            return self._graph(graph, StageTimer(), low_memory, known)

    def _gpu(self, graph: Graph) -> torch.device | None:
        """What the Graph's kernels are for, if that is a GPU."""
        return gpu_of(graph) if self.options.uses_gpus else None

    def _lower(self, graph: Graph) -> Lowered:
        gpu = self._gpu(graph)
        target = CPU_TARGET if gpu is None else gpu_target(gpu)
        return lower_graph(graph, self.options.numerics, target, StageTimer())

    @property
    def _gpu_options(self) -> Hashable:
        """What Programs for a GPU depend on besides the Graph: libraries that are switched off are no longer chosen."""
        options = self.options
        if not options.uses_gpus:
            return None
        return options.autotune, options.cuda_graphs, options.autotune == "measure" and enabled_backends()

    def _graph(
        self,
        graph: Graph,
        timer: StageTimer,
        low_memory: LowMemory | None = None,
        lowered: Lowered | None = None,
    ) -> Compilation:
        """lowered: for the CPU, of this Graph."""
        session, numerics = self.session, self.options.numerics
        gpu = self._gpu(graph)
        if gpu is not None:
            # A recording keeps its memory from call to call, which no budget counts.
            recorded = self.options.cuda_graphs and self.options.memory_budget is None
            return self._found_or_made(
                ("triton", self._gpu_options, recorded, graph_structure(graph), low_memory),
                lambda dump: compile_gpu_graph(
                    graph,
                    numerics,
                    session.environment,
                    session.gpu(gpu),
                    timer,
                    dump,
                    session.fuel,
                    self.options.autotune,
                    low_memory,
                    recorded,
                ),
            )
        return self._found_or_made(
            (graph_structure(graph), low_memory),
            lambda dump: compile_graph(
                graph, numerics, session.environment, session.kernels, timer, dump, session.fuel, low_memory, lowered
            ),
        )

    def _found_or_made(
        self, structure: tuple[Hashable, ...], make: Callable[[Dump | None], Compilation]
    ) -> Compilation:
        session, counters = self.session, self.counters
        key = (self.options.numerics, *structure)
        compilation = session.programs.get(key)
        if compilation is None:
            dump = open_dump(session.environment.dump, self.name) if session.environment.dump else None
            counters.compiles += 1
            compilation = session.programs[key] = make(dump)
            for watch in session.on_compiled:
                watch(compilation)
            counters.kernels_generated += compilation.generated
            counters.kernels_reused += compilation.reused
        else:
            counters.programs_reused += 1
            counters.kernels_reused += len(compilation.kernels)
        counters.ops_in_kernels += sum(len(kernel.nodes) for kernel in compilation.kernels)
        counters.ops_in_library += len(compilation.steps) - len(compilation.kernels)
        return compilation


@contextmanager
def no_collection() -> Iterator[None]:
    """Tracing and compiling make many small objects that all live on: looking for cycles among them costs a third of
    the time, and would run finalizers and callbacks that are no part of the traced code."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _run_eagerly(graph: Graph, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    return list(run_reference(graph, inputs))


def offload_tier(options: Options, on_gpu: bool) -> OffloadTier | None:
    """Where a call puts what it keeps for its backward; None for the memory of the device."""
    if on_gpu and options.offload_to_host:
        return HOST_MEMORY
    return None if options.offload_dir is None else file_in(options.offload_dir)
