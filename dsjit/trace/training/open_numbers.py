"""Learning rates: floats in the `param_groups` of an optimizer that only feed the arithmetic of its update.

Containers are guarded whole, since reads from them cannot be seen; then a scheduler would make a new trace with each
step. But the way to the groups leads through an attribute of the optimizer, whose reads are seen. When nothing read it
but code that is known to hand the rate to the update, the float is an input of the program, and its guard asks for
no more than its type.
"""

from __future__ import annotations

import types
from dataclasses import replace
from typing import Any, Final

import torch

from dsjit.trace.reads.facts import NumberOf, SameAs
from dsjit.trace.reads.notes import Notes
from dsjit.trace.reads.paths import ABSENT, Asked, Attribute, Index, Item
from dsjit.trace.training.optimizers import reads_only_updates

__all__ = ["OpenNumbers"]

GROUPS: Final = "param_groups"


class OpenNumbers:
    """notes: of the call."""

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        self._found: dict[tuple[int, str], torch.Tensor] = {}
        self._read_elsewhere = False

    def on_read(self, name: str, reader: types.CodeType) -> bool:
        """`reader` reads an attribute of an optimizer: whether it is one that has to be told of each time."""
        if name == "__dict__" or (name == GROUPS and not reads_only_updates(reader)):
            self._read_elsewhere = True
        return name in ("__dict__", GROUPS)

    def number_in(self, container: dict[Any, Any], key: str) -> torch.Tensor | None:
        """The float under `key` of a group as an input tensor (float64, of no dimension)."""
        node = self._notes.node_of(container)
        if node is None or self._read_elsewhere:
            return None
        found = self._found.get((node.slot, key))
        if found is None:
            step = Asked("as_tensor", number_tensor, (key,))
            found = self._found[node.slot, key] = step.get(container)
            self._notes.note(node, step, found)
        return found

    def close(self) -> None:
        """After the call: what may be another number on each call is guarded by its type."""
        if self._read_elsewhere or not self._found:
            return
        notes = self._notes
        shared = {fact.expectation.slot for fact in notes.facts if isinstance(fact.expectation, SameAs)}
        lists = {fact.slot for fact in notes.facts if fact.step == Attribute(GROUPS) and fact.slot not in shared}
        groups = {
            fact.slot
            for fact in notes.facts
            if isinstance(fact.step, Index) and fact.parent in lists and fact.slot not in shared
        }
        for position, fact in enumerate(notes.facts):
            if isinstance(fact.step, Item) and fact.parent in groups and (fact.parent, fact.step.key) in self._found:
                notes.facts[position] = replace(fact, expectation=NumberOf(float))


def number_tensor(container: dict[Any, Any], key: str) -> Any:
    """The float under `key` as a tensor; ABSENT when it is no float."""
    number = dict.get(container, key)
    return torch.tensor(number, dtype=torch.float64) if type(number) is float else ABSENT
