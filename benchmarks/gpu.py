"""Measures on a CUDA device: `python -m benchmarks.gpu [--only NAME ...] [--quick] [--json FILE] [--page FILE]`.

First dsjit's results of every workload are compared with eager's; then eager, dsjit and torch.compile are timed on it,
in turns, in one process, and so are the ways in which scaled_dot_product_attention may be computed where that is the
workload. Times are medians of CUDA events around one call. What is bound by memory is also given as a share of the
bandwidth that copying a large tensor reaches in the same run. torch.compile with max-autotune takes longest, and has a
round of its own: after `--seconds` nothing new is begun, and what there was no time for is named. Needs a GPU; exits
with 1 where there is none, and when a result is not eager's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import dsjit

__all__ = [
    "CONTENDERS", "SDPA", "WORKLOADS", "Bench", "Gpu", "Measured", "Workload", "main", "measure_all", "table",
    "with_figures",
]  # fmt: skip

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

    relative, absolute: how far an element may be from eager's. library: the same as a call of
    scaled_dot_product_attention. scale: of inputs after the first one: of weights, so that results stay of order 1.
    """

    name: str
    program: Program
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    streams: bool
    relative: float = 1.3e-6
    absolute: float = 1e-5
    library: Program | None = None
    scale: float = 1.0

    def arguments(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        first, *others = [_drawn(shape, dtype, generator, device) for shape, dtype in self.inputs]
        return (first, *[other if self.scale == 1 else other * self.scale for other in others])


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


def _written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * 0.125 + bias).softmax(-1) @ v


def _biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.125)


