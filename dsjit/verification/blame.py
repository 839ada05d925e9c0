"""From a difference to the part of the compiler that makes it: stage, op, line, rewrite, and a reproducer."""

from __future__ import annotations

import dis
import inspect
import re
import types
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from dsjit.api.compile import StageTimer, compile_graph
from dsjit.api.jitted import Jitted
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.program import Program
from dsjit.config import Environment, Options
from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Node, Value, map_values
from dsjit.ops.generator import generator_state, set_generator_state
from dsjit.oracle.checked import FaultFound
from dsjit.oracle.fault import copies
from dsjit.oracle.measure import same_values
from dsjit.oracle.reference import Reference, run_with_precision
from dsjit.passes.fuel import Fuel
from dsjit.passes.reference import evaluate_node
from dsjit.trace.capture import Capture
from dsjit.verification.precise import PreciseCall
from dsjit.verification.records import Record, TensorRecord
from dsjit.verification.report import THE_CALL, Blame, Comparison
from dsjit.verification.reproducer import reproducer
from dsjit.verification.rewrites import first_bad_rewrite
from dsjit.verification.sides import Arguments, play_compiled

__all__ = ["find_blame", "first_stale_node", "storing_line"]


def find_blame(
    function: Callable[..., Any],
    calls: Sequence[Arguments],
    seed: int,
    options: Options,
    environment: Environment,
    first: Comparison,
    wanted: Record | None,
    jitted: Jitted,
    precise: PreciseCall,
) -> Blame:
    """Play the calls on programs that check themselves; if these are right, look for what the capture missed.

    first: the first difference. wanted: what eager has there.
    """
    try:
        play_compiled(function, calls, seed, options, replace(environment, check=2))
    except FaultFound as found:
        return _compiler_blame(found, options)
    return _capture_blame(function, first, wanted, jitted, precise)


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
        self._latest: tuple[Graph, Sequence[torch.Tensor], Reference] | None = None

    def differs(self, graph: Graph, inputs: Sequence[torch.Tensor], fuel: Fuel | None = None) -> bool:
        state = generator_state()
        try:
            try:
                expected = self._expected(graph, inputs)
            except Exception:  # no answer to compare with: tensors that the ops do not take
                return False
            set_generator_state(state)
            taken = copies(inputs)
            try:
                outputs = self._compile(graph, fuel)(taken)
            except Exception:  # where eager gives an answer
                return True
        finally:
            set_generator_state(state)
        after = dict(zip(graph.inputs, taken, strict=True))
        results = [*zip(graph.outputs, outputs, strict=True), *((w.value, after[w.target]) for w in graph.writes)]
        return not all(expected.accepts(value, tensor) for value, tensor in results)

    def _expected(self, graph: Graph, inputs: Sequence[torch.Tensor]) -> Reference:
        """What `graph` must compute; a search over fuel asks for the same again and again."""
        if self._latest is None or self._latest[0] is not graph or self._latest[1] is not inputs:
            self._latest = graph, inputs, run_with_precision(graph, copies(inputs), keep=set(graph.results()))
        return self._latest[2]

    def _compile(self, graph: Graph, fuel: Fuel | None) -> Program:
        # A cache of its own: the answer must not depend on what was compiled before.
        environment, kernels = Environment(), KernelCache()
        compilation = compile_graph(graph, self.options.numerics, environment, kernels, StageTimer(), None, fuel)
        assert isinstance(compilation.program, Program)
        return compilation.program


# -- the capture ---------------------------------------------------------------------------------------------------


