"""Records the ATen calls of one real run as a functional Graph.

The user's function runs once on its real tensors: that run *is* the eager call, with its effects, its exceptions
and its result. Below autograd, each ATen call passes through `Recorder`, which notes it as a Node.

Memory is modelled by storage. Each storage has a current SSA value for its *root* tensor (the first one seen on it);
every other tensor on the storage is a view of the root. A write through any of them makes a new root value, and the
others are looked at anew when they are next read. That is what turns in-place code into a functional Graph.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.ir.graph import Arg, Check, Graph, Node, Source, TensorType, Value, Write
from dsjit.ops.binding import bind_arguments
from dsjit.ops.generator import generator_state, seed_generator, set_generator_state
from dsjit.ops.strided import strided_scatter, strided_view
from dsjit.trace.escape import EscapeWatch
from dsjit.trace.generator import GeneratorWatch
from dsjit.trace.schema import UNDECLARED_WRITES, functional_variant, traits
from dsjit.trace.source import SourceFinder

__all__ = ["Recorder", "RootView", "TracedTensor", "Untraceable"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class Untraceable:
    """Why the run cannot become a static Graph, and where."""

    reason: str
    source: Source


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
    """A tensor object met during the run. `view` tells how to derive it again from its parent: (op, args, kwargs)."""

    reference: weakref.ref[torch.Tensor]
    storage: Storage
    value: Value
    version: int
    parent: TracedTensor | None = None
    view: tuple[Any, tuple[Arg, ...], dict[str, Arg], int] | None = None


@dataclass(frozen=True, slots=True)
class RootView:
    """Where a returned tensor lies: on a root value (an input when `input` is set), whole or as a strided view."""

    root: Value
    input: torch.Tensor | None
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None


def tensor_type(t: torch.Tensor) -> TensorType:
    return TensorType(tuple(t.shape), t.dtype, t.stride(), t.device)


class Recorder(TorchDispatchMode):
    """A dispatch mode that executes every op for real and appends it to `nodes`.

    is_known: whether an outside tensor can be found again by a path from the function's roots.
    escapes, generator: to be active around the recorder; they notice content that leaves the tensor world, and what
        is done to the state of the random generator.
    """

    def __init__(self, is_known: Callable[[torch.Tensor], bool], sources: SourceFinder) -> None:
        super().__init__()
        self.is_known = is_known
        self.sources = sources
        self.nodes: list[Node] = []
        self.inputs: list[tuple[Value, torch.Tensor]] = []
        self.constants: dict[Value, torch.Tensor] = {}
        self.checks: list[Check] = []
        self.problems: list[Untraceable] = []
        self.tensors: dict[int, TracedTensor] = {}
        self.storages: dict[int, Storage] = {}
        self.count = 0
        self.escapes = EscapeWatch(self._on_escape, _unwatched(self._on_content))
        self.generator = GeneratorWatch(_unwatched(self._on_generator))

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # The default wraps the hook so that torch.compile skips it, which imports torch._dynamo: seconds.
        return False

    # -- the dispatch hook ---------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # The tracer's profile hook watches the user's Python, not this.
        hook = sys.getprofile()
        sys.setprofile(None)
        try:
            return self._dispatch(func, args, kwargs or {})
        finally:
            sys.setprofile(hook)

    def _dispatch(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        facts = traits(func)
        if facts.composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if self.problems:
            return func(*args, **kwargs)
        source = self.sources.current(3)
        try:
            recorded = self._arguments(func, args), {k: self._argument(func, v) for k, v in kwargs.items()}
        except _Stop as stop:
            self.problems.append(Untraceable(stop.reason, source))
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            self._record(func, args, kwargs, recorded[0], recorded[1], result, source)
        except _Stop as stop:
            self.problems.append(Untraceable(stop.reason, source))
        return result

    def _on_escape(self, reason: str) -> None:
        self.problems.append(Untraceable(f"a tensor leaves the graph: {reason}", self.sources.current(3)))

    def _on_generator(self, what: str, value: Any) -> None:
        if self.problems:
            return
        source = self.sources.current(3)
        if what == "seed" and type(value) is int:
            self.nodes.append(Node(seed_generator, (value,), {}, (), source, effect=True))
        elif what == "get":
            state = self._fresh(tensor_type(value))
            self.nodes.append(Node(generator_state, (), {}, (state,), source, effect=True))
            self._remember_root(value, state)
        elif what == "set":
            try:
                self.nodes.append(Node(set_generator_state, (self.read(value),), {}, (), source, effect=True))
            except _Stop as stop:
                self.problems.append(Untraceable(stop.reason, source))
        else:
            self.problems.append(Untraceable("the random generator is seeded from outside the program", source))

    def _on_content(self, tensor: torch.Tensor) -> None:
        if self.problems:
            return
        expected = tensor.detach().clone()
        try:
            self.checks.append(Check(self.read(tensor), expected, self.sources.current(3)))
        except _Stop as stop:
            self.problems.append(Untraceable(stop.reason, self.sources.current(3)))

    # -- arguments -----------------------------------------------------------------------------------------------

    def _arguments(self, func: Any, args: tuple[Any, ...]) -> tuple[Arg, ...]:
        if func is aten.lift_fresh.default:
            self._lift(args[0])
        return tuple([self._argument(func, arg) for arg in args])

    def _argument(self, func: Any, arg: Any) -> Arg:
        if isinstance(arg, torch.Tensor):
            return self.read(arg)
        if isinstance(arg, list | tuple):
            return tuple([self._argument(func, item) for item in arg])
        if isinstance(arg, torch.Generator):
            raise _Stop("a torch.Generator object is used explicitly")
        if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise _Stop("symbolic sizes of another tracer are used")
        return arg

    def _lift(self, tensor: torch.Tensor) -> None:
        """A tensor that Python just built from numbers: the numbers are observed reads, so it is a constant."""
        if self._lookup(tensor) is None:
            value = self._fresh(tensor_type(tensor))
            self.constants[value] = tensor.detach().clone()
            self._remember_root(tensor, value)

    def read(self, tensor: torch.Tensor) -> Value:
        """The SSA value of what `tensor` holds now; raises _Stop when it cannot be part of a Graph."""
        record = self._lookup(tensor)
        if record is None:
            record = self._meet(tensor)
        return self._refresh(record, tensor)

    def _lookup(self, tensor: torch.Tensor) -> TracedTensor | None:
        record = self.tensors.get(id(tensor))
        return record if record is not None and record.reference() is tensor else None

    def _refresh(self, record: TracedTensor, tensor: torch.Tensor | None) -> Value:
        storage = record.storage
        if record.version != storage.version:
            if record.parent is not None and record.view is not None:
                op, args, kwargs, number = record.view
                base = self._refresh(record.parent, record.parent.reference())
                outputs = tuple(self._fresh(record.value.type) for _ in range(number + 1))
                self.nodes.append(Node(op, (base, *args), kwargs, outputs, self.sources.current(3)))
                record.value = outputs[number]
            else:
                record.value = self._view_of_root(storage, record.value.type, self._offset_of(tensor, storage))
            record.version = storage.version
        return record.value

    def _offset_of(self, tensor: torch.Tensor | None, storage: Storage) -> int:
        return 0 if tensor is None else tensor.storage_offset() - storage.offset

    def _view_of_root(self, storage: Storage, type_: TensorType, offset: int) -> Value:
        root = storage.current
        if offset == 0 and type_ == root.type:
            return root
        if type_.dtype is not root.type.dtype:
            raise _Stop("memory is viewed as another dtype after it was written")
        value = self._fresh(type_)
        args = (root, type_.shape, type_.strides, offset)
        self.nodes.append(Node(strided_view, args, {}, (value,), self.sources.current(3)))
        return value

    def _meet(self, tensor: torch.Tensor) -> TracedTensor:
        """The first sight of a tensor that no recorded op made."""
        self._require_plain(tensor)
        key = tensor.untyped_storage()._cdata
        storage = self.storages.get(key)
        known = self.is_known(tensor)
        if storage is not None and storage.input is None and not known:
            # Another object over memory that a recorded op made (a shallow copy inside torch).
            record = TracedTensor(weakref.ref(tensor), storage, storage.current, -1)
            record.value = self._view_of_root(storage, tensor_type(tensor), self._offset_of(tensor, storage))
            record.version = storage.version
            self.tensors[id(tensor)] = record
            return record
        if not known:
            if storage is not None and not storage.shared:
                record = TracedTensor(weakref.ref(tensor), storage, storage.current, -1)
                record.value = self._view_of_root(storage, tensor_type(tensor), self._offset_of(tensor, storage))
                record.version = storage.version
                self.tensors[id(tensor)] = record
                return record
            raise _Stop("a tensor of unknown origin is used: it is no argument, attribute, global or closure variable")
        if tensor.requires_grad and torch.is_grad_enabled():
            raise _Stop("gradients are wanted, and training is not compiled: call it under torch.no_grad()")
        value = self._fresh(tensor_type(tensor))
        self.inputs.append((value, tensor))
        if storage is not None:
            if storage.version:
                raise _Stop("an argument shares memory with another that was written to")
            storage.shared = True
            fresh = Storage(value, tensor.storage_offset(), tensor, shared=True)
            record = TracedTensor(weakref.ref(tensor), fresh, value, 0)
            self.tensors[id(tensor)] = record
            return record
        return self._remember_root(tensor, value, tensor)

    def _require_plain(self, tensor: torch.Tensor) -> None:
        if type(tensor) is not torch.Tensor and type(tensor) is not torch.nn.Parameter:
            plain = isinstance(tensor, torch.nn.Parameter | torch.nn.Buffer) or type(tensor).__torch_dispatch__ in (
                torch._C._disabled_torch_dispatch_impl,
                torch.Tensor.__torch_dispatch__,
            )
            if not plain:
                raise _Stop(f"tensor subclasses such as {type(tensor).__name__} are not compiled")
        if tensor.layout is not torch.strided:
            raise _Stop(f"tensors of layout {tensor.layout} are not compiled")
        if tensor.is_quantized or tensor.is_neg() or tensor.is_conj():
            raise _Stop("quantized, lazily conjugated and lazily negated tensors are not compiled")

    def _remember_root(self, tensor: torch.Tensor, value: Value, source: torch.Tensor | None = None) -> TracedTensor:
        storage = Storage(value, tensor.storage_offset(), source)
        if tensor.layout is torch.strided:
            self.storages[tensor.untyped_storage()._cdata] = storage
        record = TracedTensor(weakref.ref(tensor), storage, value, 0)
        self.tensors[id(tensor)] = record
        return record

    def _fresh(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)

    # -- recording one call --------------------------------------------------------------------------------------

    def _record(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        read_args: tuple[Arg, ...],
        read_kwargs: dict[str, Arg],
        result: Any,
        source: Source,
    ) -> None:
        facts = traits(func)
        if facts.metadata:
            pure = functional_variant(func)
            if pure is not None and traits(pure).aliases and self._reshape_in_place(pure, args[0], read_args, read_kwargs, source):
                return
            raise _Stop(f"{func} changes the shape or storage of a tensor in place")
        if func is aten._local_scalar_dense.default:
            self.checks.append(Check(read_args[0], args[0].detach().clone(), source))
            return
        undeclared = UNDECLARED_WRITES.get(func.name())
        if facts.writes or facts.writes_kwargs or (undeclared and _is_training(func, args, kwargs)):
            self._record_write(func, args, kwargs, read_args, read_kwargs, result, source, undeclared or facts.writes)
            return
        tensors = [result] if isinstance(result, torch.Tensor) else result
        if not isinstance(tensors, list | tuple):
            self._record_content(func, args, kwargs, source)
            return
        if not all(t is None or isinstance(t, torch.Tensor) for t in tensors):
            self._record_content(func, args, kwargs, source)
            return
        if func is aten.as_strided.default:
            # ATen counts the offset from the start of the storage, which is another one for each buffer.
            offset = tensors[0].storage_offset() - args[0].storage_offset()
            func, read_args = strided_view, (*read_args[:3], offset)
        outputs = tuple(self._fresh(_result_type(t)) for t in tensors)
        self.nodes.append(Node(func, read_args, read_kwargs, outputs, source, effect=facts.random))
        parent = self._lookup(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        for number, (t, value) in enumerate(zip(tensors, outputs, strict=True)):
            if t is None or self._lookup(t) is not None:
                continue
            if t.layout is not torch.strided:
                raise _Stop(f"tensors of layout {t.layout} are not compiled")
            key = t.untyped_storage()._cdata
            shares = facts.aliases or (parent is not None and self.storages.get(key) is parent.storage)
            if shares and parent is not None:
                view = (func, read_args[1:], read_kwargs, number)
                record = TracedTensor(weakref.ref(t), parent.storage, value, parent.storage.version, parent, view)
                self.tensors[id(t)] = record
            else:
                self._remember_root(t, value)

    def _reshape_in_place(
        self, pure: Any, tensor: torch.Tensor, args: tuple[Arg, ...], kwargs: dict[str, Arg], source: Source
    ) -> bool:
        """`transpose_` and its like: the object becomes another view of its memory. Not for the caller's tensors."""
        record = self._lookup(tensor)
        if record is None or record.storage.input is not None:
            return False
        before = TracedTensor(record.reference, record.storage, record.value, record.version, record.parent, record.view)
        value = self._fresh(tensor_type(tensor))
        self.nodes.append(Node(pure, args, kwargs, (value,), source))
        record.value, record.parent, record.view = value, before, (pure, args[1:], kwargs, 0)
        return True

    def _record_content(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Source) -> None:
        """The op returned Python numbers: what it looked at must stay as it is."""
        for arg in (*args, *kwargs.values()):
            for t in arg if isinstance(arg, list | tuple) else (arg,):
                if isinstance(t, torch.Tensor):
                    self.checks.append(Check(self.read(t), t.detach().clone(), source))

    def _record_write(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        read_args: tuple[Arg, ...],
        read_kwargs: dict[str, Arg],
        result: Any,
        source: Source,
        writes: tuple[int, ...],
    ) -> None:
        facts = traits(func)
        targets: list[Any] = [args[p] for p in writes if p < len(args)]
        targets += [kwargs[name] for name in facts.writes_kwargs if name in kwargs]
        if not all(isinstance(t, torch.Tensor) for t in targets):
            raise _Stop(f"{func} writes to a list of tensors")
        for t in targets:
            record = self._lookup(t)
            if record is not None and record.storage.shared:
                raise _Stop("arguments that share memory are written to")
            if record is not None and record.value.type != tensor_type(t):
                raise _Stop(f"{func} resizes its output")
        kept = {k: v for k, v in read_kwargs.items() if k not in facts.writes_kwargs}
        pure = functional_variant(func) if func.name() not in UNDECLARED_WRITES else None
        if pure is not None:
            full = bind_arguments(func, read_args, kept)
            positional = tuple(full[a.name] for a in pure._schema.arguments if not a.kwarg_only)
            outputs = self._call_functional(pure, positional, kept, targets, source, facts.random)
        elif facts.writes_kwargs:
            raise _Stop(f"{func} has no functional form")
        else:
            own = [] if result is None else ([result] if isinstance(result, torch.Tensor) else list(result))
            returned = [t for t in own if not any(t is target for target in targets)]
            values = tuple(self._fresh(_result_type(t)) for t in (*returned, *targets))
            positions = tuple(p for p in writes if p < len(args))
            self.nodes.append(Node(func, read_args, kept, values, source, positions, facts.random))
            for t, value in zip(returned, values, strict=False):
                self._remember_root(t, value)
            outputs = values[len(returned) :]
        for t, value in zip(targets, outputs, strict=True):
            self._overwrite(t, value, source)

    def _call_functional(
        self,
        pure: Any,
        args: tuple[Arg, ...],
        kwargs: dict[str, Arg],
        targets: list[torch.Tensor],
        source: Source,
        random: bool,
    ) -> tuple[Value, ...]:
        types = [tensor_type(t) for t in targets]
        if len(types) == 1:
            # The functional form may promote to a wider dtype than the target has.
            probe = _functional_dtype(pure, args, kwargs, types[0].dtype)
            if probe is not types[0].dtype:
                wide = TensorType(types[0].shape, probe, types[0].strides, types[0].device)
                value, narrow = self._fresh(wide), self._fresh(types[0])
                self.nodes.append(Node(pure, args, kwargs, (value,), source, effect=random))
                self.nodes.append(Node(aten._to_copy.default, (value,), {"dtype": types[0].dtype}, (narrow,), source))
                return (narrow,)
        values = tuple(self._fresh(type_) for type_ in types)
        self.nodes.append(Node(pure, args, kwargs, values, source, effect=random))
        return values

    def _overwrite(self, tensor: torch.Tensor, value: Value, source: Source) -> None:
        """`tensor` now holds `value`; so does every other tensor on its memory, where they overlap."""
        record = self._lookup(tensor)
        assert record is not None
        storage = record.storage
        root = storage.current
        offset = self._offset_of(tensor, storage)
        type_ = tensor_type(tensor)
        if offset == 0 and type_ == root.type:
            storage.current = value
        else:
            if type_.dtype is not root.type.dtype:
                raise _Stop("memory is written through a view of another dtype")
            merged = self._fresh(root.type)
            args = (root, value, type_.shape, type_.strides, offset)
            self.nodes.append(Node(strided_scatter, args, {}, (merged,), source))
            storage.current = merged
        storage.version += 1
        storage.source = source
        record.value = value
        record.version = storage.version

    # -- the result ----------------------------------------------------------------------------------------------

    def locate(self, tensor: torch.Tensor) -> RootView:
        """Where a returned tensor lies; raises _Stop (see `stop_reason`) when that is not known."""
        self.read(tensor)
        record = self._lookup(tensor)
        assert record is not None
        storage = record.storage
        type_, offset = tensor_type(tensor), self._offset_of(tensor, storage)
        whole = offset == 0 and type_ == storage.current.type
        if type_.dtype is not storage.current.type.dtype or tensor.is_conj() or tensor.is_neg():
            # No strides lead from the root to such a view: the op that made it runs again, and gives a view again.
            return RootView(record.value, None, None)
        view = None if whole else (type_.shape, type_.strides, offset)
        return RootView(storage.current, storage.input, view)

    def writes(self) -> tuple[Write, ...]:
        """What the run left in the caller's tensors."""
        found: list[Write] = []
        for value, tensor in self.inputs:
            record = self._lookup(tensor)
            if record is not None and record.storage.version and record.storage.input is tensor:
                found.append(Write(value, record.storage.current, record.storage.source or self.sources.current()))
        return tuple(found)

    def graph(self, outputs: tuple[Value, ...], name: str) -> Graph:
        """The Graph of the run, with these results."""
        return Graph(
            inputs=tuple(value for value, _ in self.inputs),
            nodes=tuple(self.nodes),
            outputs=outputs,
            writes=self.writes(),
            checks=tuple(self.checks),
            constants=dict(self.constants),
            name=name,
        )


