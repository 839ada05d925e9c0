"""Programs that are recorded and replayed: what is read in place, what is copied, and what runs as always."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

from dsjit.api.compile import StageTimer
from dsjit.api.compile_gpu import compile_gpu_graph
from dsjit.codegen.low_memory import LowMemory
from dsjit.codegen.triton.program import GpuProgram
from dsjit.codegen.triton.replay import MOST_RECORDINGS, ReplayedProgram, can_be_replayed
from dsjit.config import Environment, Options
from dsjit.errors import OptionError
from dsjit.trace.capture import capture
from tests.codegen.triton.machines import InterpretingDriver, TapeRecorder, interpreting_machine
from tests.graphs import GraphRecorder


def new_recorder(refuses: bool = False) -> TapeRecorder:
    return TapeRecorder(InterpretingDriver(), refuses)


def layer(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.layer_norm((x * w).sort(-1).values, (8,)).relu()


def compiled(
    function: Callable[..., object],
    arguments: tuple[torch.Tensor, ...],
    recorder: TapeRecorder,
    low_memory: LowMemory | None = None,
) -> Callable[..., list[torch.Tensor]]:
    captured = capture(function, arguments, {}, "f")
    graph = captured.segments[0].graph
    machine = interpreting_machine(recorder.driver, recorder=recorder)
    program = compile_gpu_graph(
        graph, "eager", Environment(check=1), machine, StageTimer(), None, low_memory=low_memory, cuda_graphs=True
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
    recorder = new_recorder()
    call = compiled(layer, (x, w), recorder)
    for number in range(4):
        x.copy_(torch.randn(4, 8))
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
        assert len(recorder.tapes) == min(number, 1)
    assert recorder.tapes[0].replays == 3


def test_inputs_that_move_are_copied_and_results_are_the_callers() -> None:
    w = torch.randn(8)
    recorder = new_recorder()
    kept: list[tuple[torch.Tensor, torch.Tensor]] = []
    inputs = [torch.randn(4, 8) for _ in range(5)]  # all alive: each has an address of its own
    call = compiled(layer, (inputs[0], w), recorder)
    for x in inputs:
        kept.append((call(x, w)[0], layer(x, w)))
    assert len(recorder.tapes) == 1
    for found, expected in kept:
        torch.testing.assert_close(found, expected)


def test_a_parameter_that_moves_is_recorded_anew_and_in_the_end_nothing_is() -> None:
    x = torch.randn(4, 8)
    weights = [torch.randn(8) for _ in range(2 + MOST_RECORDINGS)]
    inputs = [torch.randn(4, 8) for _ in range(2)]
    recorder = new_recorder()
    call = compiled(layer, (x, weights[0]), recorder)
    call(x, weights[0])
    call(x, weights[0])
    for w in (weights[1], weights[2]):  # the first time it is elsewhere it is copied from then on
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
    assert len(recorder.tapes) == 2
    for other in inputs:
        torch.testing.assert_close(call(other, weights[0])[0], layer(other, weights[0]))
    assert len(recorder.tapes) == 3
    for w in weights:
        torch.testing.assert_close(call(inputs[1], w)[0], layer(inputs[1], w))
    assert len(recorder.tapes) == 3


def test_what_cannot_be_recorded_runs_as_always() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = new_recorder(refuses=True)
    call = compiled(layer, (x, w), recorder)
    for _ in range(3):
        torch.testing.assert_close(call(x, w)[0], layer(x, w))


def test_results_that_share_memory_with_an_input_are_not_recorded() -> None:
    def both(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.view(-1), x + 1

    recorder = new_recorder()
    x = torch.randn(4, 8)
    call = compiled(both, (x,), recorder)
    for _ in range(3):
        for found, expected in zip(call(x), both(x)[-1:], strict=False):
            torch.testing.assert_close(found, expected)


def counts(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
    state.add_(x.sort(-1).values)
    return state * 2


def test_what_is_written_is_written_where_it_is_and_counted() -> None:
    state, twin = torch.zeros(4, 8), torch.zeros(4, 8)
    recorder = new_recorder()
    inputs = [torch.randn(4, 8) for _ in range(5)]
    call = compiled(counts, (inputs[0], state), recorder)
    state.zero_()
    for x in inputs:
        version = state._version
        torch.testing.assert_close(call(x, state)[0], counts(x, twin))
        torch.testing.assert_close(state, twin)
        assert state._version > version
    assert [tape.replays for tape in recorder.tapes] == [4]


def test_what_is_written_is_never_copied_and_what_moves_is_recorded_when_it_stays() -> None:
    x, states = torch.randn(4, 8), [torch.zeros(4, 8) for _ in range(3)]
    recorder = new_recorder()
    call = compiled(counts, (x, states[0]), recorder)
    for number, tapes in ((0, 0), (1, 0), (2, 0), (2, 1), (2, 1), (0, 1), (0, 2), (2, 2)):
        expected = counts(x, states[number].clone())
        torch.testing.assert_close(call(x, states[number])[0], expected)
        torch.testing.assert_close(states[number] * 2, expected)
        assert len(recorder.tapes) == tapes


def test_what_is_lent_is_not_overwritten_while_anybody_holds_it() -> None:
    recorder = new_recorder()
    inputs = [torch.randn(4, 8) for _ in range(2 * MOST_RECORDINGS)]
    w = torch.randn(8)
    call = compiled(layer, (inputs[0], w), recorder, LowMemory(handed_on=frozenset({0})))
    first, second, third = (call(x, w)[0] for x in inputs[:3])
    place, view = second.data_ptr(), second[0]
    assert third.data_ptr() != place and len(recorder.tapes) == 2
    del second
    held = [call(x, w)[0] for x in inputs]
    assert len(recorder.tapes) == MOST_RECORDINGS and place not in [each.data_ptr() for each in held]
    for found, x in zip((first, third, *held), (inputs[0], inputs[2], *inputs), strict=True):
        torch.testing.assert_close(found, layer(x, w))
    torch.testing.assert_close(view, layer(inputs[1], w)[0])
    del view
    assert call(inputs[0], w)[0].data_ptr() == place and len(recorder.tapes) == MOST_RECORDINGS


def test_what_another_program_keeps_is_read_in_place_once_it_stays_there() -> None:
    w, kept = torch.randn(8), [torch.randn(4, 8) for _ in range(3)]
    recorder = new_recorder()
    call = compiled(layer, (kept[0], w), recorder, LowMemory(released=frozenset({0})))
    for number, replays in ((0, 0), (1, 0), (1, 1), (1, 2), (2, 2)):
        torch.testing.assert_close(call(kept[number], w)[0], layer(kept[number], w))
        assert sum(tape.replays for tape in recorder.tapes) == replays


def test_while_the_caller_records_calls_run_as_always() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = new_recorder()
    call = compiled(layer, (x, w), recorder)
    recorder.busy = True
    for _ in range(3):
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
    assert not recorder.tapes


def test_what_is_in_the_hosts_memory_is_not_recorded() -> None:
    """It would be read once, when it is recorded."""
    r = GraphRecorder()
    graph = r.graph(r.aten.mul.Tensor(r.input([4]), r.input([])))
    assert can_be_replayed(graph, (), torch.device("cpu"))
    assert not can_be_replayed(graph, (), torch.device("cuda:0"))


def drawn(x: torch.Tensor) -> torch.Tensor:
    return x + torch.rand_like(x)


def test_random_numbers_are_never_recorded() -> None:
    call = compiled(drawn, (torch.randn(4, 8),), new_recorder())
    assert isinstance(call.program, GpuProgram)  # type: ignore[attr-defined]


def test_attention_that_drops_nothing_is_recorded() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))
    call = compiled(F.scaled_dot_product_attention, (q, k, v), new_recorder())
    assert isinstance(call.program, ReplayedProgram)  # type: ignore[attr-defined]


def test_a_paused_program_runs_as_always() -> None:
    x, w = torch.randn(4, 8), torch.randn(8)
    recorder = new_recorder()
    call = compiled(layer, (x, w), recorder)
    call.program.paused = True  # type: ignore[attr-defined]
    for _ in range(3):
        torch.testing.assert_close(call(x, w)[0], layer(x, w))
    assert not recorder.tapes


def test_the_option_is_true_or_false() -> None:
    assert not Options().cuda_graphs
    with pytest.raises(OptionError, match="cuda_graphs"):
        Options(cuda_graphs=1)  # type: ignore[arg-type]
