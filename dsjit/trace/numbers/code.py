"""What the instructions of a code object can do to a traced number unnoticed (see `trace.numbers.leaks`).

Two kinds of harm are told apart. Code that *sees* the numbers it gets (`type(x)`, `"%f" % x`) is harmful while it
runs. Code that *makes or finds* objects that see numbers (complex numbers, classes by names made at run time) stays
harmful, as these objects may be kept.
"""

from __future__ import annotations

import dis
import functools
import sys
import types
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from dsjit.trace.reads.library import code_names
from dsjit.trace.reads.paths import ABSENT

__all__ = ["DYNAMIC", "Harm", "all_names", "imports", "instruction_harm", "owners_read_by_name"]


@dataclass(frozen=True, slots=True)
class Harm:
    """lasting: when the code has ended, too."""

    reason: str
    lasting: bool = True


DYNAMIC: Final = frozenset({"eval", "exec", "__import__", "vars", "globals", "locals", "compile"})
"""Built-in functions that reach anything by its name."""

_SEEING: Final = frozenset(
    {
        *(
            name
            for name in {**vars(float), **vars(int)}
            if name.startswith("__") and name not in ("__new__", "__doc__")
        ),
        *("__str__", "__reduce__", "__reduce_ex__", "hex", "is_integer", "as_integer_ratio"),
        *("bit_length", "bit_count", "to_bytes"),
    }
)
"""Methods of float and int, which see a number when they are called by its type."""

_REVEALING: Final = frozenset({"__globals__", "__builtins__", "__subclasses__"})
"""Ways to any object."""

_IGNORED: Final = frozenset({"CACHE", "PRECALL", "NOP", "EXTENDED_ARG", "COPY_FREE_VARS", "PUSH_NULL"})
_LOADS_GLOBAL: Final = frozenset({"LOAD_GLOBAL", "LOAD_NAME"})
_SIMPLE_LOADS: Final = frozenset({"LOAD_CONST", "LOAD_FAST", "LOAD_DEREF", "LOAD_GLOBAL", "LOAD_FAST_CHECK"})
_ATTRIBUTES: Final = frozenset({"LOAD_ATTR", "LOAD_METHOD"})


@functools.lru_cache(maxsize=8192)
def instruction_harm(code: types.CodeType) -> Harm | None:
    """The worst harm that the instructions of `code` do by themselves."""
    seeing: Harm | None = None
    for harm in _harms(code):
        if harm.lasting or code.co_flags & _SUSPENDABLE:
            return Harm(harm.reason)
        seeing = harm
    return seeing


_SUSPENDABLE: Final = 0x20 | 0x80 | 0x100 | 0x200
"""Flags of generators and coroutines: they may go on after they have returned."""


def all_names(code: types.CodeType) -> frozenset[str]:
    """The names in `code`, with those that `getattr` may be given."""
    names = code_names(code)
    if "getattr" not in names:
        return names
    return names | {const for const in code.co_consts if isinstance(const, str)}


def imports(code: types.CodeType, package: str) -> list[types.ModuleType]:
    """The modules that `code` in `package` imports, as far as they are loaded."""
    if "IMPORT_NAME" not in _opcodes(code):
        return []
    body = [each for each in dis.get_instructions(code) if each.opname not in _IGNORED]
    found = []
    for at, each in enumerate(body):
        if each.opname == "IMPORT_NAME":
            level = _constant(body[at - 2])
            parents = package.split(".")
            base = parents[: len(parents) + 1 - level] if isinstance(level, int) and level else []
            found.append(sys.modules.get(".".join([*base, each.argval] if each.argval else base)))
    return [module for module in found if module is not None]


@functools.lru_cache(maxsize=8192)
def _opcodes(code: types.CodeType) -> frozenset[str]:
    return frozenset(each.opname for each in dis.get_instructions(code))


def _harms(code: types.CodeType) -> Iterator[Harm]:
    if any(_holds_complex(const) for const in code.co_consts):
        yield Harm("a complex constant")
    names = all_names(code)
    if code.co_name == "_find_and_load_unlocked" and code.co_filename.startswith("<frozen importlib"):
        yield Harm("an import")
    if "__dict__" in names and "__dict__" not in code_names(code):
        yield Harm("__dict__ by name")
    if names & _REVEALING:
        yield Harm(f"{min(names & _REVEALING)} by name")
    if names & _SEEING:
        # An attribute lookup of the user's own looks into its own object.
        own_lookup = names & _SEEING == {"__getattribute__"} and code.co_name in ("__getattribute__", "__getattr__")
        if not own_lookup:
            yield Harm(f"{min(names & _SEEING)} by name", lasting="__getattribute__" in names)
    body = [each for each in dis.get_instructions(code) if each.opname not in _IGNORED]
    for at, each in enumerate(body):
        if each.opname in _LOADS_GLOBAL:
            if each.argval == "type" and not _is_type_of_self(body, at):
                yield Harm("the type of an object", lasting=False)
            elif each.argval == "getattr" and _owner_of(body, at) is None and not _has_constant_name(body, at):
                yield Harm("an attribute by a name made at run time")
            elif each.argval in DYNAMIC:
                yield Harm(f"{each.argval}()")
        elif each.opname == "LOAD_BUILD_CLASS":
            yield Harm("a class made in the call")
        elif each.argval == "__dict__" and each.opname in _ATTRIBUTES and not _is_self(body[at - 1]):
            yield Harm("__dict__")
        elif each.opname == "BINARY_OP" and at >= 2:
            yield from _operator_harms(each.argrepr.rstrip("="), _left_operand(code, each.offset), body[at - 1])


