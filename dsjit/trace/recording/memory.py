"""Memory as the recorder sees it: storages, the tensors on them, and the SSA Values that they hold now.

Each storage has a current SSA value for its *root* tensor (the first one seen on it); every other tensor on the
storage is a view of the root. A write through any of them makes a new root value, and the others are looked at anew
when they are next read. That is what turns in-place code into a functional Graph.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from dsjit.ir.graph import UNDEFINED, Arg, Node, Source, TensorType, Value, Write
from dsjit.ops.strided import StridedView, strided_scatter, strided_view
from dsjit.trace.recording.partial_overlap import PRODUCTS, overlap_partially
from dsjit.trace.recording.source import SourceFinder

__all__ = ["CannotTrace", "Memory", "Region", "RootView", "Storage", "TracedTensor", "result_type", "tensor_type"]


class CannotTrace(Exception):
    """The run goes on eagerly; it will not become a Graph, for this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(slots=True, eq=False)
class Storage:
    """One memory region. `current` is the SSA value of the root tensor after `version` writes.

    offset: of the root tensor, in elements from the start of the region. input: the root, when it is the caller's.
    shared: the region has several roots so far, each an input of its own that nobody writes to.
    merged: what all of them are from the first write on; None before.
    """

    current: Value
    offset: int
    input: torch.Tensor | None = None
    version: int = 0
    shared: bool = False
    source: Source | None = None
    merged: Storage | None = None


@dataclass(slots=True, eq=False)
class TracedTensor:
    """A tensor object met during the run. `view` tells how to derive it again from its parent: (op, args, kwargs, which
    of the results it is, the types of all results).

    offset: in elements from the start of its memory. version: of the storage, when `value` was what it held.
    """

    reference: weakref.ref[torch.Tensor]
    storage: Storage
    value: Value
    version: int
    offset: int
    parent: TracedTensor | None = None
    view: tuple[Any, tuple[Arg, ...], dict[str, Arg], int, tuple[TensorType, ...]] | None = None


@dataclass(slots=True, eq=False)
class Region:
    """Memory of which several inputs are parts, and which the run writes to: an input of the Graph as a whole.

    value: its content before the call. tensor: all of it, in one dimension. members: positions among the inputs.
    """

    value: Value
    tensor: torch.Tensor
    storage: Storage
    members: list[int]


@dataclass(frozen=True, slots=True)
class RootView:
    """Where a returned tensor lies: on a root value (an input when `input` is set), whole or as a strided view (see
    `ops.strided.strided_view`), which names its dtype when it is another than the root's."""

    root: Value
    input: torch.Tensor | None
    view: StridedView | None


_STALE: Final = -1
"""The version of no storage: the tensor is looked at anew."""

_LARGEST_EXCESS: Final = 8
_SMALL_REGION: Final = 4096
"""A region is read and written as a whole, so it must not be much larger than its members (elements)."""


def _at_home(record: TracedTensor) -> TracedTensor:
    """The record, on the region that its storage has become a part of."""
    if record.storage.merged is not None:
        record.storage, record.version = record.storage.merged, _STALE
    return record


def _counted_writes(tensor: torch.Tensor) -> int | None:
    """How many writes to its memory autograd has counted; None for one of inference mode, which has no count."""
    return None if tensor.is_inference() else tensor._version


def _covers(one: TensorType, other: TensorType) -> bool:
    """Whether they are the same memory, element for element, in other shapes."""
    same = one.dtype is other.dtype and one.numel == other.numel
    return same and one.is_contiguous and other.is_contiguous


def _is_whole(view: torch.Tensor, storage: Storage) -> bool:
    """Whether a view, conjugated or of another dtype, is of all of the root, and in its order."""
    type_, root = tensor_type(view), storage.current.type
    if view.storage_offset() * type_.dtype.itemsize != storage.offset * root.dtype.itemsize:
        return False
    rows = type_.is_contiguous and root.is_contiguous and type_.shape[:-1] == root.shape[:-1]
    return rows or (type_.shape, type_.strides) == (root.shape, root.strides)


def tensor_type(t: torch.Tensor) -> TensorType:
    return TensorType(tuple(t.shape), t.dtype, t.stride(), t.device)


