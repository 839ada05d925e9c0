"""One call in double precision: what each tensor of its result, and each that it writes, is there.

The call is captured as `dsjit.jit` captures it, and its Graphs run with `run_with_precision`; so what Python decides,
it decides as eager does. Tensors are made from the Graphs' outputs by the same recipe that compiled calls use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dsjit.ir.graph import Graph, Node, Value
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.oracle.fault import copies
from dsjit.oracle.reference import Reference, agrees, laid_out_as, run_with_precision
from dsjit.trace.capture import Capture, capture
from dsjit.trace.effects.replay import Recipe
from dsjit.verification.records import tensors_below

__all__ = ["Precise", "PreciseCall", "capture_precisely"]


@dataclass(frozen=True, slots=True)
class Precise:
    """A tensor in double precision, with operands moved (see `oracle.reference`), and whether every bit counts.

    again: what it is with operands moved by another seed.
    """

    precise: torch.Tensor
    moved: torch.Tensor
    exact: bool
    again: Callable[[int], torch.Tensor] | None = None

    def accepts(self, found: torch.Tensor, expected: torch.Tensor) -> bool:
        """Whether `found` may stand where eager has `expected`, both of one shape; not whether every bit is eager's."""
        return agrees(found, expected, self.precise, self.moved, self.again)


@dataclass(frozen=True, slots=True)
class PreciseCall:
    """tensors: by path. captured: the call's own capture, and its input tensors as they were before. reason: why there
    is nothing, if so. makers: by path, the op that makes a result, or what the call leaves there."""

    tensors: dict[str, Precise]
    captured: Capture | None
    reason: str = ""
    inputs: tuple[torch.Tensor, ...] = ()
    makers: Mapping[str, Node] = field(default_factory=dict)


def capture_precisely(
    target: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], state: Mapping[str, Any], name: str
) -> PreciseCall:
    """Capture the call `target(*args, **kwargs)`, and run it in double precision.

    state: roots of what the call can write, arguments included, as `records.read` takes them. Whatever the call raises
    is raised.
    """
    drawn = generator_state()
    reachable = tensors_below(state)
    strided = [tensor for tensor in reachable.values() if tensor.layout is torch.strided]
    before = {id(tensor): clone for tensor, clone in zip(strided, copies(strided), strict=True)}
    captured = capture(target, args, kwargs, name)
    after = generator_state()
    try:
        if not captured.segments or captured.recipe is None:
            reason = captured.problems[0].reason if captured.problems else "the call was not captured"
            return PreciseCall({}, captured, reason)
        set_generator_state(drawn)
        inputs = [before.get(id(tensor), tensor) for tensor in captured.given]
        run = functools.partial(_run, captured, captured.recipe, inputs, (args, kwargs), reachable)
        tensors, makers = run()

        @functools.cache
        def again(seed: int) -> dict[str, Precise]:
            now = generator_state()
            set_generator_state(drawn)
            try:
                return run(seed)[0]
            finally:
                set_generator_state(now)

        def sample(path: str, seed: int) -> torch.Tensor:
            return again(seed)[path].moved

        tensors = {path: replace(each, again=functools.partial(sample, path)) for path, each in tensors.items()}
        return PreciseCall(tensors, captured, "", tuple(inputs), makers)
    finally:
        set_generator_state(after)
        if captured.observer is not None:
            captured.observer.let_go()


def _run(
    captured: Capture, recipe: Recipe, inputs: list[torch.Tensor], call: Any, reachable: Mapping[str, torch.Tensor],
    seed: int = 0,
) -> tuple[dict[str, Precise], dict[str, Node]]:  # fmt: skip
    eager: dict[int, torch.Tensor] = dict(zip(captured.inputs, inputs, strict=True))
    wide: dict[int, Precise] = {}
    reference = Reference()
    graph = captured.segments[-1].graph
    for segment in captured.segments:
        graph = segment.graph
        given = Reference(
            precise={value: wide[value.id].precise for value in graph.inputs if value.id in wide},
            moved={value: wide[value.id].moved for value in graph.inputs if value.id in wide},
            exact=frozenset([value for value in graph.inputs if value.id in wide and wide[value.id].exact]),
        )
        own = [eager[value.id] for value in graph.inputs]
        reference = run_with_precision(graph, own, keep={*graph.inputs, *graph.results()}, given=given, seed=seed)
        for value in graph.outputs:
            eager[value.id] = reference.eager[value]
            wide[value.id] = Precise(reference.precise[value], reference.moved[value], value in reference.exact)
    flags = {
        value: laid_out_as(tensor, torch.full(tensor.shape, value in reference.exact))
        for value, tensor in reference.precise.items()
    }
    precise, moved, exact = (
        tensors_below({"result": recipe.make(*_ends(graph, values), call)})
        for values in (reference.precise, reference.moved, flags)
    )
    found = {path: Precise(precise[path], moved[path], bool(exact[path].all())) for path in precise}
    made_as = {id(reference.precise[value]): value for value in graph.outputs}
    values = {path: made_as[id(tensor)] for path, tensor in precise.items() if id(tensor) in made_as}
    given_as = {id(tensor): number for tensor, number in zip(captured.given, captured.inputs, strict=True)}
    written = {write.target.id: write.value for write in graph.writes}
    for path, tensor in reachable.items():
        left = written.get(given_as.get(id(tensor), -1))
        if left is not None:
            found[path] = Precise(reference.precise[left], reference.moved[left], left in reference.exact)
            values[path] = left
    producers = graph.producers()
    return found, {path: producers[value] for path, value in values.items() if value in producers}


def _ends(graph: Graph, values: Mapping[Value, torch.Tensor]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs of a Graph after it has run, and its outputs."""
    written = {write.target: write.value for write in graph.writes}
    return [values[written.get(value, value)] for value in graph.inputs], [values[value] for value in graph.outputs]
