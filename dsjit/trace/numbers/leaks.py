"""What could see a traced number unnoticed: C code that reads a float without asking the object.

A traced number notices what goes through its methods. Three things do not:

- *C functions* that take the number (`math.sqrt`, `json.dumps`, `list.sort`'s key). The profile hook tells of them:
  all numbers are pinned before a call of one that is not known to be harmless.
- *C types and callables* that are called (`type`, `complex`, `Decimal`, a numpy ufunc, `map`), and *objects of C types*
  as the left operand of an operator or as a container (`1j + x`, `array * x`, `"%f" % x`, `array[0] = x`). These
  raise no events. But code must get hold of them: as a constant, by a name, by a path that the Observer notes, or as
  the result of a C function. So what the code meets is looked through, and no number is handed out (and those that
  are out are pinned) once the trace met something that is not known to be harmless.
- *code that reaches things by names made at run time* (`getattr(module, name)`, `eval`) or calls a method of float by
  its wrapper (`float.__add__(x, 1)`): such code counts as harmful itself (`trace.numbers.code`).

Lists of the harmless, everywhere: what is not on a list costs a pinned number, never a wrong answer.
"""

from __future__ import annotations

import abc
import builtins
import collections
import enum
import functools
import importlib
import itertools
import os
import sys
import types
import typing
import weakref
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final

import torch

from dsjit.trace.effects.stand_in import StandIn
from dsjit.trace.numbers.code import DYNAMIC, Harm, all_names, imports, instruction_harm, owners_read_by_name
from dsjit.trace.numbers.harmless_calls import ORDERING, is_harmless_call, is_of_torch, reads_numbers
from dsjit.trace.reads.library import global_names, is_library_code, is_stdlib_file
from dsjit.trace.reads.paths import instance_dict

__all__ = ["LeakWatch", "harmful_code", "harmful_value"]

_OWN: Final = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep

# ---------------------------------------------------------------- values

_DATA: Final[tuple[type, ...]] = (
    type(None), bool, int, float, str, bytes, range, slice, list, tuple, dict, set, frozenset, collections.deque,
    collections.OrderedDict, collections.defaultdict, type(Ellipsis), type(NotImplemented), types.FunctionType,
    types.MethodType, types.ModuleType, types.CodeType, types.MappingProxyType, types.GenericAlias, types.UnionType,
    types.GeneratorType, types.GetSetDescriptorType, types.MemberDescriptorType,
    types.MethodDescriptorType, types.ClassMethodDescriptorType, types.CellType, property, staticmethod, classmethod,
    type(iter([])), type(iter(())), type(iter({})), type(iter(range(0))), enumerate, zip, reversed, super, object,
    itertools.chain, itertools.product, itertools.repeat, itertools.islice,
    itertools.zip_longest, type(sys.version_info), weakref.ref,
)  # fmt: skip
"""Types whose instances neither read a float nor are called with one (strings read one as `%`, see `harmful_code`)."""

_TYPES: Final = frozenset(
    {
        bool, int, float, str, bytes, list, tuple, dict, set, frozenset, range, slice, object, super, property,
        staticmethod, classmethod, enumerate, zip, reversed, collections.deque, collections.OrderedDict,
        collections.defaultdict, type(None), types.SimpleNamespace, types.GenericAlias, types.UnionType, weakref.ref,
        itertools.chain, itertools.product, itertools.pairwise, itertools.repeat, itertools.islice,
        itertools.zip_longest, types.GeneratorType, types.FunctionType, types.MethodType, types.ModuleType,
        types.BuiltinFunctionType, types.CodeType,
        # With a C function that reads numbers it would be harmful: `LeakWatch` looks for both.
        functools.partial,
    }
)  # fmt: skip
"""C types that may be called with a float: they keep it, convert it by its own methods, or raise."""

_MODULES: Final = frozenset(
    {"builtins", "math", "time", "itertools", "functools", "_functools", "_abc", "_weakref", "_thread",
     "_collections", "_warnings", "_contextvars", "posix", "_typing", "random", "_random"}
)  # fmt: skip
"""Modules whose C functions return nothing that is harmful."""

_BASES: Final = frozenset(
    {object, int, str, tuple, list, dict, set, frozenset, collections.OrderedDict, collections.defaultdict,
     collections.deque, types.SimpleNamespace, typing.Generic, typing.Protocol}
)  # fmt: skip
"""C types that Python classes may build on, and the like."""

