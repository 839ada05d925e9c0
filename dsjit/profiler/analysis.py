"""From what was recorded to the data of a profile."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
import torch

from dsjit.codegen.llvm.emitter import emit_module
from dsjit.codegen.llvm.target import host_target
from dsjit.codegen.placement import Step
from dsjit.errors import BackendError
from dsjit.fusion.costs import Costs
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit
from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.print_graph import print_graph
from dsjit.ir.print_kernel import print_kernel
from dsjit.profiler.attribution import op_shares
from dsjit.profiler.findings import StepFacts, copying_lines, find, widenings
from dsjit.profiler.machine import Machine
from dsjit.profiler.memory import profile_memory
from dsjit.profiler.profile import (
    Bound,
    CallProfile,
    CompilerProfile,
    LineProfile,
    Phase,
    ProfileData,
    ProgramProfile,
    SampledLine,
    ScopeProfile,
    SourceText,
    SpanProfile,
    StepProfile,
    TimePart,
)
from dsjit.profiler.recording import Recording
from dsjit.profiler.subject import Subject
from dsjit.profiler.timing import step_name
from dsjit.profiler.traffic import kernel_flops, kernel_traffic, node_flops, node_traffic

__all__ = ["analyse"]

LLVM_SHOWN: Final = 40
"""Kernels, those that take longest, whose LLVM text is part of the data."""

MEMORY_POINTS: Final = 1000
"""Of the curve of what the process held."""

AROUND: Final = 6
"""Lines of source that are shown before and after one that costs time."""


def analyse(
    title: str, recording: Recording, subjects: Sequence[Subject], compiler: CompilerProfile, machine: Machine
) -> ProfileData:
    """The data of `recording`, which has been stopped. subjects: the Programs that ran in it."""
    build = _Builder(recording, machine)
    for subject in subjects:
        build.program(subject)
    parts, whole = _parts(recording, build)
    steps = [replace(step, share=_ratio(step.total_ns, whole)) for step in build.steps]
    steps = _with_llvm(steps, build.facts)
    lines, scopes = build.lines(whole), build.scopes(whole)
    sampled = _sampled(recording, {part.name: part.ns for part in parts}, whole)
    compiled = sum(program.total_ns for program in build.programs)
    attributed = sum(line.ns for line in lines)
    return ProfileData(
        title=title,
        span_ns=recording.end - recording.begin,
        compiled_ns=compiled,
        attributed_ns=attributed,
        machine=machine,
        parts=parts,
        findings=find(steps, build.facts, parts, compiler, sampled),
        steps=tuple(steps),
        programs=tuple(build.programs),
        lines=lines,
        scopes=scopes,
        sampled=sampled,
        sources=_sources([*lines, *sampled]),
        calls=_calls(recording),
        compiler=compiler,
        spans=tuple(_spans(recording, build)),
        process_memory=_process_memory(recording),
    )


@dataclass(slots=True)
class _Cost:
    forward: float = 0.0
    backward: float = 0.0
    steps: dict[int, None] = field(default_factory=dict)

    def add(self, phase: Phase, ns: float) -> None:
        if phase == "backward":
            self.backward += ns
        else:
            self.forward += ns

    @property
    def ns(self) -> float:
        return self.forward + self.backward


@dataclass(slots=True)
class _Builder:
    recording: Recording
    machine: Machine
    steps: list[StepProfile] = field(default_factory=list)
    facts: list[StepFacts] = field(default_factory=list)
    programs: list[ProgramProfile] = field(default_factory=list)
    numbers: dict[int, tuple[int, ...]] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    by_line: dict[tuple[str, int, str], _Cost] = field(default_factory=dict)
    by_scope: dict[str, _Cost] = field(default_factory=dict)

    def program(self, subject: Subject) -> None:
        first = len(self.steps)
        totals, launch, least, medians, runs = _summed(subject)
        widened, copying = widenings(subject.optimized, subject.captured), copying_lines(subject.captured)
        reasons = subject.reasons()
        for position, step in enumerate(subject.steps):
            profile = self._step(subject, position, step, reasons)
            count = int(runs)
            profile = replace(
                profile,
                count=count,
                total_ns=float(totals[position]),
                launch_ns=float(launch[position]),
                min_ns=float(least[position]) if count else 0.0,
                median_ns=float(medians[position]),
            )
            profile = self._rated(profile)
            self.steps.append(profile)
            self.facts.append(StepFacts.of(step, widened, copying, subject.plan.views, subject.fast))
            self._attribute(profile, subject.phase)
        self._attribute_ends(subject)
        numbers = tuple(range(first, len(self.steps)))
        for samples in subject.samples:
            self.numbers[id(samples)] = numbers
        durations = [samples.duration for samples in subject.samples]
        self.programs.append(
            ProgramProfile(
                number=len(self.programs),
                name=subject.name,
                phase=subject.phase,
                runs=sum(each.count for each in durations),
                total_ns=sum(each.total for each in durations),
                min_ns=min((each.least for each in durations), default=0),
                median_ns=max(durations, key=lambda each: each.count).median if durations else 0.0,
                before_ns=sum(samples.before for samples in subject.samples),
                after_ns=sum(samples.after for samples in subject.samples),
                steps=numbers,
                source=subject.source,
                captured=print_graph(subject.captured),
                optimized=print_graph(subject.optimized),
                memory=profile_memory(subject),
            )
        )

    def _step(self, subject: Subject, position: int, step: Step, reasons: Mapping[Node, Sequence[str]]) -> StepProfile:
        fused = step.work if isinstance(step.work, FusedKernel) else None
        nodes = step.nodes
        read, written = kernel_traffic(fused.kernel, fused.values) if fused is not None else node_traffic(nodes[0])
        if isinstance(step.work, LibraryUnit) and step.work.view:
            read = written = 0
        told = dict.fromkeys(text for node in nodes for text in reasons.get(node, ()))
        return StepProfile(
            number=len(self.steps),
            program=len(self.programs),
            position=position,
            kind="kernel" if fused is not None else "native" if nodes[0] in subject.native else "library",
            name=step_name(step),
            count=0, total_ns=0.0, min_ns=0.0, median_ns=0.0, launch_ns=0.0, share=0.0,
            bytes_read=read,
            bytes_written=written,
            flops=kernel_flops(fused.kernel) if fused is not None else node_flops(nodes[0]),
            dtype=_dtype(nodes),
            bandwidth=0.0, attainable_bandwidth=0.0, flop_rate=0.0, attainable_flop_rate=0.0,
            bound="nothing", bound_ns=0.0,
            ops=op_shares(step, subject.plan, self.costs),
            reasons=tuple(told),
            kernel=print_kernel(fused.kernel) if fused is not None else "",
            llvm="",
            triton=subject.triton.get(step_name(step), ""),
            device="gpu" if subject.on_device else "cpu",
            graph=print_graph(_part(step.writes, nodes)),
        )  # fmt: skip

    def _rated(self, step: StepProfile) -> StepProfile:
        """With rates, and the bound by this machine's."""
        if step.device != "cpu":
            seconds = step.median_ns / 1e9
            moved = step.bytes_read + step.bytes_written
            return replace(step, bandwidth=_ratio(moved, seconds), flop_rate=_ratio(step.flops, seconds))
        moved = step.bytes_read + step.bytes_written
        bandwidth, rate = self.machine.attainable_bandwidth(moved), self.machine.attainable_flops(step.dtype)
        by_memory, by_compute = 1e9 * moved / bandwidth, 1e9 * step.flops / rate
        bound: Bound = "nothing" if not moved and not step.flops else "memory" if by_memory >= by_compute else "compute"
        seconds = step.median_ns / 1e9
        return replace(
            step,
            attainable_bandwidth=bandwidth,
            attainable_flop_rate=rate,
            bandwidth=_ratio(moved, seconds),
            flop_rate=_ratio(step.flops, seconds),
            bound=bound,
            bound_ns=max(by_memory, by_compute),
        )

    def _attribute(self, step: StepProfile, phase: Phase) -> None:
        """What came between two steps was done for the later one."""
        for op in step.ops:
            ns = op.share * (step.total_ns + step.launch_ns)
            if op.line:
                line = self.by_line.setdefault((op.file, op.line, op.function), _Cost())
                line.add(phase, ns)
                line.steps[step.number] = None
            self.by_scope.setdefault(op.scope, _Cost()).add(phase, ns)

    def _attribute_ends(self, subject: Subject) -> None:
        """What a run does before its first step and after its last one is done for its results."""
        ns = sum(samples.before + samples.after for samples in subject.samples)
        producers = subject.optimized.producers()
        made = [
            (producers[value], value.type.nbytes + 1) for value in subject.optimized.results() if value in producers
        ]
        whole = sum(weight for _, weight in made)
        for node, weight in made:
            source, cost = node.source, ns * weight / whole
            if source.line:
                self.by_line.setdefault((source.file, source.line, source.function), _Cost()).add(subject.phase, cost)
            self.by_scope.setdefault(source.scope, _Cost()).add(subject.phase, cost)

    def lines(self, whole: float) -> tuple[LineProfile, ...]:
        """Most expensive first."""
        found = [
            LineProfile(
                file, line, function, linecache.getline(file, line).rstrip("\n"), cost.ns, _ratio(cost.ns, whole),
                cost.forward, cost.backward, tuple(cost.steps),
            )
            for (file, line, function), cost in self.by_line.items()
        ]  # fmt: skip
        return tuple(sorted(found, key=lambda line: -line.ns))

    def scopes(self, whole: float) -> tuple[ScopeProfile, ...]:
        """In the order in which they ran first."""
        return tuple(
            [ScopeProfile(path, c.ns, _ratio(c.ns, whole), c.forward, c.backward) for path, c in self.by_scope.items()]
        )


