"""`dsjit.jit` and its companions."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast, overload

import torch

from dsjit.api.jitted import Jitted
from dsjit.api.session import Session
from dsjit.api.stance import Holder
from dsjit.api.stats import Stats
from dsjit.config import Environment, Options, checked_stance
from dsjit.errors import UnsupportedCallableError
from dsjit.trace.capture import refuse_capture

__all__ = ["disable", "jit", "mark_dynamic", "mark_static", "reset_stats", "session", "set_stance", "stats"]

C = TypeVar("C", bound=Callable[..., Any])

_SESSION: list[Session] = []


def session() -> Session:
    """The process's Session, made at first use from the environment variables. Raises OptionError."""
    if not _SESSION:
        _SESSION.append(Session(Environment.from_environ(os.environ)))
    return _SESSION[0]


@overload
def jit(function: C, /, **options: Any) -> C: ...
@overload
def jit(**options: Any) -> Callable[[C], C]: ...
def jit(function: Any = None, /, **options: Any) -> Any:
    """Compile a function, method, lambda, callable object or `nn.Module`.

    Use it bare (`@dsjit.jit`), with options (`@dsjit.jit(fullgraph=True)`), or as a call (`f = dsjit.jit(f)`).
    A module is compiled in place: the same object comes back, its class, `state_dict` keys, hooks and pickling as
    they were. Anything else gives a callable that behaves as the original.

    The first call with a kind of arguments runs eagerly, for real, under the tracer; later calls run the compiled
    program as long as everything that the code read is unchanged.

    Options (see `dsjit.config.OPTION_ROWS`): dynamic, fullgraph, numerics, backend, disable, recompile_limit,
    at_recompile_limit, memory_budget, offload_dir, offload_to_host.
    Raises OptionError for an unknown option or a bad value, UnsupportedCallableError for what cannot be compiled.
    """
    chosen = Options.from_keywords(options)
    if function is None:
        return lambda f: _wrap(f, chosen)
    return _wrap(function, chosen)


def _wrap(function: Any, options: Options) -> Any:
    if isinstance(function, torch.nn.Module):
        target = function._call_impl
        function._compiled_call_impl = Jitted(target, options, session(), type(function).__name__)
        return function
    if isinstance(function, Jitted):
        return Jitted(function.target, options, session(), function._name)
    if isinstance(function, staticmethod | classmethod):
        return type(function)(_wrap(function.__func__, options))
    if isinstance(function, type):
        raise UnsupportedCallableError(
            f"dsjit.jit was given the class {function.__qualname__}: jit its method (forward), or an instance of it"
        )
    if not callable(function):
        raise UnsupportedCallableError(
            f"dsjit.jit was given a {type(function).__name__}, which is not callable: pass a function or an nn.Module"
        )
    code = inspect.unwrap(function) if inspect.isfunction(function) else function
    if _is_suspended(code):
        raise UnsupportedCallableError(
            f"{_name_of(function)} is a generator or coroutine function: jit the functions that it calls instead"
        )
    return Jitted(function, options, session(), _name_of(function))


def _name_of(function: Any) -> str:
    for name in ("__qualname__", "__name__"):
        found = getattr(function, name, None)
        if found:
            return str(found)
    return type(function).__name__


def disable(function: Any) -> Any:
    """The original of a jitted function; a jitted module is put back to eager in place and returned."""
    if isinstance(function, torch.nn.Module):
        jitted = jitted_of(function)
        if jitted is not None:
            jitted.release_parts()
        function._compiled_call_impl = None
        return function
    return function.target if isinstance(function, Jitted) else function


def mark_dynamic(tensor: torch.Tensor, dim: int | Sequence[int]) -> None:
    """Say that calls with `tensor` will be made with other sizes in dimension `dim`, or these: a function that is
    compiled for this tensor is compiled for any size of 2 or more there, from the first call on.

    A size that the function insists on stays as it is. Raises IndexError for a dimension that the tensor lacks.
    """
    session().marks.mark(tensor, _dimensions(tensor, dim), True)


def mark_static(tensor: torch.Tensor, dim: int | Sequence[int] | None = None) -> None:
    """Say that the size of `tensor` in `dim`, or these, or all, is worth a program of its own whenever it changes.

    Raises IndexError for a dimension that the tensor lacks.
    """
    session().marks.mark(tensor, _dimensions(tensor, range(tensor.dim()) if dim is None else dim), False)


class set_stance(Holder):
    """Say how all jitted objects run: "default", "eager", "eager_on_recompile", "fail_on_recompile" or "fail_on_eager"
    (`dsjit.config.STANCE_ROWS` tells what each means).

    - `dsjit.set_stance("eager")` holds for the process until the next such call;
    - `with dsjit.set_stance("eager"):` holds in the block, for the thread that runs it;
    - `@dsjit.set_stance("eager")` holds while the function runs, for the thread that runs it.

    After a block what was before holds again, whatever other threads set meanwhile. A thread in a block takes no
    notice of what is set for the process. Calls inside a traced call are part of that, whatever the stance; a function
    that sets a stance is not captured.
    Raises OptionError for a name that is no stance.
    """

    __slots__ = ("_stances",)

    def __init__(self, stance: str = "default") -> None:
        super().__init__(checked_stance(stance))
        refuse_capture("sets a stance")
        self._stances = session().stances
        self._stances.set(self)

    def __enter__(self) -> None:
        refuse_capture("sets a stance")
        self._stances.take_back(self)
        self._stances.enter(self)

    def __exit__(self, *exception: object) -> None:
        self._stances.leave(self)

    def __call__(self, function: C) -> C:
        """`function`, in a block. Raises UnsupportedCallableError for generator and coroutine functions."""
        self._stances.take_back(self)
        if _is_suspended(function):
            raise UnsupportedCallableError(
                f"{_name_of(function)} is a generator or coroutine function: use dsjit.set_stance in its body instead"
            )

        @functools.wraps(function)
        def in_stance(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return cast(C, in_stance)


def _is_suspended(function: Any) -> bool:
    """Whether a call only makes an object whose body runs later."""
    kinds = inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction
    return any(is_kind(function) for is_kind in kinds)


def _dimensions(tensor: torch.Tensor, dim: int | Sequence[int]) -> tuple[int, ...]:
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    for each in dims:
        if not -tensor.dim() <= each < tensor.dim():
            raise IndexError(f"dimension {each} of a tensor of {tensor.dim()} dimensions")
    return tuple([each % tensor.dim() for each in dims])


def jitted_of(function: Any) -> Jitted | None:
    """The Jitted behind a jitted function, method or module; None for anything else."""
    if isinstance(function, torch.nn.Module):
        function = function._compiled_call_impl
    function = getattr(function, "__func__", function)
    return function if isinstance(function, Jitted) else None


def stats() -> Stats:
    """Counters since the last `reset_stats()`, overall and per jitted object."""
    return session().registry.snapshot()


def reset_stats() -> None:
    """Set every counter to 0; compiled programs stay."""
    session().registry.reset()