def _capture_blame(
    function: Callable[..., Any],
    first: Comparison,
    wanted: Record | None,
    jitted: Jitted,
    precise: PreciseCall,
) -> Blame:
    """Every program computes what its Graph says: so the Graph, its guard or its effects are not those of this call."""
    if first.path == THE_CALL:
        return Blame("compiler", "exception", THE_CALL, UNKNOWN_SOURCE.file, 0, first.problems[0])
    captured = precise.captured
    # With gradients, the program is of another Graph: of the forward and the backward together, after passes.
    segments = captured.segments if captured is not None and captured.joint is None else ()
    for segment in segments:
        stale = [first_stale_node(segment.graph, compilation.captured) for compilation in jitted.compilations]
        nodes = [node for node in stale if node is not None]
        if nodes and len(nodes) == len(stale):
            node = nodes[-1]
            text = "the program that ran was recorded for another call, and its guard did not notice"
            return Blame("capture", "guard", str(node.op), node.source.file, node.source.line, text)
    if isinstance(wanted, TensorRecord) and captured is not None:
        maker = _maker(captured, precise.inputs, wanted.values)
        if maker is not None:
            text = f"every program computes what its Graph says, but {first.path} is not what this op made of it"
            return Blame("capture", "result", str(maker.op), maker.source.file, maker.source.line, text)
    made_by = precise.makers.get(first.path)
    if made_by is not None:
        text = f"every program computes what its Graph says, but {first.path} is what this op makes there, not eager's"
        return Blame("capture", "result", str(made_by.op), made_by.source.file, made_by.source.line, text)
    place = storing_line(function, first.path)
    text = f"every program computes what its Graph says, but {first.path} is not as eager leaves it"
    return Blame("capture", "effect", first.path, *place, text)


def first_stale_node(fresh: Graph, recorded: Graph) -> Node | None:
    """The first node of `fresh` that `recorded` lacks in its place, or has beyond it; None when they are the same."""
    numbers: dict[Value, int] = {value: number for number, value in enumerate(fresh.inputs)}
    others: dict[Value, int] = {value: number for number, value in enumerate(recorded.inputs)}
    for node, other in zip(fresh.nodes, recorded.nodes, strict=False):
        if node.op is not other.op or _shape(node, numbers) != _shape(other, others):
            return node
        for value, counterpart in zip(node.outputs, other.outputs, strict=True):
            numbers[value] = others[counterpart] = len(numbers)
    longer = max(fresh.nodes, recorded.nodes, key=len)
    shorter = min(fresh.nodes, recorded.nodes, key=len)
    return longer[len(shorter)] if len(longer) > len(shorter) else None


def _shape(node: Node, numbers: dict[Value, int]) -> str:
    """The arguments, the Values by number."""
    arguments = map_values((*node.args, *node.kwargs.items()), lambda value: ("value", numbers.get(value, -1)))
    return repr((arguments, [value.type for value in node.outputs]))


def _maker(captured: Capture, inputs: Sequence[torch.Tensor], wanted: torch.Tensor) -> Node | None:
    """The last op of a call that gave a tensor of just this content."""
    known = dict(zip(captured.inputs, inputs, strict=True))
    found = None
    for segment in captured.segments:
        graph = segment.graph
        env = {value: known[value.id] for value in graph.inputs} | dict(graph.constants)
        for node in graph.nodes:
            env.update(zip(node.outputs, evaluate_node(node, env), strict=True))
            if any(same_values(env[value], wanted) for value in node.outputs):
                found = node
        known.update((value.id, env[value]) for value in graph.outputs)
    return found


def storing_line(function: Callable[..., Any], path: str) -> tuple[str, int]:
    """File and line where the code of `function`, or of the class of a module in it, stores what the last part of
    `path` names; where `function` begins when no line does."""
    name = re.split(r"[.\[ ]", path.rstrip("]"))[-1].strip("'\"")
    codes = list(_codes(function))
    for code in codes:
        line = code.co_firstlineno
        for instruction in dis.get_instructions(code):
            line = instruction.positions.lineno or line if instruction.positions is not None else line
            if instruction.opname.startswith("STORE_") and instruction.argval == name:
                return code.co_filename, line
    return (codes[0].co_filename, codes[0].co_firstlineno) if codes else (UNKNOWN_SOURCE.file, 0)


def _codes(function: Any) -> Iterator[types.CodeType]:
    if isinstance(function, Jitted):
        function = function.target
    if isinstance(function, torch.nn.Module):
        forwards = [type(module).forward for module in function.modules()]
        yield from (each.__code__ for each in dict.fromkeys(forwards) if isinstance(each, types.FunctionType))
        return
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType):
        function = inspect.getattr_static(type(function), "__call__", None)
    if isinstance(function, types.FunctionType):
        yield function.__code__
        yield from (each for each in function.__code__.co_consts if isinstance(each, types.CodeType))
