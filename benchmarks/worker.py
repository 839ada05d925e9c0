"""One process that runs one contender on one workload, answering requests over a pipe.

A contender has a process of its own so that it is measured cold, and so that no compiler's patches, caches or thread
pools are in another's way. Warm calls of all contenders are interleaved by asking one process after the other.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import multiprocessing
import os
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from benchmarks import contenders
from benchmarks.contenders import DSJIT
from benchmarks.precision import Comparison, compare, in_float64
from benchmarks.training.workload import Trainee
from benchmarks.workloads import catalog
from benchmarks.workloads.workload import Case, Program

__all__ = [
    "WARM_CALLS",
    "Cold",
    "Counters",
    "Failure",
    "ShapeCheck",
    "State",
    "VariedCalls",
    "Worker",
    "WorkerError",
    "check_shapes",
    "measure_cold",
    "measure_varied",
    "read_counters",
    "reset_counters",
]

WARM_CALLS = 3
WARM_UP_CALLS = 48
VARIED_CALLS = 16
CHECKED_CALLS = 3
SECONDS_PER_ROUND = 0.1
CALLS_PER_ROUND = 1000


@dataclass(frozen=True, slots=True)
class Counters:
    """`dsjit.stats()` after some calls. `calls_traced` ran eagerly, and were compiled for the next time."""

    calls_compiled: int
    calls_traced: int
    calls_eager: int
    eager_reasons: dict[str, int]
    compiles: int
    kernels_generated: int
    kernels_reused: int
    ops_in_kernels: int
    ops_in_library: int

    @property
    def all_compiled(self) -> bool:
        return self.calls_compiled > 0 and self.calls_eager == 0


@dataclass(frozen=True, slots=True)
class Cold:
    """Seconds of the once-a-process start-up, of the first two calls together, and of a later one (least of a few).

    Both are counted because either may do what is done once: trace and compile, or load and bind.
    """

    start_up: float
    first_two_calls: float
    warm_call: float
    counters: Counters | None

    @property
    def compile(self) -> float:
        return max(self.first_two_calls - 2 * self.warm_call, 0.0)


@dataclass(frozen=True, slots=True)
class ShapeCheck:
    """The worst comparison of a few calls for one input shape, made after the last of them.

    The first call, which may run eagerly, is reported only if it alone differs.
    """

    dtype: str
    shape: str
    tolerance: str
    comparison: Comparison
    counters: Counters | None


@dataclass(frozen=True, slots=True)
class VariedCalls:
    """Calls that each took an input which no call before it had: the seconds of each, how many results were not
    eager's, and dsjit's counters for them."""

    seconds: list[float]
    unequal: int
    counters: Counters | None


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that raised: the last line of the traceback, and all of it."""

    message: str
    detail: str


@dataclass(slots=True)
class State:
    """What a worker keeps between requests. `at_rest`: bytes of live tensors before the trainee is compiled."""

    workload: str
    contender: str
    compiled: Case | None = None
    trainee: Trainee | None = None
    at_rest: int = 0


class WorkerError(RuntimeError):
    """A contender failed, or did not answer within its time."""


class Worker:
    """The parent's end: a context manager that starts the process and ends it.

    `cache` is the folder for the files of contenders that keep files: an empty one, for cold figures.
    """

    def __init__(self, workload: str, contender: str, cache: str, threads: int) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["benchmarks.worker"])
        self.name = f"{contender} on {workload}"
        self.connection, child = context.Pipe()
        self.process = context.Process(target=_serve, args=(child, State(workload, contender), cache, threads))
        self.process.start()
        child.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.connection.close()
        self.process.join(5)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def begin(self, task: Callable[..., Any], *arguments: object) -> None:
        """Ask for `task(state, *arguments)`; the answer comes through `answer`. The task is a module's function."""
        with contextlib.suppress(BrokenPipeError):  # `answer` tells that the process ended
            self.connection.send((task, arguments))

    def measure(self) -> list[float]:
        """Seconds of each of some warm calls: about 0.1 s of them, three at least. `measure_cold` comes before."""
        self.begin(_measure)
        seconds: list[float] = self.answer(timeout=600.0)
        return seconds

    def ready(self, timeout: float) -> bool:
        """Whether the answer has come, waiting up to `timeout` seconds for it."""
        return self.connection.poll(timeout)

    def answer(self, timeout: float) -> Any:
        """The answer to the last request. Raises `WorkerError` if it failed or takes more than `timeout` seconds."""
        if not self.ready(timeout):
            self.process.kill()
            raise WorkerError(f"{self.name}: no answer within {timeout:.0f} s")
        try:
            answer = self.connection.recv()
        except EOFError:
            raise WorkerError(f"{self.name}: the process ended (exit code {self.process.exitcode})") from None
        if isinstance(answer, Failure):
            raise WorkerError(f"{self.name}: {answer.message}\n{answer.detail}")
        return answer


