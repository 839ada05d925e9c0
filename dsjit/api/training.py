"""A compiled function whose results carry gradients: a forward and a backward Program.

Autograd gets a node for each group of results that share what eager would keep for its backward. The forward is run
before they are made, and is one for all of them; each has a backward of its own.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.api.memory_budget import TrainingMemory
from dsjit.codegen.sized_program import KEPT_SHAPES, SizedProgram
from dsjit.errors import DsjitWarning, GradientError
from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.graph_template import GraphTemplate
from dsjit.ir.joint_graph import JointGraph, JointTemplate
from dsjit.passes.partition import Partition
from dsjit.passes.reference import run_reference
from dsjit.passes.undefined_gradients import without_gradients

__all__ = ["OpenTraining", "Point", "Training", "make_training"]

Point: TypeAlias = tuple[int, ...]
"""The open sizes of a call."""

Runner: TypeAlias = Callable[[Point, Sequence[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(frozen=True, slots=True)
class _Backward:
    """run: from what is kept and the defined gradients of results to gradients. places: of each gradient among those;
    None when it is undefined. compilation: None when the Graph runs op by op."""

    graph: Graph | GraphTemplate
    places: tuple[int | None, ...]
    run: Runner
    compilation: Compilation | None


@dataclass(frozen=True, slots=True, eq=False)
class OpenTraining:
    """What a Training for many sizes has beside one for exact sizes. backward: of `Partition`.

    layouts: by the sizes, the types of the gradients of results, and `JointGraph.shapes`.
    """

    joint: JointTemplate
    backward: GraphTemplate
    layouts: dict[Point, tuple[tuple[TensorType, ...], tuple[tuple[int, ...] | None, ...]]] = field(
        default_factory=dict
    )


@dataclass(slots=True, eq=False)
class _Group:
    """Results that one node of autograd's graph makes.

    members: numbers of results. tangents: their places among the differentiated results. ends: numbers of the primals,
    and behind them of the leaves, that gradients flow to. graph: from what is `kept` (numbers among what the partition
    keeps) and the gradients of the members to gradients, of which each end has that of number `places`.
    backwards: by which gradients of results are defined, compiled when first wanted.
    """

    members: tuple[int, ...]
    tangents: tuple[int, ...]
    ends: tuple[int, ...]
    kept: tuple[int, ...]
    graph: Graph | GraphTemplate
    places: tuple[int, ...]
    backwards: dict[tuple[bool, ...], _Backward] = field(default_factory=dict)


@dataclass(slots=True, eq=False, weakref_slot=True)
class Training:
    """forward: from the inputs to the results, and then to what is kept besides inputs and results.

    compile: a backward Graph. kept: of what is kept, where it is found: among the inputs, the results and what the
    forward returns behind its results, in a row. tangents: types of the gradients of results.
    groups: what autograd is told. memory: what was planned under a budget.
    sizes: when sizes are open; `joint`, `partition` and `tangents` are then those of some sizes.
    """

    forward: Compilation
    joint: JointGraph
    partition: Partition
    compile: Callable[[Graph | GraphTemplate], Compilation]
    kept: tuple[int, ...]
    tangents: tuple[TensorType, ...]
    groups: tuple[_Group, ...]
    memory: TrainingMemory | None = None
    sizes: OpenTraining | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results, as autograd knows them. The traced code chose its own grad mode, whatever that of the call."""
        enabled = torch.is_grad_enabled()
        try:
            torch._C._set_grad_enabled(False)
            outputs = self.forward.program(inputs)
            torch._C._set_grad_enabled(True)
            return self._told(inputs, outputs)
        finally:
            torch._C._set_grad_enabled(enabled)

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

    def backward(self, group: _Group, defined: tuple[bool, ...]) -> _Backward:
        """The backward for these gradients of the group's results."""
        found = group.backwards.get(defined)
        if found is None:
            graph = group.graph
            places: tuple[int | None, ...] = group.places
            if not all(defined):
                start = len(group.kept)

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
            found = group.backwards[defined] = _Backward(graph, places, *self._compiled(graph))
        return found

    def compile_backwards(self) -> None:
        """Compile what is wanted when all results are differentiated."""
        for group in self.groups:
            self.backward(group, (True,) * len(group.members))

    def _compiled(self, graph: Graph | GraphTemplate) -> tuple[Runner, Compilation | None]:
        try:
            compilation = self.compile(graph)
        except Exception as error:  # whatever a compiler may stumble over, op by op it runs
            self._warn(error)
            return functools.partial(_run_reference, graph), None
        program = compilation.program
        if isinstance(program, SizedProgram):
            return program.run_at, compilation
        return lambda point, inputs: program(inputs), compilation

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
        self, group: _Group, point: Point, kept: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients of the group's ends. tangents: of its results, in order."""
        defined = tuple([tangent is not None for tangent in tangents])
        backward = self.backward(group, defined)
        types, shapes = self._layout(point)
        given = [
            _laid_out(tangent, types[place])
            for tangent, place in zip(tangents, group.tangents, strict=True)
            if tangent is not None
        ]
        taken = [*kept, *given]
        try:
            found = backward.run(point, taken)
        except Exception as error:  # nothing was written yet, and what eager raises the reference raises, too
            reference = functools.partial(_run_reference, backward.graph)
            found = reference(point, taken)
            if not isinstance(error, MemoryError):  # there may be more memory at the next call
                group.backwards[defined] = replace(backward, run=reference, compilation=None)
            self._warn(error)
        gradients = [None if place is None else found[place] for place in backward.places]
        expected = [shapes[end] for end in group.ends]
        return [
            tensor if tensor is None or shape is None or tensor.shape == shape else tensor.expand(shape)
            for tensor, shape in zip(gradients, expected, strict=True)
        ]


