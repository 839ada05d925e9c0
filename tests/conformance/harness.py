"""The harness of the conformance programs: each is played twice, eagerly and jitted, and everything is compared.

A program is an ordinary function that gets a `Play`. It builds its state, jits what is under test, and calls it, with
changes in between:

    @program(traces=2)
    def a_closure_cell_is_rebound(play: Play) -> None:
        scale = 2.0
        f = play.jit(lambda x: x * scale)
        for _ in range(3):
            play(f, torch.ones(3))
        scale = 3.0
        play(f, torch.ones(3))
        play(f, torch.ones(3))

In the eager play `play.jit` gives the function back; in the other it is `dsjit.jit`. Each `play(f, ...)` is a *step*:
one call, with a record of everything that can be seen after it, by which the two plays must be equal:

- the result, the arguments, whatever `f` closes over or is bound to, globals that the program set, what it handed to
  `play.watch`: values, types, structure, dtypes, strides, offsets, which object is which, which tensors share memory;
- the exception (type, message, notes, cause, the user's lines of its traceback); a step that raises returns None;
- printed text, log records, warnings; random states, torch's modes, and what else `tests.conformance.surroundings` has.

`play.note(name, value)` records one more value between the calls (inside a callback, from a thread).

State is fresh in each play, since everything is built in the program's body; the body and the functions in it have
globals of their own (a copy of the module's), so `global NAME; NAME = 1` is fresh, too. What stands at the module's
top level is shared by the two plays and must not be changed. Programs run under `torch.no_grad()` unless `grad=True`.

Values must be equal bit for bit: write programs with small whole numbers, movement of data, + - * / and comparisons.
`exact=False` is for those that need transcendental functions, matrix products or long sums: then floating-point values
may differ by the tolerance of `torch.testing.assert_close` for their dtype.

`compiled=True` (the default) claims that a mature compiler needs no eager call here, by `dsjit.stats()`: of the steps
that return, none runs eagerly, at least one is answered by a compiled program, and all together run the tracer at
most `traces` times (None: any number). Programs that are equal, but break the claim so far, are listed in
`tests.conformance.pending`. There is no such list for programs that differ.

Modules with programs are those in the packages `programs` and `reported_bugs`. Run them with pytest, or
`python -m tests.conformance [NAME ...]` for a table.
"""

from __future__ import annotations

import importlib
import io
import logging
import logging.handlers
import pkgutil
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from torch.utils.hooks import RemovableHandle

import dsjit
from tests.conformance.state import Leaf, StateReader, differences
from tests.conformance.surroundings import fresh_surroundings, surroundings

__all__ = ["Play", "Program", "Step", "Verdict", "collect", "judge", "program"]

C = TypeVar("C", bound=Callable[..., Any])
Script = Callable[["Play"], None]
Jit = Callable[..., Any]

FOLDER: Final = Path(__file__).parent
PACKAGES: Final = ("programs", "reported_bugs")
_OF_TORCH_ITSELF: Final = "Triggered internally at"


@dataclass(frozen=True, slots=True)
class Program:
    """A conformance program; the module docstring tells what its fields claim."""

    name: str
    topic: str
    script: Script
    compiled: bool
    traces: int | None
    exact: bool
    grad: bool


def program(
    *, compiled: bool = True, traces: int | None = 1, exact: bool = True, grad: bool = False
) -> Callable[[Script], Program]:
    """Makes a Program of a function: its name is the program's, the name of its module its topic."""

    def make(script: Script) -> Program:
        topic = script.__module__.rpartition(".")[2]
        return Program(f"{topic}.{script.__name__}", topic, script, compiled, traces, exact, grad)

    return make


@dataclass(slots=True)
class Step:
    """What could be seen after one call. `ways`: how often the calls in it ran compiled, traced and eagerly."""

    label: str
    leaves: dict[str, Leaf]
    raised: bool
    ways: Ways


@dataclass(frozen=True, slots=True)
class Ways:
    """Counts from `dsjit.stats()`."""

    compiled: int = 0
    traces: int = 0
    eager: int = 0
    reasons: tuple[str, ...] = ()

    @staticmethod
    def now() -> Ways:
        total = dsjit.stats().total
        return Ways(total.calls_compiled, total.traces, total.calls_eager, tuple(total.eager_reasons.elements()))

    def since(self, before: Ways) -> Ways:
        left = list(self.reasons)
        for reason in before.reasons:
            left.remove(reason)
        return Ways(
            self.compiled - before.compiled, self.traces - before.traces, self.eager - before.eager, tuple(left)
        )


