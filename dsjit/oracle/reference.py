"""The values of a Graph as eager has them, in double precision, and how uncertain they are.

Double precision: every op that computes floats computes float64. What is no float is eager's, so that the reference
goes eager's way where a comparison is close; so are random numbers, and results of ops that have no float64 kernel.

Uncertainty: the Graph is run in double precision once more with each operand of each op moved at random by up to one
unit of roundoff of its own dtype, and so are the steps inside some ops (`dsjit.oracle.roundings`). How far a result
moves is how far a correct computation in that dtype may be off, whatever the order of its sums. (Monte Carlo
arithmetic: Parker, UCLA CSD-970002, 1997; the idea is Vignes's, 1974.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch

from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.ops.properties import is_undefined, shares_memory
from dsjit.oracle.exactness import chooses, exact_values
from dsjit.oracle.measure import same_values, ulp_distance
from dsjit.oracle.roundings import STEPS, Roundings, rounded_at_random
from dsjit.passes.reference import evaluate_node

__all__ = ["Reference", "agrees", "laid_out_as", "run_with_precision", "within_error"]

Env = dict[Value, torch.Tensor]

_WIDE: Final = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}

_OVERLAPS: Final = 1

ERROR_FACTOR: Final = 4.0
"""How many times the error that eager makes, and that is to be expected of anybody, is an accident."""

EAGER_FACTOR: Final = 8.0
"""How many times what roundings may do, sums of many terms in one chain may do."""

ULPS: Final = 4.0
"""Units in the last place that each element may be off, whatever its errors."""


SAMPLES: Final = 5
"""Runs with operands moved, of which the one that moved farthest counts."""

CHANCE: Final = 1000.0
"""How many times nearer than usual one sample may lie by chance."""


@dataclass(slots=True)
class Reference:
    """eager, precise, moved: each Value as eager has it, in double precision, and there with operands moved. exact: the
    Values of which every bit counts. undefined: those that may be anything. move: runs the Graph once more with
    operands moved, by the seed that it is given; others: what it gave.
    """

    eager: Env = field(default_factory=dict)
    precise: Env = field(default_factory=dict)
    moved: Env = field(default_factory=dict)
    exact: frozenset[Value] = frozenset()
    undefined: frozenset[Value] = frozenset()
    move: Callable[[int], Env] | None = None
    others: dict[int, Env] = field(default_factory=dict)

    def accepts(self, value: Value, found: torch.Tensor) -> bool:
        """Whether `found` is a right answer for `value`: eager's bits where they are certain, and elsewhere no further
        from the reference than may happen."""
        expected = self.eager[value]
        if found.dtype is not expected.dtype or found.shape != expected.shape:
            return False
        if value in self.undefined:
            return True
        if value in self.exact or value not in self.precise or not found.is_floating_point():
            return same_values(found, expected)
        again = None if self.move is None else functools.partial(self._again, value)
        return agrees(found, expected, self.precise[value], self.moved[value], again)

    def _again(self, value: Value, seed: int) -> torch.Tensor:
        assert self.move is not None
        if seed not in self.others:
            self.others[seed] = self.move(seed)
        return self.others[seed][value]


def agrees(
    found: torch.Tensor,
    expected: torch.Tensor,
    precise: torch.Tensor,
    moved: torch.Tensor,
    again: Callable[[int], torch.Tensor] | None,
) -> bool:
    """`within_error`, by more than one sample where it takes them: a number may hardly have moved by chance.

    again: what moves by another seed.
    """
    if within_error(found, expected, precise, moved):
        return True
    far = precise + CHANCE * (moved - precise)
    if again is None or not (torch.equal(moved, precise) or within_error(found, expected, precise, far)):
        return False
    return any(within_error(found, expected, precise, again(seed)) for seed in range(1, SAMPLES))


def within_error(found: torch.Tensor, expected: torch.Tensor, precise: torch.Tensor, moved: torch.Tensor) -> bool:
    """Whether `found` is, element by element, within a few units in the last place of eager's `expected`, or within
    the error that eager makes and that a computation in this dtype may make. precise, moved: in double precision, and
    there with operands moved."""
    # A step of the dtype means nothing to the reference: denormals of the narrower dtype, infinities, NaN.
    close = ulp_distance(found, expected).reshape(found.shape) <= ULPS
    if bool(close.all()):
        return True
    spread = _distance(moved, precise)
    slack = ERROR_FACTOR * (spread + min(_distance(expected.double(), precise), EAGER_FACTOR * spread))
    wide = found.double()
    # From eager as well: where it is beyond all rounding, the reference did not go its way, and proves nothing.
    within = ((wide - precise).abs() <= slack) & ((wide - expected.double()).abs() <= 2 * slack)
    return bool((close | within).all())


def run_with_precision(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    *,
    keep: Collection[Value] | None = None,
    given: Reference | None = None,
    seed: int = 0,
) -> Reference:
    """Run `graph` in all three ways. The inputs stay as they are: what is written to them is a Value like any other.

    keep: the Values wanted; all when None. given: what some inputs are in double precision, with operands moved; they
        are exact if they are so there. seed: of the noise.
    Draws from the random generators as one eager run does.
    """
    known = {**dict(zip(graph.inputs, inputs, strict=True)), **graph.constants}
    eager: Env = dict(known)
    given = given or Reference()
    precise = {value: _widened(tensor) for value, tensor in known.items()}
    noisy = precise | given.moved
    precise |= given.precise
    exact = exact_values(graph, [value for value in known if value not in given.precise or value in given.exact])
    generator = torch.Generator().manual_seed(seed)
    drawn = generator_state()
    last = _last_uses(graph) if keep is not None else {}
    with torch.no_grad():
        for position, node in enumerate(graph.nodes):
            before = generator_state() if node.effect else None
            results = evaluate_node(node, eager)
            eager.update(zip(node.outputs, results, strict=True))
            if before is not None and not torch.equal(generator_state(), before):  # it drew random numbers, or seeded
                wide = noise = [_widened(tensor) for tensor in results]
            else:
                wide = _evaluate_widely(node, precise, results)
                moved = noisy if shares_memory(node.op) or chooses(node.op) else _moved(node, noisy, generator)
                with Roundings(_inner_dtype(results[0].dtype), generator) if node.op in STEPS else nullcontext():
                    noise = _evaluate_widely(node, moved, results)
            precise.update(zip(node.outputs, wide, strict=True))
            noisy.update(zip(node.outputs, noise, strict=True))
            for value in last.get(position, ()):
                if keep is not None and value not in keep:
                    del eager[value], precise[value], noisy[value]
    undefined = frozenset([value for node in graph.nodes if is_undefined(node.op) for value in node.outputs])

    def move(seed: int) -> Env:
        now = generator_state()
        set_generator_state(drawn)
        try:
            return run_with_precision(graph, inputs, keep=keep, given=given, seed=seed).moved
        finally:
            set_generator_state(now)

    return Reference(eager, precise, noisy, exact, undefined, move)


def _inner_dtype(dtype: torch.dtype) -> torch.dtype:
    """What ops on `dtype` compute with inside: narrow floats are float32 there."""
    return dtype if dtype is torch.float64 else torch.float32


def _last_uses(graph: Graph) -> dict[int, list[Value]]:
    last: dict[Value, int] = {}
    for position, node in enumerate(graph.nodes):
        for value in (*node.inputs(), *node.outputs):
            last[value] = position
    found: dict[int, list[Value]] = {}
    for value, position in last.items():
        found.setdefault(position, []).append(value)
    return found


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """A copy in double precision with the same strides; what is no float stays."""
    wide = _WIDE.get(tensor.dtype)
    if wide is None:
        return tensor
    return laid_out_as(tensor, tensor.detach().to(wide))


def _evaluate_widely(
    node: Node, env: Mapping[Value, torch.Tensor], eager: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """The results of a node that draws nothing in double precision, or eager's where there is no such thing."""
    if not any(tensor.dtype in _WIDE or tensor.dtype is torch.float64 for tensor in eager):
        return [_widened(tensor) for tensor in eager]
    wide = replace(node, args=_wide_arg(node.args), kwargs={name: _wide_arg(arg) for name, arg in node.kwargs.items()})
    try:
        results = evaluate_node(wide, env)
    except Exception:  # no kernel for float64, or one that insists on the dtype that it was written for
        return [_widened(tensor) for tensor in eager]
    return [
        found if found.shape == tensor.shape and found.dtype is _WIDE.get(tensor.dtype, tensor.dtype)
        and found.dtype.is_floating_point else _widened(tensor)
        for found, tensor in zip(results, eager, strict=True)
    ]  # fmt: skip