def _decoder_layer(
    x: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Attention and a gated layer behind RMS norms, with residuals: (batch, length, width)."""
    heads = [part.unflatten(-1, (-1, 64)).transpose(1, 2) for part in F.linear(_unit(x), qkv).chunk(3, -1)]
    attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
    y = _unit(x)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def _unit(x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


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
    Workload(
        "causal attention, bfloat16", _attention, (_HEADS, _HEADS, _HEADS), False, 1.6e-2, 1e-2, _attention
    ),
    Workload(
        "attention with a bias, bfloat16", _biased, (_HEADS, _HEADS, _HEADS, ((1, 16, 1024, 1024), _bf16)), False,
        1.6e-2, 1e-2, _biased,
    ),
    Workload(
        "attention written out, bfloat16", _written_out, (_HEADS, _HEADS, _HEADS, ((1, 16, 1024, 1024), _bf16)), False,
        1.6e-2, 2e-2, _biased,
    ),
    Workload(
        "decoder layer, bfloat16", _decoder_layer,
        (((4, 1024, 1024), _bf16), ((3072, 1024), _bf16), ((1024, 1024), _bf16), ((2816, 1024), _bf16),
         ((2816, 1024), _bf16), ((1024, 2816), _bf16)), False, 1.6e-2, 5e-2, scale=0.03,
    ),
    Workload(
        "decoder layer of one token, bfloat16", _decoder_layer,
        (((1, 1, 1024), _bf16), ((3072, 1024), _bf16), ((1024, 1024), _bf16), ((2816, 1024), _bf16),
         ((2816, 1024), _bf16), ((1024, 2816), _bf16)), False, 1.6e-2, 5e-2, scale=0.03,
    ),
)  # fmt: skip

CONTENDERS: Final[dict[str, Callable[[Program], Program]]] = {
    "eager": lambda program: program,
    "dsjit": lambda program: dsjit.jit(program, backend="triton", fullgraph=True),
    "dsjit, measured": lambda program: dsjit.jit(program, backend="triton", autotune="measure", fullgraph=True),
    "dsjit, replayed": lambda program: dsjit.jit(program, backend="triton", cuda_graphs=True, fullgraph=True),
    "torch.compile": torch.compile,
    "torch.compile, max-autotune": lambda program: torch.compile(program, mode="max-autotune"),
}
SLOWEST: Final = "torch.compile, max-autotune"

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

    def event(self) -> Any:
        """As `torch.cuda.Event(enable_timing=True)`."""
        ...

    def synchronize(self) -> None: ...


@dataclass(frozen=True, slots=True)
class CudaGpu:
    device: torch.device

    @property
    def name(self) -> str:
        return torch.cuda.get_device_name(self.device)

    def event(self) -> Any:
        return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


@dataclass(slots=True)
class Bench:
    """copied: bytes a microsecond that a copy moves, reads and writes counted. ready: what was called twice, by
    workload and contender."""

    gpu: Gpu
    contenders: Mapping[str, Callable[[Program], Program]]
    rounds: int
    copied: float
    ready: dict[tuple[str, str], Program] = field(default_factory=dict)

    def check(self, workload: Workload, found: Measured) -> None:
        """Compares dsjit's results with eager's."""
        arguments = workload.arguments(self.gpu.device)
        for name in [name for name in self.contenders if name.startswith("dsjit")]:
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
                times[name] += self.event_times(program, arguments)
        warm_us = {name: statistics.median(each) for name, each in times.items()}
        # In a later round the device may be faster or slower than in the first: eager tells by how much.
        scale = found.warm_us["eager"] / warm_us["eager"] if {"eager"} <= found.warm_us.keys() & warm_us.keys() else 1.0
        found.warm_us = {**{name: us * scale for name, us in warm_us.items()}, **found.warm_us}
        if workload.streams:
            out = workload.program(*arguments)
            moved = sum(t.numel() * t.element_size() for t in (*arguments, out))
            found.bandwidth = {name: moved / us / self.copied for name, us in found.warm_us.items()}

    def sdpa(self, workload: Workload, found: Measured) -> None:
        """Adds what the library's ways to compute attention take."""
        arguments = workload.arguments(self.gpu.device)
        for name, backend in SDPA.items():
            assert workload.library is not None
            try:
                with sdpa_kernel(backend):
                    workload.library(*arguments)
                    times = [us for _ in range(self.rounds) for us in self.event_times(workload.library, arguments)]
            except RuntimeError as error:
                found.failures[name] = _told(error)
                continue
            found.warm_us[name] = statistics.median(times)

    def _begin(self, workload: Workload, name: str, arguments: Sequence[torch.Tensor], found: Measured) -> None:
        """Calls a contender twice."""
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
            return
        found.cold_s[name] = time.perf_counter() - start
        self.ready[workload.name, name] = program
        if name.startswith("dsjit"):
            found.correct = found.correct and _close(result, expected, workload)

    def event_times(self, program: Program, arguments: Sequence[torch.Tensor]) -> Iterator[float]:
        """Microseconds of each call."""
        events = [self.gpu.event() for _ in range(CALLS_PER_ROUND + 1)]
        events[0].record()
        for event in events[1:]:
            program(*arguments)
            event.record()
        events[-1].synchronize()
        return (1e3 * one.elapsed_time(other) for one, other in pairwise(events))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def measure_all(workloads: Sequence[Workload], seconds: float, bench: Bench) -> list[Measured]:
    """One Measured for each workload. Nothing is begun any more once `seconds` have passed."""
    deadline = time.perf_counter() + seconds
    found = [Measured(each.name) for each in workloads]
    first = [name for name in bench.contenders if name != SLOWEST]
    last = [name for name in bench.contenders if name in ("eager", SLOWEST)]
    rounds: list[tuple[list[str], Callable[[Workload, Measured], None]]] = [
        ([name for name in first if name.startswith("dsjit")], bench.check),
        (first, lambda workload, each: bench.measure(workload, first, each)),
        (list(SDPA), bench.sdpa),
        (last, lambda workload, each: bench.measure(workload, last, each)),
    ]
    for names, run in rounds:
        for workload, each in zip(workloads, found, strict=True):
            if names == list(SDPA) and workload.library is None:
                continue
            if time.perf_counter() >= deadline:
                missing = [name for name in names if name not in each.warm_us]
                each.failures = {**dict.fromkeys(missing, "there was no time left"), **each.failures}
                continue
            try:
                run(workload, each)
            except Exception as error:  # what is measured already is told
                each.failures = {**dict.fromkeys(names, _told(error)), **each.failures}
                each.correct = False
    return found


def _close(result: torch.Tensor, expected: torch.Tensor, workload: Workload) -> bool:
    return torch.allclose(result, expected, workload.relative, workload.absolute, equal_nan=True)


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
    parser.add_argument("--json", type=Path, help="write what was measured to this file")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="begin nothing new after that")
    options = parser.parse_args(argv)
    if gpu is None and not torch.cuda.is_available():
        print("there is no CUDA device here: nothing was measured", file=sys.stderr)
        return 1
    gpu = gpu or CudaGpu(torch.device("cuda", torch.cuda.current_device()))
    rounds = 3 if options.quick else ROUNDS
    bench = Bench(gpu, contenders, rounds, copy_bandwidth(gpu, rounds, copied_bytes))
    chosen = [each for each in workloads if options.only is None or each.name in options.only]
    with torch.no_grad():
        found = measure_all(chosen, options.seconds, bench)
    title = f"{gpu.name}, torch {torch.__version__}, copies at {bench.copied / 1e3:.0f} GB/s"
    figures = f"{title}\n\n{table(found)}"
    print(figures)
    for each in found:
        for name, failure in each.failures.items():
            print(f"{each.name}, {name}: {failure}", file=sys.stderr)
    if options.json is not None:
        machine = {"device": gpu.name, "torch": torch.__version__, "copy_gb_s": bench.copied / 1e3}
        data = {"machine": machine, "workloads": [asdict(each) for each in found]}
        options.json.write_text(json.dumps(data, indent=1), encoding="utf-8")
    if options.page is not None:
        options.page.write_text(with_figures(options.page.read_text(encoding="utf-8"), figures), encoding="utf-8")
    return 0 if all(each.correct for each in found) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
