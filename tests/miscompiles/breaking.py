"""Ways to break the compiler for a while, and inputs that show it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import torch

from dsjit.api import compile as api_compile
from dsjit.codegen.llvm import casts, reductions, spellings
from dsjit.fusion import planner
from dsjit.fusion.lower import FusedKernel
from dsjit.ir.graph import Graph, Node
from dsjit.ops import table
from dsjit.ops.python_numbers import compute
from dsjit.passes.pipeline import PASSES
from dsjit.trace.looks.outcome import Outcome
from dsjit.trace.numbers.tables import TYPES
from dsjit.trace.reads.facts import Constant
from tests.miscompiles.harness import Breaks

__all__ = [
    "Calls",
    "HALVES",
    "NAN",
    "NEGATIVE",
    "TIES",
    "attribute",
    "both",
    "early_death",
    "entry",
    "floats",
    "given",
    "exchanged_kept",
    "identity_of",
    "in_pass",
    "integers",
    "map_nodes",
    "other_describe",
    "other_scalar",
    "places_exchanged",
    "reversed_results",
    "rounding_conversion",
    "row_of",
    "second_operand_of_sums",
    "shifted_slice",
    "spelling",
    "stale_moves",
    "swapped",
    "swapped_arguments",
    "swapped_branches",
    "truncated_bfloat16",
    "with_gradients",
    "without_constants",
]

Calls = Callable[[], Sequence[tuple[Any, ...]]]


# -- inputs --------------------------------------------------------------------------------------------------------


def floats(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, times: int = 2) -> Calls:
    """The same normal numbers, so many times."""

    def make() -> Sequence[tuple[Any, ...]]:
        return [tuple(torch.randn(shape).to(dtype) for shape in shapes)] * times

    return make


def with_gradients(*shapes: tuple[int, ...]) -> Calls:
    """The same normal numbers, which require gradients, twice."""

    def make() -> Sequence[tuple[Any, ...]]:
        return [tuple(torch.randn(shape).requires_grad_() for shape in shapes)] * 2

    return make


def integers(*shapes: tuple[int, ...], low: int = -9, dtype: torch.dtype = torch.int64) -> Calls:
    def make() -> Sequence[tuple[Any, ...]]:
        return [tuple(torch.randint(low, 10, shape).to(dtype) for shape in shapes)] * 2

    return make


def given(*arguments: tuple[Any, ...]) -> Calls:
    return lambda: arguments


NEGATIVE = given(*[(-1 - torch.arange(35.0).reshape(5, 7),)] * 2)
TIES = given(*[(torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0] * 8]),)] * 2)
NAN = given(*[(torch.tensor([1.0, float("nan"), 3.0]), torch.tensor([2.0, 1.0, float("nan")]))] * 2)
HALVES = given(*[(torch.arange(-8, 9) / 2.0,)] * 2)


# -- breaking ------------------------------------------------------------------------------------------------------


def attribute(owner: Any, name: str, broken: Callable[[Any], Any]) -> Breaks:
    """Replace an attribute by what `broken` makes of it."""
    return lambda: mock.patch.object(owner, name, broken(getattr(owner, name)))


def spelling(**names: Callable[[Any], Any]) -> Breaks:
    """Replace how scalar ops are written in LLVM IR."""
    return lambda: mock.patch.dict(
        spellings.SPELLINGS, {name.rstrip("_"): broken(spellings.SPELLINGS) for name, broken in names.items()}
    )


def entry(mapping: Any, key: Any, broken: Callable[[Any], Any]) -> Breaks:
    return lambda: mock.patch.dict(mapping, {key: broken(mapping[key])})


def in_pass(name: str, broken: Callable[[Graph, Graph], Graph]) -> Breaks:
    """A pass gives `broken(before, after)` instead of `after`."""

    @contextmanager
    def breaks() -> Iterator[None]:
        def wrong(run: Callable[[Graph], Graph]) -> Callable[[Graph], Graph]:
            return lambda graph: broken(graph, run(graph))

        passes = tuple(replace(each, run=wrong(each.run)) if each.name == name else each for each in PASSES)
        run_passes = api_compile.run_passes
        with mock.patch.object(
            api_compile, "run_passes", lambda graph, **keywords: run_passes(graph, **{**keywords, "passes": passes})
        ):
            yield

    return breaks


def both(*breaks: Breaks) -> Breaks:
    @contextmanager
    def enter() -> Iterator[None]:
        with ExitStack() as stack:
            for each in breaks:
                stack.enter_context(each())
            yield

    return enter


def swapped(spell: Any) -> Any:
    return lambda b, dtype, args: spell(b, dtype, [args[1], args[0], *args[2:]])


def identity_of(kind: str, value: float) -> Breaks:
    def broken(identity: Any) -> Any:
        return lambda reduce, dtype: value if reduce.kind == kind else identity(reduce, dtype)

    return attribute(reductions, "_identity_value", broken)


def row_of(name: str, **changes: Any) -> Breaks:
    """Change the rule of a row of the op table."""
    key = name.replace(".", "::", 1).removesuffix(".default")
    return entry(table._BY_QUALIFIED_NAME, key, lambda row: replace(row, rule=replace(row.rule, **changes)))


def map_nodes(graph: Graph, op: str, change: Callable[[Node], Node]) -> Graph:
    nodes = tuple(change(node) if str(node.op) == op else node for node in graph.nodes)
    return graph if nodes == graph.nodes else replace(graph, nodes=nodes)


def other_scalar(node: Node) -> Node:
    """The number among the arguments, doubled."""
    return replace(node, args=tuple(arg * 2 if type(arg) in (int, float) else arg for arg in node.args))


def swapped_arguments(node: Node) -> Node:
    return replace(node, args=(node.args[1], node.args[0], *node.args[2:]))


def truncated_bfloat16(original: Any) -> Any:
    def broken(b: Any, a: Any) -> Any:
        bits = b.convert("bitcast", a, "i32")
        return b.convert("bitcast", b.binary("and", bits, casts.number(bits, "-65536")), "float")

    return broken


def without_constants(original: Any) -> Any:
    def broken(self: Any, **fields: Any) -> None:
        kept = tuple(fact for fact in fields["facts"] if not isinstance(fact.expectation, Constant))
        original(self, **{**fields, "facts": kept})

    return broken


def exchanged_kept(original: Any) -> Any:
    """The last two things that are kept for a backward change places."""

    def broken(*args: Any, **keywords: Any) -> Any:
        training = original(*args, **keywords)
        *others, last, end = training.kept
        training.kept = (*others, end, last)
        return training

    return broken


def stale_moves(forget: Any) -> Any:
    """Where ways join, another tensor of the same shape is handed on than the one that was made last."""

    def broken(self: Any, known: dict[int, Any], outcome: Outcome) -> None:
        others = [value for value in known.values() if isinstance(value, torch.Tensor)]
        forget(self, known, outcome)
        for _, then in self.exits.get(outcome, self.moves):
            now = known[then]
            known[then] = next((each for each in others if each is not now and each.shape == now.shape), now)

    return broken


def shifted_slice(original: Any) -> Any:
    def broken(node: Node, output: int, index: Any, sizes: Any) -> Any:
        found = original(node, output, index, sizes)
        dim = node.args[1]
        return (*found[:dim], found[dim].shifted(1), *found[dim + 1 :])

    return broken


def early_death(original: Any) -> Any:
    """The first buffer that is read again late counts as dead after the next step."""

    def broken(graph: Graph, steps: Any, *how: Any) -> Any:
        last = original(graph, steps, *how)
        ends = {
            value: number + 1
            for number, step in enumerate(steps)
            if step.planned or isinstance(step.work, FusedKernel)
            for value in step.writes
            if number + 2 < last.get(value, 0) < len(steps)
        }
        return last | dict(list(ends.items())[:1])

    return broken


def reversed_results(program: Any) -> Any:
    run = program.run
    program.run = lambda inputs, frame, threads: run(inputs, frame, threads)[::-1]
    return program


def swapped_branches(select: Any) -> Any:
    return lambda b, dtype, args: select(b, dtype, [args[0], args[2], args[1]])


def other_describe(change: Callable[[Any], Any]) -> Breaks:
    """Change what fusion knows of a node."""

    def broken(describe: Any) -> Any:
        return lambda node, limits, device: change(describe(node, limits, device))

    return attribute(planner, "describe", broken)


def places_exchanged(info: Any) -> Any:
    """Of a concatenation: each operand lies where its counterpart from the other end belongs."""
    pairs = zip(info.operands, reversed(info.operands), strict=True)
    return replace(info, operands=tuple(replace(operand, offset=other.offset) for operand, other in pairs))


def rounding_conversion(original: Any) -> Any:
    def broken(self: Any, value: Any, kind: type[float]) -> Any:
        if value.type == TYPES[kind]:
            return value
        return self._recorder.emit(compute, (kind, round, value), {}, TYPES[kind])

    return broken


def second_operand_of_sums(original: Any) -> Any:
    """A sum that is written leaves out what was there."""

    def broken(self: Any, pure: Any, args: Any, *others: Any) -> Any:
        return (args[1],) if pure is torch.ops.aten.add.Tensor else original(self, pure, args, *others)

    return broken
