"""Reads everything that a program can see into flat, comparable records: values, identities, aliasing.

`StateReader.read` walks the objects below some roots and gives one record for each place ("state.layers[0].weight"):
text for plain values and kinds of objects, a float, or a `TensorRecord`. Every mutable object, and every storage, has
a number that it keeps for the whole life of the reader, counted in the order in which they were met. So two readers
that saw equal programs number equally, and a record says not only what is there, but which object it is, and which
tensors share memory. Objects that were read are kept alive, so that no identity is used twice.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import io
import itertools
import operator
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from dsjit.api.jitted import Jitted

__all__ = ["Judge", "Leaf", "StateReader", "TensorRecord", "differences"]

FOLDER: Final = str(Path(__file__).parent)

_ATOMS: Final = (
    type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size, type(Ellipsis), type(NotImplemented), enum.Enum, np.generic, np.dtype, Path,
)  # fmt: skip
_OPAQUE: Final = frozenset({"logging", "threading", "_thread", "contextvars", "queue", "re", "dsjit"})
_HARNESS: Final = "tests.conformance.harness"
_CLASS_PLUMBING: Final = frozenset(
    {"__dict__", "__weakref__", "__doc__", "__module__", "__annotations__", "__slotnames__", "_abc_impl"}
)
_ITERATORS: Final = (type(iter([])), type(iter(())), type(iter({})), type(iter(set())), type(iter(range(0))))
_COMPILED_SLOT: Final = "_compiled_call_impl"


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """One tensor: `facts` are compared for equality, `values` (a contiguous copy) by content."""

    facts: Mapping[str, object]
    values: torch.Tensor


Leaf: TypeAlias = str | float | TensorRecord
Judge: TypeAlias = Callable[[str, torch.Tensor, torch.Tensor], bool]


class StateReader:
    """See the module. `own_globals`: the globals of the program, whose functions are read with what they close over.

    tensors: those that the last `read` met, by path, each once.
    """

    def __init__(self, own_globals: dict[str, Any]) -> None:
        self._globals = own_globals
        self._numbers: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[object] = []
        self._leaves: dict[str, Leaf] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self._visited: dict[int, None] = {}
        self._ranges: dict[int, tuple[int, int]] = {}

    def read(self, roots: Mapping[str, object]) -> dict[str, Leaf]:
        """One record for each place that can be reached from `roots`, by path."""
        self._leaves, self._visited, self._ranges, self.tensors = {}, {}, {}, {}
        with torch._C._DisableTorchDispatch(), torch.no_grad():
            for name, root in roots.items():
                self._walk(name, root)
        self._leaves["storages that overlap"] = str(self._overlaps())
        return self._leaves

    def _overlaps(self) -> list[tuple[int, int]]:
        """Pairs of storages that are different objects over the same memory."""
        ranges = sorted((start, start + size, number) for number, (start, size) in self._ranges.items() if size)
        pairs = itertools.combinations(ranges, 2)
        return sorted((min(a[2], b[2]), max(a[2], b[2])) for a, b in pairs if a[0] < b[1] and b[0] < a[1])

    def _number(self, obj: object) -> int:
        number = self._numbers.get(id(obj))
        if number is None:
            number = self._numbers[id(obj)] = len(self._numbers)
            self._kept.append(obj)
        return number

    # -- the walk ------------------------------------------------------------------------------------------------

    def _walk(self, path: str, obj: Any) -> None:
        if isinstance(obj, Jitted):
            obj = obj.target
        if isinstance(obj, float) and type(obj) is float:
            self._leaves[path] = obj
        elif isinstance(obj, _ATOMS):
            self._leaves[path] = f"{type(obj).__name__} {obj!r}"
        elif isinstance(obj, types.ModuleType):
            self._leaves[path] = f"module {obj.__name__}"
        elif isinstance(obj, types.MethodType):
            self._leaves[path] = "method"
            self._walk(f"{path}.__self__", obj.__self__)
            self._walk(f"{path}.__func__", obj.__func__)
        elif isinstance(obj, tuple) and self._is_plain(obj):
            self._leaves[path] = f"{type(obj).__name__} {obj!r}"
        else:
            self._walk_object(path, obj)

    def _is_plain(self, obj: object) -> bool:
        """Tuples of plain values may be constants of the code: which object it is means nothing."""
        return isinstance(obj, _ATOMS) or (isinstance(obj, tuple) and all(self._is_plain(item) for item in obj))

    def _walk_object(self, path: str, obj: Any) -> None:
        number = self._number(obj)
        kind = f"{type(obj).__module__}.{type(obj).__qualname__} #{number}"
        if number in self._visited:
            self._leaves[path] = kind
            return
        self._visited[number] = None
        self._leaves[path] = kind
        for suffix, part in self._parts(path, obj):
            self._walk(path + suffix, part)

    def _parts(self, path: str, obj: Any) -> Iterator[tuple[str, object]]:
        """What is below `obj`; adds to the record of `obj` itself what is not an object of its own."""
        if isinstance(obj, torch.Tensor):
            self._leaves[path] = self._tensor(obj)
            self.tensors[path] = obj
            yield from ((f".{name}", value) for name, value in vars(obj).items())
            if obj.is_leaf and obj.grad is not None:
                yield ".grad", obj.grad
        elif isinstance(obj, types.FunctionType):
            yield from self._function_parts(path, obj)
        elif isinstance(obj, type):
            yield from self._class_parts(path, obj)
        elif isinstance(obj, np.ndarray):
            self._add(path, f"{obj.dtype} {obj.shape} {obj.strides} {obj.tobytes()!r}")
            start = obj.__array_interface__["data"][0]
            shared = [n for n, (first, size) in self._ranges.items() if first <= start < first + size]
            self._add(path, f"memory of {shared}")
        elif isinstance(obj, types.CellType):
            if obj.cell_contents is not obj:
                yield "", obj.cell_contents
        else:
            yield from self._plain_parts(path, obj)

    def _plain_parts(self, path: str, obj: Any) -> Iterator[tuple[str, object]]:
        if isinstance(obj, dict | types.MappingProxyType):
            self._add(path, f"keys {[self._key(key) for key in obj]}")
            yield from ((f"[{self._key(key)}]", value) for key, value in obj.items() if key != _COMPILED_SLOT)
        elif isinstance(obj, list | tuple | deque):
            self._add(path, f"length {len(obj)}")
            yield from ((f"[{index}]", item) for index, item in enumerate(obj))
        elif isinstance(obj, set | frozenset):
            self._add(path, str(sorted(self._key(item) for item in obj)))
        elif isinstance(obj, functools.partial):
            yield from ((".func", obj.func), (".args", obj.args), (".keywords", obj.keywords))
        elif isinstance(obj, staticmethod | classmethod):
            yield ".__func__", obj.__func__
        elif isinstance(obj, functools._lru_cache_wrapper):
            # Hits and misses only tell how often it was asked: that much may be known without asking.
            self._add(path, f"{obj.cache_info().currsize} of {obj.cache_info().maxsize}")
        elif isinstance(obj, weakref.ref):
            yield "()", obj()
        elif isinstance(obj, BaseException):
            yield ".args", obj.args
        else:
            self._add(path, self._content(obj))
        if _is_open(type(obj)):
            yield from self._attributes(obj)

    def _content(self, obj: Any) -> str:
        """What objects hold that have no attributes."""
        if isinstance(obj, io.StringIO | io.BytesIO):
            return repr(obj.getvalue())
        if isinstance(obj, bytearray | itertools.count | itertools.repeat):
            return repr(obj)
        if isinstance(obj, _ITERATORS):
            return f"{operator.length_hint(obj)} left"
        if isinstance(obj, torch.Generator):
            return _digest(obj.get_state().numpy().tobytes())
        if isinstance(obj, random.Random):
            return _digest(repr(obj.getstate()).encode())
        if isinstance(obj, np.random.Generator):
            return str(obj.bit_generator.state)
        return ""

    def _attributes(self, obj: Any) -> Iterator[tuple[str, object]]:
        entries = getattr(obj, "__dict__", None)
        if isinstance(entries, dict):
            yield from ((f".{name}", value) for name, value in entries.items() if name != _COMPILED_SLOT)
        for cls in type(obj).__mro__:
            for name, member in vars(cls).items():
                if isinstance(member, types.MemberDescriptorType):
                    try:
                        yield f".{name}", member.__get__(obj)
                    except AttributeError:
                        continue

    def _function_parts(self, path: str, function: types.FunctionType) -> Iterator[tuple[str, object]]:
        self._add(path, f"{function.__module__}.{function.__qualname__}")
        if function.__globals__ is not self._globals and FOLDER not in function.__code__.co_filename:
            return
        self._add(path, f"line {function.__code__.co_firstlineno}")
        yield ".__defaults__", function.__defaults__
        yield ".__kwdefaults__", function.__kwdefaults__
        # `functools.wraps` copies the attributes of what it wraps, and `dsjit.jit` is no exception.
        jitted = vars(function).get("__wrapped__")
        copied = {"__wrapped__", *vars(jitted)} if isinstance(jitted, Jitted) else {"__wrapped__"}
        yield from ((f".{name}", value) for name, value in vars(function).items() if name not in copied)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                yield f"<{name}>", cell.cell_contents
            except ValueError:
                self._leaves[f"{path}<{name}>"] = "nothing"

    def _class_parts(self, path: str, cls: type) -> Iterator[tuple[str, object]]:
        self._add(path, f"{cls.__module__}.{cls.__qualname__}")
        if "<locals>" not in cls.__qualname__ or FOLDER not in _file_of(cls):
            return
        entries = {name: value for name, value in vars(cls).items() if name not in _CLASS_PLUMBING}
        self._add(path, f"entries {sorted(entries)}")
        yield ".__mro__", cls.__mro__[1:]
        yield from ((f".{name}", value) for name, value in entries.items() if not isinstance(value, property))

    def _key(self, key: object) -> str:
        return repr(key) if self._is_plain(key) else f"{type(key).__qualname__} #{self._number(key)}"

    def _add(self, path: str, text: str) -> None:
        if text:
            self._leaves[path] = f"{self._leaves[path]} {text}"

    # -- tensors -------------------------------------------------------------------------------------------------

    def _tensor(self, tensor: torch.Tensor) -> TensorRecord:
        facts: dict[str, object] = {
            "class": f"{type(tensor).__module__}.{type(tensor).__qualname__}",
            "object": self._number(tensor),
            "dtype": tensor.dtype,
            "device": tensor.device,
            "layout": tensor.layout,
            "shape": tuple(tensor.shape),
            "requires_grad": tensor.requires_grad,
            "is_leaf": tensor.is_leaf,
            "grad_fn": tensor.grad_fn is not None,
            "is_inference": tensor.is_inference(),
            "is_conj": tensor.is_conj(),
            "is_neg": tensor.is_neg(),
        }
        plain = tensor.detach()
        if tensor.layout is not torch.strided:
            return TensorRecord(facts, plain.to_dense())
        facts |= {
            "strides": tensor.stride(),
            "storage offset": tensor.storage_offset(),
            "storage": self._storage(tensor),
        }
        return TensorRecord(facts, plain.resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format))

    def _storage(self, tensor: torch.Tensor) -> int:
        storage = tensor.untyped_storage()
        number = self._storages.get(storage._cdata)
        if number is None:
            number = self._storages[storage._cdata] = len(self._storages)
            self._kept.append(storage)
        self._ranges[number] = (storage.data_ptr(), storage.nbytes())
        return number


def _is_open(cls: type) -> bool:
    """Whether the attributes of instances are the program's, not those of some machinery."""
    return cls.__module__ != _HARNESS and cls is not torch.Generator and cls.__module__.partition(".")[0] not in _OPAQUE


