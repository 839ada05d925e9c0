"""Loops whose trip count depends on what tensors hold: a count that was never seen compiles nothing new."""

from __future__ import annotations

from typing import Any

import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=6)
def a_while_loop_halves_until_small(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x

    jitted = play.jit(f)
    for scale in (1.0, 8.0, 2.0, 64.0, 8.0, 0.5, 1024.0, 64.0):
        play(jitted, torch.tensor([1.0, -1.0]) * scale)


@program(traces=4)
def a_while_loop_counts_its_rounds_in_python(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[int, torch.Tensor]:
        rounds = 0
        while x.sum() < 20:
            x = x + 3
            rounds += 1
        return rounds, x * rounds

    jitted = play.jit(f)
    for start in (0, 5, 0, -4, 9, -4, 0):
        play(jitted, whole(2, start=start))


@program(traces=5)
def a_for_loop_breaks_on_a_value(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[int, torch.Tensor]:
        step = -1
        for step in range(10):  # noqa: B007
            x = x * 2
            if x.max() > 30:
                break
        else:
            x = -x
        return step, x

    jitted = play.jit(f)
    for start in (1.0, 4.0, 1.0, 20.0, -1.0, 4.0, 0.0):
        play(jitted, torch.tensor([start, 0.0]))


@program(traces=6)
def a_loop_continues_past_some_rows(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(3)
        for row in x:
            if row[0] < 0:
                continue
            if row[0] == 9:
                return total - 1
            total = total + row
        return total

    jitted = play.jit(f)
    for first in ((1, 1), (-1, 1), (1, -1), (-1, -1), (9, 1), (1, 9), (-1, 1), (9, 1)):
        x = whole(2, 3)
        x[:, 0] = torch.tensor(first)
        play(jitted, x)


@program(traces=5)
def nested_loops_over_values(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        while x.max() < 50:
            while x.min() < 3:
                x = x + 2
            x = x * 3
        return x

    jitted = play.jit(f)
    for start in (0, 10, -7, 0, 60, -7, 3):
        play(jitted, whole(2, start=start))


@program(traces=4)
def a_loop_over_a_list_made_of_a_tensor(play: Play) -> None:
    def f(lengths: torch.Tensor, x: torch.Tensor) -> list[torch.Tensor]:
        return list(x.split(lengths.tolist()))

    jitted = play.jit(f)
    for lengths in ((1, 2, 3), (3, 3), (1, 2, 3), (6,), (0, 6), (3, 3)):
        play(jitted, torch.tensor(lengths), whole(6))


@program(traces=4)
def a_range_ends_at_a_value(play: Play) -> None:
    def f(n: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(())
        for step in range(int(n)):
            total = total * 2 + step
        return total

    jitted = play.jit(f)
    for n in (3, 3, 5, 0, 5, 1, 3):
        play(jitted, torch.tensor(n))


@program(traces=4, exact=False)
def newtons_iteration_ends_at_a_tolerance(play: Play) -> None:
    def f(a: torch.Tensor) -> torch.Tensor:
        x = a.clone()
        for _ in range(50):
            better = (x + a / x) / 2
            if (better - x).abs().max() < 1e-4:
                break
            x = better
        return x

    jitted = play.jit(f)
    for value in (2.0, 9.0, 2.0, 1000.0, 1.0, 9.0):
        play(jitted, torch.full((4,), value))


@program(traces=4)
def a_loop_mutates_its_argument_until_done(play: Play) -> None:
    def f(x: torch.Tensor) -> int:
        rounds = 0
        while not (x <= 0).all():
            x[x > 0] -= 1
            rounds += 1
        return rounds

    jitted = play.jit(f)
    for top in (2, 4, 2, 0, 7, 4):
        play(jitted, torch.tensor([top, 1, -5]))


@program(traces=4)
def a_loop_appends_to_a_list_that_it_returns(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        history = [x]
        while history[-1].sum() < 10:
            history.append(history[-1] + 2)
        return history, torch.stack(history)

    jitted = play.jit(f)
    for start in (0, 3, 0, 8, -5, 3):
        play(jitted, whole(2, start=start))


@program(traces=3)
def a_number_is_carried_round_the_loop(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        for _ in range(4):
            x = x - x.max().item()
            x = x * (int(x.min()) + 1)
        return x

    jitted = play.jit(f)
    for start in (1, 2, 1, 3, 2):
        play(jitted, whole(3, start=start) / 4)


@program(traces=3)
def greedy_decoding_stops_at_its_end_token(play: Play) -> None:
    table = torch.tensor([[0, 5, 1, 0], [0, 0, 7, 1], [1, 0, 0, 9], [0, 0, 0, 1]])

    def f(token: int, limit: int) -> list[int]:
        tokens = [token]
        while tokens[-1] != 3 and len(tokens) < limit:
            tokens.append(int(table[tokens[-1]].argmax()))
        return tokens

    jitted = play.jit(f)
    for token, limit in ((0, 9), (0, 9), (1, 9), (1, 9), (0, 2), (0, 9)):
        play(jitted, token, limit)


@program(traces=3)
def a_beam_is_kept_by_values(play: Play) -> None:
    def f(scores: torch.Tensor) -> list[tuple[float, list[int]]]:
        beams: list[tuple[float, list[int]]] = [(0.0, [])]
        for row in scores:
            best, index = row.topk(2)
            choices = list(zip(best.tolist(), index.tolist(), strict=True))
            grown = [(score + more, path + [place]) for score, path in beams for more, place in choices]
            beams = sorted(grown, key=lambda beam: -beam[0])[:2]
        return beams

    jitted = play.jit(f)
    first = torch.tensor([[1.0, 5.0, 3.0], [2.0, 0.0, 9.0]])
    for scores in (first, first, first.flip(1), first + 1, first):
        play(jitted, scores.clone())


@program(traces=4)
def experts_are_chosen_by_values(play: Play) -> None:
    experts = [lambda x: x + 1, lambda x: x * 2, lambda x: -x]

    def f(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for number, expert in enumerate(experts):
            rows = (gate == number).nonzero().flatten()
            if rows.numel():
                out.index_add_(0, rows, expert(x[rows]))
        return out

    jitted = play.jit(f)
    for gate in ((0, 1, 2, 0), (0, 0, 0, 0), (2, 1, 0, 1), (0, 1, 2, 0), (1, 1, 2, 2)):
        play(jitted, whole(4, 3), torch.tensor(gate))


@program(traces=4)
def halting_steps_differ_from_call_to_call(play: Play) -> None:
    def f(x: torch.Tensor, rates: torch.Tensor) -> tuple[int, torch.Tensor]:
        budget, steps, out = 1.0, 0, torch.zeros_like(x)
        while budget > 0:
            rate = rates[steps % 3].item()
            used = min(rate, budget)
            out = out + x * used
            budget -= used
            x, steps = x + 1, steps + 1
        return steps, out

    jitted = play.jit(f)
    for rates in ((0.5, 0.25, 0.5), (1.0, 0.0, 0.0), (0.25, 0.25, 0.25), (0.5, 0.25, 0.5), (0.125, 0.5, 0.125)):
        play(jitted, whole(3), torch.tensor(rates))


@program(compiled=False)
def a_loop_over_an_iterator_that_the_call_exhausts(play: Play) -> None:
    def f(x: torch.Tensor, parts: Any) -> torch.Tensor:
        for part in parts:
            x = x + part
            if x.sum() > 12:
                break
        return x

    jitted = play.jit(f)
    for start in (0, 0, 4, -9, 4):
        parts = iter([1.0, 2.0, 3.0])
        play(jitted, whole(2, start=start), parts)


@program(traces=2)
def the_loop_ends_by_an_exception(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        for step in range(5):
            x = x * 2
            if x.max() > 20:
                raise OverflowError(f"step {step}: {x.max().item()}")
        return x

    jitted = play.jit(f)
    for start in (0.5, 0.5, 3.0, 0.25, 9.0, 0.5, 3.0):
        play(jitted, torch.tensor([start, -1.0]))


@program(traces=5)
def a_loop_that_never_runs_the_same_way_twice(play: Play) -> None:
    f = play.jit(collatz)
    for start in (6, 7, 1, 12, 6, 27, 7):
        play(f, torch.tensor(start))


def collatz(n: torch.Tensor) -> tuple[int, float]:
    steps, top = 0, 0.0
    while n != 1:
        n = n // 2 if n % 2 == 0 else n * 3 + 1
        steps += 1
        top = max(top, n.item())
    return steps, top