def _serve(connection: Connection, state: State, cache: str, threads: int) -> None:
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = os.path.join(cache, "inductor")
    os.environ["TRITON_CACHE_DIR"] = os.path.join(cache, "triton")
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    with torch.no_grad():
        while True:
            try:
                task, arguments = connection.recv()
            except EOFError:
                return
            try:
                connection.send(task(state, *arguments))
            except Exception as error:
                message = f"{type(error).__name__}: {error}".splitlines()[0]
                connection.send(Failure(message, traceback.format_exc()))


def _timed(case: Case) -> tuple[float, Any]:
    start = time.perf_counter()
    result = case()
    return time.perf_counter() - start, result


def _seconds(case: Case) -> float:
    return _timed(case)[0]


def measure_cold(state: State, dtype: torch.dtype) -> Cold:
    """Run the program eagerly, then start the contender up, then compile by calling. Keeps the compiled program."""
    case = catalog.find(state.workload).build(dtype)
    case()
    contender = contenders.find(state.contender)
    start = time.perf_counter()
    contender.start_up()
    start_up = time.perf_counter() - start
    reset_counters(state)
    start = time.perf_counter()
    compiled = Case(contender.compile(case.program), case.arguments)
    compiled()
    compiled()
    first_two_calls = time.perf_counter() - start
    state.compiled = compiled
    warm_call = min(_seconds(compiled) for _ in range(WARM_CALLS))
    return Cold(start_up, first_two_calls, warm_call, read_counters(state))


def _measure(state: State) -> list[float]:
    assert state.compiled is not None
    gc.collect()
    gc.disable()
    state.compiled()
    seconds: list[float] = []
    while len(seconds) < 3 or (sum(seconds) < SECONDS_PER_ROUND and len(seconds) < CALLS_PER_ROUND):
        seconds.append(_seconds(state.compiled))
    gc.enable()
    return seconds


def measure_varied(state: State, dtype: torch.dtype, draws: range) -> VariedCalls:
    """Call the compiled program once for each of `draws`, then eager, and compare. `measure_cold` comes before."""
    assert state.compiled is not None
    workload = catalog.find(state.workload)
    program = workload.build(dtype).program
    inputs = [workload.arguments(dtype, 0, draw) for draw in draws]
    cases = [Case(state.compiled.program, arguments) for arguments in inputs]
    reset_counters(state)
    gc.collect()
    gc.disable()
    timed = [_timed(case) for case in cases]
    gc.enable()
    counters = read_counters(state)
    tolerance = workload.tolerances[dtype]
    unequal = 0
    for arguments, (_, result) in zip(inputs, timed, strict=True):
        expected = program(*arguments)
        unequal += not compare(result, expected, expected, tolerance).equal
    return VariedCalls([seconds for seconds, _ in timed], unequal, counters)


def check_shapes(state: State, dtype: torch.dtype) -> list[ShapeCheck]:
    """Compare a few calls of one compiled program for every input shape with eager and with float64."""
    state.compiled = None
    workload = catalog.find(state.workload)
    program = workload.build(dtype).program
    cases = [Case(program, workload.arguments(dtype, index)) for index in range(len(workload.shapes))]
    expected = [(case(), in_float64(case)) for case in cases]
    compiled: Program = contenders.find(state.contender).compile(program)
    tolerance = workload.tolerances[dtype]
    checks = []
    for shape, case, (eager, reference) in zip(workload.shapes, cases, expected, strict=True):
        reset_counters(state)
        results = [compiled(*case.arguments) for _ in range(CHECKED_CALLS)]
        counters = read_counters(state)
        comparisons = [compare(result, eager, reference, tolerance) for result in results]
        ranked = enumerate(comparisons)
        _, worst = max(ranked, key=lambda ranked: (not ranked[1].equal, ranked[0] > 0, ranked[1].error))
        checks.append(ShapeCheck(str(dtype).removeprefix("torch."), shape, str(tolerance), worst, counters))
    return checks


def reset_counters(state: State) -> None:
    """Count anew, if this process's contender is dsjit."""
    if state.contender == DSJIT.name:
        importlib.import_module("dsjit").reset_stats()


def read_counters(state: State) -> Counters | None:
    """Of the calls since `reset_counters`; None for other contenders."""
    if state.contender != DSJIT.name:
        return None
    stats = importlib.import_module("dsjit").stats()
    return Counters(
        stats.calls_compiled,
        stats.calls_traced,
        stats.calls_eager,
        dict(stats.eager_reasons),
        stats.compiles,
        stats.kernels_generated,
        stats.kernels_reused,
        stats.ops_in_kernels,
        stats.ops_in_library,
    )