def _summed(subject: Subject) -> tuple[Sequence[float], Sequence[float], Sequence[float], Sequence[float], int]:
    """Totals, launch, least and median by step, and the number of runs, over all shapes; the median is that of the
    shape that ran most often."""
    samples = [each for each in subject.samples if each.duration.count]
    if not samples:
        nothing = [0.0] * len(subject.steps)
        return nothing, nothing, nothing, nothing, 0
    most = max(samples, key=lambda each: each.duration.count)
    return (
        list(np.sum([each.totals for each in samples], axis=0)),
        list(np.sum([each.launch for each in samples], axis=0)),
        list(np.min([each.least for each in samples], axis=0)),
        most.medians(),
        sum(each.duration.count for each in samples),
    )


def _dtype(nodes: Sequence[Node]) -> str:
    """The widest floating dtype among results, or the first result's dtype."""
    types = [value.type.dtype for node in nodes for value in node.outputs]
    floats = sorted({dtype for dtype in types if dtype.is_floating_point}, key=lambda dtype: dtype.itemsize)
    chosen = floats[-1] if floats else types[0] if types else torch.float32
    return str(chosen).removeprefix("torch.")


def _part(outputs: Iterable[Value], nodes: Sequence[Node]) -> Graph:
    """The nodes of one step as a Graph."""
    inside = {value for node in nodes for value in node.outputs}
    inputs = dict.fromkeys(value for node in nodes for value in node.inputs() if value not in inside)
    return Graph(tuple(inputs), tuple(nodes), tuple(outputs), name="step")


