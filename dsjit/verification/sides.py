"""Plays the same calls on both sides, eager and compiled, each on a copy of its own, and keeps what can be seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import numpy as np
import torch

from dsjit.api.entry import session as shared_session
from dsjit.api.jitted import Jitted
from dsjit.api.session import Session
from dsjit.config import Environment, Options
from dsjit.ops.generator import generator_state
from dsjit.oracle.checked import FaultFound
from dsjit.verification.gradients import gradient_records
from dsjit.verification.precise import PreciseCall, capture_precisely
from dsjit.verification.records import Record, read
from dsjit.verification.twin import Twin

__all__ = [
    "Arguments",
    "CompiledSide",
    "Seen",
    "name_of",
    "play_compiled",
    "play_eagerly",
    "play_precisely",
    "random_states_kept",
]

Arguments: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]

_GENERATOR: Final = "torch's random generator"


@dataclass(frozen=True, slots=True)
class Seen:
    """What can be seen after one call: records by path. error: what it raised, as text. way: how it ran. failure: what
    its compiled program raised where eager does not, so that it ran eagerly.
    """

    records: Mapping[str, Record]
    error: str
    way: str
    failure: str = ""


@dataclass(frozen=True, slots=True)
class CompiledSide:
    """seen: after each call. jitted: what was compiled."""

    seen: tuple[Seen, ...]
    jitted: Jitted


def play_eagerly(function: Callable[..., Any], calls: Sequence[Arguments], seed: int) -> tuple[Seen, ...]:
    """Call a copy of `function`, as plain Python, once for each of `calls`."""
    twin = Twin(function)
    shared = shared_session()
    with shared.tracing():  # jitted functions that it calls run as plain Python
        return tuple(
            _call(twin, twin.function, each, seed + number, is_last=number == len(calls) - 1, way=lambda: "eager")
            for number, each in enumerate(calls)
        )


def play_compiled(
    function: Callable[..., Any], calls: Sequence[Arguments], seed: int, options: Options, environment: Environment
) -> CompiledSide:
    """The same with a jitted copy, in a session of its own, under DSJIT_CHECK=1 at least: nothing that was compiled
    before is used, and memory that no step has written is poisoned.

    Raises FaultFound when the environment checks what is computed, and finds something.
    """
    twin = Twin(function)
    checked = replace(environment, check=max(environment.check, 1), dump=None, debug=0)
    jitted = make_jitted(target_of(twin.function), options, checked, name_of(function))
    counters = jitted.counters
    before = [0, 0]

    def way() -> str:
        ran = [counters.calls_compiled, counters.calls_eager]
        compiled, eager = (now - then for now, then in zip(ran, before, strict=True))
        before[:] = ran
        if eager:
            return f"eager: {list(counters.eager_reasons.elements())[-1]}"
        return "compiled" if compiled else "traced"

    seen: list[Seen] = []
    for number, each in enumerate(calls):
        jitted.raised = ""
        after = _call(twin, jitted, each, seed + number, is_last=number == len(calls) - 1, way=way)
        seen.append(replace(after, failure=jitted.raised))
    return CompiledSide(tuple(seen), jitted)


def play_precisely(function: Callable[..., Any], calls: Sequence[Arguments], seed: int) -> PreciseCall:
    """The last of `calls` in double precision, after the others were made."""
    twin = Twin(function)
    shared = shared_session()
    with shared.tracing():
        for number, each in enumerate(calls[:-1]):
            _call(twin, twin.function, each, seed + number, is_last=False, way=lambda: "eager")
        args, kwargs = twin.arguments(*calls[-1])
        seed_all(seed + len(calls) - 1)
        state = _state(twin, args, kwargs)
        return capture_precisely(target_of(twin.function), args, kwargs, state, name_of(function))


def make_jitted(target: Callable[..., Any], options: Options, environment: Environment, name: str) -> Jitted:
    """`target` jitted in a new session, with programs for exact sizes."""
    private = Session(environment, depths=shared_session().depths)
    return Jitted(target, replace(options, dynamic=False, disable=False, fullgraph=False), private, name)


def target_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """What is traced: of a module, its call."""
    return function._call_impl if isinstance(function, torch.nn.Module) else function


def name_of(function: Callable[..., Any]) -> str:
    """How reports call it."""
    return str(getattr(function, "__qualname__", "") or type(function).__name__)


def seed_all(seed: int) -> None:
    """Seed torch's, Python's and numpy's global generators."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Puts the three generators back in the end."""
    python, legacy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


def _call(
    twin: Twin, function: Callable[..., Any], call: Arguments, seed: int, *, is_last: bool, way: Callable[[], str]
) -> Seen:
    args, kwargs = twin.arguments(*call)
    seed_all(seed)
    result, error = None, ""
    try:
        result = function(*args, **kwargs)
    except FaultFound:
        raise
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    # Results last, so that memory of before the call has the same number whatever the call returns.
    roots = (_state(twin, args, kwargs) if is_last else {"args": args, "kwargs": kwargs}) | {"result": result}
    records = dict(read(roots, snapshot=not is_last))
    records[_GENERATOR] = repr(hash(generator_state().numpy().tobytes()))
    if is_last and not error:
        records |= gradient_records(result, _state(twin, args, kwargs))
    return Seen(records, error, way())


def _state(twin: Twin, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Roots of what a call can write."""
    state: dict[str, Any] = {"args": args, "kwargs": kwargs, "function": twin.function}
    return state | {f"global {name}": value for name, value in twin.global_state()}
