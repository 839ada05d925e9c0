"""A compiled function whose results carry gradients: a forward and a backward Program.

Autograd gets a node for each group of results that share what eager would keep for its backward. The forward is run
before they are made, and is one for all of them; each has a backward of its own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._C._autograd import _get_current_graph_task_keep_graph, _top_saved_tensors_default_hooks

from dsjit.api.compile import Compilation
from dsjit.api.memory_budget import TrainingMemory
from dsjit.api.split_program import run_behind
from dsjit.api.training_groups import Backward, Group, OpenTraining, Point, Runner, make_groups
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.offload.tensors import KeptTensor, TensorInMemory
from dsjit.codegen.program import handed_over
from dsjit.codegen.sized_program import KEPT_SHAPES, SizedProgram
from dsjit.codegen.triton.program import GpuProgram
from dsjit.errors import DsjitWarning, GradientError
from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.generator import generator_state
from dsjit.oracle.checked import CheckedProgram, FaultFound
from dsjit.oracle.fault import copies
from dsjit.oracle.training import TrainingCheck
from dsjit.passes.partition import Partition
from dsjit.passes.reference import run_reference
from dsjit.passes.undefined_gradients import without_gradients

__all__ = ["Training", "make_training"]


@dataclass(slots=True, eq=False, weakref_slot=True)
class Training:
    """forward: from the inputs to the results, and then to what is kept besides inputs and results.

    compile: a backward Graph. kept: of what is kept, where it is found: among the inputs, the results and what the
    forward returns behind its results, in a row. tangents: types of the gradients of results.
    groups: what autograd is told. memory: what was planned under a budget.
    sizes: when sizes are open; `joint`, `partition` and `tangents` are then those of some sizes.
    checked: under DSJIT_CHECK=2, a Program that checks itself. check: of what it keeps for the backward.
    """

    forward: Compilation
    joint: JointGraph
    partition: Partition
    compile: Callable[[Graph | GraphTemplate, LowMemory | None], Compilation]
    kept: tuple[int, ...]
    tangents: tuple[TensorType, ...]
    groups: tuple[Group, ...]
    memory: TrainingMemory | None = None
    sizes: OpenTraining | None = None
    checked: Callable[[Compilation], CheckedProgram] | None = None
    check: TrainingCheck | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results, as autograd knows them. The traced code chose its own grad mode, whatever that of the call."""
        enabled = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            if self.checked is None:
                outputs = self.forward.program(inputs)
            else:
                outputs = self._run_checked(inputs, self.checked(self.forward))
            torch._C._set_grad_enabled(True)
            return self._told(inputs, outputs)
        finally:
            torch._C._set_grad_enabled(enabled)

    def _run_checked(self, inputs: Sequence[torch.Tensor], run: CheckedProgram) -> list[torch.Tensor]:
        """The forward. Raises FaultFound."""
        assert self.check is not None
        before, state = copies(inputs), generator_state()
        outputs = run(inputs)
        self.check(run.compiled, before, state, self._kept(inputs, outputs))
        return outputs

    def _kept(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """outputs: of the forward."""
        count = self.joint.results
        everything = [*inputs, *outputs[:count], *[inputs[number] for number in self.joint.passed], *outputs[count:]]
        return _in_memory([everything[number] for number in self.kept])

    def _told(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Tell autograd of what the forward returned."""
        joint = self.joint
        count = joint.results
        results = [*outputs[:count], *[inputs[number] for number in joint.passed]]
        everything = [*inputs, *results, *outputs[count:]]
        kept = [everything[number] for number in self.kept]
        for number in joint.leaves:
            results[number].requires_grad_()
        ends = [*inputs, *[results[number] for number in joint.leaves]] if joint.leaves else inputs
        point = self.point(inputs)
        for group in self.groups:
            run = _Run(self, group, point, [results[number] for number in group.members], kept)
            # What comes of nobody's tensors alone (of noise that the call made) requires a gradient, too.
            mine = [ends[number] for number in group.ends] or [torch.empty(0, requires_grad=True)]
            made = Compiled.apply(run, *mine)  # type: ignore[no-untyped-call]
            for number, tensor in zip(group.members, made, strict=True):
                results[number] = tensor
        return results

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """The forward, and the backwards that were wanted so far."""
        backwards = [each.compilation for group in self.groups for each in group.backwards.values()]
        return (self.forward, *(each for each in backwards if each is not None))

    def point(self, inputs: Sequence[torch.Tensor]) -> Point:
        """The open sizes of a call."""
        if self.sizes is None:
            return ()
        return tuple([inputs[number].shape[dim] for number, dim in self.sizes.joint.sources])

    def backward(self, group: Group, defined: tuple[bool, ...]) -> Backward:
        """The backward for these gradients of the group's results."""
        found = group.backwards.get(defined)
        if found is None:
            graph = group.graph
            places: tuple[int | None, ...] = group.places
            if not all(defined):
                start = len(group.order)

                def narrowed(each: Graph) -> tuple[Graph, tuple[int | None, ...]]:
                    tangents = each.inputs[start:]
                    missing = [value for value, there in zip(tangents, defined, strict=True) if not there]
                    return without_gradients(each, tangents, missing)

                if isinstance(graph, GraphTemplate):
                    assert self.sizes is not None
                    _, left = narrowed(graph.example)
                    graph = graph.rewritten(self.sizes.joint.typical, lambda each: narrowed(each)[0])
                else:
                    graph, left = narrowed(graph)
                places = tuple([left[place] for place in group.places])
            run, compilation = self._compiled(graph, group.low_memory)
            found = Backward(graph, places, run, compilation, proven=self.memory is not None)
            group.backwards[defined] = found
        return found

    def _compiled(
        self, graph: Graph | GraphTemplate, low_memory: LowMemory | None
    ) -> tuple[Runner, Compilation | None]:
        try:
            compilation = self.compile(graph, low_memory)
        except Exception as error:  # whatever a compiler may stumble over, op by op it runs
            self._warn(error)
            return functools.partial(_run_op_by_op, graph), None
        program = compilation.program
        if isinstance(program, SizedProgram) or (isinstance(program, GpuProgram) and program.serves_sizes):
            sized = program
            return lambda point, inputs: sized.run_at(point, list(inputs)), compilation
        if self.checked is not None:
            checked = self.checked(compilation)
            return lambda point, inputs: checked(_in_memory(inputs)), compilation
        run = run_behind(self.forward.program, program)
        return lambda point, inputs: run(inputs), compilation

    def _warn(self, error: Exception) -> None:
        text = f"the backward of {self.joint.graph.name} runs op by op, without generated kernels: {error!r}"
        warnings.warn(text, DsjitWarning, stacklevel=2)

    def _layout(self, point: Point) -> tuple[tuple[TensorType, ...], tuple[tuple[int, ...] | None, ...]]:
        """The types of the gradients of results, and the shapes of those of inputs, for these sizes."""
        if self.sizes is None:
            return self.tangents, self.joint.shapes
        layouts, joint = self.sizes.layouts, self.sizes.joint
        if point not in layouts:
            if len(layouts) >= KEPT_SHAPES:
                layouts.clear()
            layouts[point] = joint.tangents_at(point), joint.shapes_at(point)
        return layouts[point]

    def run_backward(
        self, group: Group, point: Point, kept: list[torch.Tensor], tangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients of the group's ends. tangents: of its results, in order. kept: what its graph takes of that;
        emptied. What nobody else holds of it is freed after its last use."""
        defined = tuple([tangent is not None for tangent in tangents])
        backward = self.backward(group, defined)
        types, shapes = self._layout(point)
        given = [
            _laid_out(tangent, types[place])
            for tangent, place in zip(tangents, group.tangents, strict=True)
            if tangent is not None
        ]
        taken = [*kept, *given]
        kept.clear()
        # A backward that has never run through may be one that cannot: then all is wanted for the reference.
        held = [] if backward.proven else list(taken)
        try:
            found = backward.run(point, handed_over(taken))
            backward.proven = self.sizes is None  # each choice of sizes has a Program of its own
        except FaultFound:
            raise
        except Exception as error:  # nothing was written yet, and what eager raises the reference raises, too
            if not (held or taken):
                raise
            reference = functools.partial(_run_op_by_op, backward.graph)
            found = reference(point, held or taken)
            if not isinstance(error, MemoryError):  # there may be more memory at the next call
                group.backwards[defined] = replace(backward, run=reference, compilation=None)
            self._warn(error)
        gradients = [None if place is None else found[place] for place in backward.places]
        expected = [shapes[end] for end in group.ends]
        return [
            tensor if tensor is None or shape is None or tensor.shape == shape else tensor.expand(shape)
            for tensor, shape in zip(gradients, expected, strict=True)
        ]


def make_training(
    joint: JointGraph,
    partition: Partition,
    forward: Compilation,
    compile: Callable[[Graph | GraphTemplate, LowMemory | None], Compilation],
    *,
    low_memory: LowMemory | None = None,
    memory: TrainingMemory | None = None,
    sizes: OpenTraining | None = None,
    checked: Callable[[Compilation], CheckedProgram] | None = None,
) -> Training:
    """forward: compiled from `partition.forward`. compile: compiles a backward. low_memory: for that of the partition.
    memory: what was planned. checked: makes programs check themselves. Raises Mismatch."""
    primals = {value: number for number, value in enumerate(partition.forward.inputs)}
    results = {value: number for number, value in enumerate(partition.forward.outputs[: joint.results])}
    place: dict[Value, int] = {}
    behind = joint.primals + joint.results + len(joint.passed)
    for value in partition.kept:
        if value not in partition.shared:
            place[value] = behind
            behind += 1
        else:
            place[value] = primals[value] if value in primals else joint.primals + results[value]
    tangents = partition.backward.inputs[len(partition.kept) :]
    return Training(
        forward,
        joint,
        partition,
        compile,
        tuple([place[value] for value in partition.kept]),
        tuple([value.type for value in tangents]),
        tuple(make_groups(joint, partition, low_memory, sizes)),
        memory,
        sizes,
        checked,
        None if checked is None else TrainingCheck(joint, partition),
    )


def _run_op_by_op(graph: Graph | GraphTemplate, point: Point, inputs: Iterable[torch.Tensor]) -> Sequence[torch.Tensor]:
    return run_reference(graph.at(point) if isinstance(graph, GraphTemplate) else graph, _in_memory(inputs))


def _in_memory(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, those in files fetched."""
    return [tensor.fetch() if isinstance(tensor, KeptTensor) else tensor for tensor in tensors]


def _laid_out(tangent: torch.Tensor, type_: TensorType) -> torch.Tensor:
    """Autograd hands over gradients with any strides (expanded ones, say)."""
    if tangent.stride() == type_.strides:
        return tangent
    return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device=type_.device).copy_(tangent)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One call. results: of the group. kept: all that is kept."""

    training: Training
    group: Group
    point: Point
    results: Sequence[torch.Tensor]
    kept: Sequence[torch.Tensor]


class Compiled(torch.autograd.Function):
    """Between the ends of a group and its results."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *ends: torch.Tensor) -> tuple[torch.Tensor, ...]:
        group, kept = run.group, run.kept
        ctx.training, ctx.group, ctx.point = run.training, group, run.point
        ctx.set_materialize_grads(False)
        own = [kept[number] for number in group.own]
        # Autograd would hold these until the whole backward has run; hooks of the user's must see them, though.
        hooked = bool(own) and _top_saved_tensors_default_hooks(True) is not None
        ctx.own = [] if hooked else own
        ctx.offloaded = [isinstance(tensor, KeptTensor) for tensor in own] if hooked else []
        ctx.save_for_backward(*[kept[number] for number in group.shared], *(_in_memory(own) if hooked else ()))
        return tuple(run.results)

    @staticmethod
    def backward(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        training: Training = ctx.training
        if torch.is_grad_enabled():
            raise GradientError(
                f"second derivatives (create_graph=True) are wanted through {training.joint.graph.name}, which dsjit "
                "compiled with first derivatives only: run it eagerly, under dsjit.disable"
            )
        if all(tangent is None for tangent in tangents):
            # Of a later call that this one's results do not reach: what was saved may be freed already.
            return (None,) * (1 + max(len(ctx.group.ends), 1))
        group: Group = ctx.group
        every = list(ctx.saved_tensors)  # raises what eager does when the backward has run before
        if ctx.own is None:
            raise GradientError(
                f"a backward through {training.joint.graph.name} failed before, and what was kept for it is gone: "
                "call the function again"
            )
        if ctx.offloaded:
            first = len(group.shared)
            stored = zip(every[first:], ctx.offloaded, strict=True)
            every[first:] = [TensorInMemory(tensor) if offloaded else tensor for tensor, offloaded in stored]
        every += ctx.own
        if ctx.own and not _get_current_graph_task_keep_graph():
            ctx.own = None
        kept = [every[number] for number in group.order]
        every.clear()
        gradients = training.run_backward(group, ctx.point, kept, tangents)
        return (None, *(gradients or [None]))
