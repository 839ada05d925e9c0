"""One call in double precision: what each tensor of its result, and each that it writes, is there.

The call is captured as `dsjit.jit` captures it, and its Graphs run with `run_with_precision`; so what Python decides,
it decides as eager does. Tensors are made from the Graphs' outputs by the same recipe that compiled calls use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dsjit.ir.graph import Graph, Node, TensorType, Value
from dsjit.ir.joint_graph import JointGraph
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.strided import span, strided_view
from dsjit.oracle.fault import copies
from dsjit.oracle.reference import Reference, agrees, laid_out_as, run_with_precision
from dsjit.trace.capture import Capture, capture
from dsjit.trace.effects.outputs import build_template
from dsjit.trace.effects.replay import Recipe, Returned
from dsjit.verification.gradients import gradient_path, tangent
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
    graph, before = captured.segments[-1].graph, generator_state()
    for segment in captured.segments:
        graph = segment.graph
        given = Reference(
            precise={value: wide[value.id].precise for value in graph.inputs if value.id in wide},
            moved={value: wide[value.id].moved for value in graph.inputs if value.id in wide},
            exact=frozenset([value for value in graph.inputs if value.id in wide and wide[value.id].exact]),
        )
        own = [eager[value.id] for value in graph.inputs]
        before = generator_state()
        reference = run_with_precision(graph, own, keep={*graph.inputs, *graph.results()}, given=given, seed=seed)
        for value in graph.outputs:
            eager[value.id] = reference.eager[value]
            wide[value.id] = Precise(reference.precise[value], reference.moved[value], value in reference.exact)
    passed = () if captured.joint is None else tuple([graph.inputs[number] for number in captured.joint.passed])
    flags = {
        value: laid_out_as(tensor, torch.full(tensor.shape, value in reference.exact))
        for value, tensor in reference.precise.items()
    }
    precise, moved, exact = (
        _made(recipe, graph, values, passed, call) for values in (reference.precise, reference.moved, flags)
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
    if captured.joint is not None:
        set_generator_state(before)
        found |= _gradients(captured, captured.joint, recipe, (eager, wide), call, reachable, seed)
    producers = graph.producers()
    return found, {path: producers[value] for path, value in values.items() if value in producers}


def _made(
    recipe: Recipe, graph: Graph, values: Mapping[Value, torch.Tensor], passed: tuple[Value, ...], call: Any
) -> dict[str, torch.Tensor]:
    """The tensors of the result, by path. A view as another dtype is one of what the Graph's own dtype can hold of its
    root; of flags, it has all of them."""
    inputs, outputs = _ends(graph, values, passed)
    given, made = graph.inputs, (*graph.outputs, *passed)
    returned = list(recipe.returned)
    for number, each in enumerate(returned):
        if isinstance(each, Returned) and each.view is not None and len(each.view) == 4:
            root, type_ = (inputs, given[each.number]) if each.from_input else (outputs, made[each.number])
            tensor = root[each.number]
            flags = tensor.dtype is torch.bool is not type_.type.dtype
            shape = each.view[0]
            view = tensor.all().expand(shape) if flags else strided_view(_laid_out(tensor, type_.type), *each.view)
            returned[number] = Returned(False, len(outputs), None)
            outputs.append(view)
    return tensors_below({"result": replace(recipe, returned=tuple(returned)).make(inputs, outputs, call)})


def _ends(
    graph: Graph, values: Mapping[Value, torch.Tensor], passed: tuple[Value, ...]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The inputs of a Graph after it has run, and its outputs, with the inputs `passed` behind them."""
    written = {write.target: write.value for write in graph.writes}
    inputs = [values[written.get(value, value)] for value in graph.inputs]
    return inputs, [values[value] for value in (*graph.outputs, *passed)]


def _gradients(
    captured: Capture, joint: JointGraph, recipe: Recipe, values: tuple[dict[int, torch.Tensor], dict[int, Precise]],
    call: Any, reachable: Mapping[str, torch.Tensor], seed: int,
) -> dict[str, Precise]:  # fmt: skip
    """The gradients of `gradient_records`, from forward and backward in one Graph. values: of what enters its segment,
    as eager has it, and in double precision."""
    graph = joint.graph
    primals = graph.inputs[: joint.primals]
    tangents = {number: _zeros(graph.outputs[number].type) for number in joint.differentiated}
    direct: dict[int, torch.Tensor] = {}
    for path, returned in _holes(recipe, call):
        number = returned.number
        if not returned.from_input and number in tangents:
            target = tangents[number]
        elif returned.from_input or number >= joint.results:  # an argument is returned
            number = number if returned.from_input else joint.passed[number - joint.results]
            if returned.detached or not captured.given[number].requires_grad:
                continue
            target = direct.setdefault(primals[number].id, _zeros(primals[number].type))
        else:
            continue
        part = target if returned.view is None else strided_view(target, *returned.view)
        part.add_(tangent(path, tuple(part.shape), part.dtype))
    eager, wide = values
    own = [*(eager[value.id] for value in primals), *tangents.values()]
    entering = {value: wide[value.id] for value in primals if value.id in wide}
    given = Reference(
        precise={value: each.precise for value, each in entering.items()},
        moved={value: each.moved for value, each in entering.items()},
        exact=frozenset([value for value, each in entering.items() if each.exact]),
    )
    reference = run_with_precision(graph, own, keep={*graph.inputs, *graph.outputs}, given=given, seed=seed)
    places = {id(tensor): path for path, tensor in reversed([*reachable.items()])}
    number_of = {value.id: number for number, value in enumerate(primals)}
    found: dict[str, Precise] = {}
    for tensor, name in zip(captured.given, captured.inputs, strict=True):
        number = number_of.get(name, -1)
        end = joint.gradients[number] if number >= 0 else None
        if id(tensor) not in places or (end is None and name not in direct):
            continue
        ways = (reference.precise, reference.moved)
        extra = direct.get(name)
        parts = [] if end is None else [way[graph.outputs[joint.results + end]].expand(tensor.shape) for way in ways]
        if extra is not None:
            parts = [part + extra.double() for part in parts] or [extra.double(), extra.double()]
        exact = extra is None and end is not None and graph.outputs[joint.results + end] in reference.exact
        found[gradient_path(places[id(tensor)])] = Precise(parts[0], parts[1], exact)
    return found


def _holes(recipe: Recipe, call: Any) -> Iterator[tuple[str, Returned]]:
    """Where each tensor of the result is met first."""
    marks = [torch.zeros(()) for _ in recipe.returned]
    shown = build_template(recipe.result, marks, [each.fetch(*call) for each in recipe.found], {})
    numbers = {id(mark): number for number, mark in enumerate(marks)}
    for path, mark in tensors_below({"result": shown}).items():
        number = numbers.pop(id(mark), None)
        if number is not None and isinstance(returned := recipe.returned[number], Returned):
            yield path, returned


def _laid_out(tensor: torch.Tensor, type_: TensorType) -> torch.Tensor:
    """What `tensor` holds, as a tensor of this type; elements may share memory, and there may be gaps."""
    count = span(type_.shape, type_.strides)
    memory = torch.zeros(count, dtype=type_.dtype)
    memory[torch.arange(count).as_strided(type_.shape, type_.strides)] = tensor.to(type_.dtype)
    return memory.as_strided(type_.shape, type_.strides)


def _zeros(type_: TensorType) -> torch.Tensor:
    return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device=type_.device).zero_()