_HEAP_TYPE: Final = 1 << 9
_IMMUTABLE_TYPE: Final = 1 << 8

_HARMLESS_OBJECTS: Final = ("_thread", "re", "_sre", "weakref", "typing", "abc", "_abc", "_contextvars", "_io")
"""Modules whose C types have no arithmetic with floats, and no callable instances."""


_REVEALING: Final = {
    id(sys.modules): "sys.modules",
    id(importlib): "the module importlib",
    id(importlib.import_module): "importlib.import_module",
}
"""What leads to any module, by id."""


def harmful_value(value: object) -> str | None:
    """What is harmful about code that can reach `value`, or None."""
    kind = type(value)
    if kind in _DATA:
        return _REVEALING.get(id(value))
    if isinstance(value, type):
        return None if _is_harmless_type(value) else f"the type {value.__qualname__}"
    if kind is types.BuiltinFunctionType:
        return None if _is_harmless_function(value) else f"the function {getattr(value, '__qualname__', value)}"
    if isinstance(value, enum.Enum):
        return harmful_value(value._value_)
    if isinstance(value, torch.Tensor | StandIn):
        return None
    if isinstance(value, functools.partial):
        return harmful_value(value.func) or (f"a partial {value.func}" if reads_numbers(value.func) else None)
    if isinstance(value, functools._lru_cache_wrapper):
        return harmful_value(value.__wrapped__)
    root = kind.__module__.partition(".")[0]
    if root == "torch":
        foreign = kind.__name__.startswith("Script") or kind.__name__.endswith("Storage")
        return f"an object of type {kind.__qualname__}" if foreign else None
    if _is_made_in_python(kind) or (root in _HARMLESS_OBJECTS and not callable(value)):
        return None
    return f"an object of type {kind.__qualname__}"


def _is_harmless_type(cls: type) -> bool:
    if cls in _TYPES or issubclass(cls, BaseException | torch.Tensor) or cls.__module__.partition(".")[0] == "torch":
        return True  # constructors of tensors make constants, which the recorder sees
    return _is_made_in_python(cls)


def _is_made_in_python(cls: type) -> bool:
    """Whether class statements made the class and its bases, but for a few C types that never read floats."""
    if issubclass(cls, type):
        return issubclass(cls, enum.EnumMeta | abc.ABCMeta)
    return all(base in _BASES or _is_class_statement(base) or issubclass(base, BaseException) for base in cls.__mro__)


def _is_class_statement(cls: type) -> bool:
    flags, meta = cls.__flags__, type(cls)
    if not flags & _HEAP_TYPE or flags & _IMMUTABLE_TYPE or (meta is not type and _is_made_in_c(meta)):
        return False
    written_in_c = (entry for entry in vars(cls).values() if type(entry) in _C_METHODS)
    return all(entry.__objclass__ in _BASES for entry in written_in_c)


_C_METHODS: Final = (types.WrapperDescriptorType, types.MethodDescriptorType, types.ClassMethodDescriptorType)


def _is_made_in_c(meta: type) -> bool:
    """pybind11, nanobind and ctypes have metaclasses of their own."""
    return meta.__module__.partition(".")[0] in ("pybind11_builtins", "nanobind", "_ctypes", "builtins")


def _is_harmless_function(function: Any) -> bool:
    owner, module = function.__self__, function.__module__
    if isinstance(module, str) and module.partition(".")[0] == "torch":
        return True
    if owner is None or isinstance(owner, types.ModuleType):
        return module in _MODULES and not (module == "builtins" and function.__name__ in (*DYNAMIC, "pow"))
    kind = owner if isinstance(owner, type) else type(owner)
    return kind in _DATA or kind.__module__.partition(".")[0] == "torch" or _is_made_in_python(kind)


# ---------------------------------------------------------------- code

_TOOLS: Final = frozenset(
    {
        "collections",
        "contextlib",
        "ctypes",
        "dataclasses",
        "dis",
        "dsjit",
        "enum",
        "functools",
        "opcode",
        "typing",
        "weakref",
    }
)
"""What the tracer itself uses."""

_AUDITED: Final = frozenset(
    {"contextlib", "functools", "types", "abc", "enum", "logging", "torch.overrides", "torch.utils._contextlib",
     "torch.autograd.grad_mode", "torch.utils._python_dispatch", "torch.amp.autocast_mode", "torch._VF",
     "torch.nn.modules.container", "torch.nn.modules.rnn", "torch.utils._foreach_utils"}
)  # fmt: skip
"""Library modules that do nothing with a number but keep it, hand it on, and hash it. (What they get by a name made at
run time are parameters of modules; what they ask the type of are modules and tensors.)"""


