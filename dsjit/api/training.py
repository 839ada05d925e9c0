"""A compiled function whose results carry gradients: two Programs behind one autograd node."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch

from dsjit.api.compile import Compilation
from dsjit.api.memory_budget import TrainingMemory
from dsjit.codegen.sized_program import KEPT_SHAPES, SizedProgram
from dsjit.errors import DsjitWarning, GradientError
from dsjit.ir.graph import Graph, TensorType
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
    """run: from what is kept and the defined gradients of results to gradients. places: of each distinct gradient among
    those; None when it is undefined. compilation: None when the Graph runs op by op."""

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


@dataclass(slots=True, eq=False, weakref_slot=True)
class Training:
    """forward: from the inputs to the results, and then to what is kept besides inputs and results.

    compile: a backward Graph. kept_inputs, kept_results: numbers of what is kept, too. order: of the backward's inputs
    among kept inputs, kept results, and the rest. tangents: types of the gradients of results.
    undifferentiated: numbers of the results without gradients.
    backwards: by which gradients of results are defined, compiled when first wanted.
    memory: what was planned under a budget.
    sizes: when sizes are open; `joint`, `partition` and `tangents` are then those of some sizes.
    """

    forward: Compilation
    joint: JointGraph
    partition: Partition
    compile: Callable[[Graph | GraphTemplate], Compilation]
    kept_inputs: tuple[int, ...]
    kept_results: tuple[int, ...]
    order: tuple[int, ...]
    tangents: tuple[TensorType, ...]
    undifferentiated: tuple[int, ...]
    backwards: dict[tuple[bool, ...], _Backward] = field(default_factory=dict)
    memory: TrainingMemory | None = None
    sizes: OpenTraining | None = None

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """The results, as autograd knows them. The traced code chose its own grad mode, whatever that of the call."""
        if torch.is_grad_enabled():
            return list(Compiled.apply(self, *inputs))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            return list(Compiled.apply(self, *inputs))  # type: ignore[no-untyped-call]

    @property
    def compilations(self) -> tuple[Compilation, ...]:
        """The forward, and the backwards that were wanted so far."""
        return (self.forward, *(each.compilation for each in self.backwards.values() if each.compilation is not None))

    def point(self, inputs: Sequence[torch.Tensor]) -> Point:
        """The open sizes of a call."""
        if self.sizes is None:
            return ()
        return tuple([inputs[number].shape[dim] for number, dim in self.sizes.joint.sources])

    def backward(self, defined: tuple[bool, ...]) -> _Backward:
        """The backward for these gradients of results."""
        found = self.backwards.get(defined)
        if found is None:
            _, places = self._narrowed(self.partition.backward, defined)
            graph: Graph | GraphTemplate
            if self.sizes is None:
                graph, _ = self._narrowed(self.partition.backward, defined)
            elif all(defined):
                graph = self.sizes.backward
            else:
                typical = self.sizes.joint.typical
                graph = self.sizes.backward.rewritten(typical, lambda each: self._narrowed(each, defined)[0])
            found = self.backwards[defined] = _Backward(graph, places, *self._compiled(graph))
        return found

    def _narrowed(self, graph: Graph, defined: tuple[bool, ...]) -> tuple[Graph, tuple[int | None, ...]]:
        """The backward `graph` for these gradients of results, and `places`."""
        tangents = graph.inputs[len(self.partition.kept) :]
        missing = [value for value, there in zip(tangents, defined, strict=True) if not there]
        return without_gradients(graph, tangents, missing) if missing else (graph, tuple(range(len(graph.outputs))))

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
        self, point: Point, kept: Sequence[torch.Tensor], tangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients of all inputs. tangents: of the differentiated results, in order."""
        defined = tuple([tangent is not None for tangent in tangents])
        backward = self.backward(defined)
        types, shapes = self._layout(point)
        given = [
            _laid_out(tangent, type_) for tangent, type_ in zip(tangents, types, strict=True) if tangent is not None
        ]
        taken = [*(kept[number] for number in self.order), *given]
        try:
            found = backward.run(point, taken)
        except Exception as error:  # nothing was written yet, and what eager raises the reference raises, too
            reference = functools.partial(_run_reference, backward.graph)
            found = reference(point, taken)
            if not isinstance(error, MemoryError):  # there may be more memory at the next call
                self.backwards[defined] = replace(backward, run=reference, compilation=None)
            self._warn(error)
        distinct = [None if place is None else found[place] for place in backward.places]
        gradients = [None if number is None else distinct[number] for number in self.joint.gradients]
        return [
            tensor if tensor is None or shape is None or tensor.shape == shape else tensor.expand(shape)
            for tensor, shape in zip(gradients, shapes, strict=True)
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
    """forward: compiled from `partition.forward`. compile: compiles a backward."""
    primals = {value: number for number, value in enumerate(partition.forward.inputs)}
    results = {value: number for number, value in enumerate(partition.forward.outputs[: joint.results])}
    inputs = [value for value in partition.kept if value in primals and value in partition.shared]
    outputs = [value for value in partition.kept if value in results and value in partition.shared]
    rest = [value for value in partition.kept if value not in partition.shared]
    place = {value: number for number, value in enumerate((*inputs, *outputs, *rest))}
    tangents = partition.backward.inputs[len(partition.kept) :]
    return Training(
        forward,
        joint,
        partition,
        compile,
        tuple([primals[value] for value in inputs]),
        tuple([results[value] for value in outputs]),
        tuple([place[value] for value in partition.kept]),
        tuple([value.type for value in tangents]),
        tuple([number for number in range(joint.results) if number not in joint.differentiated]),
        sizes=sizes,
    )


def _laid_out(tangent: torch.Tensor, type_: TensorType) -> torch.Tensor:
    """Autograd hands over gradients with any strides (expanded ones, say)."""
    if tangent.stride() == type_.strides:
        return tangent
    return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device=type_.device).copy_(tangent)


class Compiled(torch.autograd.Function):
    """Between the inputs and the results of one call."""

    @staticmethod
    def forward(ctx: Any, training: Training, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        outputs = training.forward.program(inputs)
        count = training.joint.results
        results = outputs[:count]
        ctx.training = training
        ctx.point = training.point(inputs)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(
            *[inputs[number] for number in training.kept_inputs],
            *[results[number] for number in training.kept_results],
            *outputs[count:],
        )
        if training.undifferentiated:
            ctx.mark_non_differentiable(*[results[number] for number in training.undifferentiated])
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *tangents: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        training: Training = ctx.training
        if torch.is_grad_enabled():
            raise GradientError(
                f"second derivatives (create_graph=True) are wanted through {training.joint.graph.name}, which dsjit "
                "compiled with first derivatives only: run it eagerly, under dsjit.disable"
            )
        wanted = [tangents[number] for number in training.joint.differentiated]
        if all(tangent is None for tangent in wanted):
            # Of a later call that this one's results do not reach: what was saved may be freed already.
            return (None,) * (1 + len(training.joint.gradients))
        return (None, *training.run_backward(ctx.point, ctx.saved_tensors, wanted))