def _holds_complex(const: object) -> bool:
    if isinstance(const, tuple | frozenset):
        return any(_holds_complex(item) for item in const)
    return isinstance(const, complex)


def _constant(instruction: dis.Instruction) -> object:
    return instruction.argval if instruction.opname == "LOAD_CONST" else ABSENT


def _left_operand(code: types.CodeType, offset: int) -> object:
    """The left operand of the binary operator at `offset` when it is a constant; else ABSENT."""
    before = [each for each in dis.get_instructions(code) if each.offset < offset and each.opname != "CACHE"]
    depth = 0
    while before:
        each = before.pop()
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs or each.is_jump_target:
            return ABSENT
        depth += dis.stack_effect(each.opcode, each.arg if each.opcode >= dis.HAVE_ARGUMENT else None)
        if depth == 1:  # the right operand begins here
            return _constant(before[-1]) if before else ABSENT
    return ABSENT


def _operator_harms(operator: str, left: object, last: dis.Instruction) -> Iterator[Harm]:
    """`%` formats when its left operand is a string; `**` of a negative number may be a complex one."""
    right = _constant(last)
    if operator == "%" and not (isinstance(right, int | float | str) or isinstance(left, int | float)):
        yield Harm("the operator %, which may be formatting", lasting=False)
    if operator == "**" and not (isinstance(right, int) or (isinstance(left, int | float) and left > 0)):
        yield Harm("the operator **, which may give a complex number")


def _is_self(instruction: dis.Instruction) -> bool:
    """No number, and no module, is called self."""
    return instruction.opname in ("LOAD_FAST", "LOAD_DEREF") and instruction.argval == "self"


def _is_type_of_self(body: Sequence[dis.Instruction], at: int) -> bool:
    rest = body[at + 1 : at + 3]
    return len(rest) == 2 and _is_self(rest[0]) and rest[1].opname == "CALL" and rest[1].arg == 1


@functools.lru_cache(maxsize=8192)
def owners_read_by_name(code: types.CodeType) -> tuple[tuple[str, ...], ...]:
    """What `getattr` reads by names made at run time: a local variable, and attributes from there."""
    body = [each for each in dis.get_instructions(code) if each.opname not in _IGNORED]
    found = [
        _owner_of(body, at)
        for at, each in enumerate(body)
        if each.opname in _LOADS_GLOBAL and each.argval == "getattr" and not _has_constant_name(body, at)
    ]
    return tuple([owner for owner in found if owner is not None])


def _owner_of(body: Sequence[dis.Instruction], at: int) -> tuple[str, ...] | None:
    """`getattr(self.config, name)`: ("self", "config")"""
    position = at + 1
    if position >= len(body) or body[position].opname not in ("LOAD_FAST", "LOAD_DEREF"):
        return None
    position += 1
    while position < len(body) and body[position].opname == "LOAD_ATTR":
        position += 1
    if position >= len(body) or body[position].opname not in _SIMPLE_LOADS:
        return None
    return tuple([each.argval for each in body[at + 1 : position]])


def _has_constant_name(body: Sequence[dis.Instruction], at: int) -> bool:
    """`getattr(something, "name", ...)`: the second argument is one constant."""
    depth = 0
    for position in range(at + 1, len(body)):
        each = body[position]
        if each.opcode in dis.hasjrel or each.opcode in dis.hasjabs:
            return False
        before = depth
        depth += dis.stack_effect(each.opcode, each.arg if each.opcode >= dis.HAVE_ARGUMENT else None)
        if depth == 2 and before == 1:
            following = body[position + 1].opname
            ends = following in ("CALL", "LOAD_CONST", "LOAD_FAST", "LOAD_GLOBAL", "KW_NAMES", "LOAD_DEREF")
            return isinstance(_constant(each), str) and ends
        if depth < 0 or (each.opname == "CALL" and depth < 1):
            return False
    return False
