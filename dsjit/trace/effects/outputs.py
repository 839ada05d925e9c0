"""How objects are built anew on each call: the shape of what the function returned or stored, with holes for tensors.

Objects that existed before the run are fetched again by their path; objects born during the run (a dict, a
dataclass, a transformers ModelOutput, a key-value cache) are built anew, with the same sharing among them.
"""

from __future__ import annotations

import enum
import types
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import torch

from dsjit.trace.effects.stand_in import StandIn
from dsjit.trace.effects.text import Formatted, Text
from dsjit.trace.reads.library import is_library_code, is_plumbing

__all__ = ["Existing", "Fixed", "Hole", "Template", "TemplateError", "TemplateMaker", "build_template"]


class TemplateError(Exception):
    """An object cannot be built anew."""


@dataclass(frozen=True, slots=True)
class Hole:
    """Tensor number `index`."""

    index: int


@dataclass(frozen=True, slots=True)
class NumberHole:
    """The content of tensor number `index`, as a Python number."""

    index: int


@dataclass(frozen=True, slots=True)
class TextOf:
    """A string in pieces: strings, and how the numbers in holes are formatted."""

    pieces: tuple[str | tuple[Formatted, Template], ...]


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

    items: elements of a list, tuple, set or deque. limit: of a deque's length. pairs: entries of a dict.
    state: entries of the object's attributes.
    """

    label: int
    cls: type
    items: tuple[Template, ...] = ()
    pairs: tuple[tuple[Template, Template], ...] = ()
    state: tuple[tuple[str, Template], ...] = ()
    limit: int | None = None


@dataclass(frozen=True, slots=True)
class Again:
    """The object that `Born` number `label` made."""

    label: int


Template: TypeAlias = Hole | NumberHole | TextOf | Fixed | Existing | Born | Again

IMMUTABLE = (
    type(None), bool, int, float, complex, str, bytes, range, slice, type, enum.Enum, torch.dtype, torch.device,
    torch.layout, torch.memory_format, torch.Size, types.FunctionType, types.BuiltinFunctionType, types.ModuleType,
    type(Ellipsis), type(NotImplemented),
)  # fmt: skip


class TemplateMaker:
    """Makes templates of several objects, between which sharing is kept.

    existed: tells objects from before the run from those born in it. is_traced: tells numbers that the run took out
    of tensors from others (None). keeps_sizes: symbols of sizes fill holes, too, where they would be refused.
    tensors: what fills the holes, with such numbers and symbols in their places.
    existing: the objects of before that the templates refer to. uses: ids of traced numbers, one entry for each place.
    """

    def __init__(
        self,
        existed: Callable[[Any], bool],
        is_traced: Callable[[float], Any] = lambda number: None,
        keeps_sizes: bool = False,
    ) -> None:
        self.keeps_sizes = keeps_sizes
        self.existed = existed
        self.is_traced = is_traced
        self.uses: list[int] = []
        self.tensors: list[torch.Tensor | float | torch.SymInt] = []
        self.holes: dict[int, int] = {}
        self.existing: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.labels: dict[int, int] = {}
        self.kept: list[Any] = []

    def references_to_numbers(self, more: Iterable[Any] = ()) -> dict[int, int]:
        """How often what the templates were made of, and this object, refer to each traced number, by id.

        more: objects that are referred to once more, by variables and the like.
        """
        further = Counter(id(obj) for obj in more)
        return {key: count + 1 + further[key] for key, count in Counter(self.uses).items()}

    def find(self, obj: Any) -> int:
        """The number of an object of before in `existing`."""
        if id(obj) not in self.numbers:
            self.numbers[id(obj)] = len(self.existing)
            self.existing.append(obj)
        return self.numbers[id(obj)]

    def make(self, obj: Any) -> Template:
        """The Template of one object. Raises TemplateError when it holds something that cannot be built anew."""
        if isinstance(obj, torch.Tensor):
            return Existing(self.find(obj)) if self.existed(obj) else Hole(self._hole(obj))
        if type(obj) in (float, int) and self.is_traced(obj) is not None:
            self.uses.append(id(obj))
            return NumberHole(self._hole(obj))
        if isinstance(obj, torch.SymInt) and self.keeps_sizes:
            return Hole(self._hole(obj))
        if isinstance(obj, torch.SymInt | torch.SymBool | torch.SymFloat):
            raise TemplateError("the call hands out a size")
        if isinstance(obj, StandIn):
            return Fixed(obj.original)
        if type(obj) is Text:
            holes = [each if isinstance(each, str) else (each, self.make(each.number)) for each in obj.pieces]
            return TextOf(tuple([each if isinstance(each, str) else (_emptied(each[0]), each[1]) for each in holes]))
        if isinstance(obj, types.FunctionType) and not self.existed(obj):
            if obj.__closure__ and not is_library_code(obj.__code__, obj.__globals__):
                raise TemplateError(f"the call hands out {obj.__qualname__}, a function with a closure made in it")
            return Fixed(obj)
        if isinstance(obj, IMMUTABLE) and not _has_symbols(obj):
            return Fixed(obj)
        if id(obj) in self.labels:
            return Again(self.labels[id(obj)])
        if self.existed(obj):
            return Existing(self.find(obj))
        self.kept.append(obj)
        if isinstance(obj, tuple) and all(type(item) in IMMUTABLE and self.is_traced(item) is None for item in obj):
            return Fixed(obj)
        label = self.labels[id(obj)] = len(self.labels)
        return self._born(obj, label)

    def _hole(self, obj: torch.Tensor | float | torch.SymInt) -> int:
        if id(obj) not in self.holes:
            self.holes[id(obj)] = len(self.tensors)
            self.tensors.append(obj)
        return self.holes[id(obj)]

    def _born(self, obj: Any, label: int) -> Template:
        cls = type(obj)
        if isinstance(obj, tuple):
            return Born(label, cls, items=tuple(self.make(item) for item in obj))
        pairs: tuple[tuple[Template, Template], ...] = ()
        items: tuple[Template, ...] = ()
        if isinstance(obj, dict):
            pairs = tuple((self.make(k), self.make(v)) for k, v in obj.items())
        elif isinstance(obj, list | set | frozenset):
            items = tuple(self.make(item) for item in obj)
        elif isinstance(obj, deque):
            items = tuple(self.make(item) for item in deque.__iter__(obj))
        elif cls.__module__ == "builtins" or cls.__flags__ & (1 << 9) == 0 or is_plumbing(cls):
            raise TemplateError(f"the call hands out a {cls.__qualname__}, which cannot be built anew on each call")
        limit = obj.maxlen if isinstance(obj, deque) else None
        return Born(label, cls, items, pairs, tuple((k, self.make(v)) for k, v in _attributes(obj)), limit)


def _emptied(formatted: Formatted) -> Formatted:
    """How any number is formatted so."""
    return replace(formatted, number=None)


def _has_symbols(obj: Any) -> bool:
    return isinstance(obj, torch.Size) and any(isinstance(size, torch.SymInt) for size in obj)


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


def build_template(
    template: Template, tensors: Sequence[torch.Tensor], existing: Sequence[Any], made: dict[int, Any]
) -> Any:
    """The object, with these tensors in its holes and these objects in place of those of before.

    made: objects that templates before this one made, by label; those of this one are added.
    """
    if isinstance(template, Hole):
        return tensors[template.index]
    if isinstance(template, NumberHole):
        return tensors[template.index].item()
    if isinstance(template, Fixed):
        return template.value
    if isinstance(template, TextOf):
        return "".join(
            [
                piece if isinstance(piece, str) else piece[0].render(build_template(piece[1], tensors, existing, made))
                for piece in template.pieces
            ]
        )
    if isinstance(template, Existing):
        return existing[template.number]
    if isinstance(template, Again):
        return made[template.label]
    return _build_born(template, tensors, existing, made)


def _build_born(template: Born, tensors: Sequence[torch.Tensor], existing: Sequence[Any], made: dict[int, Any]) -> Any:
    cls = template.cls
    if issubclass(cls, tuple | frozenset):
        items = [build_template(item, tensors, existing, made) for item in template.items]
        value = cls._make(items) if hasattr(cls, "_make") else cls(items)
        made[template.label] = value
        return value
    value = cls.__new__(cls)
    if issubclass(cls, deque):
        deque.__init__(cast("deque[Any]", value), (), template.limit)
    made[template.label] = value
    if issubclass(cls, list):
        list.extend(cast(list[Any], value), [build_template(item, tensors, existing, made) for item in template.items])
    elif issubclass(cls, deque):
        items = [build_template(item, tensors, existing, made) for item in template.items]
        deque.extend(cast("deque[Any]", value), items)
    elif issubclass(cls, set):
        set.update(cast(set[Any], value), [build_template(item, tensors, existing, made) for item in template.items])
    elif issubclass(cls, dict):
        put = OrderedDict.__setitem__ if issubclass(cls, OrderedDict) else dict.__setitem__
        for key, item in template.pairs:
            made_key = build_template(key, tensors, existing, made)
            put(cast(dict[Any, Any], value), made_key, build_template(item, tensors, existing, made))
    for name, item in template.state:
        object.__setattr__(value, name, build_template(item, tensors, existing, made))
    return value