def _with_llvm(steps: list[StepProfile], facts: Sequence[StepFacts]) -> list[StepProfile]:
    """The longest kernels with their LLVM text, printed as it was when they were compiled; equal kernels once."""
    texts: dict[str, str] = {}
    for step in sorted(steps, key=lambda step: -step.total_ns):
        kernel, fast = facts[step.number].kernel, facts[step.number].fast
        if kernel is None or step.kernel in texts or kernel.sizes or step.device != "cpu":
            continue
        if len(texts) == LLVM_SHOWN:
            break
        try:
            texts[step.kernel] = emit_module(
                (replace(kernel, name=re.sub(r"\W", "_", kernel.name)),), host_target(), fast
            )
        except BackendError as error:
            texts[step.kernel] = f"; {error}"
    return [replace(step, llvm=texts.get(step.kernel, "")) if step.kernel else step for step in steps]


_SAMPLED_PARTS: Final[dict[str, str]] = {"eager": "eager calls", "": "outside jitted calls"}
"""By the kind of the call: the part of the time that samples tell by line."""


def _sampled(recording: Recording, parts: Mapping[str, float], whole: float) -> tuple[SampledLine, ...]:
    """Most expensive first. What was seen tells the shares; how long it took all in all was measured."""
    seen = {kind: sum(s.total for (k, _), s in recording.sighted.items() if k == kind) for kind in _SAMPLED_PARTS}
    found: list[SampledLine] = []
    for (kind, (what, source)), samples in recording.sighted.items():
        if kind not in _SAMPLED_PARTS:
            continue
        part = _SAMPLED_PARTS[kind]
        ns = parts[part] * samples.total / seen[kind]
        file, text = (source.file, linecache.getline(source.file, source.line)) if source.line else ("", "")
        found.append(
            SampledLine(
                part, what, file, source.line, source.function, text.rstrip("\n"), ns, _ratio(ns, whole), samples.count
            )
        )
    return tuple(sorted(found, key=lambda line: -line.ns))


