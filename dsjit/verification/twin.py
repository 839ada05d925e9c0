"""A copy of a function with all the state that can be reached from it, to be called without a trace in the original."""

from __future__ import annotations

import copy
import functools
import types
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.api.jitted import Jitted
from dsjit.errors import UnsupportedCallableError

__all__ = ["Twin"]

_STATE: Final = (torch.Tensor, torch.nn.Module, list, dict, set, deque, functools.partial, Jitted)
"""What a global is copied for; instances of classes of the function's own module are, too."""


@dataclass(slots=True)
class Twin:
    """A copy of `original`: a module or an object as `copy.deepcopy` copies it, a function with copies of its closure,
    its defaults, and of those globals that it (or a function of its module that it calls) names. What methods of
    modules read as globals is shared with the original.

    Raises UnsupportedCallableError when something cannot be copied.
    """

    original: Callable[..., Any]
    function: Callable[..., Any] = field(init=False)
    _memo: dict[int, Any] = field(default_factory=dict)
    _globals: dict[int, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        try:
            self.function = self._copy(self.original)
        except (TypeError, RuntimeError) as error:
            raise UnsupportedCallableError(f"{self.original!r} cannot be copied: {error}") from error

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Fresh copies of arguments, which share with the function's copy what the originals share with it."""
        memo = dict(self._memo)
        for tensor in _inner_tensors((args, kwargs)):
            memo.setdefault(id(tensor), tensor.detach().clone(memory_format=torch.preserve_format))
        try:
            copied: tuple[tuple[Any, ...], dict[str, Any]] = copy.deepcopy((args, kwargs), memo)
        except (TypeError, RuntimeError) as error:
            raise UnsupportedCallableError(f"the arguments cannot be copied: {error}") from error
        return copied

    def global_state(self) -> Iterator[tuple[str, Any]]:
        """The copied globals, by name."""
        for own in self._globals.values():
            yield from ((name, value) for name, value in own.items() if id(value) in self._copied())

    def _copied(self) -> set[int]:
        return {id(value) for value in self._memo.values()}

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Jitted):
            return self._copy(value.target)
        if isinstance(value, types.MethodType):
            return types.MethodType(self._copy(value.__func__), copy.deepcopy(value.__self__, self._memo))
        if isinstance(value, functools.partial):
            args, keywords = copy.deepcopy((value.args, value.keywords), self._memo)
            return functools.partial(self._copy(value.func), *args, **keywords)
        if isinstance(value, types.FunctionType):
            return self._copy_function(value)
        return copy.deepcopy(value, self._memo)

    def _copy_function(self, function: types.FunctionType) -> types.FunctionType:
        known = self._memo.get(id(function))
        if known is not None:
            assert isinstance(known, types.FunctionType)
            return known
        own_globals = self._globals.setdefault(id(function.__globals__), dict(function.__globals__))
        cells = tuple([types.CellType() for _ in function.__closure__ or ()])
        twin = types.FunctionType(function.__code__, own_globals, function.__name__, None, cells or None)
        twin.__qualname__, twin.__module__, twin.__doc__ = function.__qualname__, function.__module__, function.__doc__
        self._memo[id(function)] = twin
        twin.__defaults__ = copy.deepcopy(function.__defaults__, self._memo)
        twin.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, self._memo)
        vars(twin).update(vars(function))
        for own, cell in zip(cells, function.__closure__ or (), strict=True):
            try:
                content = cell.cell_contents
            except ValueError:  # not yet bound
                continue
            own.cell_contents = self._copy(content)
        for name in _names(function.__code__):
            value = function.__globals__.get(name)
            if value is own_globals.get(name) and _has_state(value, function):
                own_globals[name] = self._copy(value)
        return twin


def _has_state(value: Any, function: types.FunctionType) -> bool:
    if isinstance(value, types.FunctionType):
        return value.__globals__ is function.__globals__
    if isinstance(value, _STATE):
        return True
    return not isinstance(value, type) and type(value).__module__ == function.__module__


def _names(code: types.CodeType) -> set[str]:
    """The names of globals (and attributes) in a code object and those inside it."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return set(code.co_names).union(*inner)


def _inner_tensors(value: Any) -> Iterator[torch.Tensor]:
    """Tensors in containers that come out of autograd, which `copy.deepcopy` refuses."""
    if isinstance(value, torch.Tensor):
        if not value.is_leaf:
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _inner_tensors(item)
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _inner_tensors(item)
