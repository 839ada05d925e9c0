"""Which part of the compiler is to blame: a pass, a step of the Program, its memory, or nothing that can be found.

The stages of one compile are run one after the other on the same inputs: each Graph on the reference executor, each
step of the Program by itself on the reference's values, and the Program as a whole in watched and poisoned memory. The
first that is not right is the fault; a fault in a kernel is narrowed to the first op whose part of it is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, TypeAlias

import torch

from dsjit.codegen.assemble import assemble
from dsjit.codegen.interpret import InterpretedProgram
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.llvm.executor import DeviceKernel
from dsjit.codegen.placement import Step
from dsjit.codegen.steps import NativePlan
from dsjit.codegen.watch import StepWatch
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views
from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Node, Source, Value
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.oracle.measure import same_values
from dsjit.oracle.reference import Reference, run_with_precision
from dsjit.oracle.subgraph import part_of
from dsjit.passes.reference import evaluate_node, run_reference

__all__ = ["CompiledGraph", "Fault", "FaultKind", "Run", "copies", "find_fault"]

FaultKind: TypeAlias = Literal["pass", "kernel", "library call", "memory", "assembly"]
Run: TypeAlias = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]

INTERPRETED_ELEMENTS: Final = 20_000
"""Elements of outputs up to which the Kernel interpreter is asked, too: it takes tens of microseconds for each."""


@dataclass(frozen=True, slots=True)
class CompiledGraph:
    """What one compile made. stages: the captured Graph, and the Graph after each pass, by the name of the pass.
    program: what runs in the end."""

    stages: tuple[tuple[str, Graph], ...]
    steps: Sequence[Step]
    native: Mapping[Node, NativePlan]
    views: Views
    kernels: Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel]
    program: Run

    @property
    def captured(self) -> Graph:
        return self.stages[0][1]

    @property
    def optimized(self) -> Graph:
        return self.stages[-1][1]


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong.

    kind, name: "pass" and which, "kernel" or "library call" and which, "memory" or "assembly" and the step.
    op, source: the first op whose result is wrong, and its line of the user's. text: how it shows, in words.
    part: a Graph in which it shows, if there is one smaller than the whole. inputs: those with which it does.
    """

    kind: FaultKind
    name: str
    op: str
    source: Source
    text: str
    part: Graph | None = None
    inputs: tuple[torch.Tensor, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {self.op} at {self.source}: {self.text}"


def find_fault(
    compiled: CompiledGraph, inputs: Sequence[torch.Tensor], build: Callable[[Graph], Run] | None = None
) -> Fault | None:
    """The first stage that does not compute on `inputs` what the captured Graph does; None when all are right.

    build: compiles a part of the optimized Graph, to tell which op of a kernel is wrong; without it, the first one of
    the kernel is named. The inputs are not written to, and the random generator is where it was.
    """
    state = generator_state()
    try:
        fault = _pass_fault(compiled, inputs)
        if fault is not None:
            return fault
        set_generator_state(state)
        graph = compiled.optimized
        reference = run_with_precision(graph, copies(inputs))
        for step in compiled.steps:
            set_generator_state(state)
            fault = _step_fault(compiled, step, reference, build)
            if fault is not None:
                return fault
        set_generator_state(state)
        return _memory_fault(compiled, inputs, reference)
    finally:
        set_generator_state(state)


def copies(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Tensors of equal content and layout, which share memory where the originals do."""
    storages: dict[int, torch.Tensor] = {}
    found: list[torch.Tensor] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage._cdata not in storages:
            storages[storage._cdata] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage).clone()
        memory = storages[storage._cdata].untyped_storage()
        fresh = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
        found.append(fresh.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride()))
    return found


# -- passes --------------------------------------------------------------------------------------------------------


def _pass_fault(compiled: CompiledGraph, inputs: Sequence[torch.Tensor]) -> Fault | None:
    before = previous = compiled.captured
    state = generator_state()
    wanted = list(before.results())
    expected = run_with_precision(before, copies(inputs), keep=set(wanted))
    for name, graph in compiled.stages[1:]:
        if graph is previous:
            continue
        previous = graph
        set_generator_state(state)
        try:
            found = run_reference(replace(graph, outputs=tuple(graph.results()), writes=()), copies(inputs))
        except Exception as error:
            text = f"the Graph after it does not run: {error}"
            return Fault("pass", name, "an op", UNKNOWN_SOURCE, text, before, (*inputs,))
        for value, tensor, now in zip(wanted, found, graph.results(), strict=True):
            if not expected.accepts(value, tensor):
                set_generator_state(state)
                made = _first_difference(before, graph, inputs)
                node = made or before.producers().get(value) or graph.producers().get(now)
                op, source = (str(node.op), node.source) if node is not None else ("an input", UNKNOWN_SOURCE)
                return Fault("pass", name, op, source, "the Graph after it gives another result", before, (*inputs,))
    return None


def _first_difference(before: Graph, after: Graph, inputs: Sequence[torch.Tensor]) -> Node | None:
    """The first node of `after` of which a result was another one in `before`; or, if it now reads something else than
    the Value that it read there, the node that made that."""
    state = generator_state()
    expected = run_with_precision(before, copies(inputs))
    set_generator_state(state)
    known = {value.id: value for value in expected.eager}
    found = dict(zip(after.inputs, copies(inputs), strict=True)) | dict(after.constants)
    for node in after.nodes:
        found.update(zip(node.outputs, evaluate_node(node, found), strict=True))
        for value in node.outputs:
            if value.id in known and not expected.accepts(known[value.id], found[value]):
                return _lost_operand(before, node, expected, found) or node
    return None


def _lost_operand(before: Graph, node: Node, expected: Reference, found: Mapping[Value, torch.Tensor]) -> Node | None:
    """The node of `before` whose result `node` read there, where it reads another now."""
    producers = {value.id: each for each in before.nodes for value in each.outputs}
    same = producers.get(node.outputs[0].id)
    if same is None or same.op is not node.op:
        return None
    for old, new in zip(same.inputs(), node.inputs(), strict=False):
        if old.id != new.id and not expected.accepts(old, found[new]):
            return producers.get(old.id)
    return None


# -- steps ---------------------------------------------------------------------------------------------------------


def _step_fault(
    compiled: CompiledGraph, step: Step, reference: Reference, build: Callable[[Graph], Run] | None
) -> Fault | None:
    """Run one step on the reference's values."""
    part = _part_of_step(compiled, step)
    if part is None:
        return None
    inputs = [reference.eager[value] for value in part.inputs]
    program = assemble(part, [step], compiled.native, compiled.views, compiled.kernels, watch=StepWatch())
    kind, name = _name(step)
    if _gives_eagers_bits(part, reference, program, inputs):
        return None
    local = run_with_precision(part, inputs)
    wrong = _wrong_output(part, local, program, inputs)
    if wrong is None:
        return None
    value, text = wrong
    node = part.producers()[value]
    if not isinstance(step.work, FusedKernel):
        return Fault(kind, name, str(node.op), node.source, text, part, tuple(inputs))
    numel = sum(value.type.numel for value in part.outputs)
    if numel <= INTERPRETED_ELEMENTS:
        interpreted = InterpretedProgram(part, [step], compiled.views)
        blame = "Kernel" if _wrong_output(part, local, interpreted, inputs) else "machine code"
        text = f"{text}: its {blame} is wrong"
    for member in step.work.nodes if build is not None else ():
        smaller = part_of(part, member.outputs, part.inputs, part.name)
        given = dict(zip(part.inputs, inputs, strict=True))
        own = [given[value] for value in smaller.inputs]
        assert build is not None
        if _wrong_output(smaller, local, build(smaller), own) is not None:
            return Fault(kind, name, str(member.op), member.source, text, smaller, tuple(own))
    return Fault(kind, name, str(node.op), node.source, text, part, tuple(inputs))


def _part_of_step(compiled: CompiledGraph, step: Step) -> Graph | None:
    """What a step computes, from what is in memory before it; None for views, and for what draws random numbers."""
    if isinstance(step.work, FusedKernel):
        reads, outputs = step.reads, step.writes
    else:
        node = step.work.node
        if step.work.view or node.effect or node.mutates or not node.outputs:
            return None
        reads, outputs = tuple(compiled.views.base(value) for value in node.inputs()), node.outputs
    return part_of(compiled.optimized, outputs, set(reads), _name(step)[1])


def _gives_eagers_bits(part: Graph, reference: Reference, run: Run, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether `part` needs no judge: most steps have the very bits that eager has."""
    try:
        found = run(copies(inputs))
    except Exception:
        return False
    return all(same_values(tensor, reference.eager[value]) for value, tensor in zip(part.outputs, found, strict=True))


def _wrong_output(
    part: Graph, reference: Reference, run: Run, inputs: Sequence[torch.Tensor]
) -> tuple[Value, str] | None:
    """The first output of `part` that is not right when `run` computes it, and how."""
    try:
        found = run(copies(inputs))
    except Exception as error:
        return part.outputs[0], f"it raises {type(error).__name__}: {error}"
    for value, tensor in zip(part.outputs, found, strict=True):
        if not reference.accepts(value, tensor):
            return value, "its result is wrong on eager's own operands"
    return None


def _name(step: Step) -> tuple[FaultKind, str]:
    if isinstance(step.work, FusedKernel):
        return "kernel", step.work.kernel.name
    return "library call", str(step.work.node.op)


# -- memory --------------------------------------------------------------------------------------------------------


def _memory_fault(compiled: CompiledGraph, inputs: Sequence[torch.Tensor], reference: Reference) -> Fault | None:
    """Run the whole Program, and look at all that is alive after each step."""
    graph = compiled.optimized
    producers = graph.producers()
    faults: list[Fault] = []
    done: list[int] = []
    accepted: dict[Value, torch.Tensor] = {}

    def on_step(number: int, live: Mapping[Value, torch.Tensor]) -> None:
        done.append(number)
        if faults:
            return
        kind, name = _name(compiled.steps[number])
        written = set(compiled.steps[number].writes)
        for dead in accepted.keys() - live.keys():
            del accepted[dead]
        for value, tensor in live.items():
            if value in accepted and same_values(tensor, accepted[value]):
                continue
            if reference.accepts(value, tensor):
                accepted[value] = tensor.clone()
                continue
            node = producers[value]
            if value in written:
                text = f"{kind} {name} is right by itself, but finds other operands in memory than were put there"
            else:
                text = f"its result is overwritten by {kind} {name}, though it will be read again"
            faults.append(Fault("memory", f"of step {number}", str(node.op), node.source, text))
            return

    state = generator_state()
    watched = assemble(
        graph, compiled.steps, compiled.native, compiled.views, compiled.kernels, watch=StepWatch(on_step)
    )
    for program in (watched, compiled.program):
        set_generator_state(state)
        taken = copies(inputs)
        try:
            found = program(taken)
        except Exception as error:
            node = compiled.steps[min(len(done), len(compiled.steps) - 1)].nodes[-1]
            text = f"every step is right by itself, but the Program raises {type(error).__name__}: {error}"
            faults.append(Fault("assembly", "of the Program", str(node.op), node.source, text))
        wrong = faults[0] if faults else _wrong_result(graph, taken, found, reference)
        if wrong is not None:
            return wrong
    return None


def _wrong_result(
    graph: Graph, taken: Sequence[torch.Tensor], found: Sequence[torch.Tensor], reference: Reference
) -> Fault | None:
    """taken: the inputs, as the Program left them. found: what it returned."""
    producers = graph.producers()
    after = dict(zip(graph.inputs, taken, strict=True))
    results = [*zip(graph.outputs, found, strict=True), *((w.value, after[w.target]) for w in graph.writes)]
    for value, tensor in results:
        if not reference.accepts(value, tensor):
            final = producers.get(value)
            op, source = (str(final.op), final.source) if final is not None else ("an input", UNKNOWN_SOURCE)
            return Fault("assembly", "of the results", op, source, "every step is right, but not what is returned")
    return None
