"""What code does with a value that it loads, as far as its bytecode proves it.

`self.calls += 1`, `stats["n"] += 1`, `history.append(x)` and `names.add(x)` read a number or a container only to add to
it: what the call does otherwise cannot depend on what was there. `table[key]`, `table.get(key)` and `key in table` ask
for one entry. Everything else is `Use.ANY`.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

from dsjit.trace.reads.code_key import CodeKey

__all__ = ["Load", "Use", "attribute_load", "attribute_loads", "may_add", "name_loads", "stores_name"]


class Use(Enum):
    """x is what was loaded."""

    ANY = 0
    ADD = 1
    """`x += amount`, `x = x + amount` or the same with a minus: the sum is stored where x came from."""

    APPEND = 2
    """`x.append(element)`."""

    PUT = 3
    """`x[key] = value`."""

    ADD_ITEM = 4
    """`x[key] += amount` or `x[key] -= amount`."""

    STORE = 5
    """The variable is stored, not loaded."""

    ITEM = 6
    """`x[key]`, `x.get(key)`, `x.get(key, default)` or `key in x`: one entry decides."""

    ADD_ELEMENT = 7
    """`x.add(key)`."""


@dataclass(frozen=True, slots=True)
class Load:
    """One place that loads a value.

    key: of PUT, ADD_ITEM, ITEM and ADD_ELEMENT, amount: of ADD; each as ("constant", value), ("local", name) or None
        when it is neither.
    subtract: the amount is subtracted. in_place: by `+=` or `-=`. store: offset of the instruction that stores the sum.
    """

    use: Use
    key: tuple[str, Any] | None = None
    amount: tuple[str, Any] | None = None
    subtract: bool = False
    in_place: bool = False
    store: int = -1


ANY: Final = Load(Use.ANY)

_GLOBAL_LOADS: Final = frozenset({"LOAD_GLOBAL"})
_CELL_OPS: Final = frozenset({"LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF"})
_VARIABLE_STORES: Final = frozenset({dis.opmap["STORE_GLOBAL"], dis.opmap["STORE_DEREF"]})
_STORE_ATTR: Final = dis.opmap["STORE_ATTR"]
_OF_ITEMS: Final = frozenset({dis.opmap["STORE_SUBSCR"], dis.opmap["BINARY_SUBSCR"], dis.opmap["CONTAINS_OP"]})
_STORE_OF: Final = {"LOAD_ATTR": "STORE_ATTR", "LOAD_GLOBAL": "STORE_GLOBAL", "LOAD_DEREF": "STORE_DEREF"}
_JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_SUMS: Final = frozenset({"+", "+=", "-", "-="})

_PUSHES: Final = frozenset({"LOAD_GLOBAL", "LOAD_DEREF", "LOAD_CLOSURE", "PUSH_NULL"})
_IDLE: Final = frozenset({"NOP", "PRECALL", "KW_NAMES"})
_TAKES: Final = {
    "LOAD_ATTR": 1, "BINARY_OP": 2, "BINARY_SUBSCR": 2, "COMPARE_OP": 2, "IS_OP": 2, "CONTAINS_OP": 2,
    "UNARY_NOT": 1, "UNARY_NEGATIVE": 1, "UNARY_INVERT": 1, "UNARY_POSITIVE": 1, "GET_ITER": 1,
}  # fmt: skip
"""How many values an instruction takes from the stack; it leaves one."""

_TAKES_COUNTED: Final = frozenset({"BUILD_TUPLE", "BUILD_LIST", "BUILD_SET", "BUILD_STRING", "BUILD_SLICE"})
_METHODS: Final = frozenset({"append", "add", "get"})
_DEPTH: Final = 8
"""Values below the one that was loaded that are followed."""


class _Tag(Enum):
    """What lies on the stack, as far as it stems from the value that was loaded (x)."""

    OTHER = 0
    X = 1
    SUM = 2
    ITEM = 3
    ITEM_SUM = 4
    METHOD = 5


@dataclass(frozen=True, slots=True)
class _Entry:
    """One place of the stack. operand: of a constant or a local variable. sum, amount: of a sum, its operator first."""

    tag: _Tag = _Tag.OTHER
    operand: tuple[str, Any] | None = None
    sum: str = ""
    amount: tuple[str, Any] | None = None


_OTHER: Final = _Entry()


class _Code:
    """The instructions of a code object, and the number of the one that covers each offset."""

    def __init__(self, code: types.CodeType) -> None:
        self.code = code
        self.instructions = [i for i in dis.get_instructions(code) if i.opname != "EXTENDED_ARG"]
        self.number = {i.offset: n for n, i in enumerate(self.instructions)}
        self._loads: dict[int, Load] = {}

    def at(self, offset: int) -> int:
        """The number of the instruction that is running when a frame's `f_lasti` is `offset` (its cache included)."""
        while offset >= 0 and offset not in self.number:
            offset -= 2
        return self.number.get(offset, 0)

    def load(self, number: int) -> Load:
        """What is done with what instruction `number` loads, if the way to it is straight."""
        if number not in self._loads:
            found = self._follow(number, entries=False)
            self._loads[number] = found if found.use is not Use.ANY else self._follow(number, entries=True)
        return self._loads[number]

    def _follow(self, number: int, entries: bool) -> Load:
        """The instructions are followed on a stack of which is only known what stems from the loaded value, and what
        lies below it. entries: where one entry is asked for, that is the use, whatever becomes of it."""
        loaded = self.instructions[number]
        below = _Entry(operand=self._operand_before(number))
        stack = [_OTHER] * (_DEPTH - 1) + [below, _Entry(_Tag.X)]
        for position in range(number + 1, len(self.instructions)):
            instruction = self.instructions[position]
            if instruction.is_jump_target or instruction.opcode in _JUMPS:
                return ANY
            found = self._asks(position, instruction, stack) if entries else None
            found = found or self._step(position, instruction, loaded, stack)
            if found is not None:
                return found if all(entry.tag is _Tag.OTHER for entry in stack) else ANY
            if len(stack) < 4:
                return ANY
        return ANY

    def _operand_before(self, number: int) -> tuple[str, Any] | None:
        """The constant or local variable that lies on the stack when instruction `number`, with the attributes and the
        variable before it, begins to load."""
        while number > 0 and self.instructions[number].opname == "LOAD_ATTR":
            number -= 1
        first, before = self.instructions[number], self.instructions[number - 1]
        straight = number > 0 and not any(each.is_jump_target for each in (first, before))
        return _operand(before) if straight and first.opname in (*_PUSHES, "LOAD_FAST") else None

    def _asks(self, position: int, instruction: dis.Instruction, stack: list[_Entry]) -> Load | None:
        """Whether one entry of the loaded value is asked for, of which the key is known."""
        name, count = instruction.opname, instruction.arg or 0
        if name == "CONTAINS_OP" and stack[-1].tag is _Tag.X and stack[-2].operand is not None:
            key = stack[-2].operand
            del stack[-2:]
            return Load(Use.ITEM, key)
        if name == "BINARY_SUBSCR" and stack[-2].tag is _Tag.X and stack[-1].operand is not None:
            key = stack[-1].operand
            del stack[-2:]
            return Load(Use.ITEM, key)
        if name == "CALL" and 1 <= count <= 2 and stack[-count - 2].tag is _Tag.METHOD:
            method, first = stack[-count - 2].operand, stack[-count].operand
            plain = "KW_NAMES" not in [self.instructions[position - back].opname for back in (1, 2)]
            rest = {entry.tag for entry in stack[-count:]}
            if method == ("method", "get") and first is not None and plain and rest == {_Tag.OTHER}:
                del stack[-count - 2 :]
                return Load(Use.ITEM, first)
        return None

    def _step(
        self, position: int, instruction: dis.Instruction, loaded: dis.Instruction, stack: list[_Entry]
    ) -> Load | None:
        """Follow one instruction: what the loaded value turns out to be used for, or None when that is still open."""
        name, argument = instruction.opname, instruction.arg or 0
        if name in _IDLE:
            return None
        if name in ("LOAD_CONST", "LOAD_FAST"):
            stack.append(_Entry(operand=_operand(instruction)))
            return None
        if name in _PUSHES:
            stack += [_OTHER] * dis.stack_effect(instruction.opcode, instruction.arg)
            return None
        if name in ("SWAP", "COPY"):
            if argument > len(stack):
                return ANY
            if name == "SWAP":
                stack[-1], stack[-argument] = stack[-argument], stack[-1]
            else:
                stack.append(stack[-argument])
            return None
        if _is_method_load(instruction):
            owner = stack.pop()
            if owner.tag is not _Tag.OTHER and (owner.tag is not _Tag.X or instruction.argval not in _METHODS):
                return ANY
            method = _Entry(_Tag.METHOD, ("method", instruction.argval))
            stack += [_OTHER if owner.tag is _Tag.OTHER else method] * 2
            return None
        if name == "CALL":
            return self._call(position, argument, stack)
        if name == "BINARY_OP":
            return _binary(instruction, stack)
        if name == "BINARY_SUBSCR":
            return _item(stack)
        if name in ("STORE_GLOBAL", "STORE_DEREF", "STORE_ATTR", "STORE_SUBSCR", "STORE_FAST", "POP_TOP"):
            return _store(instruction, loaded, stack)
        taken = _taken(name, argument)
        if taken is None or taken > len(stack) or any(_pop(stack, taken)):
            return ANY
        stack.append(_OTHER)
        return None

    def _call(self, position: int, count: int, stack: list[_Entry]) -> Load | None:
        if count + 2 > len(stack):
            return ANY
        called, tags = stack[-count - 2], {entry.tag for entry in stack[len(stack) - count - 2 :]}
        key = stack[-1].operand
        del stack[len(stack) - count - 2 :]
        stack.append(_OTHER)
        if tags == {_Tag.OTHER}:
            return None
        before = [self.instructions[position - back].opname for back in (1, 2)]
        plain = count == 1 and "KW_NAMES" not in before
        if not plain or tags != {_Tag.OTHER, _Tag.METHOD}:
            return ANY
        if called.operand == ("method", "add"):
            return ANY if key is None else Load(Use.ADD_ELEMENT, key)
        return Load(Use.APPEND) if called.operand == ("method", "append") else ANY


