"""Measures on a CUDA device: `python -m benchmarks.gpu [--only NAME ...] [--quick] [--json FILE] [--page FILE]`.

First dsjit's results of every workload are compared with eager's; then eager, dsjit and torch.compile are timed on it,
in turns, in one process, and so are the ways in which scaled_dot_product_attention may be computed where that is the
workload. Times are medians of CUDA events around one call, with the L2 cache emptied before it; where the host's time
counts, from call to call. What is bound by memory is also given as a share of the bandwidth that copying a large
tensor reaches in the same run. torch.compile with max-autotune takes longest, and has a round of its own: after
`--seconds` nothing new is begun, and what there was no time for is named. Measuring is done by a process of its own
(`gpu_supervisor.py`): one that crashes or hangs is replaced by another that leaves out what it died of. The file of
`--json` is written after each step. Needs a GPU; exits with 1 where there is none, and when a result is not eager's.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import dsjit
from benchmarks.gpu_supervisor import Measured, Progress, supervise
from benchmarks.gpu_workloads import WORKLOADS, Program, Workload
from benchmarks.launches import launch_us
from dsjit.codegen.triton.load import gpu_machine
from dsjit.errors import BackendError

__all__ = [
    "CONTENDERS", "SDPA", "WORKLOADS", "Bench", "Gpu", "Measured", "Workload", "main", "measure_all", "table",
    "targets", "with_figures",
]  # fmt: skip

ROUNDS: Final = 30
CALLS_PER_ROUND: Final = 5
COPIED_BYTES: Final = 1 << 29
FLUSHED_BYTES: Final = 1 << 28
"""More than the L2 cache of any GPU."""

SECONDS: Final = 360.0
"""What is begun within that time ends before 8 minutes are over: the longest compile takes about one."""

BEGIN: Final = "<!-- figures -->"
END: Final = "<!-- end of figures -->"


CONTENDERS: Final[dict[str, Callable[[Program], Program]]] = {
    "eager": lambda program: program,
    "dsjit": lambda program: dsjit.jit(program, fullgraph=True),
    "dsjit, measured": lambda program: dsjit.jit(program, autotune="measure", fullgraph=True),
    "dsjit, replayed": lambda program: dsjit.jit(program, cuda_graphs=True, fullgraph=True),
    "torch.compile": torch.compile,
    "torch.compile, max-autotune": lambda program: torch.compile(program, mode="max-autotune"),
}
SLOWEST: Final = "torch.compile, max-autotune"
NO_TIME: Final = "there was no time left"

STREAMS_IN_WHOLE_LINES: Final = (
    "pointwise chain", "pointwise chain, bfloat16", "softmax", "long softmax", "layer norm", "rms norm, bfloat16",
)  # fmt: skip
"""The workloads that a share of a copy's bandwidth is aimed at."""

SDPA: Final[dict[str, SDPBackend]] = {
    "SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
}
"""The ways to compute it that a workload with a `library` is compared with."""


class Gpu(Protocol):
    """What measuring takes of a device."""

    @property
    def device(self) -> torch.device: ...

    @property
    def name(self) -> str: ...

    @property
    def flushed_bytes(self) -> int:
        """More than its caches hold."""
        ...

    def event(self) -> Any:
        """As `torch.cuda.Event(enable_timing=True)`."""
        ...

    def launch_us(self) -> float:
        """Host microseconds of a launch, in a row of them."""
        ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CudaGpu:
    device: torch.device
    flushed_bytes: int = FLUSHED_BYTES

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def launch_us(self) -> float:
        return launch_us(gpu_machine(self.device).kernels, self.device)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(slots=True)
