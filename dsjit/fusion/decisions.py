"""What fusion decides by sizes: once, for all sizes of a program."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any, TypeVar, cast

from dsjit.ir.template import Mismatch

__all__ = ["Decisions"]

DecisionT = TypeVar("DecisionT")


class Decisions:
    """Of one plan, in the order in which they are taken.

    known: those of a plan of the same program at other sizes. They are taken again, so that both plans have the same
        form; what sizes forbid is no decision.
    """

    def __init__(self, known: Sequence[tuple[Hashable, Any]] | None = None) -> None:
        self._known: Iterator[tuple[Hashable, Any]] | None = None if known is None else iter(known)
        self.taken: list[tuple[Hashable, Any]] = []

    def take(self, question: Hashable, decide: Callable[[], DecisionT]) -> DecisionT:
        """What `decide` says, or what was decided. Raises Mismatch when the other plan met another question."""
        if self._known is None:
            decision = decide()
        else:
            asked, known = next(self._known, (None, None))
            if asked != question:
                raise Mismatch(f"other sizes are fused in another way: {question} is asked, and not {asked}")
            decision = cast("DecisionT", known)
        self.taken.append((question, decision))
        return decision
