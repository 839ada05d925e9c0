"""Why a call fits no program of a jitted object, and what its author can do about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from dsjit.api.trace_tree import Miss, TraceTree
from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.guards.guard import Change
from dsjit.trace.looks.outcome import describe_outcome

__all__ = ["Cause", "describe_refusal", "find_cause"]

_ADVICE: Final[Mapping[str, str]] = {
    "sizes": "leave the sizes open (dynamic=True, dsjit.mark_dynamic(tensor, dim)), or pad to a few",
    "value": "pass it as a tensor, or move what reads it out of the jitted function",
    "object": "call with the same objects, or move what reads them out of the jitted function",
    "torch": "make all calls in one mode",
    "outcome": "move what looks at the data out of the jitted function, or let torch.where choose",
    "unknown": "see dsjit.explain(f)(...).guards for what must hold",
}


@dataclass(frozen=True, slots=True)
class Cause:
    """text: what changed since the newest program was made, or what is seen for the first time in a tensor.

    change: the guard that fails, if one does. advice: what to do so that it does not happen again.
    """

    text: str
    advice: str
    source: Source = UNKNOWN_SOURCE
    change: Change | None = None

    def __str__(self) -> str:
        return self.text


def find_cause(
    trees: Sequence[TraceTree], missed: tuple[TraceTree, Miss] | None, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Cause | None:
    """None for a first call. missed: the tree whose guard holds, and where the walk through it ended."""
    if missed is not None:
        return _cause_of_miss(missed[1], args, kwargs)
    if not trees:
        return None
    change = trees[0].guard.what_changed(args, kwargs)
    if change is None:
        return Cause("the newest program does not fit", _ADVICE["unknown"])
    return Cause(str(change), _ADVICE[change.kind], change.source, change)


def describe_refusal(name: str, cause: Cause | None, call: Source) -> str:
    """Why the stance fail_on_recompile refuses a call of the jitted `name`. cause: None for a first call."""
    if cause is None:
        return (
            f"{name} would be compiled for the first time (called at {call}), and the stance is fail_on_recompile: "
            f'call it once under dsjit.set_stance("default") before'
        )
    return (
        f"{name} would be compiled anew (called at {call}), and the stance is fail_on_recompile: "
        f"{cause}; {cause.advice}"
    )


def _cause_of_miss(miss: Miss, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Cause:
    look = miss.way[-1].look
    for child in miss.way[-1].after(miss.outcome):
        change = child.guard.what_changed(args, kwargs)
        if change is not None:
            return Cause(str(change), _ADVICE[change.kind], change.source, change)
    seen = describe_outcome(look.kind, miss.outcome)
    text = f"{look.kind.value} is {seen} for the first time (at {look.source})"
    return Cause(text, _ADVICE["outcome"], look.source)
