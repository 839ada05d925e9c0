"""A compiled function whose results carry gradients: two Programs behind one autograd node."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch._C._autograd import _get_current_graph_task_keep_graph, _top_saved_tensors_default_hooks

from dsjit.api.compile import Compilation
from dsjit.api.memory_budget import TrainingMemory
from dsjit.codegen.offload import StoredTensor, TensorInMemory
from dsjit.codegen.program import GuestProgram, Program
from dsjit.errors import DsjitWarning, GradientError
from dsjit.ir.graph import Graph, TensorType
from dsjit.ir.joint_graph import JointGraph
from dsjit.passes.partition import Partition
from dsjit.passes.reference import run_reference
from dsjit.passes.undefined_gradients import without_gradients

__all__ = ["Training", "make_training"]

Runner: TypeAlias = Callable[[Iterable[torch.Tensor]], Sequence[torch.Tensor]]


@dataclass(slots=True)
class _Backward:
    """run: from what is kept and the defined gradients of results to gradients. places: of each distinct gradient among
    those; None when it is undefined. compilation: None when the Graph runs op by op. proven: whether `run` went well
    once, or memory is too short to find out."""

    graph: Graph
    places: tuple[int | None, ...]
    run: Runner
    compilation: Compilation | None
    proven: bool = False


@dataclass(slots=True, eq=False, weakref_slot=True)
class Training:
    """forward: from the inputs to the results, and then to what is kept besides inputs and results.

    compile: a backward Graph. kept_inputs, kept_results: numbers of what is kept, too. order: of the backward's inputs
    among kept inputs, kept results, and the rest. tangents: types of the gradients of results.
    undifferentiated: numbers of the results without gradients.
    backwards: by which gradients of results are defined, compiled when first wanted.
    memory: what was planned under a budget.
    """

    forward: Compilation
    joint: JointGraph
    partition: Partition
    compile: Callable[[Graph], Compilation]
    kept_inputs: tuple[int, ...]
    kept_results: tuple[int, ...]
    order: tuple[int, ...]
    tangents: tuple[TensorType, ...]
    undifferentiated: tuple[int, ...]
    backwards: dict[tuple[bool, ...], _Backward] = field(default_factory=dict)
    memory: TrainingMemory | None = None

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

    def backward(self, defined: tuple[bool, ...]) -> _Backward:
        """The backward for these gradients of results."""
        found = self.backwards.get(defined)
        if found is None:
            graph = self.partition.backward
            tangents = graph.inputs[len(self.partition.kept) :]
            missing = [value for value, there in zip(tangents, defined, strict=True) if not there]
            if missing:
                graph, places = without_gradients(graph, tangents, missing)
            else:
                places = tuple(range(len(graph.outputs)))
            found = self.backwards[defined] = _Backward(
                graph, places, *self._compiled(graph), proven=self.memory is not None
            )
        return found

    def _compiled(self, graph: Graph) -> tuple[Runner, Compilation | None]:
        try:
            compilation = self.compile(graph)
        except Exception as error:  # whatever a compiler may stumble over, op by op it runs
            self._warn(error)
            return functools.partial(_run_op_by_op, graph), None
        program, host = compilation.program, self.forward.program
        if isinstance(program, Program) and isinstance(host, Program):
            return GuestProgram(program, host), compilation
        run: Runner = program  # type: ignore[assignment]
        return run, compilation

    def _warn(self, error: Exception) -> None:
        text = f"the backward of {self.joint.graph.name} runs op by op, without generated kernels: {error!r}"
        warnings.warn(text, DsjitWarning, stacklevel=2)

    def run_backward(
        self, kept: Sequence[torch.Tensor], own: list[torch.Tensor], tangents: Sequence[torch.Tensor | None]
    ) -> list[torch.Tensor | None]:
        """The gradients of all inputs. kept: inputs and results of the call; own: what only its backward wants. When
        the caller holds none of those, each is freed after its last use. tangents: of the differentiated results, in
        order."""
        defined = tuple([tangent is not None for tangent in tangents])
        backward = self.backward(defined)
        given = [
            _laid_out(tangent, type_)
            for tangent, type_ in zip(tangents, self.tangents, strict=True)
            if tangent is not None
        ]
        every = [*kept, *own]
        own.clear()
        taken = [*(every[number] for number in self.order), *given]
        del every
        # A backward that has never run through may be one that cannot: then all is wanted for the reference.
        held = [] if backward.proven else list(taken)
        try:
            found = backward.run(_handed_over(taken))
            backward.proven = True
        except Exception as error:  # nothing was written yet, and what eager raises the reference raises, too
            if not (held or taken):
                raise
            reference = functools.partial(_run_op_by_op, backward.graph)
            found = reference(held or taken)
            if not isinstance(error, MemoryError):  # there may be more memory at the next call
                self.backwards[defined] = replace(backward, run=reference, compilation=None)
            self._warn(error)
        distinct = [None if place is None else found[place] for place in backward.places]
        gradients = [None if number is None else distinct[number] for number in self.joint.gradients]
        return [
            tensor if tensor is None or shape is None or tensor.shape == shape else tensor.expand(shape)
            for tensor, shape in zip(gradients, self.joint.shapes, strict=True)
        ]


def make_training(
    joint: JointGraph,
    partition: Partition,
    forward: Compilation,
    compile: Callable[[Graph], Compilation],
    memory: TrainingMemory | None = None,
) -> Training:
    """forward: compiled from `partition.forward`. compile: compiles a backward. memory: what was planned."""
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
        memory=memory,
    )


def _run_op_by_op(graph: Graph, inputs: Iterable[torch.Tensor]) -> Sequence[torch.Tensor]:
    return run_reference(graph, _in_memory(inputs))


def _in_memory(tensors: Iterable[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors, those in files fetched."""
    return [tensor.fetch() if isinstance(tensor, StoredTensor | TensorInMemory) else tensor for tensor in tensors]


def _handed_over(tensors: list[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The tensors, one by one; who takes them is then the only one to hold them."""
    tensors.reverse()
    while tensors:
        yield tensors.pop()


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
        ctx.set_materialize_grads(False)
        own = outputs[count:]
        # Autograd would hold these until the whole backward has run; hooks of the user's must see them, though.
        hooked = _top_saved_tensors_default_hooks(True) is not None
        ctx.own = [] if hooked else own
        ctx.in_files = [isinstance(tensor, StoredTensor) for tensor in own] if hooked else []
        ctx.save_for_backward(
            *[inputs[number] for number in training.kept_inputs],
            *[results[number] for number in training.kept_results],
            *(_in_memory(own) if hooked else ()),
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
        kept = ctx.saved_tensors  # raises what eager does when the backward has run before
        own = list(ctx.own)
        if ctx.in_files:
            first = len(kept) - len(ctx.in_files)
            stored = zip(kept[first:], ctx.in_files, strict=True)
            own = [TensorInMemory(tensor) if in_file else tensor for tensor, in_file in stored]
            kept = kept[:first]
        if not _get_current_graph_task_keep_graph():
            ctx.own = []
        return (None, *training.run_backward(kept, own, wanted))
