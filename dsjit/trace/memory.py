"""Memory as the recorder sees it: storages, the tensors on them, and the SSA Values that they hold now.

Each storage has a current SSA value for its *root* tensor (the first one seen on it); every other tensor on the
storage is a view of the root. A write through any of them makes a new root value, and the others are looked at anew
when they are next read. That is what turns in-place code into a functional Graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.ir.graph import Arg, Node, Source, TensorType, Value, Write
from dsjit.ops.strided import strided_scatter, strided_view
from dsjit.trace.source import SourceFinder

__all__ = ["CannotTrace", "Memory", "RootView", "Storage", "TracedTensor", "tensor_type"]


class CannotTrace(Exception):
    """The run goes on eagerly; it will not become a Graph, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, eq=False)
class Storage:
    """One memory region. `current` is the SSA value of the root tensor after `version` writes."""

    current: Value
    offset: int
    input: torch.Tensor | None = None
    version: int = 0
    shared: bool = False
    source: Source | None = None


@dataclass(slots=True, eq=False)
class TracedTensor:
    """A tensor object met during the run. `view` tells how to derive it again from its parent: (op, args, kwargs, which
    of the results it is, the types of all results)."""

    reference: weakref.ref[torch.Tensor]
    storage: Storage
    value: Value
    version: int
    parent: TracedTensor | None = None
    view: tuple[Any, tuple[Arg, ...], dict[str, Arg], int, tuple[TensorType, ...]] | None = None


@dataclass(frozen=True, slots=True)
class RootView:
    """Where a returned tensor lies: on a root value (an input when `input` is set), whole or as a strided view."""

    root: Value
    input: torch.Tensor | None
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None


def tensor_type(t: torch.Tensor) -> TensorType:
    return TensorType(tuple(t.shape), t.dtype, t.stride(), t.device)