def _operand(instruction: dis.Instruction) -> tuple[str, Any] | None:
    """The constant or the local variable that an instruction loads."""
    if instruction.opname == "LOAD_CONST":
        return "constant", instruction.argval
    return ("local", instruction.argval) if instruction.opname == "LOAD_FAST" else None


def _taken(name: str, argument: int) -> int | None:
    """How many values an instruction takes that leaves one; None when that is not known."""
    if name in _TAKES_COUNTED:
        return argument
    if name == "MAKE_FUNCTION":
        return 1 + argument.bit_count()
    if name == "FORMAT_VALUE":
        return 2 if argument & 4 else 1
    return _TAKES.get(name)


def _pop(stack: list[_Entry], count: int) -> list[bool]:
    """Take values off the stack: which of them stem from the loaded one."""
    taken = stack[len(stack) - count :]
    del stack[len(stack) - count :]
    return [entry.tag is not _Tag.OTHER for entry in taken]


def _binary(instruction: dis.Instruction, stack: list[_Entry]) -> Load | None:
    right, left = stack.pop(), stack.pop()
    if right.tag is not _Tag.OTHER:
        return ANY
    if left.tag is _Tag.OTHER:
        stack.append(_OTHER)
        return None
    if left.tag not in (_Tag.X, _Tag.ITEM) or instruction.argrepr not in _SUMS:
        return ANY
    tag = _Tag.SUM if left.tag is _Tag.X else _Tag.ITEM_SUM
    stack.append(_Entry(tag, left.operand, instruction.argrepr, right.operand))
    return None