@dataclass(slots=True)
class _Channels:
    """What is printed, logged and warned in one play."""

    warned: list[warnings.WarningMessage]
    text: io.BytesIO = field(default_factory=io.BytesIO)
    records: logging.handlers.BufferingHandler = field(
        default_factory=lambda: logging.handlers.BufferingHandler(sys.maxsize)
    )

    def take(self) -> dict[str, Leaf]:
        """What came since the last time. Lines of standard error end with a carriage return."""
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        found: dict[str, Leaf] = {"printed": repr(self.text.getvalue().decode())}
        self.text.seek(0)
        self.text.truncate()
        for number, r in enumerate(self.records.buffer):
            place = f"{Path(r.pathname).name}:{r.lineno} {r.funcName}"
            error = r.exc_info[0].__name__ if r.exc_info and r.exc_info[0] else None
            found[f"logged[{number}]"] = f"{r.name} {r.levelname} {r.getMessage()!r} {place} {error}"
        self.records.buffer.clear()
        theirs = [w for w in self.warned if not issubclass(w.category, dsjit.DsjitWarning)]
        for number, w in enumerate(theirs):
            found[f"warned[{number}]"] = f"{w.category.__name__} {str(w.message)!r} {Path(w.filename).name}:{w.lineno}"
        self.warned.clear()
        return found


@contextmanager
def _channels() -> Iterator[_Channels]:
    """Real text streams and handlers of the standard library, so that none of the harness's own code runs inside."""
    root = logging.getLogger()
    level = root.level
    with ExitStack() as stack:
        warned = stack.enter_context(warnings.catch_warnings(record=True))
        assert warned is not None
        channels = _Channels(warned)
        warnings.simplefilter("always")
        out = io.TextIOWrapper(channels.text, "utf-8", newline="\n", write_through=True)
        err = io.TextIOWrapper(channels.text, "utf-8", newline="\r\n", write_through=True)
        stack.callback(out.detach)
        stack.callback(err.detach)
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        stream = logging.StreamHandler(err)
        root.setLevel(logging.DEBUG)
        for handler in (channels.records, stream):
            root.addHandler(handler)
            stack.callback(root.removeHandler, handler)
        stack.callback(root.setLevel, level)
        yield channels