def _file_of(cls: type) -> str:
    return str(getattr(sys.modules.get(cls.__module__), "__file__", ""))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


# -- comparison ------------------------------------------------------------------------------------------------------


def differences(
    expected: Mapping[str, Leaf], found: Mapping[str, Leaf], exact: bool, judge: Judge | None = None
) -> list[str]:
    """One line for each place where the records differ.

    exact: tensors must be equal bit for bit (every NaN is like any other, and -0.0 is not 0.0), and numbers equal;
    otherwise floating-point values may differ by the tolerance of `torch.testing.assert_close` for their dtype.
    judge: from a path, and eager's and the found values of a tensor there that are not equal, whether the found ones
        are right, too.
    """
    lines = [f"{path}: missing; eager has {_show(expected[path])}" for path in expected if path not in found]
    lines += [f"{path}: {_show(found[path])}; eager has nothing" for path in found if path not in expected]
    for path, wanted in expected.items():
        if path in found:
            reason = _difference(wanted, found[path], exact, judge and functools.partial(judge, path))
            if reason:
                lines.append(f"{path}: {reason}")
    return lines


def _difference(
    wanted: Leaf, found: Leaf, exact: bool, judge: Callable[[torch.Tensor, torch.Tensor], bool] | None
) -> str | None:
    if isinstance(wanted, TensorRecord) and isinstance(found, TensorRecord):
        names = [name for name in wanted.facts if wanted.facts[name] != found.facts.get(name)]
        if names:
            return "; ".join(f"{name} is {found.facts.get(name)}, eager {wanted.facts[name]}" for name in names)
        reason = _value_difference(wanted.values, found.values, exact)
        return None if reason and judge and judge(wanted.values, found.values) else reason
    if isinstance(wanted, float) and isinstance(found, float) and not exact:
        single = torch.float32
        return _value_difference(torch.tensor(wanted, dtype=single), torch.tensor(found, dtype=single), exact)
    return None if repr(wanted) == repr(found) else f"{_show(found)}; eager has {_show(wanted)}"