class Bench:
    """copied: bytes a microsecond that a copy moves, reads and writes counted. ready: what was called twice, by
    workload and contender. begin: told of workload and contender, before anything is run."""

    gpu: Gpu
    contenders: Mapping[str, Callable[[Program], Program]]
    rounds: int
    copied: float
    ready: dict[tuple[str, str], Program] = field(default_factory=dict)
    begin: Callable[[str, str], None] = lambda workload, contender: None
    flushed: torch.Tensor | None = None

    def check(self, workload: Workload, found: Measured) -> None:
        """Compares dsjit's results with eager's."""
        arguments = workload.arguments(self.gpu.device)
        for name in [name for name in self.contenders if name.startswith("dsjit")]:
            if name not in found.failures and name not in found.cold_s:
                self._begin(workload, name, arguments, found)

    def measure(self, workload: Workload, names: Sequence[str], found: Measured) -> None:
        """Adds what these contenders take to `found`."""
        arguments = workload.arguments(self.gpu.device)
        torch.compiler.reset()
        for name in names:
            if (workload.name, name) not in self.ready and name not in found.failures:
                self._begin(workload, name, arguments, found)
        ready = {name: self.ready[workload.name, name] for name in names if (workload.name, name) in self.ready}
        times: dict[str, list[float]] = {name: [] for name in ready}
        for _ in range(self.rounds):
            for name, program in ready.items():
                self.begin(workload.name, name)
                times[name] += self.event_times(program, arguments, flush=not workload.waits)
        warm_us = {name: statistics.median(each) for name, each in times.items()}
        # In a later round the device may be faster or slower than in the first: eager tells by how much.
        scale = found.warm_us["eager"] / warm_us["eager"] if {"eager"} <= found.warm_us.keys() & warm_us.keys() else 1.0
        found.warm_us = {**{name: us * scale for name, us in warm_us.items()}, **found.warm_us}
        if workload.streams:
            out = workload.program(*arguments)
            moved = sum(t.numel() * t.element_size() for t in (*arguments, *_tensors(out)))
            found.bandwidth = {name: moved / us / self.copied for name, us in found.warm_us.items()}

    def sdpa(self, workload: Workload, found: Measured) -> None:
        """Adds what the library's ways to compute attention take."""
        arguments = workload.arguments(self.gpu.device)
        for name, backend in SDPA.items():
            assert workload.library is not None
            if name in found.failures or name in found.warm_us:
                continue
            self.begin(workload.name, name)
            try:
                with sdpa_kernel(backend):
                    workload.library(*arguments)
                    times = [
                        us
                        for _ in range(self.rounds)
                        for us in self.event_times(workload.library, arguments, flush=not workload.waits)
                    ]
            except RuntimeError as error:
                found.failures[name] = _told(error)
                continue
            found.warm_us[name] = statistics.median(times)

    def _begin(self, workload: Workload, name: str, arguments: Sequence[torch.Tensor], found: Measured) -> None:
        """Calls a contender twice."""
        self.begin(workload.name, name)
        expected = workload.program(*arguments)
        try:
            program = self.contenders[name](workload.program)
            start = time.perf_counter()
            program(*arguments)
            result = program(*arguments)
            self.gpu.synchronize()
        except Exception as error:
            found.failures[name] = _told(error)
            found.correct = found.correct and not name.startswith("dsjit")
            self.gpu.synchronize()  # raises where the error has left the device unusable
            return
        found.cold_s.setdefault(name, time.perf_counter() - start)
        self.ready[workload.name, name] = program
        if name.startswith("dsjit"):
            found.correct = found.correct and _close(result, expected, workload)

    def event_times(self, program: Program, arguments: Sequence[torch.Tensor], flush: bool = False) -> Iterator[float]:
        """Microseconds of each call. flush: with an empty L2 cache, and not waiting for the host, which queues calls
        while the device is busy emptying it."""
        if flush:
            pairs = [(self.gpu.event(), self.gpu.event()) for _ in range(CALLS_PER_ROUND)]
            for before, after in pairs:
                self._flush()
                before.record()
                program(*arguments)
                after.record()
        else:
            events = [self.gpu.event() for _ in range(CALLS_PER_ROUND + 1)]
            events[0].record()
            for event in events[1:]:
                program(*arguments)
                event.record()
            pairs = list(pairwise(events))
        pairs[-1][1].synchronize()
        return (1e3 * before.elapsed_time(after) for before, after in pairs)

    def _flush(self) -> None:
        if self.flushed is None:
            self.flushed = torch.empty(self.gpu.flushed_bytes, dtype=torch.uint8, device=self.gpu.device)
        self.flushed.zero_()


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure_all(
    workloads: Sequence[Workload],
    seconds: float,
    bench: Bench,
    found: Sequence[Measured],
    on_step: Callable[[], None] = lambda: None,
) -> None:
    """Fills in `found`, one for each workload; what is there already is not measured again. Nothing is begun any more
    once `seconds` have passed. on_step: called whenever something was added."""
    deadline = time.perf_counter() + seconds
    first = [name for name in bench.contenders if name != SLOWEST]
    last = [name for name in bench.contenders if name in ("eager", SLOWEST)]
    rounds: list[tuple[list[str], Callable[[Workload, Measured], None]]] = [
        ([name for name in first if name.startswith("dsjit")], bench.check),
        (first, lambda workload, each: bench.measure(workload, first, each)),
        (list(SDPA), bench.sdpa),
        (last, lambda workload, each: bench.measure(workload, last, each)),
    ]
    for number, (names, run) in enumerate(rounds):
        for workload, each in zip(workloads, found, strict=True):
            is_check = number == 0
            known = {*each.failures, *(each.cold_s if is_check else each.warm_us)}
            if known.issuperset(names) or (names == list(SDPA) and workload.library is None):
                continue
            if time.perf_counter() >= deadline:
                missing = [name for name in names if name not in each.warm_us]
                each.failures = {**dict.fromkeys(missing, NO_TIME), **each.failures}
                continue
            try:
                run(workload, each)
                bench.gpu.synchronize()
            except torch.AcceleratorError:  # the device is unusable from now on, in this process
                raise
            except Exception as error:  # what is measured already is told
                each.failures = {**dict.fromkeys(names, _told(error)), **each.failures}
                each.correct = False
            on_step()