def _run_reference(
    graph: Graph | GraphTemplate, point: Point, inputs: Sequence[torch.Tensor]
) -> Sequence[torch.Tensor]:
    return run_reference(graph.at(point) if isinstance(graph, GraphTemplate) else graph, inputs)


def make_training(
    joint: JointGraph,
    partition: Partition,
    forward: Compilation,
    compile: Callable[[Graph | GraphTemplate], Compilation],
    sizes: OpenTraining | None = None,
) -> Training:
    """forward: compiled from `partition.forward`. compile: compiles a backward. Raises Mismatch."""
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
        tuple(_groups(joint, partition, sizes)),
        sizes=sizes,
    )


def _groups(joint: JointGraph, partition: Partition, sizes: OpenTraining | None) -> Iterator[_Group]:
    graph = partition.backward
    start = len(partition.kept)
    ends = [(end, number) for end, number in enumerate(joint.gradients) if number is not None]
    if len(joint.groups) <= 1:
        yield _Group(
            joint.differentiated, tuple(range(len(joint.differentiated))), tuple([end for end, _ in ends]),
            tuple(range(start)), graph if sizes is None else sizes.backward, tuple([number for _, number in ends]),
        )  # fmt: skip
        return
    for members in joint.groups:

        def without_others(each: Graph, members: Sequence[int] = members) -> tuple[Graph, tuple[int | None, ...]]:
            tangents = each.inputs[start:]
            others = [value for number, value in enumerate(tangents) if number not in members]
            return without_gradients(each, tangents, others)

        mine, places = without_others(graph)
        read = {*mine.outputs, *(value for node in mine.nodes for value in node.inputs())}
        kept = tuple([number for number in range(start) if mine.inputs[number] in read])
        chosen = (*kept, *range(start, start + len(members)))

        def narrowed(each: Graph, chosen: Sequence[int] = chosen) -> Graph:
            found, _ = without_others(each)
            return replace(found, inputs=tuple([found.inputs[number] for number in chosen]))

        reached = [(end, place) for end, number in ends if (place := places[number]) is not None]
        yield _Group(
            tuple([joint.differentiated[number] for number in members]),
            members,
            tuple([end for end, _ in reached]),
            kept,
            narrowed(graph) if sizes is None else sizes.backward.rewritten(sizes.joint.typical, narrowed),
            tuple([place for _, place in reached]),
        )


def _laid_out(tangent: torch.Tensor, type_: TensorType) -> torch.Tensor:
    """Autograd hands over gradients with any strides (expanded ones, say)."""
    if tangent.stride() == type_.strides:
        return tangent
    return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device=type_.device).copy_(tangent)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """One call. results: of the group. kept: all that is kept."""

    training: Training
    group: _Group
    point: Point
    results: Sequence[torch.Tensor]
    kept: Sequence[torch.Tensor]


class Compiled(torch.autograd.Function):
    """Between the ends of a group and its results."""

    @staticmethod
    def forward(ctx: Any, run: _Run, *ends: torch.Tensor) -> tuple[torch.Tensor, ...]:
        ctx.training, ctx.group, ctx.point = run.training, run.group, run.point
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*[run.kept[number] for number in run.group.kept])
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
        gradients = training.run_backward(ctx.group, ctx.point, ctx.saved_tensors, tangents)
        return (None, *(gradients or [None]))