_FORMAT: Final = torch.Tensor.__format__.__code__
"""What asks the number in a tensor for its text."""

_FORMATTING: Final = frozenset({"getMessage", "format", "formatMessage", "_format"})
"""What `logging` does with the arguments of a record when it is shown; the journal shows it plain floats."""


class _Running:
    """A code object and its globals, told apart by identity."""

    __slots__ = ("code", "scope")

    def __init__(self, code: types.CodeType, scope: dict[str, Any]) -> None:
        self.code = code
        self.scope = scope

    def __hash__(self) -> int:
        return id(self.code)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Running) and other.code is self.code and other.scope is self.scope


@functools.lru_cache(maxsize=4096)
def _library_harm(running: _Running) -> Harm | None:
    return _harm(running.code, running.scope)


def harmful_code(code: types.CodeType, scope: dict[str, Any]) -> Harm | None:
    """What is harmful about code that runs in the globals `scope`, or None: its instructions, and what its names
    reach in its globals and in modules."""
    if code is _FORMAT:
        return None
    if scope.get("__name__") in _AUDITED and not (scope["__name__"] == "logging" and code.co_name in _FORMATTING):
        return None
    if is_library_code(code, scope):
        return _library_harm(_Running(code, scope))
    return _harm(code, scope)


def _harm(code: types.CodeType, scope: dict[str, Any]) -> Harm | None:
    harm = instruction_harm(code)
    if harm is not None and harm.lasting:
        return harm
    modules = imports(code, str(scope.get("__package__") or ""))
    for name in global_names(code):
        value = scope.get(name, getattr(builtins, name, None))
        if name == "type" and value is type:
            continue  # seen in the instructions
        reason = harmful_value(value)
        if reason is not None:
            return Harm(reason)
        if isinstance(value, types.ModuleType):
            modules.append(value)
    reason = _harmful_entry(modules, all_names(code))
    return harm if reason is None else Harm(reason)


def _harmful_entry(modules: list[types.ModuleType], names: frozenset[str]) -> str | None:
    seen = set(map(id, modules))
    while modules:
        module = modules.pop()
        for name in names & vars(module).keys():
            value = vars(module)[name]
            if harmful_value(value) is not None:
                return f"{module.__name__}.{name}"
            if isinstance(value, types.ModuleType) and id(value) not in seen:
                seen.add(id(value))
                modules.append(value)
    return None


# ---------------------------------------------------------------- one trace


