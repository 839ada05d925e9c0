"""Generates the flat Python that checks the arguments of one call: the first, cheapest part of a guard.

    def check(args, kwargs):
        if len(args) != 2: return None
        x1 = args[0]
        ...
        if not tensors(x1, x2): return None
        table = tables.get(id(x3))
        if table is None: return slow(args, kwargs)
        inputs = verify(table, x1, x2)
        if type(inputs) is not tuple: return slow(args, kwargs)
        return inputs if not residual or residual_holds(args, kwargs) else None

Arguments of plain structure (tuples, lists, dictionaries, named tuples, dataclasses) are taken apart here, since
callers build them anew for each call. Other objects (modules, user objects, functions) live long: they are looked up
by identity in `tables`, and what was read from them is checked by the native loop, and so is torch's global state.

What does not stay the same object from call to call, since each call writes it, is fetched and checked here, too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from dsjit.trace.reads.facts import (
    ARGS_SLOT,
    KWARGS_SLOT,
    Constant,
    Fact,
    FunctionOf,
    Identical,
    Missing,
    NumberOf,
    OfType,
    OpenNumber,
    Present,
    SameAs,
    TensorOf,
    has_identity,
)
from dsjit.trace.reads.paths import Index, Item, Keys, Length

__all__ = ["ArgumentFacts", "argument_check", "split_facts"]

_PLAIN = (tuple, list, dict)


@dataclass(frozen=True, slots=True)
class ArgumentFacts:
    """How the facts divide.

    plain: checked by the generated code, in order. rest: everything else, in order.
    structure: slots that the generated code takes apart. tensors: slots of tensors found in it.
    keys: slots of the objects by which a table is found. moving: slots of objects that may be others on each call.
    """

    plain: tuple[Fact, ...]
    rest: tuple[Fact, ...]
    structure: frozenset[int]
    tensors: tuple[int, ...]
    keys: tuple[int, ...]
    moving: tuple[int, ...] = ()


def split_facts(
    facts: Sequence[Fact], roots: tuple[int, ...], fixed: frozenset[int], changing: frozenset[int] = frozenset()
) -> ArgumentFacts:
    """Divide the facts of a guard.

    roots: slots of `args` and `kwargs`. fixed: slots whose object the guard itself holds. changing: positions of the
    facts about what each call changes, and about what is reached through that.
    """
    on_the_way = _on_the_way(facts, changing)
    demoted: set[int] = set()
    while True:
        structure = set(roots)
        tensors: list[int] = []
        keys: dict[int, None] = {}
        plain: list[Fact] = []
        rest: list[Fact] = []
        available = set(roots) | fixed
        again = False
        for position, fact in enumerate(facts):
            if fact.parent not in structure and position not in changing:
                rest.append(fact)
                if fact.slot in on_the_way:
                    plain.append(fact)
                continue
            expectation = fact.expectation
            if isinstance(expectation, SameAs) and expectation.slot not in available and position not in changing:
                # The other object is only reached through the tables: this object's facts go there as well.
                demoted.add(fact.parent)
                again = True
                break
            plain.append(fact)
            if fact.slot < 0:
                continue
            available.add(fact.slot)
            if isinstance(expectation, TensorOf):
                tensors.append(fact.slot)
            elif position in changing:
                continue
            elif isinstance(expectation, OfType) and _takes_apart(expectation.type) and fact.slot not in demoted:
                structure.add(fact.slot)
            else:
                keys[fact.slot] = None
        if not again:
            break
    for fact in rest:
        # An argument that a table's row reads from, or compares with, has to be the one that the table was made for.
        for slot in (fact.parent, fact.expectation.slot if isinstance(fact.expectation, SameAs) else -1):
            if slot in available and slot not in fixed and slot not in roots:
                keys[slot] = None
    moving = [f.slot for n, f in enumerate(facts) if n in changing and f.slot >= 0 and has_identity(f.expectation)]
    return ArgumentFacts(tuple(plain), tuple(rest), frozenset(structure), tuple(tensors), tuple(keys), tuple(moving))


def _on_the_way(facts: Sequence[Fact], changing: frozenset[int]) -> set[int]:
    """The slots through which the changing facts are reached, and those that they compare with."""
    definers = {fact.slot: fact for fact in facts if fact.slot >= 0}
    found: set[int] = set()
    for position in changing:
        expectation = facts[position].expectation
        wanted = [facts[position].parent, *([expectation.slot] if isinstance(expectation, SameAs) else [])]
        while wanted:
            slot = wanted.pop()
            if slot in definers and slot not in found:
                found.add(slot)
                wanted.append(definers[slot].parent)
    return found


def _takes_apart(cls: type) -> bool:
    return issubclass(cls, tuple | list | dict) or (
        dataclasses.is_dataclass(cls) and cls.__getattribute__ is object.__getattribute__
    )


def argument_check(
    split: ArgumentFacts,
    names: dict[int, str],
    input_slots: Sequence[int],
    namespace: dict[str, Any],
) -> tuple[str, Callable[[tuple[Any, ...], dict[str, Any]], Any]]:
    """The source of `check(args, kwargs)`, and the function.

    names: of the slots that exist before (`args`, `kwargs`, and what `namespace` holds).
    input_slots: of the argument tensors to hand to `verify`, in order.
    namespace: must hold `tensors`, `tables`, `taken` (for each table, ids of the objects that it was made for),
        `verify`, `slow`, `residual` and `residual_holds`.
    """
    lines = ["def check(args, kwargs):"]
    names = dict(names)
    types: dict[int, type] = {ARGS_SLOT: tuple, KWARGS_SLOT: dict}
    for number, fact in enumerate(split.plain):
        parent = names[fact.parent]
        found = f"x{number}"
        if isinstance(fact.step, Keys) and fact.expectation == Constant(()) and types.get(fact.parent) is dict:
            lines.append(f"    if {parent}: return None")
            continue
        kind = types.get(fact.parent) if fact.parent in split.structure else None
        lines.append(f"    {found} = {_read(fact, parent, kind, number, namespace)}")
        condition = _mismatch(fact, found, number, names, namespace)
        if condition:
            lines.append(f"    if {condition}: return None")
        if fact.slot >= 0:
            names[fact.slot] = found
            if isinstance(fact.expectation, OfType):
                types[fact.slot] = fact.expectation.type
    apart = [names[f.slot] for f in split.plain if f.slot in split.structure and has_identity(f.expectation)]
    if len(apart) > 1:
        lines.append(f"    if len({{{', '.join(f'id({name})' for name in apart)}}}) != {len(apart)}: return None")
    if split.tensors:
        lines.append(f"    if not tensors({', '.join(names[slot] for slot in split.tensors)}): return None")
    ids = [f"id({names[slot]})" for slot in split.keys]
    key = "None" if not ids else ids[0] if len(ids) == 1 else f"({', '.join(ids)})"
    handed = "".join(f", {names[slot]}" for slot in input_slots)
    lines += [
        f"    table = tables.get({key})",
        "    if table is None: return slow(args, kwargs)",
        *_moved(split, names, apart, key),
        f"    inputs = verify(table{handed})",
        "    if type(inputs) is not tuple: return slow(args, kwargs)",
        "    return inputs if not residual or residual_holds(args, kwargs) else None",
    ]
    source = "\n".join(lines) + "\n"
    exec(compile(source, "<dsjit argument check>", "exec"), namespace)
    function: Callable[[tuple[Any, ...], dict[str, Any]], Any] = namespace["check"]
    return source, function


def _moved(split: ArgumentFacts, names: dict[int, str], apart: Sequence[str], key: str) -> list[str]:
    """Lines that ask for the slow check when an object which may be another one on each call seems to be one that was
    told from it (which may be gone, and the other at its address)."""
    if not split.moving:
        return []
    moving = [names[slot] for slot in split.moving]
    ids = ", ".join(f"id({name})" for name in dict.fromkeys([*moving, *apart]))
    count = len(dict.fromkeys([*moving, *apart]))
    return [
        f"    moved = {{{ids}}}",
        f"    if len(moved) != {count}: return None",
        f"    if not taken[{key}].isdisjoint(moved): return slow(args, kwargs)",
    ]


def _read(fact: Fact, parent: str, kind: type | None, number: int, namespace: dict[str, Any]) -> str:
    step = fact.step
    if kind in _PLAIN:
        if isinstance(step, Index):
            return f"{parent}[{step.index}]"
        if isinstance(step, Length):
            return f"len({parent})"
        if isinstance(step, Keys):
            return f"tuple({parent})"
        free = isinstance(fact.expectation, NumberOf | OpenNumber | Present)
        if isinstance(step, Item) and type(step.key) is str and not free:
            return f"{parent}[{step.key!r}]"
    namespace[f"get{number}"] = step.get
    return f"get{number}({parent})"


def _mismatch(fact: Fact, found: str, number: int, names: dict[int, str], namespace: dict[str, Any]) -> str:
    """A Python condition that is true when the fact does not hold; empty when nothing is left to check."""
    expectation = fact.expectation
    if isinstance(expectation, TensorOf):
        return ""
    if isinstance(expectation, SameAs):
        return f"{found} is not {names[expectation.slot]}"
    if isinstance(expectation, OfType):
        namespace[f"type{number}"] = expectation.type
        return f"type({found}) is not type{number}"
    if isinstance(expectation, Identical):
        namespace[f"same{number}"] = expectation.value
        return f"{found} is not same{number}"
    if isinstance(expectation, Constant):
        value = expectation.value
        if value is None or isinstance(value, bool):
            return f"{found} is not {value}"
        if isinstance(fact.step, Length):
            return f"{found} != {value}"
        if isinstance(fact.step, Keys) and all(type(key) is str for key in value):
            return f"{found} != {value!r}"
        if type(value) is int or type(value) is str:
            return f"type({found}) is not {type(value).__name__} or {found} != {value!r}"
    assert isinstance(expectation, Constant | FunctionOf | Missing) or hasattr(expectation, "matches")
    namespace[f"match{number}"] = expectation.matches
    return f"not match{number}({found})"
