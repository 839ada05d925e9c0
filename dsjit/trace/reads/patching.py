"""Observing attribute access: the process-wide register of patched classes.

While at least one `Listener` wants it, a class carries wrappers of `__getattribute__`, `__setattr__` and
`__delattr__` (and `nn.Module` of `__getattr__`, which looks up parameters, buffers and submodules). A wrapper tells
the listener of its own thread, if there is one, and otherwise does what the class did before. When the last listener
leaves, the class is what it was.
"""

from __future__ import annotations

import threading
import types
from collections.abc import Callable, Iterable
from typing import Any, Final, Protocol, TypeAlias

import torch

from dsjit.errors import CaptureError
from dsjit.trace.reads.library import is_observable
from dsjit.trace.reads.namespace_slots import NamespaceSlots, namespace_slots
from dsjit.trace.reads.paths import ABSENT, instance_dict, static_lookup

__all__ = ["PATCHED_NAMES", "PATCHES", "Listener", "Patch", "patches_for"]

Patch: TypeAlias = tuple[type, str]
"""A class and the name of the method to wrap in it; of `types.SimpleNamespace`, all its slots."""

PATCHED_NAMES: Final = frozenset({"__getattribute__", "__setattr__", "__delattr__", "__getattr__"})


class Listener(Protocol):
    """Who is told of reads and writes, on its own thread. `on_read` returns whether the attribute must be read again.

    seen: (id of an object, name of an attribute) of reads that need no telling again; a module's parameters, buffers
        and submodules with a dot before the name.
    """

    seen: set[tuple[int, str]]

    def on_read(self, obj: object, name: str, value: object) -> bool: ...

    def on_missing(self, obj: object, name: str) -> None: ...

    def on_opaque_read(self, obj: object) -> None: ...

    def on_module_lookup(self, module: torch.nn.Module, name: str) -> None: ...

    def on_write(self, obj: object, name: str, value: object) -> None: ...


def patches_for(cls: type) -> tuple[Patch, ...]:
    """Which methods of which classes to wrap so that every access to attributes of `cls`'s instances is seen."""
    if cls is types.SimpleNamespace:
        return ((cls, "__slots__"),)
    highest = next((base for base in reversed(cls.__mro__) if is_observable(base)), None)
    if highest is None:
        return ()
    found: list[Patch] = []
    for name in ("__getattribute__", "__setattr__", "__delattr__"):
        written = (base for base in cls.__mro__ if type(_unwrapped(base, name)) is types.FunctionType)
        found.append((next(written, highest), name))
    if issubclass(cls, torch.nn.Module):
        found.append((torch.nn.Module, "__getattr__"))
    return tuple(found)


def _unwrapped(cls: type, name: str) -> Any:
    """The class's own entry as it is without wrappers."""
    entry = cls.__dict__.get(name, ABSENT)
    own = getattr(entry, "__dsjit_own__", None)
    return entry if own is None else own[0]


class _Current(threading.local):
    """The listener of each thread."""

    listener: Listener | None = None


class _Register:
    """Counts the listeners of each patch; installs with the first and removes with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[Patch, int] = {}
        self._namespaces: NamespaceSlots | None = None
        self.current = _Current()

    def enter(self, listener: Listener) -> None:
        """Start telling `listener` about this thread. Raises CaptureError when the thread has one already."""
        if self.current.listener is not None:
            raise CaptureError("a trace is already running on this thread")
        self.current.listener = listener

    def leave(self, patches: Iterable[Patch]) -> None:
        """Stop telling this thread's listener, and give its patches back."""
        self.current.listener = None
        with self._lock:
            for patch in patches:
                self._counts[patch] -= 1
                if not self._counts[patch]:
                    del self._counts[patch]
                    cls, name = patch
                    if cls is types.SimpleNamespace:
                        assert self._namespaces is not None
                        self._namespaces.give_back()
                        continue
                    entry = cls.__dict__[name]
                    (own,) = entry.__dsjit_own__
                    if own is ABSENT:
                        type.__delattr__(cls, name)
                    else:
                        type.__setattr__(cls, name, own)

    def acquire(self, patch: Patch) -> None:
        """Wrap the method, unless another listener had it wrapped before."""
        cls, name = patch
        with self._lock:
            count = self._counts.get(patch, 0)
            if not count and cls is types.SimpleNamespace:
                self._take_namespaces()
            elif not count:
                own = cls.__dict__.get(name, ABSENT)
                original = static_lookup(cls, name)
                if hasattr(original, "__dsjit_original__"):  # inherited from a base that is wrapped right now
                    original = original.__dsjit_original__
                wrapper: Any = _WRAPPERS[name](self.current, original)
                wrapper.__dsjit_own__ = (own,)
                wrapper.__dsjit_original__ = original
                type.__setattr__(cls, name, wrapper)
            self._counts[patch] = count + 1

    def _take_namespaces(self) -> None:
        """Raises TypeError where the slots of the class cannot be taken."""
        if self._namespaces is None:
            self._namespaces = namespace_slots(*_namespace_listeners(self.current))
        if self._namespaces is None:
            raise TypeError("types.SimpleNamespace cannot be changed")
        self._namespaces.take()


