"""Guard: whether a later call would do again what the traced call did, and with which tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

import torch
from torch._C._dynamo.guards import TensorGuards

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.guards.argument_check import argument_check, split_facts
from dsjit.trace.guards.binding import Binder, Binding
from dsjit.trace.guards.native_loop import native_loop
from dsjit.trace.guards.overlap import Overlap, SharedMemory
from dsjit.trace.reads.facts import (
    ARGS_SLOT,
    FUNCTION_SLOT,
    KWARGS_SLOT,
    ArrayOf,
    Constant,
    Expectation,
    Fact,
    Missing,
    SameAs,
    TensorOf,
    has_identity,
    holds,
    shorten,
    walk,
)
from dsjit.trace.reads.paths import Path
from dsjit.trace.reads.torch_state import TorchState
from dsjit.trace.shapes.open_shapes import OpenShapes

__all__ = ["Change", "ChangeKind", "Guard", "GuardLine"]

TABLE_LIMIT: Final = 256
"""Tables that one guard keeps: one for each combination of long-lived objects among the arguments."""


ChangeKind: TypeAlias = Literal["sizes", "value", "object", "torch"]


@dataclass(frozen=True, slots=True)
class Change:
    """The first thing that keeps a call from passing a guard.

    kind: "sizes" of a tensor, the "value" of a constant, which "object" it is, or the state of "torch".
    path, was, now: where, what the traced call found there, and what is there now; empty when `text` tells it all.
    source: the line of the traced call that read it; unknown for what comes with the arguments.
    """

    kind: ChangeKind
    text: str
    path: str = ""
    was: str = ""
    now: str = ""
    source: Source = UNKNOWN_SOURCE

    def __str__(self) -> str:
        return f"{self.text} (read at {self.source})" if self.source.line else self.text


@dataclass(frozen=True, slots=True)
class GuardLine:
    """One thing that must hold: where, and what.

    source: the line of the traced call that read it, if one did. owner: the path of the object that it is read from.
    """

    path: str
    condition: str
    source: Source = UNKNOWN_SOURCE
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.path} {self.condition}"


class Guard:
    """Facts of a trace, made quick to check.

    The facts are relative to the call's arguments, so that one guard serves many equal layers: what is bound to
    concrete objects is one table for each combination of them. A table's failure is no verdict: the facts are then
    walked in Python, and when they hold (a constant was assigned anew, a parameter replaced), a new table is made.

    changing: positions of facts that no table holds, about what each call writes. met: tensors that the facts speak of,
    by slot, as the traced call met them.

    `check(args, kwargs)` returns the Graph's input tensors, in order, or None. It never raises, and runs no code of
    the user's but `__eq__` and `__hash__` of dictionary keys.
    """

    check: Callable[[tuple[Any, ...], dict[str, Any]], tuple[torch.Tensor, ...] | None]

    def __init__(
        self,
        *,
        function: Callable[..., Any],
        facts: tuple[Fact, ...],
        roots: Mapping[int, Any],
        slot_count: int,
        inputs: tuple[int, ...],
        written: frozenset[int],
        state: TorchState,
        native: bool,
        first: tuple[tuple[Any, ...], dict[str, Any]],
        changing: frozenset[int] = frozenset(),
        met: Mapping[int, torch.Tensor] | None = None,
        shapes: OpenShapes | None = None,
        shared: tuple[SharedMemory, ...] = (),
    ) -> None:
        self._shapes = shapes
        self._shared = shared
        self._facts = facts
        self._roots = {**roots, FUNCTION_SLOT: function}
        self._slot_count = slot_count
        self._inputs = inputs
        self._state = state
        self._suspect: Fact | None = None
        self._definers = {fact.slot: fact for fact in facts if fact.slot >= 0}
        self._distinct = tuple(fact.slot for fact in facts if fact.slot >= 0 and has_identity(fact.expectation))
        self._split = split_facts(facts, (ARGS_SLOT, KWARGS_SLOT), frozenset(self._roots), changing)
        self._overlap = Overlap(written, shared) if written else None
        self._binder: Binder | None = None
        self._residual: dict[int, Fact] = {}
        self._tables: dict[Any, bytearray] = {}
        self._taken: dict[Any, frozenset[int]] = {}
        self._bindings: dict[Any, Binding] = {}
        self._sighted: dict[Any, None] = {}
        self._prepare(native, first, met or {})

    def __repr__(self) -> str:
        return f"<Guard: {len(self._facts)} facts, {len(self._inputs)} input tensors>"

    # ---------------------------------------------------------------- making

    def _prepare(
        self, native: bool, first: tuple[tuple[Any, ...], dict[str, Any]], met: Mapping[int, torch.Tensor]
    ) -> None:
        argument_tensors = frozenset(self._split.tensors)
        arguments = [slot for slot in self._inputs if slot in argument_tensors]
        self._argument_positions = [n for n, slot in enumerate(self._inputs) if slot in argument_tensors]
        self._bound_positions = [(n, slot) for n, slot in enumerate(self._inputs) if slot not in argument_tensors]
        self._metadata = {fact.slot: fact for fact in self._split.rest if isinstance(fact.expectation, TensorOf)}
        namespace: dict[str, Any] = {
            "tables": self._tables,
            "taken": self._taken,
            "slow": self._slow,
            "verify": _never,
            "residual": self._residual,
            "residual_holds": self._residual_holds,
        }
        loop = native_loop() if native else None
        if loop is not None:
            self._binder = Binder(self._facts_by_slot(), loop.layout, self._state.probes(), self._residual)
            namespace["verify"] = loop.verify
        slots = self._new_slots(*first)
        if walk(self._split.plain, slots) is None:
            self._sighted[self._key(slots)] = None
        namespace["tensors"] = self._tensors_match = self._tensor_check({**dict(enumerate(slots)), **met})
        names = {slot: f"root{slot}" for slot in self._roots} | {ARGS_SLOT: "args", KWARGS_SLOT: "kwargs"}
        namespace.update({names[slot]: obj for slot, obj in self._roots.items()})
        self.source, self._quick = argument_check(self._split, names, arguments, namespace)
        plain = self._overlap is None and self._shapes is None
        self.check = self._quick if plain else self._check_all

    def _facts_by_slot(self) -> dict[int, list[Fact]]:
        """What the tables hold: the facts outside the plain arguments, by the slot that they read from."""
        found: dict[int, list[Fact]] = {}
        for fact in self._split.rest:
            found.setdefault(fact.parent, []).append(fact)
            if fact.slot >= 0 and not isinstance(fact.expectation, TensorOf):
                found.setdefault(fact.slot, [])
        return found

    def _tensor_check(self, slots: Mapping[int, Any]) -> Callable[..., bool]:
        """A check of the argument tensors' metadata, and that no two of them are one object."""
        found = {fact.slot: fact.expectation for fact in self._split.plain}  # of others, tables know the metadata
        expected = [one for slot in self._split.tensors if isinstance(one := found[slot], TensorOf)]
        tensors = [slots[slot] for slot in self._split.tensors]
        if tensors and all(map(_plain_tensor, expected, tensors)):
            sizes: Any = None if self._shapes is None else [list(one.shape) for one in expected]
            strides: Any = None if self._shapes is None else [list(one.strides or ()) for one in expected]
            check: Callable[..., bool] = TensorGuards(
                *tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides
            ).check
            return check
        return lambda *found: (
            len(set(map(id, found))) == len(found)
            and all(one.matches(tensor) for one, tensor in zip(expected, found, strict=True))
        )

    def _new_slots(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        slots: list[Any] = [None] * self._slot_count
        for slot, obj in self._roots.items():
            slots[slot] = obj
        slots[ARGS_SLOT] = args
        slots[KWARGS_SLOT] = kwargs
        return slots

    def _key(self, slots: Sequence[Any]) -> Any:
        ids = [id(slots[slot]) for slot in self._split.keys]
        return None if not ids else ids[0] if len(ids) == 1 else tuple(ids)

    # ---------------------------------------------------------------- checking

    def _check_all(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...] | None:
        inputs: tuple[torch.Tensor, ...] | None = self._quick(args, kwargs)
        if inputs is None or (self._overlap is not None and self._overlap.found(inputs) is not None):
            return None
        if self._shapes is not None and not self._shapes.admits(inputs):
            return None
        for memory in self._shared:
            whole = memory.whole(inputs)
            if whole is None:
                return None
            inputs = (*inputs, whole)
        return inputs

    def _slow(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[torch.Tensor, ...] | None:
        """Walk the facts in Python. The generated code has checked the plain arguments."""
        if not self._state.check():
            return None
        slots = self._new_slots(args, kwargs)
        if self._suspect is not None and not self._holds_alone(self._suspect, slots):
            return None
        if walk(self._split.plain, slots) is not None:
            return None
        key = self._key(slots)
        binding = self._bindings.get(key)
        if binding is not None and binding.renew_versions():
            again: tuple[torch.Tensor, ...] | None = self._quick(args, kwargs)
            return again
        self._suspect = walk(self._split.rest, slots)
        if self._suspect is not None or not self._are_distinct(slots):
            return None
        if self._binder is not None:
            self._bind(key, slots)
        return tuple([slots[slot] for slot in self._inputs])

    def _are_distinct(self, slots: Sequence[Any]) -> bool:
        """Whether what were several objects still are (one object met twice is a fact: SameAs)."""
        return len({id(slots[slot]) for slot in self._distinct}) == len(self._distinct)

    def _bind(self, key: Any, slots: Sequence[Any]) -> None:
        """Make a table, unless these objects are met for the first time (they may never come again)."""
        assert self._binder is not None
        if key not in self._sighted:
            if len(self._sighted) >= TABLE_LIMIT:
                self._sighted.clear()
            self._sighted[key] = None
            return
        self._tables.pop(key, None)
        self._bindings.pop(key, None)
        self._taken.pop(key, None)
        if len(self._tables) >= TABLE_LIMIT:
            oldest = next(iter(self._tables))
            del self._tables[oldest], self._bindings[oldest], self._taken[oldest]
        binding = self._binder.bind(
            slots, self._metadata, len(self._inputs), self._argument_positions, self._bound_positions
        )
        self._bindings[key] = binding
        fixed = set(self._distinct).difference(self._split.moving, self._split.structure, self._split.tensors)
        self._taken[key] = frozenset([id(slots[slot]) for slot in fixed])
        self._tables[key] = binding.table

    def _residual_holds(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the facts that the native loop leaves out hold."""
        slots = self._new_slots(args, kwargs)
        return all(self._holds_alone(fact, slots) for fact in self._residual.values())

    def _holds_alone(self, fact: Fact, slots: list[Any]) -> bool:
        """Whether one fact holds, walking only to what it speaks of (the one that failed last often fails again)."""
        if not self._reach(fact.parent, slots):
            return False
        if isinstance(fact.expectation, SameAs) and not self._reach(fact.expectation.slot, slots):
            return False
        return holds(fact.expectation, fact.step.get(slots[fact.parent]), slots)

    def _reach(self, slot: int, slots: list[Any]) -> bool:
        """Fill `slot` by walking from its root; False when the way there is not as it was."""
        definer = self._definers.get(slot)
        if definer is None:
            return True
        if not self._reach(definer.parent, slots):
            return False
        value = definer.step.get(slots[definer.parent])
        slots[slot] = value
        return isinstance(definer.expectation, SameAs) or holds(definer.expectation, value, slots)

    # ---------------------------------------------------------------- explaining

    def why_not(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
        """The text of `what_changed`."""
        change = self.what_changed(args, kwargs)
        return None if change is None else change.text

    def what_changed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Change | None:
        """The first thing that fails, as `path: was this, now that`; None when the check would pass. Slow."""
        state = self._state.why_not()
        if state is not None:
            return Change("torch", state)
        slots = self._new_slots(args, kwargs)
        failed = walk(self._split.plain, slots) or walk(self._split.rest, slots)
        if failed is not None:
            found = failed.step.get(slots[failed.parent])
            was, now = str(failed.expectation).removeprefix("is "), _describe(failed, found, slots)
            text = f"{failed.path}: was {was}, now {now}"
            return Change(_kind(failed.expectation, found), text, str(failed.path), was, now, failed.source)
        tensors = [slots[slot] for slot in self._split.tensors]
        if len(set(map(id, tensors))) != len(tensors):
            return Change("object", "two arguments are now the same tensor")
        if not self._are_distinct(slots):
            return Change("object", "what were two objects is now one")
        if not self._tensors_match(*tensors):
            return Change("object", "requires_grad of an argument tensor changed")
        if self._overlap is not None:
            pair = self._overlap.found([slots[slot] for slot in self._inputs])
            if pair is not None:
                paths = [self._definers[self._inputs[position]].path for position in pair]
                return Change("object", f"{paths[0]}, which is written, shares memory with {paths[1]}")
        inputs = [slots[slot] for slot in self._inputs]
        if any(memory.whole(inputs) is None for memory in self._shared):
            return Change("object", "inputs that shared memory lie otherwise")
        sizes = None if self._shapes is None else self._shapes.why_not(inputs)
        return None if sizes is None else Change("sizes", sizes)

    def changed_numbers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[Path]:
        """Where there was an int or a float, and is another one of its type now; as far as the facts can be walked."""
        slots = self._new_slots(args, kwargs)
        found: set[Path] = set()
        for fact in self._facts:
            value = fact.step.get(slots[fact.parent])
            if not holds(fact.expectation, value, slots):
                if type(fact.expectation) is Constant and type(value) in (int, float):
                    if type(value) is type(fact.expectation.value):
                        found.add(fact.path)
                elif not (isinstance(fact.expectation, TensorOf) and isinstance(value, torch.Tensor)):
                    break
            if fact.slot >= 0:
                slots[fact.slot] = value
        return frozenset(found)

    def describe(self) -> list[GuardLine]:
        """Everything that must hold, one line for each fact (lengths and keys of containers included)."""
        lines = [GuardLine(str(f.path), str(f.expectation), f.source, str(f.path.owner)) for f in self._facts]
        if self._overlap is not None:
            for position in sorted(self._overlap.written):
                path = str(self._definers[self._inputs[position]].path)
                lines.append(GuardLine(path, "shares no memory with other inputs, because it is written"))
        if self._shapes is not None:
            for number, (position, dim) in enumerate(self._shapes.sources):
                path = str(self._definers[self._inputs[position]].path)
                lines.append(GuardLine(f"s{number} = {path}.shape[{dim}]", "is open"))
            lines += [GuardLine("sizes:", condition) for condition in self._shapes.describe()]
        return lines


def _never(table: object, *tensors: object) -> int:
    """Stands in for the native loop where there is none: no table passes."""
    return 0


def _plain_tensor(expected: TensorOf, tensor: object) -> bool:
    """Whether torch's own tensor guard can check this tensor."""
    return expected.layout is torch.strided and expected.matches(tensor)


def _kind(expectation: Expectation, now: object) -> ChangeKind:
    if isinstance(expectation, TensorOf) and isinstance(now, torch.Tensor):
        found = TensorOf.of(now, expectation.requires_grad is not None)
        resized = len(found.shape) == len(expectation.shape) and found.shape != expectation.shape
        return "sizes" if resized else "object"
    return "value" if isinstance(expectation, Constant | Missing | ArrayOf) else "object"


def _describe(fact: Fact, now: object, slots: Sequence[Any]) -> str:
    if isinstance(fact.expectation, TensorOf) and isinstance(now, torch.Tensor):
        return str(TensorOf.of(now, fact.expectation.requires_grad is not None)).removeprefix("is ")
    if isinstance(fact.expectation, SameAs):
        return "another object"
    if isinstance(fact.expectation, Constant | Missing) or type(now).__name__ != "function":
        return shorten(now)
    return f"another {type(now).__qualname__}"
