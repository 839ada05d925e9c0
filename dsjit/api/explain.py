"""`dsjit.explain`: what was captured, what was fused and why the rest was not, in words and as data."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Final

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dsjit.api.entry import jit, jitted_of
from dsjit.api.guard_summary import merge_alike, reader_of, summarize_guards
from dsjit.api.memory_budget import Kept, RecomputedPart, TrainingMemory, kept_values, training_memory
from dsjit.api.recompiles import Cause
from dsjit.api.trace_tree import TraceTree
from dsjit.api.training import Training
from dsjit.codegen.footprint import footprint
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import is_view
from dsjit.ir.graph import UNKNOWN_SOURCE, Graph, Source
from dsjit.ir.print_graph import op_name, print_graph
from dsjit.ir.print_kernel import print_kernel
from dsjit.passes.segments import forward_nodes
from dsjit.profiler.traffic import kernel_traffic, node_traffic
from dsjit.trace.guards.guard import GuardLine
from dsjit.trace.looks.outcome import Outcome, OutcomeKind, describe_outcome

__all__ = ["EffectReport", "Explanation", "KernelReport", "LibraryReport", "explain"]

_OUTCOMES_SHOWN: Final = 8
"""Of one look, in the text."""

_GUARDS_SHOWN: Final = 80
"""Lines, in the text."""

_KEPT_SHOWN: Final = 24
"""Lines, in the text."""


@dataclass(frozen=True, slots=True)
class EffectReport:
    """What the program does to Python. source: the line that did it in the trace, or that read what it changed."""

    text: str
    source: Source

    def __str__(self) -> str:
        return f"{self.text} ({self.source})" if self.source.line else self.text


@dataclass(frozen=True, slots=True)
class KernelReport:
    """One generated kernel. bytes_read and bytes_written count each element of memory once, however often it is
    touched: what must cross the memory bus when nothing was cached before."""

    name: str
    ops: tuple[str, ...]
    sources: tuple[Source, ...]
    bytes_read: int
    bytes_written: int
    text: str


@dataclass(frozen=True, slots=True)
class LibraryReport:
    """One library call; `native` when it is a matrix product or a template that runs without going through Python."""

    op: str
    source: Source
    bytes_read: int
    bytes_written: int
    native: bool


@dataclass(frozen=True, slots=True)
class Explanation:
    """What the compiler made of one call.

    eager_reasons: why the call runs eagerly; then what tells of a program is empty.
    bytes_before, bytes_after: memory traffic of the captured ops run one by one, and of the program.
    reasons: why a producer was not fused with a consumer.
    compile_seconds: by stage. guards: what must hold for the program to be used again, and which line read it.
    branches: where the code looked at what tensors hold, and which outcomes were met; the program is then in parts,
        and everything above is the sum over the parts of all ways.
    effects: what the program does to Python again, on each call, and the line that did it.
    kept: what is kept for the backward besides arguments and results, largest first. training: what the call and its
        backward take, as planned under `memory_budget`; without, as told once the backward is compiled, when all
        results have one node of autograd's graph.
    recompiles: why calls of the object were traced again, oldest first. eager_calls: how many ran eagerly since the
        last `dsjit.reset_stats()`, by cause.
    """

    name: str
    eager_reasons: tuple[str, ...]
    ops_captured: int
    kernels: tuple[KernelReport, ...] = ()
    library_calls: tuple[LibraryReport, ...] = ()
    bytes_before: int = 0
    bytes_after: int = 0
    arena_bytes: int = 0
    intermediate_bytes: int = 0
    reasons: tuple[str, ...] = ()
    guards: tuple[GuardLine, ...] = ()
    branches: tuple[str, ...] = ()
    effects: tuple[EffectReport, ...] = ()
    recompiles: tuple[Cause, ...] = ()
    eager_calls: Mapping[str, int] = field(default_factory=dict)
    compile_seconds: Mapping[str, float] | None = None
    kept: tuple[Kept, ...] = ()
    training: TrainingMemory | None = None
    captured: str = ""
    optimized: str = ""
    program: str = ""

    def __str__(self) -> str:
        stream = io.StringIO()
        console = Console(file=stream, width=120, force_terminal=False)
        self.print(console)
        return stream.getvalue()

    def to_dict(self) -> dict[str, Any]:
        """All of it in dictionaries, lists, strings and numbers, as `json.dumps` takes it. Lines of the user's are
        "file:line"."""
        plain: dict[str, Any] = _plain(self)
        return plain

    def print(self, console: Console) -> None:
        """Print to a rich Console."""
        if self.eager_reasons:
            _print_list(console, f"{self.name} runs eagerly:", self.eager_reasons)
        else:
            self._print_program(console)
        _print_list(console, "traced again, because:", [f"{cause}: {cause.advice}" for cause in self.recompiles])
        _print_list(console, "eager calls:", [f"{count}x: {cause}" for cause, count in self.eager_calls.items()])

    def _print_program(self, console: Console) -> None:
        seconds = self.compile_seconds or {}
        spent = ", ".join(f"{name} {value * 1e3:.1f} ms" for name, value in seconds.items())
        total = sum(seconds.values()) * 1e3
        console.print(f"{self.name}: {self.ops_captured} ops captured in {total:.1f} ms ({spent})")
        console.print(
            f"memory traffic {_size(self.bytes_before)} -> {_size(self.bytes_after)}; intermediate buffers "
            f"{_size(self.intermediate_bytes)} in an arena of {_size(self.arena_bytes)}"
        )
        if self.training is not None:
            console.print(_budget_text(self.training))
            _print_list(console, "computed again in the backward:", [_part_text(part) for part in self.training.parts])
        if self.kept:
            console.print(self._kept_table())
        if self.kernels:
            console.print(self._kernel_table())
        if self.library_calls:
            console.print(self._library_table())
        _print_list(console, "not fused:", self.reasons)
        _print_list(console, "branches on what tensors hold:", self.branches)
        _print_list(console, "done to Python again by each call:", merge_alike(list(map(str, self.effects))))
        guards = list(summarize_guards(self.guards))
        if len(guards) > _GUARDS_SHOWN:
            guards = [*guards[:_GUARDS_SHOWN], f"... {len(guards) - _GUARDS_SHOWN} lines more: see `guards`"]
        _print_list(console, f"{len(self.guards)} guards:", guards)

    def _kept_table(self) -> Table:
        total = _size(sum(kept.nbytes for kept in self.kept))
        table = Table(title=f"{total} kept for the backward, beside arguments and results", title_justify="left")
        for heading in ("op", "line", "shape", "in", "values", "bytes"):
            table.add_column(heading, overflow="fold")
        alike: dict[tuple[str, str, str, str], list[int]] = {}
        for kept in self.kept:
            key = (kept.op, str(kept.source), "x".join(map(str, kept.shape)), kept.place)
            alike.setdefault(key, []).append(kept.nbytes)
        for key, sizes in sorted(alike.items(), key=lambda item: -sum(item[1]))[:_KEPT_SHOWN]:
            table.add_row(*map(escape, key), str(len(sizes)), _size(sum(sizes)))
        return table

    def _kernel_table(self) -> Table:
        table = Table(title=_count(len(self.kernels), "generated kernel"), title_justify="left")
        for heading in ("kernel", "ops", "lines", "reads", "writes"):
            table.add_column(heading, overflow="fold")
        for kernel in self.kernels:
            lines = ", ".join(dict.fromkeys(str(source) for source in kernel.sources))
            table.add_row(
                kernel.name, str(len(kernel.ops)), escape(lines), _size(kernel.bytes_read), _size(kernel.bytes_written)
            )
        return table

    def _library_table(self) -> Table:
        table = Table(title=_count(len(self.library_calls), "library call"), title_justify="left")
        for heading in ("op", "line", "native", "reads", "writes"):
            table.add_column(heading, overflow="fold")
        for call in self.library_calls:
            table.add_row(
                call.op, escape(str(call.source)), "yes" if call.native else "", _size(call.bytes_read),
                _size(call.bytes_written),
            )  # fmt: skip
        return table


def explain(function: Callable[..., Any]) -> Callable[..., Explanation]:
    """`dsjit.explain(f)(*args, **kwargs)`: call `f` (jitting it first if it is not) and tell what was made of the call.

    The call is real: its effects happen, and its program is kept for later calls of a jitted `f`.
    """

    def explained(*args: Any, **kwargs: Any) -> Explanation:
        jitted = jitted_of(function)
        callee: Callable[..., Any] = function
        if jitted is None:
            callee = jit(getattr(function, "_call_impl", function))
            jitted = jitted_of(callee)
        assert jitted is not None
        bound = (function.__self__, *args) if jitted_of(function) and hasattr(function, "__self__") else args
        before = jitted.trees
        fitting = [tree for tree in before if tree.guard.check(bound, kwargs) is not None]
        callee(*args, **kwargs)  # may change what guards speak of
        history: dict[str, Any] = {
            "recompiles": jitted.recompiles,
            "eager_calls": dict(jitted.counters.eager_reasons.most_common()),
        }
        for tree in jitted.trees:
            if tree in fitting or tree not in before:
                return replace(_report(jitted.name, tree), **history)
        found = (f"{p.reason} (at {p.source})" for verdict in jitted.verdicts for p in verdict.problems)
        reasons = tuple(dict.fromkeys(found))
        return Explanation(jitted.name, reasons or ("no program fits this call",), 0, **history)

    return explained


def _print_list(console: Console, heading: str, lines: Sequence[str]) -> None:
    if lines:
        console.print(escape(heading))
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Source):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _budget_text(memory: TrainingMemory) -> str:
    again = "nothing of the forward is computed again"
    if memory.budget is None:
        return f"a call and its backward take {_size(memory.peak)} at most, beyond the arguments"
    if memory.recomputed:
        again = (
            f"{memory.recomputed} of {memory.segments} parts of the forward are computed again, in about "
            f"{sum(part.seconds for part in memory.parts) * 1e3:.1f} ms"
        )
    if memory.offloaded:
        again += f"; {_size(memory.offloaded)} go to {memory.tier}"
    return f"memory budget {_size(memory.budget)}: {_size(memory.peak)} are taken at most; {again}"


def _part_text(part: RecomputedPart) -> str:
    return f"{part.first} to {part.last}: {_count(part.ops, 'op')}, about {part.seconds * 1e3:.2f} ms"


def _memory(training: Training) -> TrainingMemory | None:
    """What was planned, or what is told by the plans of both Programs once the backward is compiled, if it is one."""
    if training.memory is not None or len(training.compilations) < 2 or len(training.groups) > 1:
        return training.memory
    halves = [
        footprint(half.optimized, half.steps, half.native, half.plan.views, half.low_memory)
        for half in training.compilations[:2]
        if half.low_memory is not None
    ]
    if len(halves) < 2:
        return None
    return training_memory(training.joint, training.partition, halves[0], halves[1], forward_nodes(training.joint))


def _kept(training: Training) -> tuple[Kept, ...]:
    way, halves = training.forward.low_memory, training.partition
    stored = [] if way is None else [halves.own[number - training.joint.results] for number in way.stored]
    return kept_values(training.joint, halves, stored, None if way is None else way.tier)


def _report(name: str, tree: TraceTree) -> Explanation:
    compilations = tree.compilations
    guards = tuple(tree.guard.describe())
    kernels: list[KernelReport] = []
    calls: list[LibraryReport] = []
    seconds: dict[str, float] = {}
    for compilation in compilations:
        for step in compilation.steps:
            if isinstance(step.work, FusedKernel):
                kernels.append(kernel_report(step.work))
            else:
                node = step.work.node
                read, written = node_traffic(node)
                calls.append(LibraryReport(op_name(node.op), node.source, read, written, node in compilation.native))
    for timer in {id(compilation.timer): compilation.timer for compilation in compilations}.values():
        for stage, spent in timer.seconds.items():
            seconds[stage] = seconds.get(stage, 0.0) + spent
    trainings = [leaf.step.run for leaf in tree.leaves if isinstance(leaf.step.run, Training)]
    after = sum(k.bytes_read + k.bytes_written for k in kernels) + sum(c.bytes_read + c.bytes_written for c in calls)
    return Explanation(
        name=name,
        eager_reasons=(),
        ops_captured=sum(len(compilation.captured.nodes) for compilation in compilations),
        kernels=tuple(kernels),
        library_calls=tuple(calls),
        bytes_before=sum(_graph_traffic(compilation.captured) for compilation in compilations),
        bytes_after=after,
        arena_bytes=sum(compilation.program.arena_bytes for compilation in compilations),
        intermediate_bytes=sum(compilation.program.intermediate_bytes for compilation in compilations),
        reasons=tuple(str(reason) for compilation in compilations for reason in compilation.plan.reasons),
        guards=guards,
        branches=tuple(branches_of(tree)),
        effects=tuple(dict.fromkeys(_effects(tree))),
        compile_seconds=seconds,
        kept=tuple(kept for training in trainings for kept in _kept(training)),
        training=next((_memory(training) for training in trainings), None),
        captured="\n".join(print_graph(compilation.captured) for compilation in compilations),
        optimized="\n".join(print_graph(compilation.optimized) for compilation in compilations),
        program="\n".join(compilation.program.source for compilation in compilations),
    )


def _effects(tree: TraceTree) -> Iterator[EffectReport]:
    for leaf in tree.leaves:
        guards = leaf.guard.describe() if leaf.effects else []
        for effect in leaf.effects:
            known = effect.source is not UNKNOWN_SOURCE or effect.path is None
            yield EffectReport(effect.text, effect.source if known else reader_of(str(effect.path), guards))


def branches_of(tree: TraceTree) -> Iterator[str]:
    """A line for each line of the user's that looks at data: at what, and what was seen (at first, for long lists)."""
    found: dict[tuple[str, OutcomeKind], dict[Outcome, None]] = {}
    for branch in tree.branches:
        outcomes = found.setdefault((str(branch.look.source), branch.look.kind), {})
        outcomes.update(dict.fromkeys(branch.children))
    for (source, kind), outcomes in found.items():
        seen = [describe_outcome(kind, outcome) for outcome in outcomes]
        more = f" and {len(seen) - _OUTCOMES_SHOWN} more" if len(seen) > _OUTCOMES_SHOWN else ""
        yield f"{source}: {kind.value}: {', '.join(seen[:_OUTCOMES_SHOWN])}{more}"


def kernel_report(fused: FusedKernel) -> KernelReport:
    """Ops, lines and memory traffic of one fused kernel."""
    read, written = kernel_traffic(fused.kernel, fused.values)
    return KernelReport(
        fused.kernel.name,
        tuple(str(node.op) for node in fused.nodes),
        tuple(node.source for node in fused.nodes),
        read,
        written,
        print_kernel(fused.kernel),
    )


def _graph_traffic(graph: Graph) -> int:
    return sum(sum(node_traffic(node)) for node in graph.nodes if not is_view(node))


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} B"
    for exponent, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if count >= 1024**exponent:
            return f"{count / 1024**exponent:.1f} {unit}"
    raise AssertionError("sizes are not negative")
