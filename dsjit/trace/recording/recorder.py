"""Records the ATen calls of one real run as a functional Graph.

The user's function runs once on its real tensors: that run *is* the eager call, with its effects, its exceptions
and its result. Below autograd, each ATen call passes through `Recorder`, which notes it as a Node.

What tensors hold, through views and in-place writes, is kept by `trace.recording.memory`.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Mapping, Sequence, Set
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.ir.graph import Arg, Node, Source, TensorType, Value
from dsjit.ops.binding import bind_arguments
from dsjit.ops.calls import fill
from dsjit.ops.generator import SEEDING, generator_state, set_generator_state
from dsjit.ops.properties import dynamic_dims, is_dynamic, shares_memory
from dsjit.ops.strided import strided_view
from dsjit.trace.looks.outcome import Outcome, OutcomeKind, read_outcome
from dsjit.trace.looks.python_state import StateAtLook
from dsjit.trace.looks.segments import Look, Recording
from dsjit.trace.numbers.calls import call_with_numbers
from dsjit.trace.numbers.numbers import Numbers
from dsjit.trace.numbers.taken import take_converted, take_item
from dsjit.trace.recording.arguments import tensors_in, tensors_returned
from dsjit.trace.recording.borrowed import BorrowedMemory
from dsjit.trace.recording.data_writes import DataWrites
from dsjit.trace.recording.drawn import DrawnGenerators, StateOf
from dsjit.trace.recording.escape import EscapeWatch
from dsjit.trace.recording.generator import GeneratorWatch
from dsjit.trace.recording.list_writes import LIST_WRITES
from dsjit.trace.recording.memory import CannotTrace, Memory, RootView, TracedTensor, result_type, tensor_type
from dsjit.trace.recording.partial_overlap import lies_within
from dsjit.trace.recording.schema import (
    LAYOUT_QUESTIONS,
    UNDECLARED_WRITES,
    functional_dtype,
    functional_variant,
    honest_call,
    traits,
    updates_statistics,
)
from dsjit.trace.recording.source import SourceFinder
from dsjit.trace.recording.untraceable import Untraceable, untraceable

__all__ = ["Recorder"]

aten = torch.ops.aten

_saved_tensor_hooks = torch._C._autograd._top_saved_tensors_default_hooks
_sequence_number = torch.autograd._get_sequence_nr  # type: ignore[attr-defined]
"""The number that autograd's next node will get; that of the op that is running was made just before."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A dispatch mode that executes every op for real and appends it to `nodes`.

    is_known: whether an outside tensor can be found again by a path from the function's roots.
    may_hand_out: whether traced numbers may be given to Python now (see `trace.numbers.numbers`).
    pauses: to be called before and after the recorder's own work, for those who watch the user's code.
    at: the line to which ops belong, when it is not the running one. forward_sources: lines of autograd's nodes, by
        their numbers. freed: those of autograd's nodes that a backward in the run has freed.
    hooked: what autograd keeps goes through hooks (`saved_tensors_hooks`), but for those whose function that packs
        `is_harmless_hook`. recalling: to be entered when what is kept is wanted. region: see `Source`.
    state_at: tells Python's state at a look (see `trace.looks.python_state`). state_of: those of the caller's
        generators.
    call: when set, runs an op, which is told as a Node without outputs.
    escapes, generator: to be active around it; they notice content that leaves, and uses of the generator's state,
        which `on_generator` is told.
    """

    def __init__(
        self,
        is_known: Callable[[torch.Tensor], bool],
        sources: SourceFinder,
        pauses: tuple[Callable[[], None], Callable[[], None]],
        may_hand_out: Callable[[], bool] = lambda: False,
        state_of: StateOf = lambda generator: None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.pause, self.resume = pauses
        self.sources = sources
        self.memory = Memory(is_known, sources)
        self.constants: dict[Value, torch.Tensor] = {}
        self.looks: list[Look] = []
        self.problems: list[Untraceable] = []
        self.replacing = False
        self.at: Source | None = None
        self.forward_sources: dict[int, Source] = {}
        self.hooked = False
        self.is_harmless_hook: Callable[[Any], bool] = lambda pack: False
        self.recalling: Callable[[], AbstractContextManager[None]] = nullcontext
        self.region = 0
        self.freed: Set[Any] = frozenset()
        self.numbers = Numbers(self, may_hand_out)
        self.escapes = EscapeWatch(
            self._on_escape,
            self._listener(self._on_look),
            functools.partial(take_item, self),
            functools.partial(take_converted, self),
        )
        self.escapes.is_made = self.memory.is_made
        self.data_writes, self.borrowed = DataWrites(self.memory), BorrowedMemory()
        self.escapes.on_data = self._listener(self.data_writes.on_data)
        self.on_generator = self._listener(self._on_generator)
        self.generator = GeneratorWatch(self.on_generator)
        self.state_at: StateAtLook = lambda kind, looked, tensors, outcome: ()
        self.generators = DrawnGenerators(self.memory, state_of)
        self.call: Callable[[Node, tuple[Any, ...], dict[str, Any]], Any] | None = None

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # the default wraps the hook so that torch.compile skips it, which imports torch._dynamo: seconds

    # -- the dispatch hook ---------------------------------------------------------------------------------------

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        facts = traits(func)
        if facts.composite:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        if facts.per_tensor:
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if self.problems:
            return func(*args, **kwargs)
        self.pause()
        try:
            source = self.at or self.sources.of_op(2)
            if self.region:
                source = replace(source, region=self.region)
            if torch.is_grad_enabled():
                self.forward_sources.setdefault(_sequence_number() - 1, source)
                hooks = _saved_tensor_hooks(True)
                self.hooked = self.hooked or (hooks is not None and not self.is_harmless_hook(hooks[0]))
            elif (node := torch._C._current_autograd_node()) is not None:
                source = self.forward_sources.get(node._sequence_nr(), source)
            return self._run(func, args, kwargs, source, facts.foreign)
        finally:
            self.resume()

    def _run(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Source, foreign: bool) -> Any:
        try:
            recorded = self._arguments(func, args), {k: self._argument(func, v) for k, v in kwargs.items()}
        except Exception as error:
            self.problems.append(untraceable(error, source))
            recorded = None
        if foreign:  # its kernel may be the user's Python
            self.resume()
            result = func(*args, **kwargs)
            self.pause()
        elif self.call is not None and recorded is not None:
            result = self.call(Node(func, recorded[0], recorded[1], (), source), args, kwargs)
        else:
            result = func(*args, **kwargs)
        start = len(self.memory.nodes)
        if recorded is None:
            return result
        try:
            self._record(func, args, kwargs, recorded[0], recorded[1], result, source)
            self.generators.replace(start)
        except Exception as error:
            self.problems.append(untraceable(error, source))
        return result

    def _on_escape(self, reason: str) -> None:
        self.problems.append(Untraceable(f"a tensor leaves the graph: {reason}", self.sources.current(3)))

    def _on_generator(self, what: str, value: Any) -> None:
        if self.problems:
            return
        source = self.sources.current(3)
        if what in SEEDING and type(value) is int:
            self.memory.nodes.append(Node(SEEDING[what], (value,), {}, (), source, effect=True))
        elif what == "get":
            state = self.memory.fresh(tensor_type(value))
            self.memory.nodes.append(Node(generator_state, (), {}, (state,), source, effect=True))
            self.memory.remember_root(value, state)
        elif what == "set":
            state = self.memory.read(value)
            self.memory.nodes.append(Node(set_generator_state, (state,), {}, (), source, effect=True))
        else:
            self.problems.append(Untraceable("the random generator is seeded from outside the program", source))

    def _on_look(self, kind: OutcomeKind, tensor: torch.Tensor) -> None:
        if not self.problems:
            self._look(kind, (tensor,), self.sources.current(3))

    def _listener(self, listen: Callable[..., None]) -> Callable[..., None]:
        """`listen`, which may look at tensors without that being taken for a part of the program, and may fail."""

        def shielded(*args: Any) -> None:
            try:
                with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                    listen(*args)
            except Exception as error:
                self.problems.append(untraceable(error, self.sources.current()))

        return shielded

    # -- numbers taken out of tensors ----------------------------------------------------------------------------

    def _on_call(self, function: Any, arguments: tuple[Any, ...], call: Callable[[], Any]) -> Any:
        """A torch function is called with traced numbers among its arguments, or with other arguments."""
        passed = self.numbers.among(arguments)
        if not passed:
            return call()
        if self.problems:
            with self.numbers.as_plain(passed):
                return call()
        return call_with_numbers(self, self.numbers, passed, function, call)

    def alive(self) -> tuple[Value, ...]:
        """What Python can still reach: the content of tensors, and numbers."""
        return (*self.memory.alive(), *self.numbers.alive())

    def look_at_int(self, tensor: torch.Tensor) -> None:
        """Python is about to see `int(tensor)`."""
        self._listener(self._on_look)(OutcomeKind.INTEGER, tensor)

    def note_failure(self, error: Exception) -> None:
        """Recording failed, which is no concern of the user's."""
        self.problems.append(untraceable(error, self.sources.current()))

    def watch_calls(self) -> None:
        self.escapes.on_call = self._on_call

    def is_recording(self) -> bool:
        return not self.problems

    def give_up(self, reason: str) -> None:
        self.problems.append(Untraceable(reason, self.sources.current()))

    def value_of(self, tensor: torch.Tensor) -> Value:
        return self.memory.read(tensor)

    def emit(self, op: Any, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], type_: TensorType) -> Value:
        value = self.memory.fresh(type_)
        self.memory.nodes.append(Node(op, args, kwargs, (value,), self.sources.current()))
        return value

    def constant(self, number: float) -> Value:
        with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            tensor = torch.tensor(number, dtype=torch.float64)
        value = self.memory.fresh(tensor_type(tensor))
        self.constants[value] = tensor
        return value

    def look_at(self, kind: OutcomeKind, value: Value, outcome: Outcome) -> None:
        if not self.problems:
            source, states = self.sources.current(), self.state_at(kind, value, (), outcome)
            self.looks.append(Look(len(self.memory.nodes), kind, (value,), outcome, self.alive(), source, states))

    def _look(
        self, kind: OutcomeKind, tensors: Sequence[torch.Tensor], source: Source, dims: tuple[tuple[int, ...], ...] = ()
    ) -> None:
        """Python sees something of these tensors: another outcome may lead another way. dims: see `Look`."""
        if kind in (OutcomeKind.NUMBER, OutcomeKind.CONTENT) and any(tensor.is_complex() for tensor in tensors):
            self.numbers.stop()  # Python's complex numbers read floats
        values = tuple([self.memory.read(tensor) for tensor in tensors])
        with torch._C._DisableTorchDispatch():
            outcome = read_outcome(kind, tensors)
        states = self.state_at(kind, values[0], tensors, outcome) if len(values) == 1 else ()
        self.looks.append(Look(len(self.memory.nodes), kind, values, outcome, self.alive(), source, states, dims))

    # -- arguments -----------------------------------------------------------------------------------------------

    def _arguments(self, func: Any, args: tuple[Any, ...]) -> tuple[Arg, ...]:
        if func is aten.lift_fresh.default:
            self._lift(args[0])
        return tuple([self._argument(func, arg) for arg in args])

    def _argument(self, func: Any, arg: Any) -> Arg:
        if isinstance(arg, torch.Tensor):
            return self.memory.read(arg)
        if isinstance(arg, list | tuple):
            return tuple([self._argument(func, item) for item in arg])
        if isinstance(arg, torch.Generator):
            return self.generators.argument(arg)
        if isinstance(arg, torch.SymInt | torch.SymFloat | torch.SymBool):
            raise CannotTrace("symbolic sizes of another tracer are used")
        return arg

    def _lift(self, tensor: torch.Tensor) -> None:
        """A tensor that Python just built from numbers: the numbers are observed reads, so it is a constant."""
        if self.memory.lookup(tensor) is None:
            if not self.replacing:
                self.numbers.pin_all()  # it may have been built from any of them
            with torch._C.DisableTorchFunction():
                value = self.memory.fresh(tensor_type(tensor))
                self.constants[value] = tensor.detach().clone()
                record = self.memory.remember_root(tensor, value)
                self.borrowed.meet(tensor, record.storage, self.constants[value])

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
            if self._reshape_in_place(func, args[0], read_args, read_kwargs, source):
                return
            raise CannotTrace(f"{func} changes the shape or storage of a tensor in place")
        if func is aten._local_scalar_dense.default:
            if not self.escapes.looking:
                self._look(OutcomeKind.NUMBER, (args[0],), source)
            return
        if func in LIST_WRITES:
            LIST_WRITES[func](self, args, source)
            return
        undeclared = UNDECLARED_WRITES.get(func.name())
        if facts.writes or facts.writes_kwargs or (undeclared and updates_statistics(func, args, kwargs)):
            self._record_write(func, args, kwargs, read_args, read_kwargs, result, source, undeclared or facts.writes)
            return
        tensors = tensors_returned(result, facts.tells_sizes)
        if not (isinstance(tensors, list | tuple) and all(t is None or isinstance(t, torch.Tensor) for t in tensors)):
            self._record_numbers(func, args, kwargs, source)
            return
        if func is aten.as_strided.default:
            # ATen counts the offset from the start of the storage, which is another one for each buffer.
            offset = tensors[0].storage_offset() - args[0].storage_offset()
            # Autograd gives gradients to elements of the argument alone, not to all of what that is a view of.
            differentiated = torch.is_grad_enabled() and args[0].requires_grad
            if not lies_within(tensors[0], args[0] if differentiated else self.memory.root_of(args[0])):
                raise CannotTrace("as_strided reaches memory that is not the tensor's own")
            func, read_args = strided_view, (*read_args[:3], offset)
        func, read_args = honest_call(func, read_args)
        outputs = tuple(self.memory.fresh(result_type(t)) for t in tensors)
        node = Node(func, read_args, read_kwargs, outputs, source, effect=facts.random)
        self.memory.nodes.append(node)
        parent = self.memory.lookup(args[0]) if args and isinstance(args[0], torch.Tensor) else None
        for number, (t, value) in enumerate(zip(tensors, outputs, strict=True)):
            if t is None or self.memory.lookup(t) is not None:
                continue
            if t.layout is not torch.strided:
                raise CannotTrace(f"tensors of layout {t.layout} are not compiled")
            key = t.untyped_storage()._cdata
            shares = facts.aliases or (parent is not None and self.memory.storages.get(key) is parent.storage)
            if shares and parent is not None:
                if not shares_memory(func):
                    raise CannotTrace(f"{func} returns memory of an argument, which its schema does not say")
                view = (func, read_args[1:], read_kwargs, number, tuple([each.type for each in outputs]))
                version, offset = parent.storage.version, int(t.storage_offset())
                record = TracedTensor(weakref.ref(t), parent.storage, value, version, offset, parent, view)
                self.memory.tensors[id(t)] = record
            else:
                self.memory.remember_root(t, value)
        if is_dynamic(node):
            self._look(OutcomeKind.SHAPE, tensors, source, dynamic_dims(node) or ())

    def _reshape_in_place(
        self, func: Any, tensor: torch.Tensor, args: tuple[Arg, ...], kwargs: dict[str, Arg], source: Source
    ) -> bool:
        """`transpose_` and its like: the object becomes another view of its memory. Not for the caller's tensors."""
        pure = functional_variant(func)
        record = self.memory.lookup(tensor)
        if pure is None or not traits(pure).aliases or record is None or record.storage.input is not None:
            return False
        before = replace(record)
        value = self.memory.fresh(tensor_type(tensor))
        self.memory.nodes.append(Node(pure, args, kwargs, (value,), source))
        record.value, record.parent, record.view = value, before, (pure, args[1:], kwargs, 0, (value.type,))
        return True

    def _record_numbers(self, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], source: Source) -> None:
        """The op returned Python numbers: what it looked at is what Python saw."""
        if func in LAYOUT_QUESTIONS:
            return
        if func is aten.equal.default:
            self._look(OutcomeKind.EQUAL, args, source)
            return
        self._look(OutcomeKind.CONTENT, tensors_in(args, kwargs), source)

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
            raise CannotTrace(f"{func} writes to a list of tensors")
        operands = tensors_in(args, kwargs)
        for t in targets:
            self.memory.expect_write(t, operands, func)
            record = self.memory.lookup(t)
            if record is not None and record.value.type != tensor_type(t):
                raise CannotTrace(f"{func} resizes its output")
        kept = {k: v for k, v in read_kwargs.items() if k not in facts.writes_kwargs}
        pure = functional_variant(func) if func.name() not in UNDECLARED_WRITES else None
        outputs: tuple[Value, ...] | None = None
        if facts.random and not all(t.is_contiguous() for t in targets):
            # In which order numbers are drawn depends on the layout, which functional forms do not keep.
            if not all(torch.ops.aten.is_non_overlapping_and_dense.default(t) for t in targets):
                raise CannotTrace(f"{func} fills memory with gaps")
            pure = None
        if pure is not None:
            full = bind_arguments(func, read_args, kept)
            positional = tuple(full[a.name] for a in pure._schema.arguments if not a.kwarg_only)
            outputs = self._call_functional(pure, positional, kept, targets, source, facts.random)
        if outputs is not None:
            pass
        elif facts.writes_kwargs == ("out",):
            outputs = (self.memory.fresh(tensor_type(targets[0])),)
            arguments = (func, read_kwargs["out"], *read_args)
            self.memory.nodes.append(Node(fill, arguments, kept, outputs, source, (1,), facts.random))
        elif facts.writes_kwargs:
            raise CannotTrace(f"{func} has no functional form")
        else:
            own = [] if result is None else ([result] if isinstance(result, torch.Tensor) else list(result))
            returned = [t for t in own if not any(t is target for target in targets)]
            values = tuple(self.memory.fresh(result_type(t)) for t in (*returned, *targets))
            positions = tuple(p for p in writes if p < len(args))
            self.memory.nodes.append(Node(func, read_args, kept, values, source, positions, facts.random))
            for t, value in zip(returned, values, strict=False):
                self.memory.remember_root(t, value)
            outputs = values[len(returned) :]
        for t, value in zip(targets, outputs, strict=True):
            self.memory.overwrite(t, value, source)

    def _call_functional(
        self,
        pure: Any,
        args: tuple[Arg, ...],
        kwargs: dict[str, Arg],
        targets: list[torch.Tensor],
        source: Source,
        random: bool,
    ) -> tuple[Value, ...] | None:
        """None when the functional form may compute in another dtype than the one that writes to its target."""
        types = [tensor_type(t) for t in targets]
        if len(types) == 1:
            # The functional form may promote to a wider dtype than the target has.
            with self.numbers.math.hidden():  # torch imports its meta functions when it first needs one
                probe = functional_dtype(pure, args, kwargs, types[0].dtype)
            if probe is not types[0].dtype:
                if torch.Tag.pointwise not in pure.tags:
                    return None
                wide = TensorType(types[0].shape, probe, types[0].strides, types[0].device)
                value, narrow = self.memory.fresh(wide), self.memory.fresh(types[0])
                self.memory.nodes.append(Node(pure, args, kwargs, (value,), source, effect=random))
                cast = Node(aten._to_copy.default, (value,), {"dtype": types[0].dtype}, (narrow,), source)
                self.memory.nodes.append(cast)
                return (narrow,)
        values = tuple(self.memory.fresh(type_) for type_ in types)
        self.memory.nodes.append(Node(pure, args, kwargs, values, source, effect=random))
        return values

    # -- the result ----------------------------------------------------------------------------------------------

    def locate(self, item: torch.Tensor | float) -> RootView:
        """Where a tensor of the result lies; of a number, its Value. Raises CannotTrace."""
        if isinstance(item, torch.Tensor):
            return self.memory.locate(item)
        value = self.numbers.value(item)
        assert value is not None
        if any(value is given for given, _ in self.memory.inputs):  # a number of the caller's
            value = self.emit(aten.clone.default, (value,), {}, value.type)
        return RootView(value, None, None)

    def recording(self, name: str) -> Recording:
        """The whole run; to be called when its results have been located."""
        before = len(self.memory.prologue)
        return Recording(
            name=name,
            inputs=(*(value for value, _ in self.memory.inputs), *(region.value for region in self.memory.regions)),
            nodes=(*self.memory.prologue, *self.memory.nodes),
            looks=tuple([replace(look, position=look.position + before) for look in self.looks]),
            constants=dict(self.constants),
        )
