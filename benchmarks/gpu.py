"""Measures on a CUDA device: `python -m benchmarks.gpu [--only NAME ...] [--quick] [--json FILE] [--page FILE]`.

First every workload is compared with eager; then eager, dsjit and torch.compile are timed on it, in turns, in one
process. Times are medians of CUDA events around one call. What is bound by memory is also given as a share of the
bandwidth that copying a large tensor reaches in the same run. torch.compile with max-autotune takes longest, and has a
second round of its own: after `--seconds` nothing new is begun, and what there was no time for is named. Needs a GPU;
exits with 1 where there is none, and when a result is not eager's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F

import dsjit

__all__ = ["CONTENDERS", "WORKLOADS", "Measured", "Workload", "main", "measure_all", "table", "with_figures"]

Program = Callable[..., Any]

ROUNDS: Final = 30
CALLS_PER_ROUND: Final = 5
COPIED_BYTES: Final = 1 << 29

SECONDS: Final = 360.0
"""What is begun within that time ends before 8 minutes are over: the longest compile takes about one."""

BEGIN: Final = "<!-- figures -->"
END: Final = "<!-- end of figures -->"


@dataclass(frozen=True, slots=True)
class Workload:
    """inputs: shape and dtype of each. streams: whether memory bounds it: each input is read once, each output written.

    relative, absolute: how far an element may be from eager's.
    """

    name: str
    program: Program
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    streams: bool
    relative: float = 1.3e-6
    absolute: float = 1e-5

    def arguments(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        return tuple([_drawn(shape, dtype, generator, device) for shape, dtype in self.inputs])


def _drawn(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    if dtype is torch.int8:
        return torch.randint(-127, 128, shape, generator=generator, device=device, dtype=dtype)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


@dataclass(slots=True)
class Measured:
    """Of one workload. correct: whether dsjit's results were eager's. cold_s: seconds of the first two calls.

    warm_us: microseconds of one call, by contender. bandwidth: share of a copy's, where memory bounds it.
    failures: what contenders raised.
    """

    name: str
    correct: bool = True
    cold_s: dict[str, float] = field(default_factory=dict)
    warm_us: dict[str, float] = field(default_factory=dict)
    bandwidth: dict[str, float] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def _rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w


def _chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sigmoid() * y + x.tanh()).relu() * F.gelu(y)


def _layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _residual(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return residual + F.linear(x, w) * scale


def _int8_linear(x: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return F.silu(F.linear(x, w.to(x.dtype) * scales[:, None]))


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.tanh(q @ k.transpose(-2, -1) * 0.125)


_f32, _bf16 = torch.float32, torch.bfloat16
_HEADS: Final = ((8, 16, 1024, 64), _bf16)

WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("pointwise chain", _chain, (((8192, 4096), _f32),) * 2, True),
    Workload(
        "pointwise chain, bfloat16", _chain, (((8192, 4096), _bf16),) * 2, True, relative=1.6e-2, absolute=1e-2
    ),
    Workload("softmax", lambda x: x.softmax(-1), (((8192, 4096), _f32),), True),
    Workload("long softmax", lambda x: x.softmax(-1), (((512, 50257), _f32),), True),
    Workload("layer norm", _layer_norm, (((8192, 4096), _f32), ((4096,), _f32), ((4096,), _f32)), True),
    Workload("rms norm, bfloat16", _rms_norm, (((8192, 4096), _bf16), ((4096,), _bf16)), True, 1.6e-2, 1e-2),
    Workload("transposed add", lambda x, y: x.t() + y, (((4096, 8192), _f32), ((8192, 4096), _f32)), True),
    Workload("column sum", lambda x: x.sum(0), (((8192, 4096), _f32),), True, absolute=1e-3),
    Workload(
        "linear and gelu, bfloat16", lambda x, w, b: F.gelu(F.linear(x, w, b)),
        (((4096, 1024), _bf16), ((4096, 1024), _bf16), ((4096,), _bf16)), False, 1.6e-2, 5e-1,
    ),
    Workload(
        "linear, scale and residual, bfloat16", _residual,
        (((4096, 1024), _bf16), ((4096, 1024), _bf16), ((4096,), _bf16), ((4096, 4096), _bf16)), False, 1.6e-2, 5e-1,
    ),
    Workload(
        "linear of int8 weights, bfloat16", _int8_linear,
        (((64, 4096), _bf16), ((4096, 4096), torch.int8), ((4096,), _bf16)), False, 1.6e-2, 5e1,
    ),
    Workload(
        "capped scores, bfloat16", _scores, (((64, 1024, 64), _bf16), ((64, 1024, 64), _bf16)), False, 1.6e-2, 1e-1
    ),
    Workload("causal attention, bfloat16", _attention, (_HEADS, _HEADS, _HEADS), False, 1.6e-2, 1e-2),
)  # fmt: skip

CONTENDERS: Final[dict[str, Callable[[Program], Program]]] = {
    "eager": lambda program: program,
    "dsjit": lambda program: dsjit.jit(program, backend="triton", fullgraph=True),
    "dsjit, measured": lambda program: dsjit.jit(program, backend="triton", autotune="measure", fullgraph=True),
    "torch.compile": torch.compile,
    "torch.compile, max-autotune": lambda program: torch.compile(program, mode="max-autotune"),
}
SLOWEST: Final = "torch.compile, max-autotune"


def measure(
    workload: Workload, device: torch.device, rounds: int, copied: float, contenders: Sequence[str], found: Measured
) -> None:
    """Adds what these contenders take to `found`. copied: bytes a microsecond that a copy moves, reads and writes
    counted."""
    arguments = workload.arguments(device)
    ready: dict[str, Program] = {}
    expected = workload.program(*arguments)
    torch.compiler.reset()
    for name in contenders:
        try:
            program = CONTENDERS[name](workload.program)
            start = time.perf_counter()
            program(*arguments)
            result = program(*arguments)
            torch.cuda.synchronize(device)
        except Exception as error:
            found.failures[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            found.correct = found.correct and not name.startswith("dsjit")
            continue
        found.cold_s[name] = time.perf_counter() - start
        ready[name] = program
        if name.startswith("dsjit"):
            found.correct = found.correct and _close(result, expected, workload)
    times: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(rounds):
        for name, program in ready.items():
            times[name] += _event_times(program, arguments)
    warm_us = {name: statistics.median(each) for name, each in times.items()}
    # In a second round the device may be faster or slower than in the first: eager tells by how much.
    scale = found.warm_us["eager"] / warm_us["eager"] if {"eager"} <= found.warm_us.keys() & warm_us.keys() else 1.0
    found.warm_us = {**{name: us * scale for name, us in warm_us.items()}, **found.warm_us}
    if workload.streams:
        moved = sum(t.numel() * t.element_size() for t in (*arguments, expected))
        found.bandwidth = {name: moved / us / copied for name, us in found.warm_us.items()}


def measure_all(
    workloads: Sequence[Workload], seconds: float, run: Callable[[Workload, Sequence[str], Measured], None]
) -> list[Measured]:
    """One Measured for each workload. run: as `measure`; not called any more once `seconds` have passed."""
    deadline = time.perf_counter() + seconds
    found = [Measured(each.name) for each in workloads]
    first = [name for name in CONTENDERS if name != SLOWEST]
    for contenders in (first, ["eager", SLOWEST]):
        for workload, each in zip(workloads, found, strict=True):
            if time.perf_counter() < deadline:
                run(workload, contenders, each)
            else:
                each.failures |= {name: "there was no time left" for name in contenders if name not in each.warm_us}
    return found


def _close(result: torch.Tensor, expected: torch.Tensor, workload: Workload) -> bool:
    return torch.allclose(result, expected, workload.relative, workload.absolute, equal_nan=True)


def _event_times(program: Program, arguments: Sequence[torch.Tensor]) -> Iterator[float]:
    """Microseconds of each call."""
    events = [torch.cuda.Event(enable_timing=True) for _ in range(CALLS_PER_ROUND + 1)]
    events[0].record()
    for event in events[1:]:
        program(*arguments)
        event.record()
    events[-1].synchronize()
    return (1e3 * one.elapsed_time(other) for one, other in pairwise(events))


def copy_bandwidth(device: torch.device, rounds: int) -> float:
    """Bytes a microsecond, reads and writes counted."""
    source = torch.empty(COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    times = [us for _ in range(rounds) for us in _event_times(target.copy_, (source,))]
    return 2 * COPIED_BYTES / statistics.median(times)


def table(found: Sequence[Measured]) -> str:
    """As Markdown: microseconds of a call, how many times faster than the others, share of a copy's bandwidth."""
    lines = [
        "| workload | correct | dsjit, us | eager / dsjit | measured / dsjit | torch.compile / dsjit "
        "| max-autotune / dsjit | cold, dsjit / torch.compile | of a copy |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in found:
        own = each.warm_us.get("dsjit")
        names = ("eager", "dsjit, measured", "torch.compile", SLOWEST)
        ratios = [f"{each.warm_us[n] / own:.2f}" if own and n in each.warm_us else "-" for n in names]
        cold = [each.cold_s.get(name) for name in ("dsjit", "torch.compile")]
        ratios.append(f"{cold[0] / cold[1]:.2f}" if cold[0] and cold[1] else "-")
        share = f"{each.bandwidth['dsjit']:.0%}" if "dsjit" in each.bandwidth else "-"
        timed = f"{own:.1f}" if own else "-"
        cells = [each.name, "yes" if own and each.correct else "NO", timed, *ratios, share]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_figures(page: str, figures: str) -> str:
    """The page, with `figures` between its two marks. Raises ValueError when it has none."""
    start, end = page.index(BEGIN) + len(BEGIN), page.index(END)
    return f"{page[:start]}\n{figures}\n{page[end:]}"


def main(argv: Sequence[str]) -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=[each.name for each in WORKLOADS], help="these workloads")
    parser.add_argument("--quick", action="store_true", help="a few calls of each")
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin nothing new after that")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    device, rounds = torch.device("cuda", torch.cuda.current_device()), 3 if options.quick else ROUNDS
    copied = copy_bandwidth(device, rounds)
    chosen = [each for each in WORKLOADS if options.only is None or each.name in options.only]
    found = measure_all(
        chosen,
        options.seconds,
        lambda workload, contenders, each: measure(workload, device, rounds, copied, contenders, each),
    )
    title = f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}, copies at {copied / 1e3:.0f} GB/s"
    figures = f"{title}\n\n{table(found)}"
    print(figures)
    for each in found:
        for name, failure in each.failures.items():
            print(f"{each.name}, {name}: {failure}", file=sys.stderr)
    if options.json is not None:
        machine = {"device": torch.cuda.get_device_name(device), "torch": torch.__version__, "copy_gb_s": copied / 1e3}
        data = {"machine": machine, "workloads": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if options.page is not None:
        options.page.write_text(with_figures(options.page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return 0 if all(each.correct for each in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
