"""`dsjit.profile`: where the time and the memory of compiled calls go, by line of the user's."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import torch
from rich.console import Console

from dsjit.api.compile import Compilation
from dsjit.api.entry import jit, jitted_of, session
from dsjit.api.profile_compiler import compiler_profile
from dsjit.api.profiling_hooks import ProfiledRun, Watcher
from dsjit.codegen.triton.launch import GpuKernel
from dsjit.errors import ProfileError
from dsjit.fusion.lower import FusedKernel
from dsjit.passes.partition import Partition
from dsjit.profiler.analysis import analyse
from dsjit.profiler.chrome_trace import chrome_trace
from dsjit.profiler.machine import Machine, this_machine
from dsjit.profiler.profile import Finding, ProfileData
from dsjit.profiler.recording import ProgramSamples
from dsjit.profiler.report import notebook_html, report_html
from dsjit.profiler.subject import Subject
from dsjit.profiler.summary import print_summary, summary_text

__all__ = ["Profile", "profile"]

CALLS: Final = 10
"""That `dsjit.profile(f)(...)` makes."""

_WATCHER: list[Watcher] = []


def _watcher() -> Watcher:
    if not _WATCHER:
        _WATCHER.append(Watcher(session()))
    return _WATCHER[0]


class Profile:
    """What happened in a block, for reading, once the block has ended.

    title: of reports. `data` has all figures; `str(profile)` is a summary.
    """

    def __init__(self, title: str = "", ranges: bool = False, machine: Machine | None = None) -> None:
        self.title = title or "dsjit profile"
        self._machine = machine
        self._run = ProfiledRun(torch.profiler.record_function if ranges else None)
        self._state = "new"

    def __enter__(self) -> Profile:
        if self._state != "new":
            raise ProfileError("this profile has been used: make a new one with dsjit.profile()")
        self._state = "running"
        _watcher().begin(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _watcher().end(self._run)
        self._state = "ended"

    @functools.cached_property
    def data(self) -> ProfileData:
        """All figures. Raises ProfileError while the block runs.

        The first time, it measures what this machine attains, unless that is known (`profiler.machine`).
        """
        if self._state != "ended":
            raise ProfileError("the profile has not ended: read it after its `with` block")
        machine = self._machine or this_machine()
        subjects = _subjects(self._run)
        numbers = {compilation: number for number, compilation in enumerate(subjects)}
        compiler = compiler_profile(self._run, numbers)
        return analyse(self.title, self._run.recording, list(subjects.values()), compiler, machine)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What to look at, first things first."""
        return self.data.findings

    def to_dict(self) -> dict[str, Any]:
        """All of it in dictionaries, lists, strings and numbers; docs/profiler.md tells what each is."""
        return self.data.to_dict()

    def save_json(self, path: str | Path) -> None:
        """Write `to_dict()`, which `dsjit.compare_profiles` takes, too."""
        Path(path).write_text(json.dumps(self.to_dict()), encoding="utf-8")

    def save_html(self, path: str | Path) -> None:
        """Write the report: one file, which needs no other and no network."""
        Path(path).write_text(report_html(self.to_dict()), encoding="utf-8")

    def save_chrome_trace(self, path: str | Path) -> None:
        """Write the timeline as ui.perfetto.dev and chrome://tracing take it."""
        Path(path).write_text(json.dumps(chrome_trace(self.data)), encoding="utf-8")

    def print(self, console: Console) -> None:
        """Print the summary to a rich Console."""
        print_summary(self.data, console)

    def __str__(self) -> str:
        return summary_text(self.data)

    def __repr__(self) -> str:
        return f"<dsjit.profile {self.title!r}: {self._state}>"

    def _repr_html_(self) -> str:
        """For notebooks: the report in a frame of its own."""
        return notebook_html(self.to_dict())


def profile(
    function: Callable[..., Any] | None = None, /, *, title: str = "", calls: int = CALLS, ranges: bool = False
) -> Any:
    """Profile what runs in a block, or calls of one function.

    `with dsjit.profile() as p:` around any calls; then `print(p)`, `p.save_html("report.html")`, `p.to_dict()`.
    Profiles may be nested. All threads are part of it.

    `dsjit.profile(f)(*args, **kwargs)` jits `f` if it is not, calls it once (it is then compiled), profiles `calls`
    further calls with the same arguments, and returns the Profile. The calls are real: their effects happen.

    ranges: run each step in a range of `torch.profiler.record_function`, which other profilers see (NVTX, too, under
        torch.autograd.profiler.emit_nvtx). This takes longer.
    Raises ProfileError for calls that are not 1 or more.
    """
    if calls < 1:
        raise ProfileError(f"calls={calls}: at least one call is needed for a profile")
    if function is None:
        return Profile(title, ranges)
    name = getattr(function, "__name__", type(function).__name__)

    def profiled(*args: Any, **kwargs: Any) -> Profile:
        callee = function if jitted_of(function) is not None else jit(getattr(function, "_call_impl", function))
        callee(*args, **kwargs)
        found = Profile(title or name, ranges)
        with found:
            for _ in range(calls):
                callee(*args, **kwargs)
        return found

    return profiled


def _subjects(run: ProfiledRun) -> dict[int, Subject]:
    """The Programs that ran, by the ids of their Compilations."""
    by_compilation: dict[int, list[ProgramSamples]] = {}
    compilations: dict[int, Compilation] = {}
    for number, samples in run.recording.programs.items():
        compilation = run.compilations[number]
        by_compilation.setdefault(id(compilation), []).append(samples)
        compilations[id(compilation)] = compilation
    forwards: dict[int, Partition] = {}
    backwards: dict[int, Partition] = {}
    for training in list(session().trainings.values()):
        forwards[id(training.forward)] = training.partition
        for compilation in training.compilations[1:]:
            backwards[id(compilation)] = training.partition
    fast = {id(each) for key, each in list(session().programs.items()) if isinstance(key, tuple) and key[0] == "fast"}
    found: dict[int, Subject] = {}
    for number, compilation in compilations.items():
        halves = backwards.get(number)
        done = {id(node) for node in halves.forward.nodes} if halves is not None else set()
        found[number] = Subject(
            name=compilation.captured.name,
            phase="backward" if number in backwards else "forward",
            captured=compilation.captured,
            optimized=compilation.optimized,
            plan=compilation.plan,
            steps=compilation.steps,
            native=compilation.native,
            samples=by_compilation[number],
            arena_bytes=compilation.program.arena_bytes,
            intermediate_bytes=compilation.program.intermediate_bytes,
            source=compilation.program.source,
            fast=number in fast,
            triton=_triton_texts(compilation),
            saved=forwards[number].kept if number in forwards else (),
            recomputed=[node for node in halves.backward.nodes if id(node) in done] if halves is not None else (),
        )
    return found


def _triton_texts(compilation: Compilation) -> dict[str, str]:
    return {
        unit.kernel.name: kernel.source.text
        for unit, kernel in compilation.kernels.items()
        if isinstance(unit, FusedKernel) and isinstance(kernel, GpuKernel)
    }
