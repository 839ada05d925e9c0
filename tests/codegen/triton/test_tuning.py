"""The fastest candidate, by a device whose times are made up; and the file in which it is kept."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.triton.choices import Choices, choices_file
from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.cuda_machine import CudaMeter
from dsjit.codegen.triton.emit import candidates
from dsjit.codegen.triton.kernels import GpuKernelCache
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.tuning import Run, Tuner
from dsjit.config import Autotune, Environment
from dsjit.errors import BackendError
from dsjit.ir.graph import TensorType
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, code_of, interpreting_machine
from tests.codegen.triton.test_products import H100, drawn, kernel_of, plain


@dataclass
class FakeMeter:
    """times: by what a run returns. identity: of the device."""

    times: Callable[[object], float]
    identity: str = "device 1"
    runs: list[object] = field(default_factory=list)

    def allocate(self, type_: TensorType) -> torch.Tensor:
        return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype).fill_(1)

    def microseconds(self, run: Run) -> float:
        self.runs.append(run())
        return self.times(self.runs[-1])


def runs(*times: float | BaseException | None) -> list[Callable[[], Run]]:
    """Candidates that take so long; None is one that cannot be compiled, an error what a run raises."""

    def make(time: float | BaseException | None) -> Run:
        if time is None:
            raise BackendError("no")

        def run() -> object:
            if isinstance(time, BaseException):
                raise time
            return time

        return run

    return [lambda time=time: make(time) for time in times]


def tuner(path: Path, identity: str = "device 1") -> Tuner:
    return Tuner(FakeMeter(lambda time: time, identity), Choices(path))


@pytest.mark.parametrize(
    ("times", "best"), [((3.0, 1.0, 2.0), 1), ((None, 5.0), 1), ((2.0, None), 0), ((None, None), 0), ((1.0,), 0)]
)
def test_the_fastest_that_runs_is_chosen(times: tuple[float | None, ...], best: int, tmp_path: Path) -> None:
    assert tuner(tmp_path / "choices.json").best(("kernel",), runs(*times)) == best


def test_what_was_measured_is_not_measured_again(tmp_path: Path) -> None:
    path = tmp_path / "below" / "choices.json"
    assert tuner(path).best(("kernel",), runs(2.0, 1.0)) == 1
    again = tuner(path)
    assert again.best(("kernel",), runs(1.0, 2.0)) == 1
    assert again.measured == 0 and again.meter.runs == []
    assert again.best(("another kernel",), runs(1.0, 2.0)) == 0
    assert tuner(path, "device 2").best(("kernel",), runs(1.0, 2.0)) == 0
    assert os.listdir(path.parent) == ["choices.json"]


def test_one_that_a_library_refuses_is_out_and_a_lost_device_ends_it(tmp_path: Path) -> None:
    refused, lost = RuntimeError("no kernel"), torch.AcceleratorError("an illegal memory access was encountered")
    assert tuner(tmp_path / "choices.json").best(("kernel",), runs(refused, torch.OutOfMemoryError(), 9.0)) == 2
    with pytest.raises(torch.AcceleratorError):
        tuner(tmp_path / "other.json").best(("kernel",), runs(lost, 9.0))


def test_operands_may_overlap() -> None:
    expanded = TensorType((3, 4), torch.bfloat16, (0, 1), torch.device("cpu"))
    found = CudaMeter(torch.device("cpu"), 0).allocate(expanded)
    assert found.stride() == (0, 1) and bool((found == 1).all())


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", '{"kernel": "fast"}', "\udcff"])
def test_a_file_that_says_nothing_is_measured_anew(text: str, tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert tuner(path).best(("kernel",), runs(2.0, 1.0)) == 1
    assert tuner(path).best(("kernel",), runs(1.0, 2.0)) == 1


def test_a_choice_beyond_the_candidates_is_none(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    tuner(path).best(("kernel",), runs(3.0, 2.0, 1.0))
    assert tuner(path).best(("kernel",), runs(2.0, 1.0)) == 1


def test_where_no_file_can_be_written_choices_are_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    own = tuner(tmp_path / "file" / "choices.json")
    assert [own.best(("kernel",), runs(2.0, 1.0)) for _ in range(2)] == [1, 1]
    assert own.measured == 1


def test_two_processes_keep_each_others_choices(tmp_path: Path) -> None:
    path = tmp_path / "choices.json"
    one, other = Choices(path), Choices(path)
    assert one.get("a") is other.get("a") is None
    one.put("a", 1)
    other.put("b", 2)
    assert [Choices(path).get(key) for key in "ab"] == [1, 2]


def test_the_file_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert choices_file() == tmp_path / "dsjit" / "choices.json"


def product(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.relu(F.linear(x, w, b)).sort(-1).values


@pytest.mark.parametrize(
    ("autotune", "library_us", "calls"), [("off", 0, 1), ("model", 0, 0), ("measure", 0, 1), ("measure", 9, 0)]
)
def test_a_product_is_the_librarys_or_a_kernel(
    autotune: Autotune, library_us: float, calls: int, tmp_path: Path
) -> None:
    bf16 = torch.bfloat16
    arguments = torch.randn(24, 32, dtype=bf16), torch.randn(40, 32, dtype=bf16), torch.randn(40, dtype=bf16)
    captured = capture(product, arguments, {}, "f")
    order = {value.id: tensor for value, tensor in zip(captured.segments[0].graph.inputs, captured.given, strict=True)}
    driver = InterpretingDriver()
    # The library's run returns nothing; that of a Kernel, what its launch returned.
    meter = FakeMeter(lambda ran: library_us if ran is None else 5.0)
    machine = interpreting_machine(driver, Tuner(meter, Choices(tmp_path / "choices.json")))
    compilation = compile_gpu_graph(
        captured.segments[0].graph, "eager", Environment(check=1), machine, StageTimer(), None, autotune=autotune
    )
    ops = [str(step.work.node.op) for step in compilation.steps if step.work not in compilation.kernels]
    assert len([op for op in ops if "mm" in op]) == calls
    (found,) = compilation.program([order[value.id] for value in captured.segments[0].graph.inputs])
    torch.testing.assert_close(found, product(*arguments), rtol=2**-6, atol=2**-6)
    assert bool(meter.runs) == (autotune == "measure")


def test_candidates_are_compiled_side_by_side_and_once(tmp_path: Path) -> None:
    fused, _, _ = kernel_of(plain, drawn(((64, 64), (64, 64)), torch.bfloat16))
    kernel = fused.kernel
    number = len(candidates(kernel, H100))
    met = threading.Barrier(2, timeout=60.0)
    compiled: list[KernelSource] = []

    def compile_together(source: KernelSource, *rest: Any) -> GpuCode:
        compiled.append(source)
        met.wait()
        return code_of(source, *rest)

    cache = GpuKernelCache(H100, InterpretingDriver(), compile_together)
    cache.compile_kernels([kernel], False, Tuner(FakeMeter(lambda ran: 1.0), Choices(tmp_path / "choices.json")))
    assert len(compiled) == number > 1


class NotingDriver(InterpretingDriver):
    last: KernelSource | None = None

    def launch(self, code: GpuCode, programs: int, words: Sequence[int]) -> None:
        self.last = code.source
        super().launch(code, programs, words)


@pytest.mark.parametrize(("others_us", "calls"), [(2.0, 0), (7.0, 1)])
def test_a_product_competes_with_the_library_by_its_fastest_tile(others_us: float, calls: int, tmp_path: Path) -> None:
    bf16 = torch.bfloat16
    arguments = torch.randn(24, 32, dtype=bf16), torch.randn(40, 32, dtype=bf16), torch.randn(40, dtype=bf16)
    graph, driver = capture(product, arguments, {}, "f").segments[0].graph, NotingDriver()

    def microseconds(ran: object) -> float:
        is_first = driver.last is driver.loaded[0].source if driver.loaded else False
        return 5.0 if ran is None else 9.0 if is_first else others_us

    machine = interpreting_machine(driver, Tuner(FakeMeter(microseconds), Choices(tmp_path / "choices.json")))
    compilation = compile_gpu_graph(graph, "eager", Environment(), machine, StageTimer(), None, autotune="measure")
    ops = [str(step.work.node.op) for step in compilation.steps if step.work not in compilation.kernels]
    assert len([op for op in ops if "mm" in op]) == calls


def test_equal_layers_are_measured_once(tmp_path: Path) -> None:
    def layers(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = F.relu(F.linear(x, w, b)).sort(-1).values
        return F.relu(F.linear(x, w, b)).sort(-1).values

    bf16 = torch.bfloat16
    arguments = torch.randn(24, 32, dtype=bf16), torch.randn(32, 32, dtype=bf16), torch.randn(32, dtype=bf16)
    captured = capture(layers, arguments, {}, "f")
    tuner = Tuner(FakeMeter(lambda ran: 9.0 if ran is None else 5.0), Choices(tmp_path / "choices.json"))
    compilation = compile_gpu_graph(
        captured.segments[0].graph, "eager", Environment(), interpreting_machine(InterpretingDriver(), tuner),
        StageTimer(), None, autotune="measure",
    )  # fmt: skip
    assert [len(fused.nodes) for fused in compilation.kernels] == [2, 2]
    library_or_kernel, which_tile = 1, 1
    assert tuner.measured == library_or_kernel + which_tile