def _item(stack: list[_Entry]) -> Load | None:
    key, owner = stack.pop(), stack.pop()
    if key.tag is not _Tag.OTHER or owner.tag not in (_Tag.OTHER, _Tag.X):
        return ANY
    if owner.tag is _Tag.X and key.operand is None:
        return ANY
    stack.append(_OTHER if owner.tag is _Tag.OTHER else _Entry(_Tag.ITEM, key.operand))
    return None


def _store(instruction: dis.Instruction, loaded: dis.Instruction, stack: list[_Entry]) -> Load | None:
    if instruction.opname == "STORE_SUBSCR":
        key, owner, value = stack.pop(), stack.pop(), stack.pop()
        if {key.tag, owner.tag, value.tag} == {_Tag.OTHER}:
            return None
        if key.tag is not _Tag.OTHER or owner.tag is not _Tag.X or key.operand is None:
            return ANY
        if value.tag is _Tag.ITEM_SUM and value.operand == key.operand:
            return Load(Use.ADD_ITEM, key.operand)
        return Load(Use.PUT, key.operand) if value.tag is _Tag.OTHER else ANY
    if instruction.opname == "STORE_ATTR" and stack.pop().tag is not _Tag.OTHER:
        return ANY
    value = stack.pop()
    if value.tag is _Tag.OTHER:
        return None
    same = instruction.opname == _STORE_OF.get(loaded.opname) and instruction.argval == loaded.argval
    if value.tag is not _Tag.SUM or not same:
        return ANY
    return Load(Use.ADD, None, value.amount, "-" in value.sum, "=" in value.sum, instruction.offset)