def _unwatched(listener: Callable[..., None]) -> Callable[..., None]:
    """`listener`, which may look at tensors without the recorder taking that for a part of the program."""

    def listen(*args: Any) -> None:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            listener(*args)

    return listen


class _Stop(Exception):
    """The run goes on eagerly; it will not become a Graph."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def stop_reason(error: Exception) -> str | None:
    """The reason in an exception raised by `Recorder.read` or `Recorder.locate`; None for any other exception."""
    return error.reason if isinstance(error, _Stop) else None


def _result_type(t: torch.Tensor | None) -> TensorType:
    if t is None:
        return TensorType((), torch.float32, (), torch.device("meta"))
    if t.layout is not torch.strided or t.is_quantized:
        raise _Stop(f"{'quantized tensors' if t.is_quantized else f'tensors of layout {t.layout}'} are not compiled")
    return tensor_type(t)


def _is_training(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a batch norm call updates running statistics: the argument after the last tensor is `training`."""
    names = [a.name for a in func._schema.arguments]
    bound = dict(zip(names, args, strict=False)) | kwargs
    return bool(bound.get("training", True)) and bound.get("running_mean") is not None


def _functional_dtype(op: Any, args: tuple[Arg, ...], kwargs: dict[str, Arg], own: torch.dtype) -> torch.dtype:
    """The result dtype of the functional form of an in-place op: its own dtype, unless another operand is wider."""
    others = [arg.type.dtype for arg in args if isinstance(arg, Value)]
    if all(dtype is own for dtype in others):
        return own
    meta_args = [torch.empty(a.type.shape, dtype=a.type.dtype, device="meta") if isinstance(a, Value) else a for a in args]
    try:
        result = op(*meta_args, **kwargs)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise _Stop(f"{op} has a functional form of unknown dtype") from error
    return result.dtype if isinstance(result, torch.Tensor) else own