class Memory:
    """Reads and writes of tensors, as Values; appends the Nodes that views and writes take to `nodes`.

    is_known: whether an outside tensor can be found again by a path from the function's roots.
    wants_gradients: whether an outside tensor that requires a gradient was read in grad mode.
    inputs: the outside tensors that were read, with their Values, in order. returned: by memory, the tensor object that
        was located first.
    """

    def __init__(self, is_known: Callable[[torch.Tensor], bool], sources: SourceFinder) -> None:
        self.is_known = is_known
        self.sources = sources
        self.nodes: list[Node] = []
        self.inputs: list[tuple[Value, torch.Tensor]] = []
        self.tensors: dict[int, TracedTensor] = {}
        self.storages: dict[int, Storage] = {}
        self.returned: dict[int, int] = {}
        self.count = 0
        self.wants_gradients = False

    def read(self, tensor: torch.Tensor) -> Value:
        """The SSA value of what `tensor` holds now; raises CannotTrace when it cannot be part of a Graph."""
        record = self.lookup(tensor)
        if record is None:
            record = self._meet(tensor)
        elif record.storage.input is not None:
            self._note_gradient(tensor)
        return self._refresh(record, tensor)

    def lookup(self, tensor: torch.Tensor) -> TracedTensor | None:
        record = self.tensors.get(id(tensor))
        return record if record is not None and record.reference() is tensor else None

    def _refresh(self, record: TracedTensor, tensor: torch.Tensor | None) -> Value:
        storage = record.storage
        if record.version != storage.version:
            if record.parent is not None and record.view is not None:
                op, args, kwargs, number, types = record.view
                base = self._refresh(record.parent, record.parent.reference())
                outputs = tuple([self.fresh(type_) for type_ in types])
                self.nodes.append(Node(op, (base, *args), kwargs, outputs, self.sources.current(3)))
                record.value = outputs[number]
            else:
                record.value = self._view_of_root(storage, record.value.type, self._offset_of(tensor, storage))
            record.version = storage.version
        return record.value

    def _offset_of(self, tensor: torch.Tensor | None, storage: Storage) -> int:
        return 0 if tensor is None else int(tensor.storage_offset()) - storage.offset

    def _view_of_root(self, storage: Storage, type_: TensorType, offset: int) -> Value:
        root = storage.current
        if offset == 0 and type_ == root.type:
            return root
        if type_.dtype is not root.type.dtype:
            raise CannotTrace("memory is viewed as another dtype after it was written")
        value = self.fresh(type_)
        args = (root, type_.shape, type_.strides, offset)
        self.nodes.append(Node(strided_view, args, {}, (value,), self.sources.current(3)))
        return value

    def _meet(self, tensor: torch.Tensor) -> TracedTensor:
        """The first sight of a tensor that no recorded op made."""
        self._require_plain(tensor)
        key = tensor.untyped_storage()._cdata
        storage = self.storages.get(key)
        known = self.is_known(tensor)
        if not known:
            if storage is not None and (storage.input is None or not storage.shared):
                # Another object over memory that is known already (a shallow copy inside torch).
                value = self._view_of_root(storage, tensor_type(tensor), self._offset_of(tensor, storage))
                record = TracedTensor(weakref.ref(tensor), storage, value, storage.version)
                self.tensors[id(tensor)] = record
                return record
            raise CannotTrace(
                "a tensor of unknown origin is used: it is no argument, attribute, global or closure variable"
            )
        self._note_gradient(tensor)
        value = self.fresh(tensor_type(tensor))
        self.inputs.append((value, tensor))
        if storage is not None:
            if storage.version:
                raise CannotTrace("an argument shares memory with another that was written to")
            storage.shared = True
            fresh = Storage(value, int(tensor.storage_offset()), tensor, shared=True)
            record = TracedTensor(weakref.ref(tensor), fresh, value, 0)
            self.tensors[id(tensor)] = record
            return record
        return self.remember_root(tensor, value, tensor)

    def _note_gradient(self, tensor: torch.Tensor) -> None:
        if tensor.requires_grad and torch.is_grad_enabled():
            self.wants_gradients = True

    def _require_plain(self, tensor: torch.Tensor) -> None:
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            raise CannotTrace(f"tensor subclasses such as {type(tensor).__name__} are not compiled")
        if tensor.layout is not torch.strided:
            raise CannotTrace(f"tensors of layout {tensor.layout} are not compiled")
        if tensor.is_quantized or tensor.is_neg() or tensor.is_conj():
            raise CannotTrace("quantized, lazily conjugated and lazily negated tensors are not compiled")

    def remember_root(self, tensor: torch.Tensor, value: Value, source: torch.Tensor | None = None) -> TracedTensor:
        storage = Storage(value, int(tensor.storage_offset()), source)
        if tensor.layout is torch.strided:
            self.storages[tensor.untyped_storage()._cdata] = storage
        record = TracedTensor(weakref.ref(tensor), storage, value, 0)
        self.tensors[id(tensor)] = record
        return record

    def alive(self) -> tuple[Value, ...]:
        """What the tensors hold that somebody still refers to, and the memory that writes to them would go to."""
        self.tensors = {key: record for key, record in self.tensors.items() if record.reference() is not None}
        found: dict[Value, None] = {}
        for record in self.tensors.values():
            if record.version == record.storage.version:
                found[record.value] = None
            found[record.storage.current] = None
        return tuple(found)

    def fresh(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)

    def overwrite(self, tensor: torch.Tensor, value: Value, source: Source) -> None:
        """`tensor` now holds `value`; so does every other tensor on its memory, where they overlap."""
        record = self.lookup(tensor)
        assert record is not None
        storage = record.storage
        root = storage.current
        offset = self._offset_of(tensor, storage)
        type_ = tensor_type(tensor)
        if offset == 0 and type_ == root.type:
            storage.current = value
        else:
            if type_.dtype is not root.type.dtype:
                raise CannotTrace("memory is written through a view of another dtype")
            merged = self.fresh(root.type)
            args = (root, value, type_.shape, type_.strides, offset)
            self.nodes.append(Node(strided_scatter, args, {}, (merged,), source))
            storage.current = merged
        storage.version += 1
        storage.source = source
        record.value = value
        record.version = storage.version

    def locate(self, tensor: torch.Tensor) -> RootView:
        """Where a returned tensor lies; raises CannotTrace (see `stop_reason`) when that is not known."""
        self.read(tensor)
        record = self.lookup(tensor)
        assert record is not None
        storage = record.storage
        type_, offset = tensor_type(tensor), self._offset_of(tensor, storage)
        whole = offset == 0 and type_ == storage.current.type
        if type_.dtype is not storage.current.type.dtype or tensor.is_conj() or tensor.is_neg():
            # No strides lead from the root to such a view: the op that made it runs again, and gives a view again.
            return RootView(record.value, None, None)
        if storage.input is None:
            # The first tensor object of a memory is the one that the program returns, any other is a view of it.
            itself = whole and id(tensor) == self.returned.setdefault(id(storage), id(tensor))
        else:
            itself = whole and tensor is storage.input
        view = None if itself else (type_.shape, type_.strides, offset)
        return RootView(storage.current, storage.input, view)

    def writes(self) -> tuple[Write, ...]:
        """What the run left in the caller's tensors."""
        found: list[Write] = []
        for value, tensor in self.inputs:
            record = self.lookup(tensor)
            if record is not None and record.storage.version and record.storage.input is tensor:
                found.append(Write(value, record.storage.current, record.storage.source or self.sources.current()))
        return tuple(found)
