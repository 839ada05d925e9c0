"""From a difference to the part of the compiler that makes it: stage, op, line, rewrite, and a reproducer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from dsjit.api.compile import StageTimer, compile_graph
from dsjit.api.jitted import Jitted
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.program import Program
from dsjit.config import Environment, Options
from dsjit.errors import BackendError
from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Node, Value, map_values
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.oracle.checked import FaultFound
from dsjit.oracle.fault import copies
from dsjit.oracle.reference import run_with_precision
from dsjit.passes.fuel import Fuel
from dsjit.trace.capture import Capture
from dsjit.verification.precise import PreciseCall
from dsjit.verification.report import THE_CALL, Blame, Comparison
from dsjit.verification.reproducer import reproducer
from dsjit.verification.rewrites import first_bad_rewrite
from dsjit.verification.sides import Arguments, play_compiled

__all__ = ["find_blame"]


def find_blame(
    function: Callable[..., Any],
    calls: Sequence[Arguments],
    seed: int,
    options: Options,
    environment: Environment,
    differences: Sequence[Comparison],
    jitted: Jitted,
    precise: PreciseCall,
) -> Blame:
    """Play the calls on programs that check themselves; if these are right, look for what the capture missed."""
    try:
        play_compiled(function, calls, seed, options, replace(environment, check=2))
    except FaultFound as found:
        return _compiler_blame(found, options)
    return _capture_blame(differences, jitted, precise.captured)


# -- the compiler --------------------------------------------------------------------------------------------------


def _compiler_blame(found: FaultFound, options: Options) -> Blame:
    fault, compiled, inputs = found.fault, found.compiled, found.inputs
    judge = _Judge(options)
    bad = first_bad_rewrite(lambda fuel: judge.differs(compiled.captured, inputs, fuel))
    title = f"{fault.kind} {fault.name}: {fault.op} at {fault.source}: {fault.text}"
    text = ""
    candidates = [(compiled.captured, inputs)]
    if fault.part is not None:
        candidates.insert(0, (fault.part, fault.inputs))
    for graph, given in candidates:
        if judge.differs(graph, given):
            text = reproducer(graph, given, judge.differs, title)
            break
    source = fault.source
    op = fault.op
    if bad is not None and source is UNKNOWN_SOURCE:
        source, op = bad.rewrite.source, bad.rewrite.name
    return Blame(
        fault.kind, fault.name, op, source.file, source.line, fault.text, str(bad) if bad is not None else "", text
    )


class _Judge:
    """Whether a Graph, compiled by itself, gives a wrong answer."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.kernels = KernelCache()

    def differs(self, graph: Graph, inputs: Sequence[torch.Tensor], fuel: Fuel | None = None) -> bool:
        state = generator_state()
        try:
            try:
                expected = run_with_precision(graph, copies(inputs), keep=set(graph.results()))
            except Exception:  # no answer to compare with: tensors that the ops do not take
                return False
            set_generator_state(state)
            taken = copies(inputs)
            try:
                outputs = self._compile(graph, fuel)(taken)
            except (BackendError, RuntimeError, IndexError):
                return True
        finally:
            set_generator_state(state)
        after = dict(zip(graph.inputs, taken, strict=True))
        results = [*zip(graph.outputs, outputs, strict=True), *((w.value, after[w.target]) for w in graph.writes)]
        return not all(expected.accepts(value, tensor) for value, tensor in results)

    def _compile(self, graph: Graph, fuel: Fuel | None) -> Program:
        compilation = compile_graph(
            graph, self.options.numerics, Environment(), self.kernels, StageTimer(), None, fuel
        )
        assert isinstance(compilation.program, Program)
        return compilation.program


# -- the capture ---------------------------------------------------------------------------------------------------


def _capture_blame(differences: Sequence[Comparison], jitted: Jitted, captured: Capture | None) -> Blame:
    """Every program computes what its Graph says: so the Graph, its guard or its effects are not those of this call."""
    first = differences[0]
    if first.path == THE_CALL:
        return Blame("compiler", "exception", THE_CALL, UNKNOWN_SOURCE.file, 0, first.problems[0])
    if captured is not None and captured.segments:
        fresh = [segment.graph for segment in captured.segments]
        for graph in fresh:
            stale = [_first_stale_node(graph, compilation.captured) for compilation in jitted.compilations]
            nodes = [node for node in stale if node is not None]
            if stale and len(nodes) == len(stale):
                node = nodes[-1]
                text = "the program that ran was recorded for another call, and its guard did not notice"
                return Blame("capture", "guard", str(node.op), node.source.file, node.source.line, text)
        node = _producer(fresh[-1], first)
        if first.values is None:
            text = f"{first.path} is not as the call left it: {first.problems[0]}"
            return Blame("capture", "effect", first.path, node.source.file, node.source.line, text)
        text = f"the Graph is what eager ran, but {first.path} is not made of it as eager made it"
        return Blame("capture", "result", str(node.op), node.source.file, node.source.line, text)
    text = f"every program is right by itself; {first.path} differs: {first.problems[0]}"
    return Blame("capture", "call", "the call", UNKNOWN_SOURCE.file, 0, text)


def _first_stale_node(fresh: Graph, recorded: Graph) -> Node | None:
    """The first node of `fresh` that `recorded` lacks in its place; None when all are there."""
    numbers: dict[Value, int] = dict(zip(fresh.inputs, range(len(fresh.inputs)), strict=True))
    others: dict[Value, int] = dict(zip(recorded.inputs, range(len(recorded.inputs)), strict=True))
    for position, node in enumerate(fresh.nodes):
        if position >= len(recorded.nodes):
            return node
        other = recorded.nodes[position]
        if node.op is not other.op or _shape(node, numbers) != _shape(other, others):
            return node
        for value, counterpart in zip(node.outputs, other.outputs, strict=True):
            numbers[value] = others[counterpart] = len(numbers)
    if len(recorded.nodes) > len(fresh.nodes):
        return recorded.nodes[len(fresh.nodes)]
    return None


def _shape(node: Node, numbers: dict[Value, int]) -> str:
    """The arguments, the Values by number."""
    arguments = map_values((*node.args, *node.kwargs.items()), lambda value: ("value", numbers.get(value, -1)))
    return repr((arguments, [value.type for value in node.outputs]))


def _producer(graph: Graph, first: Comparison) -> Node:
    """The node that made what differs, as well as can be told: the last one that made a result."""
    results = set(graph.results())
    made = [node for node in graph.nodes if results.intersection(node.outputs)] or list(graph.nodes)
    return made[-1] if made else Node(torch.ops.aten.alias.default, (), {}, ())
