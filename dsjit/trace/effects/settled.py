"""Whether a call has changed anything of Python's state so far: asked often, so what is known stays known.

The answer is that of `EffectFinder.find`, which takes long. Here, what existed is only compared by identity, and places
of which there are copies are not looked up one by one; where anything is another object, `find` has to say whether that
is a change.
"""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from itertools import chain, islice
from typing import Any

import torch

from dsjit.trace.effects.before import Copy
from dsjit.trace.effects.stand_in import behind
from dsjit.trace.reads.facts import ArrayOf, TensorOf
from dsjit.trace.reads.notes import Notes
from dsjit.trace.reads.patching import PATCHED_NAMES
from dsjit.trace.reads.paths import ABSENT, Asked, Lookup, Slot, Step, instance_dict

__all__ = ["SettledCheck"]


class SettledCheck:
    """Of one trace. classes: their entries of before."""

    def __init__(self, notes: Notes, classes: Mapping[type, dict[str, Any]]) -> None:
        self._notes = notes
        self._classes = classes
        self._facts = 0
        self._met = 0
        self._places: list[tuple[Step, Any, Any]] = []
        self._arrays: list[tuple[Step, Any, ArrayOf]] = []
        self._instances: list[tuple[Any, type, dict[str, Any] | None]] = []
        self._dicts = _Same()
        self._values = _Same()
        self._sequences = _Same()
        self._others: list[Copy] = []
        self._tensors: list[tuple[torch.Tensor, TensorOf, bool]] = []

    def nothing_changed(self) -> bool:
        """Whether all is the very same; when not, it may still be equal."""
        self._take_notes()
        return (
            all(type(obj) is cls and instance_dict(obj) is entries for obj, cls, entries in self._instances)
            and self._dicts.holds()
            and self._values.holds()
            and self._sequences.holds()
            and all(copy.same() for copy in self._others)
            and all(self._same_slots(key, values) for key, values in self._notes.before.slots.items())
            and all(behind(step.get(obj)) is value for step, obj, value in self._places)
            and all(behind(step.get(node.obj)) is value for node, step, value in self._notes.stored)
            and all(array.matches(step.get(obj)) for step, obj, array in self._arrays)
            and all(self._same_class(cls, entries) for cls, entries in self._classes.items())
            and all(_same_tensor(tensor, old) for tensor, old, _ in self._tensors)
            and not any(instance_dict(tensor) for tensor, _, copied in self._tensors if not copied)
        )

    def _take_notes(self) -> None:
        """Of what was met since the last time."""
        notes, before = self._notes, self._notes.before
        for fact, (node, value) in zip(
            islice(notes.facts, self._facts, None), islice(notes.found, self._facts, None), strict=True
        ):
            obj, step = node.obj, fact.step
            if type(fact.expectation) is ArrayOf:
                self._arrays.append((step, obj, fact.expectation))
            if isinstance(step, Lookup) or issubclass(type(obj), torch.Generator) or before.has_copy(obj, step):
                continue
            if not (isinstance(step, Asked) and isinstance(value, torch.Tensor)):
                self._places.append((step, obj, value))
        self._facts = len(notes.facts)
        for obj, cls in islice(before.instances.values(), len(self._instances), None):
            entries = instance_dict(obj)
            known = entries if entries is None or id(entries) in before.copies else {}  # it is another one already
            self._instances.append((obj, cls, known))
        for copy in islice(before.copies.values(), self._met, None):
            kind, content = type(copy.live), copy.content
            if kind in (dict, OrderedDict) and isinstance(content, dict):
                self._dicts.add(copy.live, content)
                self._values.add(dict.values(copy.live), content.values())
            elif kind in (list, tuple):
                self._sequences.add(copy.live, content)
            else:
                self._others.append(copy)
        self._met = len(before.copies)
        for node, old in islice(notes.metadata, len(self._tensors), None):
            self._tensors.append((node.obj, old, id(node.obj) in before.instances))

    def _same_slots(self, key: int, values: Mapping[str, Any]) -> bool:
        obj, _ = self._notes.before.instances[key]
        return all(Slot(name).get(obj) is value for name, value in values.items())

    def _same_class(self, cls: type, entries: Mapping[str, Any]) -> bool:
        now = cls.__dict__
        names = entries if entries.keys() >= now.keys() else entries.keys() | now.keys()
        return all(now.get(n, ABSENT) is entries.get(n, ABSENT) or n in PATCHED_NAMES for n in names)


class _Same:
    """Compares many containers with what they held, in loops of C: they have no `__iter__` of the user's."""

    __slots__ = ("_content", "_lengths", "_live")

    def __init__(self) -> None:
        self._live: list[Collection[Any]] = []
        self._lengths: list[int] = []
        self._content: list[Any] = []

    def add(self, live: Collection[Any], content: Iterable[Any]) -> None:
        before = len(self._content)
        self._content += content
        self._live.append(live)
        self._lengths.append(len(self._content) - before)

    def holds(self) -> bool:
        """Whether each holds the very same objects, in the same order."""
        if list(map(len, self._live)) != self._lengths:
            return False
        return all(map(operator.is_, chain.from_iterable(self._live), self._content))


def _same_tensor(tensor: torch.Tensor, old: TensorOf) -> bool:
    """Whether it is certain that its metadata is that of before."""
    return (
        type(tensor) is old.type
        and tensor.dtype is old.dtype
        and tensor.shape == old.shape
        and tensor.layout is torch.strided
        and tensor.stride() == old.strides
        and tensor.device == old.device
        and (tensor.is_conj(), tensor.is_neg(), tensor.is_inference()) == (old.conjugated, old.negated, old.inference)
        and (old.requires_grad is None or tensor.requires_grad is old.requires_grad)
    )
