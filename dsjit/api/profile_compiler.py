"""What the compiler did while a profile ran: for each jitted object, its guards, the ways of its calls, and reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import fields
from typing import Final

from dsjit.api.jitted import Jitted
from dsjit.api.profiling_hooks import ObjectHistory, ProfiledRun
from dsjit.api.stats import Counters
from dsjit.api.trace_nodes import Branch, Leaf
from dsjit.api.trace_tree import TraceTree
from dsjit.profiler.profile import (
    CompilerProfile,
    EagerReason,
    GuardProfile,
    NodeProfile,
    ObjectProfile,
    WayProfile,
)
from dsjit.trace.looks.outcome import Outcome, describe_outcome, open_outcome

__all__ = ["compiler_profile"]

GUARDS_SHOWN: Final = 200

NODES_SHOWN: Final = 300
"""Of a tree, the nearest to its root."""


def compiler_profile(run: ProfiledRun, numbers: Mapping[int, int]) -> CompilerProfile:
    """numbers: of the ProgramProfiles, by the ids of their Compilations."""
    stages: dict[str, float] = {}
    for timer in {id(each.timer): each.timer for each in run.made}.values():
        for stage, seconds in timer.seconds.items():
            stages[stage] = stages.get(stage, 0.0) + seconds
    objects = [_object(history, run, numbers) for history in run.objects.values()]

    def total(name: str) -> int:
        return sum(each.counters[name] for each in objects)

    return CompilerProfile(
        stages,
        total("kernels_generated"),
        total("kernels_reused"),
        total("compiles"),
        total("programs_reused"),
        tuple(objects),
    )


def _object(history: ObjectHistory, run: ProfiledRun, numbers: Mapping[int, int]) -> ObjectProfile:
    jitted, checks = history.jitted, run.recording.guards
    since: dict[str, int] = {}
    for entry in fields(Counters):
        now, before = getattr(jitted.counters, entry.name), getattr(history.before, entry.name)
        if isinstance(now, int):
            since[entry.name] = max(now - before, 0)
    eager = jitted.counters.eager_reasons - history.before.eager_reasons
    guards: list[GuardProfile] = []
    for tree in jitted.trees:
        lines = tree.guard.describe()
        check = checks[id(tree)].least if id(tree) in checks else 0
        by_line = Counter(str(line.source) if line.source.line else "the arguments" for line in lines)
        shares = tuple([(line, count, check * count / len(lines)) for line, count in by_line.most_common()])
        guards.append(GuardProfile(len(lines), check, shares, tuple([str(line) for line in lines[:GUARDS_SHOWN]])))
    causes = jitted.recompiles[len(history.recompiles) :]
    reasons = (str(reason) for compilation in jitted.compilations for reason in compilation.plan.reasons)
    return ObjectProfile(
        name=jitted.name,
        counters=since,
        guards=tuple(guards),
        recompiles=tuple([(str(cause), cause.advice) for cause in causes]),
        trees=tuple([_nodes(tree, run, numbers) for tree in jitted.trees if tree.branches]),
        eager=tuple([_eager_reason(jitted, reason, count) for reason, count in eager.most_common()]),
        not_fused=tuple(dict.fromkeys(reasons)),
    )


def _eager_reason(jitted: Jitted, reason: str, count: int) -> EagerReason:
    for verdict in jitted.verdicts:
        for problem in verdict.problems:
            if problem.reason == reason and problem.source.line:
                return EagerReason(reason, count, problem.source.file, problem.source.line)
    return EagerReason(reason, count, "", 0)


def _nodes(tree: TraceTree, run: ProfiledRun, numbers: Mapping[int, int]) -> tuple[NodeProfile, ...]:
    """Breadth first. A way may lead back: that is a loop."""
    order: dict[int, int] = {id(tree.root): 0}
    nodes: list[Leaf | Branch] = [tree.root]
    for node in nodes:
        if isinstance(node, Branch):
            for child in [child for children in node.children.values() for child in children]:
                if id(child) not in order and len(nodes) < NODES_SHOWN:
                    order[id(child)] = len(nodes)
                    nodes.append(child)
    return tuple([_node(number, node, order, run, numbers) for number, node in enumerate(nodes)])


def _node(
    number: int, node: Leaf | Branch, order: Mapping[int, int], run: ProfiledRun, numbers: Mapping[int, int]
) -> NodeProfile:
    program = numbers.get(id(node.step.compilations[0]), -1)
    if isinstance(node, Leaf):
        return NodeProfile(number, program, "", "", 0, ())
    look, seen = node.look, Counter[Outcome]()
    for outcome, count in run.outcomes.get(id(node), {}).items():
        seen[outcome if outcome in node.children else open_outcome(outcome, look.dims)] += count
    ways = [
        WayProfile(
            describe_outcome(look.kind, outcome),
            seen[outcome],
            tuple([order[id(child)] for child in children if id(child) in order]),
        )
        for outcome, children in node.children.items()
    ]
    ways.sort(key=lambda way: -way.count)
    return NodeProfile(number, program, look.kind.value, look.source.file, look.source.line, tuple(ways))