def result_type(t: torch.Tensor | None) -> TensorType:
    """The type of a result of an op; None is one that is left out, or is no tensor. Raises CannotTrace."""
    if t is None:
        return UNDEFINED
    if t.layout is not torch.strided or t.is_quantized:
        kind = "quantized tensors" if t.is_quantized else f"tensors of layout {t.layout}"
        raise CannotTrace(f"{kind} are not compiled")
    if t.is_neg():
        raise CannotTrace("lazily negated tensors are not compiled")
    return tensor_type(t)


class Memory:
    """Reads and writes of tensors, as Values; appends the Nodes that views and writes take to `nodes`.

    is_known: whether an outside tensor can be found again by a path from the function's roots.
    wants_gradients: whether an outside tensor that requires a gradient was read in grad mode.
    writes_with_history: whether one was written in grad mode, so that autograd knows the write.
    inputs: the outside tensors that were read, with their Values, in order. returned: by memory, the tensor object that
        was located first. located: by memory, all of them. apart: memory of which a view was located that no strides
        lead to. regions: what inputs that share memory were merged into; `prologue` are the Nodes that come
        before all others, which make of a region what its members held. counts: by id, how many writes autograd had
        counted when an input was met. left: by id, what inputs were that have other
        memory now.
    """

    def __init__(self, is_known: Callable[[torch.Tensor], bool], sources: SourceFinder) -> None:
        self.is_known = is_known
        self.sources = sources
        self.nodes: list[Node] = []
        self.inputs: list[tuple[Value, torch.Tensor]] = []
        self.counts: dict[int, int | None] = {}
        self.tensors: dict[int, TracedTensor] = {}
        self.storages: dict[int, Storage] = {}
        self.returned: dict[int, int] = {}
        self.located: dict[int, set[int]] = {}
        self.apart: set[int] = set()
        self.left: dict[int, TracedTensor] = {}
        self.regions: list[Region] = []
        self.prologue: list[Node] = []
        self.count = 0
        self.wants_gradients = False
        self.writes_with_history = False

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
        return _at_home(record) if record is not None and record.reference() is tensor else None

    def root_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """All elements of the root that `tensor` is a view of; itself, when they have different dtypes."""
        record = self.lookup(tensor)
        if record is None or record.storage.current.type.dtype is not tensor.dtype:
            return tensor
        type_ = record.storage.current.type
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            return tensor.detach().as_strided(type_.shape, type_.strides, record.storage.offset)

    def input_versions(self) -> tuple[int, ...]:
        """How often each outside tensor that was written was written so far."""
        written = [record.storage.version for _, tensor in self.inputs if (record := self.lookup(tensor))]
        return *[version for version in written if version], *[region.storage.version for region in self.regions]

    def is_made(self, tensor: torch.Tensor) -> bool:
        """Whether the run made the tensor (its memory may be older)."""
        return self.lookup(tensor) is not None and not any(tensor is other for _, other in self.inputs)

    def give_data(self, tensor: torch.Tensor, data: torch.Tensor) -> None:
        """`tensor` lies where `data` does from now on. Raises CannotTrace."""
        value, record, former = self.read(data), self.lookup(data), self.lookup(tensor)
        assert record is not None
        if former is not None and former.storage.input is tensor:
            self.left.setdefault(id(tensor), former)
        offset = int(tensor.storage_offset())
        self.tensors[id(tensor)] = TracedTensor(weakref.ref(tensor), record.storage, value, record.version, offset)

    def is_written(self, tensor: torch.Tensor) -> bool:
        """Whether the memory of an input was written to, or is that of others, too."""
        record = self.lookup(tensor)
        if id(tensor) in self.left:
            return False  # it lies elsewhere already
        storage = None if record is None else record.storage
        return storage is None or storage.version > 0 or storage.input is not tensor or storage.shared

    def _refresh(self, record: TracedTensor, tensor: torch.Tensor | None) -> Value:
        storage = _at_home(record).storage
        if record.version != storage.version:
            if record.parent is not None and record.view is not None:
                op, args, kwargs, number, types = record.view
                base = self._refresh(record.parent, record.parent.reference())
                outputs = tuple([self.fresh(type_) for type_ in types])
                self.nodes.append(Node(op, (base, *args), kwargs, outputs, self.sources.current(3)))
                record.value = outputs[number]
            else:
                offset = record.offset if tensor is None else int(tensor.storage_offset())
                record.value = self._view_of_root(storage, record.value.type, offset - storage.offset)
            record.version = storage.version
        return record.value

    def _offset_of(self, tensor: torch.Tensor, storage: Storage) -> int:
        return int(tensor.storage_offset()) - storage.offset

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
                offset = int(tensor.storage_offset())
                record = TracedTensor(weakref.ref(tensor), storage, value, storage.version, offset)
                self.tensors[id(tensor)] = record
                return record
            raise CannotTrace(
                "a tensor of unknown origin is used: it is no argument, attribute, global or closure variable"
            )
        self._note_gradient(tensor)
        value = self.fresh(tensor_type(tensor))
        self.inputs.append((value, tensor))
        self.counts[id(tensor)] = _counted_writes(tensor)
        if storage is None:
            return self.remember_root(tensor, value, tensor)
        offset = int(tensor.storage_offset())
        if not storage.version and not self._region_of(storage):
            storage.shared = True
            shared = Storage(value, offset, tensor, shared=True)
            record = TracedTensor(weakref.ref(tensor), shared, value, 0, offset)
        else:
            self.merge(tensor)
            record = TracedTensor(weakref.ref(tensor), self.storages[key], value, _STALE, offset)
        self.tensors[id(tensor)] = record
        return record

    def _region_of(self, storage: Storage) -> Region | None:
        return next((region for region in self.regions if region.storage is storage), None)

    def merge(self, tensor: torch.Tensor) -> None:
        """From now on the inputs on the memory of `tensor` are parts of one region. Raises CannotTrace."""
        key = tensor.untyped_storage()._cdata
        members = [n for n, (_, other) in enumerate(self.inputs) if other.untyped_storage()._cdata == key]
        region = self._region_of(self.storages[key])
        new = [number for number in members if region is None or number not in region.members]
        tensors = [self.inputs[number][1] for number in members]
        count = tensor.untyped_storage().nbytes() // tensor.dtype.itemsize
        if any(other.dtype is not tensor.dtype for other in tensors):
            raise CannotTrace("memory is written that several inputs share, as different dtypes")
        if count > _LARGEST_EXCESS * sum(other.numel() for other in tensors) + _SMALL_REGION:
            raise CannotTrace("memory is written that inputs share, and they are a small part of it")
        source = self.sources.current(3)
        if region is None:
            whole = tensor.detach().as_strided((count,), (1,), 0)
            start = self.fresh(tensor_type(whole))
            region = Region(start, whole, Storage(start, 0, whole), [])
            self.regions.append(region)
        for number in new:
            value, other = self.inputs[number]
            args = (region.value, tuple(other.shape), other.stride(), int(other.storage_offset()))
            self.prologue.append(Node(strided_view, args, {}, (value,), source))
            self.inputs[number] = (self.fresh(value.type), other)
            record = self.lookup(other)
            if record is not None and record.storage is not region.storage:
                self._take_over(region.storage, record.storage, source)
        region.members += new
        self.storages[key] = region.storage

    def _take_over(self, region: Storage, part: Storage, source: Source) -> None:
        """A region becomes the memory of what was a storage of its own, of which the content may have changed."""
        part.merged = region
        if part.version:
            type_, value = part.current.type, self.fresh(region.current.type)
            args = (region.current, part.current, type_.shape, type_.strides, part.offset)
            self.nodes.append(Node(strided_scatter, args, {}, (value,), source))
            region.current, region.version, region.source = value, region.version + 1, part.source

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
        record = TracedTensor(weakref.ref(tensor), storage, value, 0, storage.offset)
        self.tensors[id(tensor)] = record
        return record

    def alive(self) -> tuple[Value, ...]:
        """What the tensors hold that somebody still refers to, and the memory that writes to them would go to."""
        self.tensors = {key: record for key, record in self.tensors.items() if record.reference() is not None}
        found: dict[Value, None] = {}
        for record in map(_at_home, (*self.tensors.values(), *self.left.values())):
            if record.version == record.storage.version:
                found[record.value] = None
            found[record.storage.current] = None
        return tuple(found)

    def fresh(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)

    def expect_write(self, tensor: torch.Tensor, operands: Sequence[torch.Tensor] = (), op: Any = None) -> None:
        """`tensor` is about to be overwritten with what `op` makes of `operands`: inputs that share its memory become
        parts of one region. Raises CannotTrace, also where torch leaves open in which order elements are read and
        written: they share memory with one another, or with those of an operand at other indices, or with one that a
        product reads again for each row.
        """
        if tensor_type(tensor).may_overlap:
            raise CannotTrace("memory is written through a view whose elements share it")
        record = self.lookup(tensor)
        if record is not None and record.storage.shared:
            self.merge(tensor)
        storage = None if record is None else _at_home(record).storage
        rereads = op in PRODUCTS
        if rereads and sum(operand is tensor for operand in operands) > 1:
            raise CannotTrace("a product is written to memory of its operands")
        for operand in operands:
            other = None if operand is tensor else self.lookup(operand)
            if other is None or other.storage is not storage:
                continue
            if rereads or overlap_partially(tensor, operand):
                raise CannotTrace("memory is written that an operand reads at other places")

    def overwrite(self, tensor: torch.Tensor, value: Value, source: Source) -> None:
        """`tensor` now holds `value`; so does every other tensor on its memory, where they overlap."""
        record = self.lookup(tensor)
        assert record is not None
        storage = record.storage
        if tensor.requires_grad and torch.is_grad_enabled() and (storage.input is not None or self._region_of(storage)):
            self.writes_with_history = True
        root = storage.current
        offset = self._offset_of(tensor, storage)
        type_ = tensor_type(tensor)
        own = storage.input is None and self._region_of(storage) is None
        if offset == 0 and (type_ == root.type or (own and _covers(type_, root.type))):
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
        if self._region_of(storage) is not None:
            for value, other in self.inputs:
                if other is tensor:
                    return RootView(value, tensor, None)
        type_, root = tensor_type(tensor), storage.current.type
        if tensor.is_conj() or tensor.is_neg() or type_.dtype.itemsize > root.dtype.itemsize:
            return self._locate_apart(tensor, record)
        self._note_located(tensor, storage)
        if type_.dtype is not root.dtype:
            offset = int(tensor.storage_offset()) - storage.offset * (root.dtype.itemsize // type_.dtype.itemsize)
            return RootView(storage.current, storage.input, (type_.shape, type_.strides, offset, type_.dtype))
        offset = self._offset_of(tensor, storage)
        whole = offset == 0 and type_ == root
        if storage.input is None:
            # The first tensor object of a memory is the one that the program returns, any other is a view of it.
            itself = whole and id(tensor) == self.returned.setdefault(id(storage), id(tensor))
        else:
            itself = whole and tensor is storage.input
        view = None if itself else (type_.shape, type_.strides, offset)
        return RootView(storage.current, storage.input, view)

    def _locate_apart(self, tensor: torch.Tensor, record: TracedTensor) -> RootView:
        """No strides lead from the root to such a view: the op that made it runs again, and gives a view again. The
        Graph returns it as memory of its own, unless it is one of an input."""
        storage = record.storage
        if storage.input is None:
            self.apart.add(id(storage))
        elif not _is_whole(tensor, storage):
            raise CannotTrace("a part of an argument is returned, conjugated or as a wider dtype")
        self._note_located(tensor, storage)
        return RootView(record.value, None, None)

    def _note_located(self, tensor: torch.Tensor, storage: Storage) -> None:
        located = self.located.setdefault(id(storage), set())
        located.add(id(tensor))
        if len(located) > 1 and id(storage) in self.apart:
            raise CannotTrace("results share memory, and one is conjugated or of a wider dtype")

    def writes(self) -> tuple[Write, ...]:
        """What the run left in the caller's tensors."""
        found: list[Write] = []
        for value, tensor in self.inputs:
            record = self.left.get(id(tensor)) or self.lookup(tensor)
            if record is not None and record.storage.version and record.storage.input is tensor:
                source = record.storage.source or self.sources.current()
                count = _counted_writes(tensor)
                counted = count is None or count != self.counts[id(tensor)]
                found.append(Write(value, record.storage.current, source, counted))
        for region in self.regions:
            storage = region.storage
            if storage.version:
                found.append(Write(region.value, storage.current, storage.source or self.sources.current()))
        return tuple(found)