def _close(result: Any, expected: Any, workload: Workload) -> bool:
    return all(
        torch.allclose(one, other, workload.relative, workload.absolute, equal_nan=True)
        for one, other in zip(_tensors(result), _tensors(expected), strict=True)
    )


def _tensors(result: Any) -> tuple[torch.Tensor, ...]:
    return result if isinstance(result, tuple) else (result,)


def copy_bandwidth(gpu: Gpu, rounds: int, nbytes: int = COPIED_BYTES) -> float:
    """Bytes a microsecond, reads and writes counted."""
    source = torch.empty(nbytes, dtype=torch.uint8, device=gpu.device)
    target = torch.empty_like(source)
    bench = Bench(gpu, {}, rounds, 1.0)
    times = [us for _ in range(rounds) for us in bench.event_times(target.copy_, (source,))]
    return 2 * nbytes / statistics.median(times)


def table(found: Sequence[Measured]) -> str:
    """As Markdown: microseconds of a call, how many times faster than the others, share of a copy's bandwidth."""
    lines = [
        "| workload | correct | dsjit, us | eager / dsjit | measured / dsjit | replayed / dsjit "
        "| torch.compile / dsjit | max-autotune / dsjit | best SDPA / best dsjit | cold, dsjit / torch.compile "
        "| of a copy |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        own = each.warm_us.get("dsjit")
        names = ("eager", "dsjit, measured", "dsjit, replayed", "torch.compile", SLOWEST)
        ratios = [f"{each.warm_us[n] / own:.2f}" if own and n in each.warm_us else "-" for n in names]
        sdpa = [us for name, us in each.warm_us.items() if name in SDPA]
        best = [us for name, us in each.warm_us.items() if name.startswith("dsjit")]
        ratios.append(f"{min(sdpa) / min(best):.2f}" if sdpa and best else "-")
        cold = [each.cold_s.get(name) for name in ("dsjit", "torch.compile")]
        ratios.append(f"{cold[0] / cold[1]:.2f}" if cold[0] and cold[1] else "-")
        share = f"{each.bandwidth['dsjit']:.0%}" if "dsjit" in each.bandwidth else "-"
        timed = f"{own:.1f}" if own else "-"
        cells = [each.name, "yes" if own and each.correct else "NO", timed, *ratios, share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def targets(found: Sequence[Measured]) -> list[str]:
    """What is aimed at, and by which workloads it was missed, of those that were measured."""
    lines: list[str] = []

    def told(what: str, least: float, ratios: Mapping[str, float]) -> None:
        missed = [f"{name} ({ratio:.2f})" for name, ratio in ratios.items() if ratio < least]
        verdict = f"missed by {', '.join(missed)}" if missed else "met" if ratios else "not measured"
        lines.append(f"- {what}: {verdict} ({len(ratios) - len(missed)} of {len(ratios)})")

    best = {
        each.name: min(us for name, us in each.warm_us.items() if name.startswith("dsjit"))
        for each in found
        if any(name.startswith("dsjit") for name in each.warm_us)
    }

    def against(each: Measured, names: Sequence[str]) -> dict[str, float]:
        others = [each.warm_us[name] for name in names if name in each.warm_us]
        return {each.name: min(others) / best[each.name]} if others and each.name in best else {}

    streams = [each for each in found if "dsjit" in each.bandwidth and each.name in STREAMS_IN_WHOLE_LINES]
    told("90 % of a copy's bandwidth", 0.9, {each.name: each.bandwidth["dsjit"] for each in streams})
    products = [each for each in found if each.name.startswith("linear")]
    eager = {name: ratio for each in products for name, ratio in against(each, ["eager"]).items()}
    told("products at 95 % of the library's with its epilogue", 0.95, eager)
    sdpa = {name: ratio for each in found for name, ratio in against(each, list(SDPA)).items()}
    told("attention at 90 % of the best of the library's", 0.9, sdpa)
    compiled = ["torch.compile", SLOWEST]
    told("no slower than torch.compile", 1.0, {n: r for each in found for n, r in against(each, compiled).items()})
    cold = {
        each.name: each.cold_s["torch.compile"] / each.cold_s["dsjit"]
        for each in found
        if {"dsjit", "torch.compile"} <= each.cold_s.keys()
    }
    told("compiled in a quarter of torch.compile's time", 4.0, cold)
    return lines


def with_figures(page: str, figures: str) -> str:
    """The page, with `figures` between its two marks. Raises ValueError when it has none."""
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:start]}\n{figures}\n{page[end:]}"


