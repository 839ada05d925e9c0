"""A call is a transaction: whatever fails inside dsjit, the user's objects are as an eager call leaves them.

Each row of `STAGES` names a function of dsjit's that a call runs through. It is made to raise, once, in its first or a
later run. Then, for a fault (any Exception): the call goes on eagerly, and its result, its effects and the surroundings
are those of an eager call. For KeyboardInterrupt: it reaches the user, and whatever dsjit changed in the process is put
back. Either way the next calls are right.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import pytest
import torch
from torch import nn

import dsjit
from dsjit.api import compile as compiler
from dsjit.api.entry import jitted_of, session
from dsjit.codegen.program import Program
from dsjit.errors import DsjitWarning
from dsjit.ir.graph import Graph
from dsjit.passes.pipeline import PASSES, Pass
from dsjit.trace.effects import journal
from dsjit.trace.reads.patching import PATCHES
from dsjit.trace.recording import generator
from tests.api.checks import assert_same, counters_of
from tests.conformance.surroundings import fresh_surroundings, surroundings

CALLS: Final = 2


class Fault(Exception):
    """What is injected."""


@dataclass(frozen=True)
class Stage:
    """place: `module:attribute.attribute` of a function. run: in which of its runs it raises, from 1 on.

    compiles: whether programs and kernels must be new, for the stage to be reached.
    """

    place: str
    run: int = 1
    compiles: bool = False

    def __str__(self) -> str:
        return f"{self.place.partition(':')[0].rpartition('.')[2]}:{self.place.partition(':')[2]}#{self.run}"


def stages(module: str, *names: str, runs: tuple[int, ...] = (1,), compiles: bool = False) -> list[Stage]:
    return [Stage(f"dsjit.{module}:{name}", run, compiles) for name in names for run in runs]


STAGES: Final[tuple[Stage, ...]] = (
    # The trace begins.
    *stages("trace.observe", "TorchState.current", "RandomStates.__init__", "Notes.meet_call"),
    *stages("trace.reads.patching", "_Register.enter", "_Register.acquire"),
    *stages("trace.reads.profile_hook", "ProfileHook.start"),
    *stages("trace.effects.journal", "Journal.__enter__", "_Register._install"),
    *stages("trace.recording.generator", "_Register.enter"),
    # The user's code runs: each op, each read, each write, each thing that is told.
    *stages("trace.recording.recorder", "Recorder._arguments", "Recorder._record", runs=(1, 2)),
    *stages("trace.recording.recorder", "Recorder._record_write", runs=(1, 2)),
    *stages("trace.recording.recorder", "Recorder._look", "Recorder._on_generator", "read_outcome"),
    *stages("trace.recording.memory", "Memory.read", "Memory.fresh", "Memory.overwrite", runs=(1, 3)),
    *stages("trace.observe", "Observer._note_read", "Observer._note_write", "Observer._on_code", runs=(1, 2)),
    *stages("trace.reads.notes", "Notes.note", "Notes._record", runs=(1, 20)),
    *stages("trace.reads.scopes", "Scopes.on_code", "Scopes.note_class", "name_lines"),
    *stages("trace.numbers.leaks", "LeakWatch.on_code", "LeakWatch.on_builtin"),
    *stages("trace.effects.journal", "Journal._keep"),
    # The trace ends.
    *stages("trace.reads.scopes", "Scopes.note_hooks"),
    *stages("trace.effects.accumulators", "Accumulators.finish"),
    *stages("trace.effects.effects", "EffectFinder.find"),
    *stages("trace.observe", "Observer._find_effects", "Observer.build_guard"),
    *stages("trace.capture", "_finish", "describe", "conclude", "cut"),
    *stages("trace.effects.outputs", "TemplateMaker.make"),
    *stages("trace.guards.guard", "Guard.__init__", "argument_check", "split_facts"),
    # The compiler.
    *stages("api.jitted", "Jitted._compile"),
    *stages("api.builder", "Builder.segment", "graph_structure"),
    *stages("api.planting", "Planter.plant", "graph_structure"),
    *stages("api.open_calls", "OpenCalls.open"),
    *stages("api.trace_tree", "TraceTree.__init__"),
    *stages(
        "api.compile", "run_passes", "plan_fusion", "lower_group", "choose_steps", "assemble", compiles=True
    ),
    *stages("passes.pipeline", *[f"PASSES[{number}]" for number in range(len(PASSES))], compiles=True),
    *stages(
        "codegen.llvm.engine", "KernelCache.compile_kernels", "kernel_structure", "emit_module", "compile_module",
        compiles=True,
    ),
    *stages("codegen.program", "plan_memory", "compile_source", compiles=True),
    *stages("codegen.llvm.executor", "_encode", compiles=True),
    # Compiled calls.
    *stages("codegen.program", "Program.__call__", runs=(1, 2)),
    *stages("codegen.program", "Program.new_frame", compiles=True),
    *stages("api.trace_tree", "TraceTree.walk", "TraceTree._follow", "read_outcome"),
    *stages("trace.guards.guard", "Guard._slow"),
)  # fmt: skip

MODULE_STAGES: Final = stages("trace.observe", "note_module_entry", "Observer._note_read", runs=(1, 3))

SHORT_OF_MEMORY: Final = ("Memory.fresh", "Notes.note", "Guard.__init__", "compile_module", "new_frame", "on_code")


class Plain:
    """Buffers that a call updates, attributes, a history, text, random numbers, a seed, a branch, a write to the
    argument."""

    def __init__(self) -> None:
        self.mean, self.var, self.seen = torch.zeros(4), torch.ones(4), torch.zeros(4)
        self.history: list[Any] = []
        self.table: dict[str, Any] = {"last": None}
        self.calls = 0

    def __call__(self, x: torch.Tensor) -> Any:
        self.calls += 1
        torch.manual_seed(3)
        x.mul_(2)
        x[0] = 1
        y = self.normalize(x)
        self.seen += x.sum(0)
        if y.sum() > 1e6:
            self.table["large"] = y
        self.history.append(y.mean())
        self.table["last"] = y
        print("called", x.shape)
        return {"x": x, "more": [y + torch.rand_like(y), x[1:]]}

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        return torch.batch_norm(x, None, None, self.mean, self.var, True, 0.1, 1e-5, False)


class Model(Plain, nn.Module):
    """The same with parameters, registered buffers and a hook."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        Plain.__init__(self)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("total", torch.zeros(4))
        self.output: Any = None
        self.register_forward_hook(note_output)

    __call__ = nn.Module.__call__
    forward = Plain.__call__

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        self.total += x.sum(0)
        return self.norm(x)