class Play:
    """One performance of a program, eager or jitted: see the module."""

    def __init__(self, jit: Jit, own_globals: dict[str, Any], channels: _Channels) -> None:
        self._jit = jit
        self._globals = own_globals
        self._at_start = dict(own_globals)
        self._channels = channels
        self._reader = StateReader(own_globals)
        self._watched: dict[str, Any] = {}
        self._notes: dict[str, Any] = {}
        self.steps: list[Step] = []

    def jit(self, function: Any = None, /, **options: Any) -> Any:
        """`dsjit.jit` (or its decorator form) in the jitted play, and the function itself in the eager one."""
        return self._jit(function, **options) if function is not None else lambda f: self._jit(f, **options)

    def watch(self, **objects: Any) -> None:
        """Compare these objects, and what is below them, after every following step."""
        self._watched |= objects

    def note(self, name: str, value: Any) -> None:
        """Compare `value` with the next step."""
        self._notes[f"{name}#{len(self._notes)}"] = value

    def __call__(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """One step: call, and record. Returns the result, or None when the call raised."""
        caller = sys._getframe(1)
        label = f"step {len(self.steps)} (line {caller.f_lineno})"
        result, error = None, None
        before = Ways.now()
        try:
            result = function(*args, **kwargs)
        except Exception as raised:
            error = raised
        around = surroundings()
        ways = Ways.now().since(before)
        leaves = self._channels.take()
        leaves |= around
        leaves |= self._reader.read(self._roots(result, function, args, kwargs))
        if error is not None:
            leaves |= _error_leaves(error)
        self._notes = {}
        self.steps.append(Step(label, leaves, error is not None, ways))
        return result

    def _roots(self, result: Any, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        roots: dict[str, Any] = {"result": result}
        roots |= {f"args[{number}]": value for number, value in enumerate(args)}
        roots |= {f"kwargs[{name!r}]": value for name, value in kwargs.items()}
        roots |= {"function": function}
        roots |= self._watched
        roots |= {f"note {name}": value for name, value in self._notes.items()}
        known = self._at_start
        roots |= {
            f"global {name}": value
            for name, value in self._globals.items()
            if name != "__warningregistry__" and (name not in known or known[name] is not value)
        }
        return roots


def _error_leaves(error: BaseException) -> dict[str, Leaf]:
    found: dict[str, Leaf] = {
        "error": f"{type(error).__module__}.{type(error).__qualname__}: {error}",
        "error.args": repr([arg if isinstance(arg, str | int | float) else type(arg).__name__ for arg in error.args]),
        "error.notes": repr(getattr(error, "__notes__", None)),
        "error.suppressed": repr(error.__suppress_context__),
    }
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if Path(f.filename).is_relative_to(FOLDER) and f.filename != __file__]
    found["error.lines"] = repr([f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in own])
    for name, other in (("cause", error.__cause__), ("context", error.__context__)):
        found[f"error.{name}"] = "None" if other is None else f"{type(other).__qualname__}: {other}"
    return found


# -- playing and judging ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a program did.

    differences: places where the jitted play was not as the eager one. compiled: whether it stayed compiled as it
    claims to (whatever it claims); `reason` tells why not. steps, ways: calls, and how they ran.
    """

    program: Program
    differences: tuple[str, ...]
    compiled: bool
    reason: str
    steps: int
    ways: Ways


def collect() -> dict[str, Program]:
    """Every program of the packages `programs` and `reported_bugs`, by name."""
    found: dict[str, Program] = {}
    for package in PACKAGES:
        if not (FOLDER / package).is_dir():
            continue
        for module in pkgutil.iter_modules([str(FOLDER / package)]):
            content = vars(importlib.import_module(f"tests.conformance.{package}.{module.name}"))
            for value in content.values():
                if isinstance(value, Program):
                    if value.name in found:
                        raise ValueError(f"two programs are named {value.name}")
                    found[value.name] = value
    return found


def judge(program: Program, jit: Jit = dsjit.jit) -> Verdict:
    """Play `program` eagerly and with `jit`, and compare. What the eager play raises is raised."""
    handle_id = RemovableHandle.next_id
    expected, failure = _play(program, _not_jitted, handle_id)
    if failure is None and any(_OF_TORCH_ITSELF in str(leaf) for step in expected for leaf in step.leaves.values()):
        # Some warnings of torch's C++ code are given once a process: the second play is the one to compare with.
        expected, failure = _play(program, _not_jitted, handle_id)
    if failure is not None:
        raise failure
    found, failure = _play(program, jit, handle_id)
    lines = [
        f"{wanted.label}: {line}"
        for wanted, step in zip(expected, found, strict=False)
        for line in differences(wanted.leaves, step.leaves, program.exact)
    ]
    if failure is not None:
        lines.append("the program raised: " + "".join(traceback.format_exception(failure)))
    elif len(found) != len(expected):
        lines.append(f"the program made {len(found)} steps; {len(expected)} when eager")
    reason = _why_not_compiled(program, found)
    return Verdict(program, tuple(lines), not reason, reason, len(expected), _total([step.ways for step in found]))


def _not_jitted(function: Any, **options: Any) -> Any:
    return function


def _play(program: Program, jit: Jit, handle_id: int) -> tuple[list[Step], Exception | None]:
    script = program.script
    assert isinstance(script, types.FunctionType)
    own_globals = dict(script.__globals__)
    own = types.FunctionType(script.__code__, own_globals, script.__name__)
    with fresh_surroundings(handle_id), torch.set_grad_enabled(program.grad), _channels() as channels:
        play = Play(jit, own_globals, channels)
        try:
            own(play)
        except Exception as error:
            return play.steps, error
    return play.steps, None


def _total(ways: list[Ways]) -> Ways:
    return Ways(
        sum(w.compiled for w in ways),
        sum(w.traces for w in ways),
        sum(w.eager for w in ways),
        tuple(reason for w in ways for reason in w.reasons),
    )


def _why_not_compiled(program: Program, steps: list[Step]) -> str:
    """Why the claim `compiled` does not hold, or nothing."""
    returned = [step for step in steps if not step.raised]
    for step in returned:
        if step.ways.eager:
            return f"{step.label}: eager: {step.ways.reasons[0] if step.ways.reasons else 'no reason given'}"
    for step in returned:
        if not step.ways.compiled and not step.ways.traces:
            return f"{step.label}: no program ran"
    traces = sum(step.ways.traces for step in returned)
    if program.traces is not None and traces > program.traces:
        return f"{traces} traces; {program.traces} allowed"
    if not any(step.ways.compiled for step in returned):
        return "no call was answered by a program"
    return ""