def main(
    argv: Sequence[str],
    gpu: Gpu | None = None,
    contenders: Mapping[str, Callable[[Program], Program]] = CONTENDERS,
    workloads: Sequence[Workload] = WORKLOADS,
    copied_bytes: int = COPIED_BYTES,
) -> int:
    """The exit status. gpu: the current CUDA device when None."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in workloads], help="these workloads")
    parser.add_argument("--quick", action="store_true", help="a few calls of each")
    parser.add_argument("--json", type=Path, help="write what is measured to this file, step by step")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin nothing new after that")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if gpu is None and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    chosen = [each.name for each in workloads if options.only is None or each.name in options.only]
    file = options.json
    rounds = 3 if options.quick else ROUNDS
    if options.worker is not None or gpu is not None:
        progress = Progress.read(options.worker or file, chosen)
        gpu = gpu or CudaGpu(torch.device("cuda", torch.cuda.current_device()))
        _measure(gpu, contenders, workloads, progress, rounds, options.seconds, copied_bytes)
        if options.worker is not None:
            return 0
    else:
        file = file or Path(tempfile.mkdtemp()) / "gpu.json"
        file.unlink(missing_ok=True)
        own = ["--only", *chosen, *(["--quick"] if options.quick else []), "--worker", str(file)]
        progress = supervise([sys.executable, "-m", "benchmarks.gpu", *own], file, chosen, options.seconds)
    found = progress.workloads
    machine = ", ".join(f"{name} {value}" for name, value in progress.machine.items())
    aims = "\n".join(targets(found))
    figures = f"{machine}\n\n{table(found)}\n\n{aims}"
    print(figures)
    for each in found:
        for name, failure in each.failures.items():
            print(f"{each.name}, {name}: {failure}", file=sys.stderr)
    if options.page is not None:
        options.page.write_text(with_figures(options.page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return 0 if found and all(each.correct for each in found) else 1


def _measure(
    gpu: Gpu,
    contenders: Mapping[str, Callable[[Program], Program]],
    workloads: Sequence[Workload],
    progress: Progress,
    rounds: int,
    seconds: float,
    copied_bytes: int,
) -> None:
    copied = copy_bandwidth(gpu, rounds, copied_bytes)
    versions = {"torch": torch.__version__, "triton": version("triton"), "python": platform.python_version()}
    progress.machine = {"device": gpu.name, **versions, "copies at GB/s": f"{copied / 1e3:.0f}"}
    progress.begin("the first call of all", "dsjit")
    with contextlib.suppress(BackendError):  # which every workload will tell
        progress.machine["a launch takes the host us"] = f"{gpu.launch_us():.2f}"
    bench = Bench(gpu, contenders, rounds, copied, begin=progress.begin)
    chosen = [each for each in workloads if each.name in {found.name for found in progress.workloads}]
    with torch.no_grad():
        # What a process does once, imports above all, is no workload's; those of autograd would make a trace refuse.
        with torch.enable_grad(), contextlib.suppress(Exception):
            leaf = torch.ones(8, device=gpu.device, requires_grad=True)
            torch.autograd.grad(leaf.neg(), leaf, torch.ones_like(leaf))
        for name, contender in contenders.items():
            if all(name in each.failures for each in progress.workloads):
                continue
            progress.begin("the first call of all", name)
            with contextlib.suppress(Exception):
                contender(torch.neg)(torch.ones(8, device=gpu.device))
        measure_all(chosen, seconds, bench, progress.workloads, progress.write)
    progress.done()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
