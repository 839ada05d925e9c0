"""`python -m dsjit demo`: a real transformer, eager, compiled by dsjit and by torch.compile, side by side.

The model is BERT from its configuration with random weights, so that nothing is downloaded.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import os
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from torch import Tensor, nn

import dsjit

__all__ = ["MISSING_TRANSFORMERS", "TOLERANCE", "Row", "compare", "cpp_compiler", "run"]

Call: TypeAlias = Callable[[], Any]

BATCH: Final = 2
LEAST_ROUNDS: Final = 3
ROUNDS: Final = 15
TIMING_SECONDS: Final = 10.0

TOLERANCE: Final = 2e-5
"""Outputs count as equal if no element is further from eager's than this fraction of the largest element."""

MISSING_TRANSFORMERS: Final = "The demo's model comes from transformers. Install it with: pip install 'dsjit[demo]'"


@dataclass(slots=True)
class Row:
    """One way to run the model. Times are in seconds, `bytes_moved` is the memory traffic of one call.

    `difference` is the largest distance from eager's outputs, relative to the largest output. None is unknown.
    """

    name: str
    call: Call
    compile_seconds: float | None = None
    call_seconds: float | None = None
    difference: float | None = None
    kernels: int | None = None
    library_calls: int | None = None
    bytes_moved: int | None = None


def run(layers: int, tokens: int, with_torch_compile: bool, console: Console) -> int:
    """Run the demo and print its table. Returns the exit status: 1 if outputs differ or transformers is missing."""
    if importlib.util.find_spec("transformers") is None:
        console.print(MISSING_TRANSFORMERS, style="red", markup=False, soft_wrap=True)
        return 1
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress, torch.no_grad():
        step = progress.add_task("", total=5 if with_torch_compile else 4)

        def begin(description: str) -> None:
            progress.update(step, description=description)

        begin(f"BERT, {layers} layers, {BATCH}x{tokens} tokens: building and running eagerly")
        model, ids = _bert(layers, tokens)
        copies = [copy.deepcopy(model) for _ in range(2 if with_torch_compile else 1)]
        eager = Row("eager", lambda: model(ids))
        expected = eager.call()
        rows = [eager]
        progress.advance(step)

        begin("compiling with dsjit")
        row, eager.bytes_moved, compiled = _with_dsjit(copies[0], ids)
        rows.append(row)
        progress.advance(step)

        if with_torch_compile:
            begin("compiling with torch.compile, caches empty (its start-up is not counted)")
            try:
                with _empty_inductor_cache():
                    rows.append(_with_torch_compile(copies[1], ids))
            except RuntimeError as error:
                reason = str(error).strip().splitlines()[0]
                console.print(f"torch.compile failed and is left out: {reason}", style="yellow", markup=False)
            progress.advance(step)

        begin("comparing outputs")
        for row in rows[1:]:
            row.difference = compare(row.call(), expected)
        progress.advance(step)

        begin("timing, one call of each in turn")
        _time(rows, advance=lambda: progress.advance(step, 1 / ROUNDS))
    _print(rows, console, f"BERT, {layers} layers, {BATCH}x{tokens} tokens, float32, {torch.get_num_threads()} threads")
    equal = all(row.difference is not None and row.difference <= TOLERANCE for row in rows[1:])
    console.print(
        f"Outputs equal eager's within {TOLERANCE:.0e} of the largest." if equal else "Outputs differ from eager's.",
        style="green" if equal else "bold red",
    )
    if not compiled:
        console.print("dsjit ran this model eagerly.", style="bold red")
    return 0 if equal and compiled else 1


def _bert(layers: int, tokens: int) -> tuple[nn.Module, Tensor]:
    transformers: Any = importlib.import_module("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(num_hidden_layers=layers, max_position_embeddings=max(512, tokens))
    model: nn.Module = transformers.BertModel(config).eval()
    return model, torch.randint(0, config.vocab_size, (BATCH, tokens))


def _with_dsjit(model: nn.Module, ids: Tensor) -> tuple[Row, int, bool]:
    """The row, the bytes that eager moves, and whether every call but the traced one ran compiled."""
    dsjit.jit(lambda x: x + 1)(torch.ones(4))
    dsjit.reset_stats()
    row = _compile("dsjit", dsjit.jit(model), ids)
    stats = dsjit.stats().total
    explanation = dsjit.explain(model)(ids)
    row.kernels = len(explanation.kernels)
    row.library_calls = len(explanation.library_calls)
    row.bytes_moved = explanation.bytes_after
    return row, explanation.bytes_before, stats.calls_compiled > 0 and stats.calls_eager == 0


def _with_torch_compile(model: nn.Module, ids: Tensor) -> Row:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.compile(lambda x: x + 1)(torch.ones(4))
        return _compile("torch.compile", torch.compile(model), ids)


def _compile(name: str, compiled: Callable[..., Any], ids: Tensor) -> Row:
    row = Row(name, lambda: compiled(ids))
    first_two = _seconds(row.call) + _seconds(row.call)
    row.compile_seconds = max(first_two - 2 * min(_seconds(row.call) for _ in range(3)), 0.0)
    return row


@contextmanager
def _empty_inductor_cache() -> Iterator[None]:
    name = "TORCHINDUCTOR_CACHE_DIR"
    before = os.environ.get(name)
    with tempfile.TemporaryDirectory(prefix="dsjit-demo-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


def _time(rows: list[Row], advance: Call) -> None:
    rounds: list[list[float]] = []
    start = time.perf_counter()
    while len(rounds) < LEAST_ROUNDS or (len(rounds) < ROUNDS and time.perf_counter() - start < TIMING_SECONDS):
        rounds.append([_seconds(row.call) for row in rows])
        advance()
    for row, seconds in zip(rows, zip(*rounds, strict=True), strict=True):
        row.call_seconds = statistics.median(seconds)


def _seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def compare(actual: Mapping[str, Any], expected: Mapping[str, Any]) -> float:
    """The largest distance of two model outputs, relative to the largest value; infinite if their fields differ."""
    if list(actual) != list(expected):
        return float("inf")
    pairs = [(actual[name], value) for name, value in expected.items() if isinstance(value, Tensor)]
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in pairs):
        return float("inf")
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)


def _print(rows: list[Row], console: Console, title: str) -> None:
    base = rows[0].call_seconds
    speeds = [base / row.call_seconds if base and row.call_seconds else None for row in rows]
    lines: tuple[tuple[str, Sequence[Any], Callable[[Any], str]], ...] = (
        ("compile", [row.compile_seconds for row in rows], lambda seconds: f"{seconds:.2f} s"),
        ("call", [row.call_seconds for row in rows], lambda seconds: f"{seconds * 1e3:.1f} ms"),
        ("speed over eager", speeds, lambda ratio: f"{ratio:.2f}x"),
        ("difference from eager", [row.difference for row in rows], lambda distance: f"{distance:.1e}"),
        ("generated kernels", [row.kernels for row in rows], str),
        ("library calls", [row.library_calls for row in rows], str),
        ("memory traffic", [row.bytes_moved for row in rows], lambda count: f"{count / 2**20:.1f} MiB"),
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(row.name, justify="right")
    for name, values, spell in lines:
        table.add_row(name, *("" if value is None else spell(value) for value in values))
    console.print(table)


def cpp_compiler() -> str | None:
    """The path of a C++ compiler, which torch.compile needs on a CPU, or None."""
    return shutil.which("g++") or shutil.which("clang++")