def _wide_arg(arg: Arg) -> Any:
    if isinstance(arg, torch.dtype):
        return _WIDE.get(arg, arg)
    if isinstance(arg, tuple):
        return tuple(_wide_arg(item) for item in arg)
    return arg


def _moved(node: Node, env: Env, generator: torch.Generator) -> Env:
    """What a node reads, each element moved by up to a rounding; those that share memory move together."""
    found: Env = {}
    for value in node.inputs():
        tensor = env[value]
        if value.type.dtype.is_floating_point and tensor.dtype is torch.float64:
            pairs = zip(tensor.shape, value.type.strides, strict=True)
            shape = [size if stride else min(size, 1) for size, stride in pairs]
            tensor = laid_out_as(tensor, rounded_at_random(tensor, value.type.dtype, generator, shape))
        found[value] = tensor
    return found


def laid_out_as(model: torch.Tensor, tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` with the strides of `model`, unless its elements share memory."""
    if tensor.stride() == model.stride() or torch._debug_has_internal_overlap(model) == _OVERLAPS:
        return tensor
    return torch.empty_strided(model.shape, model.stride(), dtype=tensor.dtype).copy_(tensor)


def _distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """The largest finite |a - b|."""
    difference = (a - b).abs().nan_to_num_(nan=0.0, posinf=0.0)
    return float(difference.max()) if difference.numel() else 0.0