def _process_memory(recording: Recording) -> tuple[tuple[int, int], ...]:
    """At most so many points; of each stretch, the one where most was held."""
    samples = recording.memory
    stretch = -(-len(samples) // MEMORY_POINTS) or 1
    most = [max(samples[n : n + stretch], key=lambda each: each[1]) for n in range(0, len(samples), stretch)]
    return tuple([(at - recording.begin, nbytes) for at, nbytes in most])


def _sources(lines: Sequence[LineProfile | SampledLine]) -> tuple[SourceText, ...]:
    by_file: dict[str, set[int]] = {}
    for line in lines:
        if line.line:
            by_file.setdefault(line.file, set()).add(line.line)
    found: list[SourceText] = []
    for file, numbers in by_file.items():
        text = [each.rstrip("\n") for each in linecache.getlines(file)]
        if not text:
            continue
        wanted = sorted({n for line in numbers for n in range(line - AROUND, line + AROUND + 1) if 1 <= n <= len(text)})
        starts = [n for n in wanted if n - 1 not in wanted]
        for start in starts:
            end = start
            while end + 1 in wanted:
                end += 1
            found.append(SourceText(file, start, tuple(text[start - 1 : end])))
    return tuple(found)


def _calls(recording: Recording) -> tuple[CallProfile, ...]:
    found = [
        CallProfile(
            name, kind, c.duration.count, c.duration.total, c.duration.least, c.duration.median,
            c.duration.total - c.programs - c.nested, c.before, c.between, c.after,
        )
        for (name, kind), c in recording.calls.items()
    ]  # fmt: skip
    return tuple(sorted(found, key=lambda call: -call.total_ns))


def _parts(recording: Recording, build: _Builder) -> tuple[tuple[TimePart, ...], float]:
    """The parts of the time, and their sum: the span, unless threads ran at the same time."""
    compiled = [c for (_, kind), c in recording.calls.items() if kind == "compiled"]
    steps = [step for step in build.steps if step.device == "cpu"]
    own_programs = [samples for samples in recording.programs.values() if not samples.timed.on_device]
    queueing = sum(samples.host for samples in recording.programs.values() if samples.timed.on_device)
    in_steps = sum(step.total_ns for step in steps)
    launch = sum(step.launch_ns for step in steps)
    ends = sum(samples.before + samples.after for samples in own_programs)
    unknown = sum(samples.duration.total for samples in own_programs) - in_steps - launch - ends
    before, between, after = (sum(getattr(c, name) for c in compiled) for name in ("before", "between", "after"))
    own = sum(c.duration.total - c.programs - c.nested for c in compiled)
    rows = [
        ("kernels and library calls", in_steps, "the steps of compiled programs"),
        ("between steps", launch + unknown, "making views, calling into libraries: Python inside compiled programs"),
        ("results and buffers", ends, "allocating results, writing addresses, copying what the caller sees"),
        (
            "queueing work for a GPU",
            queueing,
            "the host's part of programs whose steps a GPU runs",
        ),
        ("guards and dispatch", before, "finding the program that answers a call"),
        ("looks at data", between, "between programs: where the code looked at what tensors hold"),
        ("making the result", after, "after the last program: the result of the call, prints, writes to Python"),
        ("other Python in compiled calls", own - before - between - after, "compiled calls that ran no timed program"),
    ]
    for kind, name, meaning in (
        ("traced", "tracing and compiling", "first calls: eager, under the tracer, and then the compiler"),
        ("eager", "eager calls", "calls of jitted functions that ran eagerly"),
    ):
        own = sum(
            c.duration.total - c.programs - c.nested for (_, found), c in recording.calls.items() if found == kind
        )
        rows.append((name, own, meaning))
    outside = recording.end - recording.begin - recording.top - recording.alone
    rows.append(("outside jitted calls", max(outside, 0), "your Python, autograd, optimizers, eager PyTorch"))
    whole = sum(ns for _, ns, _ in rows)
    return tuple([TimePart(name, ns, _ratio(ns, whole), meaning) for name, ns, meaning in rows]), whole


def _spans(recording: Recording, build: _Builder) -> Iterable[SpanProfile]:
    zero = recording.begin
    threads: dict[int, int] = {}
    for span in recording.spans:
        thread = threads.setdefault(span.thread, len(threads))
        yield SpanProfile(span.name, span.kind, span.begin - zero, span.end - zero, thread, -1)
    runs = {(span.begin, span.end): threads[span.thread] for span in recording.spans if span.kind == "program"}
    for samples in recording.programs.values():
        numbers = build.numbers.get(id(samples), ())
        for begin, end, begins, ends in samples.first:
            if (begin, end) not in runs:
                continue
            thread = runs[begin, end]
            for number, start, stop in zip(numbers, begins.tolist(), ends.tolist(), strict=True):
                name = build.steps[number].name
                yield SpanProfile(name, "step", start - zero, stop - zero, thread, number)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
