"""What can be seen after a call, as flat records by path: tensors with all their facts, numbers, text, kinds."""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch

from dsjit.api.jitted import Jitted

__all__ = ["Record", "TensorRecord", "read", "tensors_below"]

_PLAIN: Final = (
    type(None), bool, int, float, complex, str, bytes, range, slice, torch.dtype, torch.device, torch.Size,
    torch.memory_format, torch.layout,
)  # fmt: skip
_MODULE_TABLES: Final = ("_parameters", "_buffers", "_modules")
_MODULE_PLUMBING: Final = frozenset({*_MODULE_TABLES, "_compiled_call_impl", "_non_persistent_buffers_set"})


@dataclass(frozen=True, slots=True, eq=False)
class TensorRecord:
    """facts: dtype, shape, strides, and which object and which memory it is, counted in the order of the walk."""

    values: torch.Tensor
    facts: Mapping[str, object]


Record: TypeAlias = TensorRecord | str


def read(roots: Mapping[str, Any], *, snapshot: bool) -> dict[str, Record]:
    """A record for each place below `roots`, by path (`args[0]`, `function.layers.0.weight`).

    snapshot: copy what tensors hold, as they may change later.
    """
    reader = _Reader(snapshot)
    for name, root in roots.items():
        reader.walk(name, root)
    return reader.found


def tensors_below(roots: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors below `roots` themselves, by the same paths."""
    reader = _Reader(False)
    for name, root in roots.items():
        reader.walk(name, root)
    return reader.tensors


class _Reader:
    def __init__(self, snapshot: bool) -> None:
        self.snapshot = snapshot
        self.found: dict[str, Record] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        self.objects: dict[int, str] = {}
        self.storages: dict[int, int] = {}
        self.kept: list[object] = []

    def walk(self, root: str, value: Any) -> None:
        pending = [(root, value)]
        while pending:
            path, each = pending.pop()
            pending += reversed(list(self._parts(path, each)))

    def _parts(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        """Records `value`, and yields what is below it."""
        if isinstance(value, Jitted):
            value = value.target
        if isinstance(value, _PLAIN):
            self.found[path] = f"{type(value).__name__} {value!r}"
            return
        if isinstance(value, type | types.ModuleType | types.BuiltinFunctionType | types.CodeType):
            self.found[path] = repr(value)
            return
        known = self.objects.setdefault(id(value), path)
        self.kept.append(value)
        if isinstance(value, torch.Tensor):
            self.tensors[path] = value
            self.found[path] = self._tensor(value, known)
            if known == path and value.is_leaf and value.grad is not None:
                yield f"{path}.grad", value.grad
            return
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        self.found[path] = f"{kind}, the same as {known}" if known != path else kind
        if known == path:
            yield from self._below(path, value)

    def _below(self, path: str, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, types.MethodType):
            yield path, value.__self__
        elif isinstance(value, types.FunctionType):
            for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
                if _is_bound(cell):
                    yield f"{path}.{name}", cell.cell_contents
        elif isinstance(value, dict):
            self.found[path] = f"{self.found[path]} with keys {[_key(key) for key in value]}"
            yield from ((f"{path}[{_key(key)}]", item) for key, item in value.items())
        elif isinstance(value, list | tuple):
            self.found[path] = f"{self.found[path]} of {len(value)}"
            yield from ((f"{path}[{number}]", item) for number, item in enumerate(value))
        elif isinstance(value, set | frozenset):
            self.found[path] = f"{self.found[path]} of {sorted(map(_key, value))}"
        if isinstance(value, torch.nn.Module):
            for table in _MODULE_TABLES:
                yield from ((f"{path}.{name}", item) for name, item in vars(value)[table].items())
        entries = getattr(value, "__dict__", None)
        if isinstance(entries, dict) and not isinstance(value, types.FunctionType):
            skipped = _MODULE_PLUMBING if isinstance(value, torch.nn.Module) else frozenset()
            yield from ((f"{path}.{name}", item) for name, item in entries.items() if name not in skipped)

    def _tensor(self, tensor: torch.Tensor, known: str) -> TensorRecord:
        plain = tensor.detach()
        facts: dict[str, object] = {
            "type": type(tensor).__qualname__,
            "object": known,
            "dtype": tensor.dtype,
            "device": tensor.device,
            "shape": tuple(tensor.shape),
            "requires_grad": tensor.requires_grad,
        }
        if tensor.layout is torch.strided:
            storage = tensor.untyped_storage()
            self.kept.append(storage)
            facts["strides"] = _addressing_strides(tensor)
            facts["memory"] = self.storages.setdefault(storage._cdata, len(self.storages))
            facts["offset"] = tensor.storage_offset()
        return TensorRecord(plain.clone() if self.snapshot else plain, facts)


def _addressing_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """The strides, but for those of dimensions that have one element, or of tensors without any."""
    if tensor.numel() == 0:
        return ()
    return tuple([s if size != 1 else 0 for s, size in zip(tensor.stride(), tensor.shape, strict=True)])


def _is_bound(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not cell
    except ValueError:
        return False


def _key(key: object) -> str:
    return repr(key) if isinstance(key, _PLAIN) else type(key).__qualname__