def note_output(module: Any, args: Any, output: dict[str, Any]) -> dict[str, Any]:
    module.output = output["x"] * 2
    return {**output, "hooked": True}


def argument(number: int) -> torch.Tensor:
    return torch.arange(12.0).view(3, 4) + number


class Injection:
    def __init__(self, stage: Stage, error: type[BaseException]) -> None:
        self.stage, self.error = stage, error
        self.runs = 0
        self.armed = True

    @property
    def happened(self) -> bool:
        return self.runs >= self.stage.run


@contextmanager
def injected(stage: Stage, error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> Iterator[Injection]:
    injection = Injection(stage, error)
    module, _, names = stage.place.partition(":")
    owner: Any = importlib.import_module(module)

    def faulty(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if injection.armed:
                injection.runs += 1
                if injection.runs == stage.run:
                    injection.armed = False
                    raise error(f"injected into {stage}")
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch:
        if names.startswith("PASSES"):
            number = int(names[len("PASSES[") : -1])
            chosen = dataclasses.replace(PASSES[number], run=faulty(PASSES[number].run))
            original = compiler.run_passes

            def run_passes(graph: Graph, passes: tuple[Pass, ...] = PASSES, **options: Any) -> Graph:
                return original(graph, passes=(*passes[:number], chosen, *passes[number + 1 :]), **options)

            patch.setattr(compiler, "run_passes", run_passes)
        else:
            *path, name = names.split(".")
            for each in path:
                owner = getattr(owner, each)
            entry = vars(owner)[name]
            wraps = type(entry) if isinstance(entry, classmethod | staticmethod) else lambda function: function
            patch.setattr(owner, name, wraps(faulty(getattr(entry, "__func__", entry))))
        yield injection


def process() -> dict[str, Any]:
    """What dsjit changes in the process while it works."""
    return {
        **surroundings(),
        "patches": dict(PATCHES._counts),
        "listener": PATCHES.current.listener,
        "journals": (journal._REGISTER._count, journal._REGISTER._current.journal),
        "generators": generator._REGISTER._count,
        "generator": torch.random.default_generator is torch.default_generator,
        "tracing": session().is_tracing(),
        "print": (print.__class__, sys.stdout.__class__.__name__, sys.stderr.__class__.__name__),
        "getattr": nn.Module.__getattr__.__qualname__,
        "setattr": nn.Module.__setattr__.__qualname__,
    }


def state_of(subject: Any) -> dict[str, Any]:
    """Everything that a subject holds."""
    held = {name: value for name, value in vars(subject).items() if not name.startswith("_")}
    return {**held, "buffers": dict(subject.named_buffers()) if isinstance(subject, nn.Module) else {}}


def outcome(subject: Any, call: Callable[..., Any], x: torch.Tensor, capsys: pytest.CaptureFixture[str]) -> Any:
    result = call(x)
    held = copy.deepcopy(state_of(subject))
    return result, x, held, capsys.readouterr().out, torch.get_rng_state()


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a dozen elements are not worth waiting for another core
    with fresh_surroundings(1), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DsjitWarning)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def warm() -> Iterator[list[Any]]:
    """Keeps the programs alive, so that most cases find them compiled."""
    subjects: list[Any] = []
    with torch.no_grad():
        for make in (Plain, Model):
            subjects.append(dsjit.jit(make()))
            subjects[-1](argument(0))
    yield subjects


def prepare(stage: Stage, make: Callable[[], Any] = Plain) -> tuple[Any, Any, Any]:
    """A subject, how it is called when jitted, and an equal one for eager calls."""
    if stage.compiles:
        session().programs.clear()
        session().kernels._known.clear()
    torch.manual_seed(0)
    subject = make()
    twin = copy.deepcopy(subject)
    return subject, dsjit.jit(subject), twin


def compare_calls(subject: Any, jitted: Any, twin: Any, capsys: pytest.CaptureFixture[str], calls: int = CALLS) -> None:
    before = process()
    for number in range(calls):
        torch.manual_seed(number)
        expected = outcome(twin, twin, argument(number), capsys)
        torch.manual_seed(number)
        assert_same(outcome(subject, jitted, argument(number), capsys), expected)
    assert left_behind(before) == {}


def left_behind(before: dict[str, Any]) -> dict[str, Any]:
    after = process()
    return {key: value for key, value in after.items() if value != before[key] and key != "torch random state"}


def check_fault(
    stage: Stage,
    error: type[Exception],
    make: Callable[[], Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    subject, jitted, twin = prepare(stage, make)
    with injected(stage, error, monkeypatch) as injection:
        compare_calls(subject, jitted, twin, capsys)
    assert injection.happened, "the stage was not reached: the table is out of date"


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_a_fault_leaves_what_an_eager_call_leaves(
    stage: Stage, warm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_fault(stage, Fault, Plain, monkeypatch, capsys)


@pytest.mark.parametrize("stage", [*STAGES[::8], *MODULE_STAGES], ids=str)
def test_a_fault_in_a_call_of_a_module_leaves_what_an_eager_call_leaves(
    stage: Stage, warm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_fault(stage, Fault, Model, monkeypatch, capsys)


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage.place.endswith(SHORT_OF_MEMORY)], ids=str)
def test_memory_that_runs_out_leaves_what_an_eager_call_leaves(
    stage: Stage, warm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check_fault(stage, MemoryError, Plain, monkeypatch, capsys)


@pytest.mark.parametrize("stage", STAGES, ids=str)
def test_an_interrupt_reaches_the_user_and_leaves_nothing_behind(
    stage: Stage, warm: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    subject, jitted, _ = prepare(stage)
    before = process()
    with injected(stage, KeyboardInterrupt, monkeypatch) as injection, pytest.raises(KeyboardInterrupt):
        for number in range(CALLS):
            jitted(argument(number))
            assert not injection.happened, "the interrupt was swallowed"
    assert left_behind(before) == {}
    twin = copy.deepcopy(subject)
    capsys.readouterr()
    compare_calls(subject, jitted, twin, capsys)


@pytest.mark.parametrize("make", [Plain, Model])
def test_without_a_fault_the_second_call_is_compiled(
    make: Callable[[], Any], warm: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    subject, jitted, twin = prepare(STAGES[0], make)
    compare_calls(subject, jitted, twin, capsys)
    counters = counters_of(jitted)
    assert (counters.calls_traced, counters.calls_compiled) == (1, 1)


@pytest.mark.parametrize("make", [Plain, Model])
def test_a_fault_in_any_step_of_a_program_leaves_what_an_eager_call_leaves(
    make: Callable[[], Any], warm: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    subject, function, twin = prepare(STAGES[0], make)
    compare_calls(subject, function, twin, capsys)
    jitted = jitted_of(function)
    assert jitted is not None
    failed = 0
    for compilation in jitted.compilations:
        assert isinstance(compilation.program, Program)
        run: Any = compilation.program.run
        steps = [name for name in run.__code__.co_names if callable(run.__globals__.get(name))]
        for name in steps:
            step = run.__globals__[name]
            run.__globals__[name] = raise_fault
            try:
                eager = jitted.counters.calls_eager
                compare_calls(subject, function, twin, capsys, calls=1)
                failed += jitted.counters.calls_eager - eager
            finally:
                run.__globals__[name] = step
    assert failed >= 5, "few steps were reached"


@pytest.mark.parametrize("place", ["taken:value_to_hand_out", "numbers:Numbers.hand_out"])
def test_a_fault_in_handing_out_a_number_leaves_what_an_eager_call_leaves(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def f(x: torch.Tensor) -> Any:
        amount = x.sum().item()
        return x * amount, amount + 1

    jitted = dsjit.jit(f)
    with injected(Stage(f"dsjit.trace.numbers.{place}"), Fault, monkeypatch) as injection:
        for number in range(CALLS):
            assert_same(jitted(argument(number)), f(argument(number)))
    assert injection.happened


@pytest.mark.parametrize(
    "name", ["OpenPlaces.open", "OpenPlaces.on_fact", "OpenPlaces.arguments", "OpenPlaces.restore"]
)
def test_a_fault_in_opening_a_number_leaves_what_an_eager_call_leaves(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"eager": 0, "jitted": 0}

    def f(x: torch.Tensor, n: int, key: str) -> Any:
        counts[key] = counts[key] + n
        return x * counts[key] + n

    jitted = dsjit.jit(f)
    with torch.no_grad(), injected(Stage(f"dsjit.trace.numbers.open_places:{name}", run=2), Fault, monkeypatch):
        for number in range(5):
            with warnings.catch_warnings(action="ignore"):
                assert_same(jitted(argument(0), number, "jitted"), f(argument(0), number, "eager"))
            assert counts["eager"] == counts["jitted"]
            assert type(counts["jitted"]) is int


def raise_fault(*args: Any, **kwargs: Any) -> None:
    raise Fault("injected into a step")