def _is_method_load(instruction: dis.Instruction) -> bool:
    if sys.version_info >= (3, 12):
        return instruction.opname == "LOAD_ATTR" and bool((instruction.arg or 0) & 1)
    return instruction.opname == "LOAD_METHOD"


@functools.lru_cache(maxsize=1024)
def _code(code: CodeKey) -> _Code:
    return _Code(code.code)


def attribute_load(code: types.CodeType, offset: int, name: str) -> Load:
    """What `code` does with the attribute `name` that it is reading at `offset` (a frame's `f_lasti`)."""
    view = _code(CodeKey(code))
    number = view.at(offset)
    instruction = view.instructions[number]
    if instruction.opname != "LOAD_ATTR" or instruction.argval != name or _is_method_load(instruction):
        return ANY
    return view.load(number)


def name_loads(code: types.CodeType, name: str, *, cell: bool) -> tuple[Load, ...] | None:
    """What `code` (and with `cell`, what the functions defined in it) does with a global or a closure variable,
    at each place that loads it; empty when it only stores it, None when it is used in other ways, too."""
    found: list[Load] = []
    if not _collect(code, name, cell, found):
        return None
    sums = sum(load.use is Use.ADD for load in found)
    stores = sum(load.use is Use.STORE for load in found)
    loads = tuple([load for load in found if load.use is not Use.STORE])
    return None if loads and stores != sums else loads


def attribute_loads(code: types.CodeType, name: str) -> tuple[Load, ...]:
    """What `code` does with attributes of this name, at each place that loads one; not where it calls one."""
    view = _code(CodeKey(code))
    found: list[Load] = []
    for number, instruction in enumerate(view.instructions):
        if instruction.opname == "LOAD_SUPER_ATTR" and instruction.argval == name:
            found.append(ANY)
        elif instruction.opname == "LOAD_ATTR" and instruction.argval == name and not _is_method_load(instruction):
            found.append(view.load(number))
    return tuple(found)


def _collect(code: types.CodeType, name: str, cell: bool, found: list[Load]) -> bool:
    """Append the loads and stores of a variable to `found`; False when something else is done with it."""
    view = _code(CodeKey(code))
    for number, instruction in enumerate(view.instructions):
        operation = instruction.opname
        if instruction.argval != name or instruction.opcode in dis.hasconst:
            continue
        if "DELETE" in operation or ("NAME" in operation and not cell):
            return False  # code of a class or of a module looks names up in several places
        if operation in (_CELL_OPS if cell else _GLOBAL_LOADS):
            found.append(view.load(number))
        elif operation == ("STORE_DEREF" if cell else "STORE_GLOBAL"):
            found.append(Load(Use.STORE))
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType) and name in each.co_freevars]
    return not cell or all(_collect(each, name, cell, found) for each in inner)


def stores_name(code: types.CodeType, name: str) -> bool:
    """Whether `code`, or a function defined in it, may store a global or a closure variable of this name."""
    return name in _stored(CodeKey(code))


def may_add(code: types.CodeType, name: str) -> bool:
    """A quick look whether `code` may put something into an attribute's value, add to it or ask for an entry."""
    marks = _marks(CodeKey(code))
    return name in marks.attributes or marks.items or not _METHODS.isdisjoint(code.co_names)


@functools.lru_cache(maxsize=4096)
def _stored(code: CodeKey) -> frozenset[str]:
    found = set(_marks(code).variables)
    for constant in code.code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _stored(CodeKey(constant))
    return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Marks:
    """Names of the attributes and of the variables that code stores, and whether it stores items, or asks for some."""

    attributes: frozenset[str]
    variables: frozenset[str]
    items: bool


@functools.lru_cache(maxsize=4096)
def _marks(by_id: CodeKey) -> _Marks:
    code, raw = by_id.code, by_id.code.co_code
    present = set(raw[::2])
    attributes: set[str] = set()
    if _STORE_ATTR in present:
        extended = 0
        for position in range(0, len(raw), 2):
            argument = raw[position + 1] | extended
            extended = argument << 8 if raw[position] == dis.EXTENDED_ARG else 0
            if raw[position] == _STORE_ATTR:
                attributes.add(code.co_names[argument])
    variables: set[str] = set()
    if not _VARIABLE_STORES.isdisjoint(present):
        variables = {i.argval for i in _code(by_id).instructions if i.opcode in _VARIABLE_STORES}
    return _Marks(frozenset(attributes), frozenset(variables), not _OF_ITEMS.isdisjoint(present))