class LeakWatch:
    """Decides for one trace whether numbers may be handed out, and tells when those that are out must be pinned.

    found: the Observer's notes: (node, value) of everything that was read. classes: those that were met, with their
    entries. reason: why no numbers are handed out any more; None as long as they are.
    """

    def __init__(self, found: Sequence[tuple[Any, Any]], classes: Mapping[type, Mapping[str, Any]]) -> None:
        self.reason: str | None = None
        self._found = found
        self._found_count = 0
        self._classes = classes
        self._class_count = 0
        self._codes: list[tuple[types.CodeType, dict[str, Any]]] = []
        self._code_count = 0
        self._harms: dict[int, Harm | None] = {}
        self._names: set[str] = set()
        self._partially_met: set[bool] = set()
        self._active = False
        self._on_open: Callable[[], None] = _nothing
        self._on_leak: Callable[[], None] = _nothing
        self._on_torch: Callable[[types.FrameType], None] = lambda frame: None

    def listen(
        self,
        on_open: Callable[[], None],
        on_leak: Callable[[], None],
        on_torch: Callable[[types.FrameType], None],
    ) -> None:
        """on_open: the first number is about to be handed out, and everything must be told again that was of no
        interest. on_leak: all numbers must be pinned. on_torch: a frame is about to call a function of torch."""
        self._on_open, self._on_leak, self._on_torch = on_open, on_leak, on_torch

    def may_hand_out(self) -> bool:
        """Whether a number may be handed out now, to the code that is running."""
        if not self._active:
            self._active = True
            self._on_open()
        self._catch_up()
        return self.reason is None and not self._is_seen()

    def _is_seen(self) -> bool:
        """Whether code is running that sees the numbers that it gets."""
        frame: types.FrameType | None = sys._getframe(2)
        while frame is not None and frame.f_globals.get("__name__") != "dsjit.trace.capture":
            if self._harms.get(id(frame.f_code)) is not None:
                return True
            frame = frame.f_back
        return False

    def close(self) -> None:
        """The traced code has ended: what runs now shows nothing to it."""
        self._active = False

    def on_code(self, frame: types.FrameType) -> bool:
        """A code object is about to run; True when its further runs are of no interest."""
        code = frame.f_code
        if code.co_filename.startswith(_OWN):
            return True
        if _works_for_tracer(frame):
            return False
        if id(code) not in self._harms:
            self._harms[id(code)] = None
            self._codes.append((code, frame.f_globals))
        if not self._active or self.reason is not None:
            return True
        self._catch_up()
        if self._harms[id(code)] is None:
            return True
        self._on_leak()
        return False

    def on_notes(self) -> None:
        """Something was read."""
        if self._active and self.reason is None:
            self._catch_up()

    def on_builtin(self, function: Any, frame: types.FrameType) -> bool:
        """A C function is about to be called; True when its calls are of no interest."""
        if function is getattr and self.reason is None:
            self._check_owners(frame)
            return False
        if not self._active or self.reason is not None:
            return True
        if frame.f_code.co_filename.startswith(_OWN) or _works_for_tracer(frame):
            return False
        if is_harmless_call(function, frame.f_code):
            if is_of_torch(function):
                self._on_torch(frame)
                return False
            return id(function) not in ORDERING
        self._on_leak()
        if not _is_harmless_function(function):
            self._taint(f"a call of {function.__qualname__}")
        return False

    def _check_owners(self, frame: types.FrameType) -> None:
        """`getattr` is called: whatever it reads by a name made at run time must be an object whose reads are noted."""
        if frame.f_globals.get("__name__") in _AUDITED or frame.f_code.co_filename.startswith(_OWN):
            return
        for name, *attributes in owners_read_by_name(frame.f_code):
            if name in frame.f_locals:
                owner = frame.f_locals[name]
                for attribute in attributes:
                    owner = (instance_dict(owner) or {}).get(attribute)
                if owner is None or not _is_made_in_python(type(owner)):
                    self._taint(f"an attribute by a name made at run time in {frame.f_code.co_qualname}")

    def _catch_up(self) -> None:
        """Look through what was met since the last time."""
        while self._code_count < len(self._codes) and self.reason is None:
            code, scope = self._codes[self._code_count]
            self._code_count += 1
            harm = self._harms[id(code)] = harmful_code(code, scope)
            if harm is not None and harm.lasting:
                self._taint(f"{harm.reason} in {code.co_qualname}")
            new = all_names(code) - self._names
            self._names |= new
            self._check_classes(0, new)
        if self._class_count < len(self._classes):
            self._check_classes(self._class_count, self._names)
            self._class_count = len(self._classes)
        while self._found_count < len(self._found) and self.reason is None:
            node, value = self._found[self._found_count]
            self._found_count += 1
            reason = _harmful_note(node.obj, value)
            if reason is not None:
                self._taint(reason)
            elif value is functools.partial or reads_numbers(value):
                self._partially_met.add(value is functools.partial)
                if len(self._partially_met) == 2:
                    self._taint("functools.partial, and a C function that it may call")

    def _check_classes(self, start: int, names: AbstractSet[str]) -> None:
        """The entries of classes that code could read by their names."""
        for cls, entries in list(self._classes.items())[start:]:
            for name in names & entries.keys() if _is_made_in_python(cls) else ():
                reason = harmful_value(entries[name])
                if reason is not None and self.reason is None:
                    self._taint(f"{reason} as the class attribute {name}")

    def _taint(self, reason: str) -> None:
        self.reason = reason
        self._on_leak()


def _works_for_tracer(frame: types.FrameType) -> bool:
    """Whether code of the standard library runs for the tracer, this time."""
    if frame.f_globals.get("__name__", "").partition(".")[0] not in _TOOLS:
        return False
    caller = frame.f_back
    while caller is not None and is_stdlib_file(caller.f_code.co_filename):
        caller = caller.f_back
    return caller is not None and caller.f_code.co_filename.startswith(_OWN)


def _harmful_note(owner: object, value: object) -> str | None:
    """What is harmful about `value`, which `owner` holds."""
    if value is type and owner is vars(builtins):
        return None  # seen in the instructions
    if type(value).__name__ == "instancemethod" and isinstance(owner, type) and owner.__module__.startswith("torch"):
        return None  # of pybind11: what it is called on is harmful itself, or of torch
    return harmful_value(value)


def _nothing() -> None:
    pass