def _value_difference(wanted: torch.Tensor, found: torch.Tensor, exact: bool) -> str | None:
    with torch.inference_mode():
        if exact or not (wanted.is_floating_point() or wanted.is_complex()):
            return None if _same_bits(wanted, found) else f"values {_show_values(found)}; eager {_show_values(wanted)}"
        try:
            torch.testing.assert_close(found, wanted, equal_nan=True)
        except AssertionError as error:
            return " ".join(str(error).split())
    return None


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.is_complex():
        return _same_bits(torch.view_as_real(a), torch.view_as_real(b))
    if a.is_floating_point():
        either = a.isnan() & b.isnan()
        a, b = a.masked_fill(either, 0), b.masked_fill(either, 0)
    return a.contiguous().flatten().view(torch.uint8).equal(b.contiguous().flatten().view(torch.uint8))


def _show(leaf: Leaf) -> str:
    if isinstance(leaf, TensorRecord):
        return f"a tensor {leaf.facts['dtype']} {leaf.facts['shape']} {_show_values(leaf.values)}"
    return repr(leaf) if isinstance(leaf, float) else leaf


def _show_values(values: torch.Tensor) -> str:
    flat = values.flatten()
    return f"{flat[:8].tolist()}{'...' if flat.numel() > 8 else ''}"