def _namespace_listeners(
    current: _Current,
) -> tuple[Callable[[Any, str | None, Any], None], Callable[[Any, str, Any], None]]:
    def on_read(namespace: Any, name: str | None, other: Any) -> None:
        listener = current.listener
        if listener is None:
            return
        entries = instance_dict(namespace) or {}
        if name is None or (name not in entries and name.startswith("__") and name != "__class__"):
            listener.on_opaque_read(namespace)
            if type(other) is types.SimpleNamespace:
                listener.on_opaque_read(other)
        elif (id(namespace), name) not in listener.seen:
            listener.on_read(namespace, name, entries.get(name, ABSENT))

    def on_write(namespace: Any, name: str, value: Any) -> None:
        listener = current.listener
        if listener is not None:
            listener.on_write(namespace, name, value)

    return on_read, on_write


def _wrap_getattribute(current: _Current, original: Callable[[Any, str], Any]) -> Callable[..., Any]:
    written_in_python = isinstance(original, types.FunctionType)

    def opaque(self: Any, name: str) -> Any:
        listener = current.listener
        if listener is not None:
            listener.on_opaque_read(self)
        return original(self, name)

    def default(self: Any, name: str) -> Any:
        listener = current.listener
        if listener is None or (id(self), name) in listener.seen:
            return original(self, name)
        try:
            value = original(self, name)
        except AttributeError:
            listener.on_missing(self, name)
            raise
        return original(self, name) if listener.on_read(self, name, value) else value

    return opaque if written_in_python else default


def _wrap_setattr(current: _Current, original: Callable[[Any, str, Any], None]) -> Callable[..., None]:
    def __setattr__(self: Any, name: str, value: Any) -> None:
        listener = current.listener
        if listener is not None:
            listener.on_write(self, name, value)
        original(self, name, value)

    return __setattr__


def _wrap_delattr(current: _Current, original: Callable[[Any, str], None]) -> Callable[..., None]:
    def __delattr__(self: Any, name: str) -> None:
        listener = current.listener
        if listener is not None:
            listener.on_write(self, name, ABSENT)
        original(self, name)

    return __delattr__


def _wrap_module_getattr(current: _Current, original: Callable[[Any, str], Any]) -> Callable[..., Any]:
    get_attribute = object.__getattribute__

    def __getattr__(self: Any, name: str) -> Any:
        listener = current.listener
        if listener is None:
            return original(self, name)
        if (id(self), "." + name) not in listener.seen:
            listener.on_module_lookup(self, name)
        entries = get_attribute(self, "__dict__")
        for table in ("_parameters", "_buffers", "_modules"):
            if table in entries and name in entries[table]:
                return entries[table][name]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute '{name}'")

    return __getattr__


_WRAPPERS: Final[dict[str, Callable[..., Callable[..., Any]]]] = {
    "__getattribute__": _wrap_getattribute,
    "__setattr__": _wrap_setattr,
    "__delattr__": _wrap_delattr,
    "__getattr__": _wrap_module_getattr,
}

PATCHES: Final = _Register()
"""Patching a class is process-wide, so its bookkeeping is too."""
