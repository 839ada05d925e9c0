"""Findings about a profile as a whole: calls that did not run compiled, parts of the time, steps that are slow, small,
or as fast as they can be."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Final

from dsjit.profiler.profile import CompilerProfile, Finding, SampledLine, StepProfile, TimePart
from dsjit.profiler.units import percent_text, time_text

__all__ = [
    "WORTH_TELLING", "above_bound", "longest", "of_calls", "of_parts", "place", "products", "slow_steps", "small_steps",
]  # fmt: skip

WORTH_TELLING: Final = 0.05
"""Of the time: what would save less is no finding."""

FAR: Final = 0.5
"""Of the attainable rate: a step below it, for no reason that is known, is told."""

NEAR: Final = 0.7
"""Of the attainable rate: products above it are as fast as libraries make them."""

MOSTLY: Final = 0.6
"""Of the time: from so much on, products are what the program does."""

SMALL_NS: Final = 5_000
MANY: Final = 10
"""Steps that are shorter, when there are so many, take more time to start than to run."""

LINES_NAMED: Final = 3


def of_calls(parts: Sequence[TimePart], compiler: CompilerProfile, sampled: Sequence[SampledLine]) -> Iterable[Finding]:
    """What kept calls from running compiled."""
    ns = {part.name: part.ns for part in parts}
    for each in compiler.objects:
        if each.recompiles:
            cause, advice = each.recompiles[-1]
            count = len(each.recompiles)
            times = "once" if count == 1 else f"{count} times"
            yield Finding(
                "recompile",
                f"{each.name} was traced again {times}: {cause}",
                f"Each time the call ran eagerly, and was compiled. To avoid it: {advice}.",
                ns["tracing and compiling"], "", 0, (),
            )  # fmt: skip
        if each.eager:
            first, count = each.eager[0], sum(reason.count for reason in each.eager)
            where = f" (at {place(first.file, first.line)})" if first.line else ""
            yield Finding(
                "eager",
                f"{count} {'call' if count == 1 else 'calls'} of {each.name} ran eagerly: {first.reason}{where}",
                f"{_lines_of('eager calls', sampled)}docs/limits.md says what runs compiled.",
                ns["eager calls"], first.file, first.line, (),
            )  # fmt: skip


def slow_steps(steps: Sequence[StepProfile], told: set[int], whole: float) -> Iterable[Finding]:
    """By op: steps that take much longer than this machine needs, for no reason that is known. told: numbers of those
    that another finding is about."""
    grouped: dict[str, list[StepProfile]] = {}
    for step in steps:
        slow = step.bound != "nothing" and step.bound_ns < FAR * step.median_ns
        if slow and step.number not in told and step.ops:
            grouped.setdefault(step.name, []).append(step)
    for name, group in grouped.items():
        saves = sum(map(above_bound, group))
        if saves < WORTH_TELLING * whole:
            continue
        ns = sum(step.total_ns for step in group)
        first = longest(group)[0]
        main = max(first.ops, key=lambda op: op.share)
        reached = percent_text(first.bound_ns / first.median_ns)
        of = "the attainable operations a second" if first.bound == "compute" else "what its memory traffic allows"
        more = len(group) - 1
        others = f", with {more} {'other' if more == 1 else 'others'} like it," if more else ""
        yield Finding(
            "slow",
            f"{place(main.file, main.line)} runs below what this machine attains: {percent_text(ns / whole)} of the "
            "time",
            f"{name}{others} reaches {reached} of {of}; at the full rate up to {time_text(saves)} could be saved. "
            "Small steps, shapes that libraries do not like, and too few rows for the threads are the usual causes.",
            saves, main.file, main.line, tuple(step.number for step in longest(group)),
        )  # fmt: skip


def small_steps(steps: Sequence[StepProfile], whole: float) -> Iterable[Finding]:
    """Many steps that each do next to nothing."""
    small = [step for step in steps if step.count and step.median_ns < SMALL_NS]
    ns = sum(step.total_ns + step.launch_ns for step in small)
    if len(small) < MANY or ns < 2 * WORTH_TELLING * whole:
        return
    yield Finding(
        "small",
        f"{len(small)} of {len(steps)} steps take less than {time_text(SMALL_NS)} each: {percent_text(ns / whole)} of "
        "the time",
        "Starting a step costs about as much as what it does. Larger batches share that cost; the table of fused ops "
        "says for each why it was not fused with its neighbours.",
        ns, "", 0, tuple(step.number for step in longest(small)),
    )  # fmt: skip


def products(steps: Sequence[StepProfile], whole: float) -> Iterable[Finding]:
    """Products and convolutions that take most of the time, and are as fast as libraries make them."""
    found = [step for step in steps if step.kind != "kernel" and step.bound == "compute" and step.count]
    ns = sum(step.total_ns for step in found)
    needed = sum(step.count * step.bound_ns for step in found)
    if ns >= MOSTLY * whole and needed >= NEAR * ns:
        yield Finding(
            "products",
            f"{percent_text(ns / whole)} of the time is matrix products and convolutions, at "
            f"{percent_text(needed / ns)} of what this machine attains",
            "There is nothing to fuse here: fewer operations (a smaller model, shorter sequences) or a narrower dtype "
            "(bfloat16 on machines that multiply in it) make it faster.",
            0.0, "", 0, tuple(step.number for step in longest(found)),
        )  # fmt: skip


def of_parts(parts: Sequence[TimePart], compiler: CompilerProfile, sampled: Sequence[SampledLine]) -> Iterable[Finding]:
    """Parts of the time that are no steps, and large."""
    whole = sum(part.ns for part in parts)
    for part in parts:
        if part.name in ("kernels and library calls", "eager calls") or part.share <= 2 * WORTH_TELLING:
            continue
        lines = [line for line in sampled if line.part == part.name and line.line]
        where = lines[0] if lines else None
        yield Finding(
            "overhead",
            f"{percent_text(part.share)} of the time is {part.name}",
            f"{time_text(part.ns)} of {time_text(whole)}: {part.meaning}. {_lines_of(part.name, sampled)}"
            f"{_detail(part.name, compiler)}{_ADVICE.get(part.name, '')}".strip(),
            part.ns, where.file if where is not None else "", where.line if where is not None else 0, (),
        )  # fmt: skip


_ADVICE: Final = {
    "tracing and compiling": "It is paid once: call the function before the profile to leave it out.",
    "outside jitted calls": "dsjit cannot make it faster: see what of it can move into a jitted function.",
    "guards and dispatch": "It is the same for any size: jit a larger part of the program, or make larger batches.",
    "looks at data": "torch.where and tensor arithmetic need no look.",
}


def _lines_of(part: str, sampled: Sequence[SampledLine]) -> str:
    """Where its time goes, in a sentence and a space; empty when no sample tells."""
    ours = [line for line in sampled if line.part == part]
    whole = sum(line.ns for line in ours)
    named = [
        f"{place(line.file, line.line)} ({line.what}) {percent_text(line.ns / whole)}" for line in ours[:LINES_NAMED]
    ]
    return f"Of it, by samples: {', '.join(named)}. " if whole else ""


def _detail(part: str, compiler: CompilerProfile) -> str:
    if part == "tracing and compiling" and compiler.stages:
        stage = max(compiler.stages, key=lambda name: compiler.stages[name])
        return f"The longest stage is {stage}, with {time_text(1e9 * compiler.stages[stage])}. "
    guards = [guard for each in compiler.objects for guard in each.guards if guard.lines]
    if part == "guards and dispatch" and guards:
        heaviest = max(guards, key=lambda guard: guard.check_ns)
        line, count, _ = heaviest.lines[0]
        return f"{count} of {heaviest.conditions} conditions come from {os.path.basename(line)}. "
    return ""


def above_bound(step: StepProfile) -> float:
    """ns beyond what this machine needs for it."""
    return max(step.total_ns - step.count * step.bound_ns, 0.0)


def longest(group: Sequence[StepProfile]) -> list[StepProfile]:
    """The longest first."""
    return sorted(group, key=lambda step: -step.total_ns)


def place(file: str, line: int) -> str:
    """A line in few words."""
    return f"{os.path.basename(file)}:{line}" if line else "a line that is not known"
