"""Whether a string that code is making goes nowhere but to be told, as far as its bytecode proves it.

`print(f"loss {loss:.3f}")` joins the text of a number with others and prints it: nothing else can come to depend on it.
The instructions are followed from the one that makes the text, on a stack of which is only known which places hold
something made of it; so are the variables that it is stored in, and the parameters of Python functions that are called
with it. Whatever is not plain to see counts as another use.
"""

from __future__ import annotations

import builtins
import dis
import functools
import inspect
import itertools
import logging
import sys
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
import torch.overrides

from dsjit.trace.effects.stand_in import StandIn
from dsjit.trace.looks.frame_stack import can_reach_stacks, stack_entry
from dsjit.trace.looks.look_sites import running_offset, stack_heights
from dsjit.trace.reads.code_key import CodeKey
from dsjit.trace.reads.library import is_own_file
from dsjit.trace.reads.paths import ABSENT, instance_dict

__all__ = ["goes_to_be_told"]

_LOGGING: Final = ("debug", "info", "warning", "error", "critical")
_JUMPS: Final = frozenset(dis.hasjrel) | frozenset(dis.hasjabs)
_IDLE: Final = frozenset({"NOP", "PRECALL", "CACHE", "EXTENDED_ARG"})
_VARIABLES: Final = frozenset({"LOAD_FAST", "LOAD_FAST_CHECK"})
_SIMPLE: Final = _VARIABLES | {"LOAD_GLOBAL", "LOAD_DEREF"}
_PUSHES: Final = _SIMPLE | {"LOAD_CONST", "PUSH_NULL"}
_TAKES: Final = {
    "LOAD_ATTR": 1, "BINARY_OP": 2, "BINARY_SUBSCR": 2, "COMPARE_OP": 2, "IS_OP": 2, "CONTAINS_OP": 2,
    "UNARY_NOT": 1, "UNARY_NEGATIVE": 1, "UNARY_POSITIVE": 1,
}  # fmt: skip
"""How many values an instruction takes from the stack; it leaves one."""

_BUILDS: Final = frozenset({"BUILD_TUPLE", "BUILD_LIST", "BUILD_SET", "BUILD_SLICE"})
_DEPTH: Final = 3
"""Python functions that hand the text on."""


