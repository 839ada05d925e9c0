"""Paths: how a value that a traced function read is reached again from a root.

A `Path` is a chain of `Step`s that starts at a `Root`: `args[0].layers[3].attn.scale`, `globals(module)['X']`,
`closure(f)['k']`. A step reads the *stored* value: it never runs a property, a descriptor or a `__getattr__`, so
walking a path has no effects.
"""

from __future__ import annotations

import types
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias, final

__all__ = [
    "ABSENT",
    "Absent",
    "Asked",
    "Attribute",
    "Closure",
    "Contents",
    "Index",
    "InstanceKeys",
    "Item",
    "Keys",
    "Length",
    "Lookup",
    "Member",
    "Path",
    "Referent",
    "Root",
    "Slot",
    "Step",
    "instance_dict",
    "static_lookup",
]


@final
class Absent:
    """The type of `ABSENT`."""

    def __repr__(self) -> str:
        return "absent"


ABSENT: Final = Absent()
"""What a step yields where nothing is stored."""

_get_attribute: Final[Callable[[object, str], Any]] = object.__getattribute__


def instance_dict(obj: object) -> dict[str, Any] | None:
    """The dictionary of `obj`'s own attributes, or None for an object that has none."""
    try:
        found = _get_attribute(obj, "__dict__")
    except AttributeError:
        return None
    return found if isinstance(found, dict) else None


def static_lookup(cls: type, name: str) -> Any:
    """The entry that attribute lookup finds in the classes of `cls.__mro__`, unbound, or `ABSENT`."""
    for base in cls.__mro__:
        entries = base.__dict__
        if name in entries:
            return entries[name]
    return ABSENT


@dataclass(frozen=True, slots=True)
class Root:
    """Where a path starts. `label` prints; `key` tells equal labels apart (0 for the roots of the call itself)."""

    label: str
    key: int = 0

    def __str__(self) -> str:
        return self.label


@dataclass(frozen=True, slots=True)
class Attribute:
    """An entry of an object's `__dict__`."""

    name: str

    def get(self, container: Any) -> Any:
        entries = instance_dict(container)
        return ABSENT if entries is None else entries.get(self.name, ABSENT)

    def render(self, prefix: str) -> str:
        return f"{prefix}.{self.name}"


@dataclass(frozen=True, slots=True)
class Slot:
    """An attribute that C code stores: `__slots__`, `partial.func`, `method.__self__`, `function.__defaults__`."""

    name: str

    def get(self, container: Any) -> Any:
        try:
            return _get_attribute(container, self.name)
        except AttributeError:
            return ABSENT

    def render(self, prefix: str) -> str:
        return "self" if self.name == "__self__" and "." not in prefix else f"{prefix}.{self.name}"


@dataclass(frozen=True, slots=True)
class Item:
    """An entry of a dictionary (or of a subclass: its own `__getitem__` does not run)."""

    key: Any

    def get(self, container: Any) -> Any:
        return dict.get(container, self.key, ABSENT)

    def render(self, prefix: str) -> str:
        return f"{prefix}[{self.key!r}]"


@dataclass(frozen=True, slots=True)
class Index:
    """An element of a list, tuple or deque."""

    index: int

    def get(self, container: Any) -> Any:
        read = list if isinstance(container, list) else tuple if isinstance(container, tuple) else deque
        try:
            return read.__getitem__(container, self.index)
        except IndexError:
            return ABSENT

    def render(self, prefix: str) -> str:
        return f"{prefix}[{self.index}]"


@dataclass(frozen=True, slots=True)
class Closure:
    """The content of a closure cell; `ABSENT` for an empty cell."""

    name: str
    index: int

    def get(self, container: Any) -> Any:
        try:
            return (container.__closure__ or ())[self.index].cell_contents
        except (ValueError, IndexError):
            return ABSENT

    def render(self, prefix: str) -> str:
        return f"closure({prefix})[{self.name!r}]"


