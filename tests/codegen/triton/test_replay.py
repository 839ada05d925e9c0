"""Programs that are recorded and replayed: what is read in place, what is copied, and what runs as always."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.triton.program import GpuProgram
from dsjit.codegen.triton.replay import MOST_RECORDINGS, ReplayedProgram
from dsjit.config import Environment, Options
from dsjit.errors import OptionError
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, interpreting_machine


@dataclass
class FakeRecording:
    """Runs again what was recorded, into the same results: with the inputs that it had then, wherever those are now."""

    run: Callable[[], list[torch.Tensor]]
    results: list[torch.Tensor]
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        for result, found in zip(self.results, self.run(), strict=True):
            result.copy_(found)


@dataclass
class FakeRecorder:
    """refuses: whether nothing can be recorded."""

    refuses: bool = False
    recordings: list[FakeRecording] = field(default_factory=list)

    def record(self, run: Callable[[], list[torch.Tensor]]) -> tuple[FakeRecording, list[torch.Tensor]]:
        if self.refuses:
            raise RuntimeError("operation not permitted when stream is capturing")
        recording = FakeRecording(run, [torch.full_like(result, torch.nan) for result in run()])
        self.recordings.append(recording)
        return recording, recording.results


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.layer_norm((x * w).sort(-1).values, (8,)).relu()


def compiled(
    function: Callable[..., object], arguments: tuple[torch.Tensor, ...], recorder: FakeRecorder
) -> Callable[..., list[torch.Tensor]]:
    captured = capture(function, arguments, {}, "f")
    graph = captured.segments[0].graph
    machine = replace(interpreting_machine(InterpretingDriver()), recorder=recorder)
    program = compile_gpu_graph(
        graph, "eager", Environment(check=1), machine, StageTimer(), None, cuda_graphs=True
    ).program
    # In the order of the arguments.
    places = [next(n for n, t in enumerate(arguments) if t is given) for given in captured.given]
    order = {value: places[n] for n, value in enumerate(captured.inputs)}

    def call(*tensors: torch.Tensor) -> list[torch.Tensor]:
        return program([tensors[order[value.id]] for value in graph.inputs])

    call.program = program  # type: ignore[attr-defined]
    return call


def test_calls_are_replayed_from_the_second_one_on() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = FakeRecorder()
    call = compiled(layer, (x, w), recorder)
    for number in range(4):
        x.copy_(torch.randn(4, 8))
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
        assert len(recorder.recordings) == min(number, 1)
    assert recorder.recordings[0].replays == 3


def test_inputs_that_move_are_copied_and_results_are_the_callers() -> None:
    w = torch.randn(8)
    recorder = FakeRecorder()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    inputs = [torch.randn(4, 8) for _ in range(5)]  # all alive: each has an address of its own
    call = compiled(layer, (inputs[0], w), recorder)
    for x in inputs:
        kept.append((call(x, w)[0], layer(x, w)))
    assert len(recorder.recordings) == 1
    for found, expected in kept:
        torch.testing.assert_close(found, expected)


def test_a_parameter_that_moves_is_recorded_anew_and_in_the_end_nothing_is() -> None:
    x = torch.randn(4, 8)
    weights = [torch.randn(8) for _ in range(2 + MOST_RECORDINGS)]
    inputs = [torch.randn(4, 8) for _ in range(2)]
    recorder = FakeRecorder()
    call = compiled(layer, (x, weights[0]), recorder)
    call(x, weights[0])
    call(x, weights[0])
    for w in (weights[1], weights[2]):  # the first time it is elsewhere it is copied from then on
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
    assert len(recorder.recordings) == 2
    for other in inputs:
        torch.testing.assert_close(call(other, weights[0])[0], layer(other, weights[0]))
    assert len(recorder.recordings) == 3
    for w in weights:
        torch.testing.assert_close(call(inputs[1], w)[0], layer(inputs[1], w))
    assert len(recorder.recordings) == 3


def test_what_cannot_be_recorded_runs_as_always() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = FakeRecorder(refuses=True)
    call = compiled(layer, (x, w), recorder)
    for _ in range(3):
        torch.testing.assert_close(call(x, w)[0], layer(x, w))


def test_results_that_share_memory_with_an_input_are_not_recorded() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.view(-1), x + 1

    recorder = FakeRecorder()
    x = torch.randn(4, 8)
    call = compiled(both, (x,), recorder)
    for _ in range(3):
        for found, expected in zip(call(x), both(x)[-1:], strict=False):
            torch.testing.assert_close(found, expected)


def written(x: torch.Tensor) -> torch.Tensor:
    x.add_(1)
    return x * 2


def drawn(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand_like(x)


@pytest.mark.parametrize("function", [written, drawn])
def test_writes_and_random_numbers_are_never_recorded(function: Callable[..., object]) -> None:
    call = compiled(function, (torch.randn(4, 8),), FakeRecorder())
    assert isinstance(call.program, GpuProgram)  # type: ignore[attr-defined]


def test_attention_that_drops_nothing_is_recorded() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))
    call = compiled(F.scaled_dot_product_attention, (q, k, v), FakeRecorder())
    assert isinstance(call.program, ReplayedProgram)  # type: ignore[attr-defined]


def test_a_paused_program_runs_as_always() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = FakeRecorder()
    call = compiled(layer, (x, w), recorder)
    call.program.paused = True  # type: ignore[attr-defined]
    for _ in range(3):
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
    assert not recorder.recordings


def test_the_option_is_true_or_false() -> None:
    assert not Options().cuda_graphs
    with pytest.raises(OptionError, match="cuda_graphs"):
        Options(cuda_graphs=1)  # type: ignore[arg-type]
