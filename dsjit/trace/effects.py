"""Effects: what a traced call changed in Python state that existed before it."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.facts import Constant, Fact, TensorOf
from dsjit.trace.notes import MODULE_TABLES, Node
from dsjit.trace.patching import PATCHED_NAMES
from dsjit.trace.paths import (
    ABSENT,
    Attribute,
    Closure,
    Index,
    Item,
    Lookup,
    Path,
    Root,
    Slot,
    instance_dict,
    static_lookup,
)

__all__ = ["Effect", "EffectKind", "Problem", "class_effects", "fact_effects", "metadata_effects", "stored_attribute"]

EffectKind: TypeAlias = Literal["attribute", "item", "global", "closure", "contents", "class", "metadata"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Why the call cannot be captured, and at which line of the user's.

    passing: an equal call may well do without it (warnings and log lines are often given once), so that the verdict
        deserves a second look.
    """

    reason: str
    source: Source
    passing: bool = False

    def __str__(self) -> str:
        return self.reason if self.source is UNKNOWN_SOURCE else f"{self.reason} ({self.source})"


@dataclass(frozen=True, slots=True)
class Effect:
    """The call left `value` (or `ABSENT`) as `name` of the object at `path`, where something else was before."""

    path: Path
    kind: EffectKind
    name: object
    value: object
    source: Source = UNKNOWN_SOURCE

    def __str__(self) -> str:
        if self.kind == "contents":
            return f"changes the contents of {self.path}"
        if self.kind == "metadata":
            return f"changes the {self.name} of {self.path}"
        return f"writes {self.kind} {self.name!r} of {self.path}"


def fact_effects(facts: Iterable[tuple[Fact, Node, Any]]) -> Iterable[Effect]:
    """What changed in the facts that do not hold any more. facts: each with where it reads, and what it found."""
    for fact, node, value in facts:
        now = fact.step.get(node.obj)
        if now is value or Constant(value).matches(now):
            continue
        step, path = fact.step, node.path
        if isinstance(step, Attribute | Slot):
            yield Effect(path, "attribute", step.name, now)
        elif isinstance(step, Item):
            is_global = isinstance(path.step, Root) and path.step.label.startswith("globals(")
            yield Effect(path, "global" if is_global else "item", step.key, now)
        elif isinstance(step, Index):
            yield Effect(path, "item", step.index, now)
        elif isinstance(step, Closure):
            yield Effect(path, "closure", step.name, now)
        elif isinstance(step, Lookup):
            yield Effect(path, "class", step.name, now)
        else:
            yield Effect(path, "contents", None, node.obj)


def class_effects(classes: Mapping[type, dict[str, Any]]) -> Iterable[Effect]:
    """Class attributes that differ from what they were when the class was met."""
    for cls, entries in classes.items():
        for name in sorted(entries.keys() | cls.__dict__.keys()):
            now = cls.__dict__.get(name, ABSENT)
            if now is not entries.get(name, ABSENT) and name not in PATCHED_NAMES:
                yield Effect(Path(None, Root(cls.__qualname__, id(cls))), "class", name, now)


def metadata_effects(metadata: Iterable[tuple[Node, TensorOf]], grad_mode: bool) -> Iterable[Effect]:
    """Tensors whose shape, strides, dtype or `requires_grad` is not what it was when they were met."""
    for node, before in metadata:
        if not before.matches(node.obj):
            yield Effect(node.path, "metadata", "metadata", TensorOf.of(node.obj, grad_mode))


def stored_attribute(obj: object, name: str) -> Any:
    """What is stored under an attribute's name: in the `__dict__`, in a module's tables, or in a slot."""
    entries = instance_dict(obj)
    if entries is not None:
        if name in entries:
            return entries[name]
        if issubclass(type(obj), torch.nn.Module):
            for table in MODULE_TABLES:
                if name in entries.get(table, ()):
                    return entries[table][name]
    entry = static_lookup(type(obj), name)
    if type(entry) is types.MemberDescriptorType or name == "__class__":
        return Slot(name).get(obj)
    return ABSENT