@dataclass(frozen=True, slots=True)
class Lookup:
    """What attribute lookup finds in a class and its bases, unbound."""

    name: str

    def get(self, container: Any) -> Any:
        found = static_lookup(container, self.name)
        return found if type(found) is not types.FunctionType else found.__dict__.get("__dsjit_original__", found)

    def render(self, prefix: str) -> str:
        return f"{prefix}.{self.name}"


@dataclass(frozen=True, slots=True)
class Referent:
    """What a weak reference points to; `ABSENT` when it is dead."""

    def get(self, container: Any) -> Any:
        found = container()
        return ABSENT if found is None else found

    def render(self, prefix: str) -> str:
        return f"{prefix}()"


@dataclass(frozen=True, slots=True)
class Length:
    """The number of elements of a list, tuple or deque."""

    def get(self, container: Any) -> Any:
        read = list if isinstance(container, list) else tuple if isinstance(container, tuple) else deque
        return read.__len__(container)

    def render(self, prefix: str) -> str:
        return f"len({prefix})"


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of a dictionary, in its own order, as a tuple."""

    def get(self, container: Any) -> Any:
        read = OrderedDict if isinstance(container, OrderedDict) else dict
        return tuple(read.__iter__(container))

    def render(self, prefix: str) -> str:
        return f"keys({prefix})"


@dataclass(frozen=True, slots=True)
class InstanceKeys:
    """The names in an object's `__dict__`, in order, as a tuple."""

    def get(self, container: Any) -> Any:
        return tuple(instance_dict(container) or ())

    def render(self, prefix: str) -> str:
        return f"vars({prefix})"


@dataclass(frozen=True, slots=True)
class Contents:
    """The elements of a set, as a frozenset."""

    def get(self, container: Any) -> Any:
        read = set if isinstance(container, set) else frozenset
        return frozenset(read.__iter__(container))

    def render(self, prefix: str) -> str:
        return prefix


@dataclass(frozen=True, slots=True)
class Member:
    """Whether an element, a constant, is in a set."""

    element: Any

    def get(self, container: Any) -> Any:
        return set.__contains__(container, self.element)

    def render(self, prefix: str) -> str:
        return f"({self.element!r} in {prefix})"


@dataclass(frozen=True, slots=True)
class Asked:
    """What `question(container, *arguments)` answers, where only the code of Python's own tells (a logger's level)."""

    name: str
    question: Callable[..., Any]
    arguments: tuple[Any, ...]

    def get(self, container: Any) -> Any:
        return self.question(container, *self.arguments)

    def render(self, prefix: str) -> str:
        return f"{prefix}.{self.name}({', '.join(map(str, self.arguments))})"


Step: TypeAlias = (
    Attribute
    | Slot
    | Item
    | Index
    | Closure
    | Lookup
    | Referent
    | Length
    | Keys
    | InstanceKeys
    | Contents
    | Member
    | Asked
)

_MODULE_TABLES: Final = frozenset({Attribute("_parameters"), Attribute("_buffers"), Attribute("_modules")})


@dataclass(frozen=True, slots=True)
class Path:
    """`parent` is None for a root. Prints the way that the user would write the access."""

    parent: Path | None
    step: Step | Root

    def __str__(self) -> str:
        if self.parent is None or isinstance(self.step, Root):
            return str(self.step)
        if isinstance(self.step, Item) and self.parent.parent is not None and self.parent.step in _MODULE_TABLES:
            owner, name = str(self.parent.parent), str(self.step.key)
            return f"{owner}[{name}]" if name.isdigit() else f"{owner}.{name}"
        return self.step.render(str(self.parent))

    def then(self, step: Step) -> Path:
        """The path one step further."""
        return Path(self, step)

    @property
    def owner(self) -> Path:
        """The path of the object that the user would say this is an attribute or an element of."""
        owner = self.parent or self
        return owner.parent if owner.parent is not None and owner.step in _MODULE_TABLES else owner

    @property
    def root(self) -> Root:
        """The root that the path starts at."""
        path = self
        while path.parent is not None:
            path = path.parent
        assert isinstance(path.step, Root)
        return path.step