_Stack: TypeAlias = list[bool | None]
"""Whether each entry is, or holds, the text; None for a constant string."""


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where names of `code` are looked up. variables: the local ones; None when no frame runs the code yet."""

    code: types.CodeType
    names: Mapping[str, Any]
    variables: Mapping[str, Any] | None


def goes_to_be_told(method: str, is_telling: Callable[[Any], bool]) -> bool:
    """Whether the text of a number that is being made is only told, or dropped.

    method: of the number, which makes it. is_telling: knows the stand-ins of functions and of streams that tell.
    """
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None and (is_own_file(frame.f_code.co_filename) or frame.f_code in _ASKING):
        frame = frame.f_back
    if frame is None or not _is_plain(frame.f_code):
        return False
    view = _view(CodeKey(frame.f_code))
    at = view.number.get(running_offset(frame))
    if at is None or not _is_result(frame, view, at, method):
        return False
    variables = dict(frame.f_locals)
    frame.f_locals.clear()  # the frame itself would keep what they hold alive
    height = (view.after.get(view.instructions[at].offset) or 1) - 1
    below = [None if _is_string(frame, number) else False for number in range(height)]
    return _Follower(is_telling).follow(_Scope(frame.f_code, frame.f_globals, variables), at, 0, below)


def _is_string(frame: types.FrameType, height: int) -> bool:
    """Whether a string lies at this height of the stack of `frame`, which runs."""
    try:
        return can_reach_stacks() and type(stack_entry(frame, height)) is str
    except ValueError:  # nothing lies there, as before a call of what is no method
        return False


def _is_result(frame: types.FrameType, view: _View, at: int, method: str) -> bool:
    """Whether instruction number `at` leaves nothing on the stack but text in which that of the number is."""
    each = view.instructions[at]
    argument = each.arg or 0
    if each.opname == "FORMAT_VALUE":
        return not (argument & 3 and argument & 4)  # the text is not formatted again
    if each.opname != "CALL":
        return False
    height = view.after.get(each.offset)
    start = None if height is None else view.callee(at, height - 1)
    if start is None:
        return False
    loads = [load for load in view.instructions[start:at] if load.opname != "PUSH_NULL"]
    if loads[0].opname == "LOAD_CONST" and isinstance(loads[0].argval, str):
        return method == "__format__" and _is_method_load(loads[1]) and loads[1].argval == "format"
    name = loads[0].argval
    if loads[0].opname != "LOAD_GLOBAL" or name in frame.f_globals or argument == 0:
        return False
    return name in ("str", "repr", "format") and frame.f_builtins is vars(builtins)


_ASKING: Final = (torch.Tensor.__format__.__code__, torch.overrides.handle_torch_function.__code__)
"""What asks the number in a tensor for its text."""


def _is_plain(code: types.CodeType) -> bool:
    """Whether the variables of `code` are seen by nobody but its instructions."""
    usual = code.co_flags & inspect.CO_OPTIMIZED and not code.co_flags & _SUSPENDABLE
    return bool(usual) and _SEEING.isdisjoint(code.co_names)


_SEEING: Final = frozenset({"locals", "vars", "eval", "exec", "dir", "_getframe"})
_SUSPENDABLE: Final = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class _View:
    """The instructions of a code object. number: of each, by its offset. heights, after: of the stack before and after
    each, by offset."""

    def __init__(self, code: types.CodeType) -> None:
        every = list(dis.get_instructions(code))
        self.instructions = [each for each in every if each.opname not in _IDLE]
        self.number = {each.offset: at for at, each in enumerate(self.instructions)}
        self.heights = stack_heights(code)
        self.after = {one.offset: self.heights.get(then.offset) for one, then in itertools.pairwise(every)}

    def callee(self, at: int, height: int) -> int | None:
        """The number of the instruction that begins to load what the call at instruction number `at` calls, where the
        stack below is so high; None when the way from there is not straight."""
        for position in range(at - 1, -1, -1):
            each = self.instructions[position]
            if each.opcode in _JUMPS or each.opname.startswith(("STORE_", "DELETE_")):
                return None
            if self.heights.get(each.offset) == height:
                return position
            if each.is_jump_target:
                return None
        return None


@functools.lru_cache(maxsize=1024)
def _view(code: CodeKey) -> _View:
    return _View(code.code)


class _Follower:
    """Follows one text."""

    def __init__(self, is_telling: Callable[[Any], bool]) -> None:
        self._is_telling = is_telling
        self._followed: set[tuple[int, str]] = set()

    def follow(self, scope: _Scope, at: int, depth: int, below: _Stack | None = None) -> bool:
        """Whether what instruction number `at` leaves on the stack is only told. depth: of calls. below: the stack
        under it, as far as it is known."""
        view = _view(CodeKey(scope.code))
        height = view.after.get(view.instructions[at].offset)
        if height is None:
            return False
        stack: _Stack = [*(below or [False] * (height - 1)), True]
        keywords = 0
        for position in range(at + 1, len(view.instructions)):
            each = view.instructions[position]
            if each.is_jump_target or each.opcode in _JUMPS or each.offset not in view.heights:
                return False
            if each.opname == "KW_NAMES":
                keywords = len(scope.code.co_consts[each.arg or 0])
                continue
            if each.opname == "CALL":
                count = each.arg or 0
                given, under = stack[len(stack) - count :], stack[: len(stack) - count - 2]
                if any(stack[len(under) : len(under) + 2]):
                    return False
                if any(given):
                    start = view.callee(position, len(under))
                    callee = ABSENT if start is None else _loaded(scope, view.instructions[start:position])
                    places = [place for place, holds_text in enumerate(given) if holds_text]
                    if not all(self._is_taken(callee, place, count - keywords, depth) for place in places):
                        return False
                makes_string = _makes_string(scope, view, position, len(under))
                stack, keywords = [*under, None if makes_string else False], 0
            elif not _step(each, stack):
                if each.opname == "STORE_FAST" and stack[-1]:
                    return not any(stack[:-1]) and self._variable(scope, str(each.argval), depth)
                return each.opname == "POP_TOP" and stack[-1] is True and not any(stack[:-1])
            if not any(stack):
                return True
        return False

    def _variable(self, scope: _Scope, name: str, depth: int) -> bool:
        """Whether what a local variable holds is only told, wherever it is loaded."""
        key = id(scope.code), name
        if key in self._followed:
            return True
        self._followed.add(key)
        if name in scope.code.co_cellvars:
            return False
        found = [(at, each) for at, each in enumerate(_view(CodeKey(scope.code)).instructions) if each.argval == name]
        for at, each in found:
            if each.opname in _VARIABLES and not _asks_truth(scope, at) and not self.follow(scope, at, depth):
                return False
            if each.opname not in (*_VARIABLES, "STORE_FAST") and each.opcode in dis.haslocal:
                return False
        return True

    def _is_taken(self, callee: Any, position: int, positional: int, depth: int) -> bool:
        """Whether the callee only tells its argument at this position."""
        if position >= positional:
            return False
        if isinstance(callee, types.FunctionType) and not _is_of_logging(callee):
            code = callee.__code__
            if not _is_plain(code) or position >= code.co_argcount or depth >= _DEPTH:
                return False
            inner = _Scope(code, callee.__globals__, None)
            return self._variable(inner, code.co_varnames[position], depth + 1)
        return callee is not ABSENT and (self._is_telling(callee) or _is_of_logging(callee))


def _makes_string(scope: _Scope, view: _View, at: int, height: int) -> bool:
    """Whether the call at instruction number `at`, over a stack of this height, is `str(...)` or `repr(...)`."""
    start = view.callee(at, height)
    loads = [] if start is None else [each for each in view.instructions[start:at] if each.opname != "PUSH_NULL"]
    named = bool(loads) and loads[0].opname == "LOAD_GLOBAL" and loads[0].argval in ("str", "repr")
    return named and loads[0].argval not in scope.names and view.instructions[at].arg == 1


def _asks_truth(scope: _Scope, at: int) -> bool:
    """Whether instruction number `at` loads what is only asked whether it is empty: the text of a number never is."""
    instructions = _view(CodeKey(scope.code)).instructions
    following = instructions[at + 1].opname if at + 1 < len(instructions) else ""
    return following.startswith("POP_JUMP") and following.endswith(("IF_TRUE", "IF_FALSE"))


def _step(each: dis.Instruction, stack: _Stack) -> bool:
    """Follow an instruction that calls nothing; False when it does something with the text that is not known."""
    name, argument = each.opname, each.arg or 0
    if name == "LOAD_CONST" and type(each.argval) is str:
        stack.append(None)
        return True
    if name == "BINARY_OP" and each.argrepr in ("+", "+=") and True in stack[-2:]:
        right, left = stack.pop(), stack.pop()
        stack.append(True)
        return left is not False and right is not False
    if name in _PUSHES:
        stack += [False] * dis.stack_effect(each.opcode, each.arg if each.opcode >= dis.HAVE_ARGUMENT else None)
        return True
    if name == "LOAD_METHOD":
        if stack[-1]:
            return False
        stack.append(False)
        return True
    if name == "BUILD_STRING":
        made = any(stack[len(stack) - argument :])
        del stack[len(stack) - argument :]
        stack.append(made)
        return True
    if name == "FORMAT_VALUE":
        taken = 2 if argument & 4 else 1
        if any(stack[len(stack) - taken :]):
            return False
        del stack[len(stack) - taken :]
        stack.append(False)
        return True
    count = argument if name in _BUILDS else _TAKES.get(name)
    if count is None or any(stack[len(stack) - count :]):
        return False
    if name == "LOAD_ATTR" and sys.version_info >= (3, 12) and argument & 1:
        stack.append(False)
        return True
    del stack[len(stack) - count :]
    stack.append(False)
    return True


def _loaded(scope: _Scope, instructions: Sequence[dis.Instruction]) -> Any:
    """What a straight `name.attribute.attribute` at the start of these instructions finds; ABSENT for others."""
    loads = [each for each in instructions if each.opname != "PUSH_NULL"]
    if not loads or loads[0].opname not in _SIMPLE:
        return ABSENT
    name = loads[0].argval
    if loads[0].opname == "LOAD_GLOBAL":
        found = scope.names.get(name, vars(builtins).get(name, ABSENT))
    else:
        found = ABSENT if scope.variables is None else scope.variables.get(name, ABSENT)
    for each in loads[1:]:
        if each.opname not in ("LOAD_ATTR", "LOAD_METHOD") or found is ABSENT:
            break
        found = _attribute(found, str(each.argval))
        if _is_method_load(each):
            break
    return found


def _is_method_load(each: dis.Instruction) -> bool:
    return each.opname == "LOAD_METHOD" or (sys.version_info >= (3, 12) and bool((each.arg or 0) & 1))


def _attribute(owner: Any, name: str) -> Any:
    """What an object itself, a module, a logger or a stand-in has under a name."""
    if isinstance(owner, logging.Logger) and type(owner) in (logging.Logger, logging.RootLogger):
        return getattr(owner, name, ABSENT)
    if isinstance(owner, StandIn):
        return getattr(owner, name, ABSENT)
    return (instance_dict(owner) or {}).get(name, ABSENT)


def _is_of_logging(callee: Any) -> bool:
    """Whether it is a function of the module `logging`, or a method of a logger, that tells a message."""
    function = getattr(callee, "__func__", callee)
    return any(function is getattr(owner, name) for owner in (logging, logging.Logger) for name in _LOGGING)
