"""How a result is built anew on each call: the shape of what the function returned, with holes for tensors.

Objects that existed before the run are fetched again by their path; objects born during the run (a dict, a
dataclass, a transformers ModelOutput, a key-value cache) are built anew, with the same sharing among them.
"""

from __future__ import annotations

import enum
import types
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

import torch

__all__ = ["ResultBuilder", "Template", "TemplateError", "make_template"]


class TemplateError(Exception):
    """The result holds an object that cannot be built anew."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Tensor number `index` of the result."""

    index: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """An immutable object, the same on every call."""

    value: Any


@dataclass(frozen=True, slots=True)
class Existing:
    """An object that existed before the run; `number` counts them in the order in which they were met."""

    number: int


@dataclass(frozen=True, slots=True)
class Born:
    """An object made during the run. `label` names it, so that shared objects stay shared.

    items: elements of a list, tuple or set. pairs: entries of a dict. state: entries of the object's attributes.
    """

    label: int
    cls: type
    items: tuple[Template, ...] = ()
    pairs: tuple[tuple[Template, Template], ...] = ()
    state: tuple[tuple[str, Template], ...] = ()


@dataclass(frozen=True, slots=True)
class Again:
    """The object that `Born` number `label` made."""

    label: int


Template: TypeAlias = Hole | Fixed | Existing | Born | Again

IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, enum.Enum, torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Size, types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
    type(Ellipsis), type(NotImplemented),
)  # fmt: skip


@dataclass(slots=True)
class ResultBuilder:
    """A Template, with the tensors and existing objects of the run that made it, in the order of their numbers."""

    template: Template
    tensors: list[torch.Tensor]
    existing: list[Any]

    def build(self, tensors: Sequence[torch.Tensor], existing: Sequence[Any]) -> Any:
        """The result with these tensors in its holes and these objects in place of the existing ones."""
        return _build(self.template, tensors, existing, {})


def make_template(result: Any, existed: Callable[[Any], bool]) -> ResultBuilder:
    """The Template of `result`. `existed` tells objects from before the run from those born in it.

    Raises TemplateError for an object that cannot be built anew.
    """
    maker = _Maker(existed)
    return ResultBuilder(maker.make(result), maker.tensors, maker.existing)


class _Maker:
    def __init__(self, existed: Callable[[Any], bool]) -> None:
        self.existed = existed
        self.tensors: list[torch.Tensor] = []
        self.holes: dict[int, int] = {}
        self.existing: list[Any] = []
        self.labels: dict[int, int] = {}
        self.kept: list[Any] = []

    def make(self, obj: Any) -> Template:
        if isinstance(obj, torch.Tensor):
            if id(obj) not in self.holes:
                self.holes[id(obj)] = len(self.tensors)
                self.tensors.append(obj)
            return Hole(self.holes[id(obj)])
        if isinstance(obj, IMMUTABLE):
            return Fixed(obj)
        if id(obj) in self.labels:
            return Again(self.labels[id(obj)])
        if self.existed(obj):
            self.existing.append(obj)
            return Existing(len(self.existing) - 1)
        label = self.labels[id(obj)] = len(self.labels)
        self.kept.append(obj)
        return self._born(obj, label)

    def _born(self, obj: Any, label: int) -> Template:
        cls = type(obj)
        if isinstance(obj, tuple):
            if all(type(item) in IMMUTABLE for item in obj):
                return Fixed(obj)
            return Born(label, cls, items=tuple(self.make(item) for item in obj))
        pairs: tuple[tuple[Template, Template], ...] = ()
        items: tuple[Template, ...] = ()
        if isinstance(obj, dict):
            pairs = tuple((self.make(k), self.make(v)) for k, v in obj.items())
        elif isinstance(obj, list | set | frozenset):
            items = tuple(self.make(item) for item in obj)
        elif cls.__module__ == "builtins" or cls.__flags__ & (1 << 9) == 0:
            raise TemplateError(f"the result holds a {cls.__qualname__}, which cannot be built anew on each call")
        return Born(label, cls, items, pairs, tuple((k, self.make(v)) for k, v in _attributes(obj)))


def _attributes(obj: Any) -> list[tuple[str, Any]]:
    found = list(getattr(obj, "__dict__", {}).items())
    if isinstance(obj, defaultdict):
        found.append(("default_factory", obj.default_factory))
    for cls in type(obj).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(obj, name):
                found.append((name, getattr(obj, name)))
    return found


def _build(
    template: Template, tensors: Sequence[torch.Tensor], existing: Sequence[Any], made: dict[int, Any]
) -> Any:
    if isinstance(template, Hole):
        return tensors[template.index]
    if isinstance(template, Fixed):
        return template.value
    if isinstance(template, Existing):
        return existing[template.number]
    if isinstance(template, Again):
        return made[template.label]
    return _build_born(template, tensors, existing, made)


def _build_born(template: Born, tensors: Sequence[torch.Tensor], existing: Sequence[Any], made: dict[int, Any]) -> Any:
    cls = template.cls
    if issubclass(cls, tuple | frozenset):
        items = [_build(item, tensors, existing, made) for item in template.items]
        value = cls._make(items) if hasattr(cls, "_make") else cls(items)
        made[template.label] = value
        return value
    value = cls.__new__(cls)
    made[template.label] = value
    if issubclass(cls, list):
        list.extend(cast(list[Any], value), [_build(item, tensors, existing, made) for item in template.items])
    elif issubclass(cls, set):
        set.update(cast(set[Any], value), [_build(item, tensors, existing, made) for item in template.items])
    elif issubclass(cls, dict):
        put = OrderedDict.__setitem__ if issubclass(cls, OrderedDict) else dict.__setitem__
        for key, item in template.pairs:
            made_key = _build(key, tensors, existing, made)
            put(cast(dict[Any, Any], value), made_key, _build(item, tensors, existing, made))
    for name, item in template.state:
        object.__setattr__(value, name, _build(item, tensors, existing, made))
    return value

