"""Control flow on what tensors hold: branches, short circuits, assertions, sizes that depend on data."""

from __future__ import annotations

import math
from typing import Any

import torch

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole

UP, DOWN, MIXED = (1.0, 2.0, 3.0), (-1.0, -2.0, -3.0), (-2.0, 0.0, 2.0)


def play_all(play: Play, function: Any, rounds: int, *inputs: tuple[float, ...]) -> None:
    """A step for each input, `rounds` times over; each gets a new tensor."""
    for _ in range(rounds):
        for values in inputs:
            play(function, torch.tensor(values))


@program(traces=2)
def an_if_takes_either_way(play: Play) -> None:
    f = play.jit(lambda x: x + 1 if x.sum() > 0 else x - 1)
    play_all(play, f, 3, UP, DOWN, UP)


@program(traces=2)
def a_branch_never_taken_before_is_taken_late(play: Play) -> None:
    f = play.jit(lambda x: x * 2 if x[0] < 0 else x * 3)
    play_all(play, f, 5, UP)
    play_all(play, f, 3, DOWN, UP)


@program(traces=4)
def nested_branches(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        if x.max() > 0:
            x = x * 2
            if x.min() < 0:
                return x - 100
            return x + 100
        x = x - 1
        if (x == 0).any():
            return -x
        return x.abs()

    play_all(play, play.jit(f), 2, UP, DOWN, MIXED, (-5.0, 1.0, 0.0), (0.0, 0.0, -1.0), (1.0, 1.0, 1.0))


@program(traces=5)
def an_elif_ladder(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[str, torch.Tensor]:
        total = x.sum()
        if total > 10:
            return "large", x / 2
        if total > 3:
            return "medium", x
        if total == 0:
            return "zero", x + 1
        if total < -3:
            return "negative", -x
        return "small", x * 2

    play_all(play, play.jit(f), 2, (5.0, 6.0), (2.0, 3.0), (1.0, -1.0), (-3.0, -4.0), (1.0, 0.0))


@program(traces=3)
def an_early_return_leaves_later_mutations_undone(play: Play) -> None:
    state = whole(3)

    def f(x: torch.Tensor) -> torch.Tensor:
        state.add_(1)
        if x.sum() < 0:
            return state * 10
        state.mul_(2)
        if x.max() > 2:
            return state.clone()
        state.zero_()
        return x

    play_all(play, play.jit(f), 3, UP, DOWN, (0.0, 1.0, 1.0))


@program(traces=4)
def and_or_not_stop_at_the_first_that_decides(play: Play) -> None:
    def f(x: torch.Tensor) -> Any:
        if (x.any() and x.sum() > 0) or not x.max() > -2:
            return x + 1
        return x.sum() > 5 or x * 2

    play_all(play, play.jit(f), 2, UP, DOWN, (0.0, 0.0, 0.0), (-3.0, -3.0, -4.0), MIXED)


@program(traces=4)
def a_chained_comparison(play: Play) -> None:
    f = play.jit(lambda x: x * 2 if 0 < x.sum() < 5 else x / 2)
    play_all(play, f, 2, UP, DOWN, (1.0, 1.0, 1.0))


@program(traces=3)
def a_conditional_expression_inside_an_argument(play: Play) -> None:
    f = play.jit(lambda x: torch.where(x > 0, x, x * (2 if x.min() < -2 else 3 if x.max() > 1 else 4)))
    play_all(play, f, 2, DOWN, MIXED, (0.0, 1.0, -1.0))


@program(traces=2)
def an_assertion_on_a_value(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        assert (y >= 0).all(), f"negative: {y.min().item()}"
        return y + 1

    play_all(play, play.jit(f), 2, UP, UP, DOWN, UP, MIXED)


@program(traces=4)
def a_comprehension_keeps_rows_by_value(play: Play) -> None:
    def f(x: torch.Tensor) -> list[torch.Tensor]:
        return [row * 2 for row in x if row.sum() > 0]

    jitted = play.jit(f)
    for _ in range(2):
        for sign in (1.0, -1.0):
            play(jitted, whole(2, 3, start=-2) * sign)
        play(jitted, whole(2, 3, start=1))


@program(traces=1)
def an_item_that_only_feeds_arithmetic(play: Play) -> None:
    f = play.jit(lambda x: x * x.max().item() + 1)
    for start in range(6):
        play(f, whole(4, start=start))


@program(traces=1)
def numbers_of_several_items_are_computed_in_python(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        low, high = x.min().item(), x.max().item()
        middle = (low + high) / 2
        return (x - middle) * (high - low) + int(x[1])

    jitted = play.jit(f)
    for start in (0, 5, -9, 5, 100):
        play(jitted, whole(4, start=start))


@program(traces=4)
def items_are_returned(play: Play) -> None:
    def f(x: torch.Tensor) -> dict[str, Any]:
        return {"item": x[0].item(), "list": x.tolist(), "int": int(x[1]), "bool": bool(x[2]), "half": x[3] / 2}

    jitted = play.jit(f)
    for start in (1, 1, -1, 7, 7):
        play(jitted, whole(4, start=start))
    play(jitted, whole(4, dtype=torch.int64))
    play(jitted, whole(4, dtype=torch.int64))


@program(traces=4)
def a_value_is_an_index(play: Play) -> None:
    f = play.jit(lambda x: x[int(x[0])] * 2)
    for _ in range(2):
        for first in (1.0, 2.0, 3.0, -1.0):
            play(f, torch.tensor([first, 10.0, 20.0, 30.0]))


@program(traces=4)
def a_value_is_a_size(play: Play) -> None:
    f = play.jit(lambda n: (torch.zeros(int(n)), torch.arange(n.item()), torch.ones(2).repeat(int(n))))
    for n in (2, 3, 2, 4, 3, 0):
        play(f, torch.tensor(n))


@program(traces=4)
def a_value_is_a_key_of_a_dictionary(play: Play) -> None:
    names = {0: "zero", 1: "one", 2: "two"}

    def f(x: torch.Tensor) -> tuple[str, torch.Tensor]:
        name = names.get(int(x.argmax()), "many")
        return name, x + len(name)

    places = (9.0, 1.0, 2.0, 3.0), (1.0, 9.0, 2.0, 3.0), (1.0, 2.0, 9.0, 3.0), (1.0, 2.0, 3.0, 9.0)
    play_all(play, play.jit(f), 2, *places)


@program(traces=3)
def the_number_of_nonzero_elements_decides(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        found = x.nonzero()
        return x[found[:, 0]] * len(found) if len(found) > 1 else x.new_zeros(2)

    play_all(play, play.jit(f), 2, UP, (0.0, 4.0, 0.0), (0.0, 1.0, 2.0))


@program(traces=3)
def boolean_indexing_reads_and_writes(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x[x < 0] = 7.0
        chosen = x[x > 1]
        return chosen, chosen.sum(), x.masked_select(x == 7)

    play_all(play, play.jit(f), 2, UP, DOWN, MIXED, (5.0, -1.0, 0.0))


@program(traces=3)
def unique_values_and_their_counts(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values, inverse, counts = x.unique(return_inverse=True, return_counts=True)
        return values * counts, values[inverse], torch.full((len(values),), 2.0)

    play_all(play, play.jit(f), 2, (1.0, 1.0, 2.0), (3.0, 2.0, 1.0), (4.0, 4.0, 4.0), (5.0, 5.0, 6.0))


@program(traces=3)
def equality_of_whole_tensors(play: Play) -> None:
    known = torch.tensor(UP)
    f = play.jit(lambda x: x + 1 if torch.equal(x, known) or torch.allclose(x, -known) else x - 1)
    play_all(play, f, 2, UP, MIXED, DOWN)


@program(traces=4)
def nan_and_infinity_take_their_own_ways(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[str, torch.Tensor]:
        top = x.max()
        if math.isnan(top):
            return "nan", x.nan_to_num(0.0)
        if not torch.isfinite(x).all():
            return "infinite", x.clamp(-1, 1)
        return "finite", x / top

    play_all(play, play.jit(f), 2, UP, (math.nan, 1.0), (math.inf, 1.0), (-math.inf, 2.0), (1.0, math.nan))


@program(traces=2)
def the_branch_reads_what_the_call_just_wrote(play: Play) -> None:
    def f(x: torch.Tensor, state: torch.Tensor) -> torch.Tensor:
        state += x
        if state.sum() > 10:
            state.zero_()
            return x * 0
        return state + 1

    jitted, state = play.jit(f), torch.zeros(2)
    for _ in range(7):
        play(jitted, torch.tensor([1.0, 2.0]), state)


@program(traces=2)
def both_branches_mutate_the_argument_in_their_own_way(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        view = x[1:]
        view += 1
        if view[0] > 0:
            x.mul_(2)
        else:
            x.t_() if x.dim() == 2 else view.neg_()
        return view

    play_all(play, play.jit(f), 3, UP, DOWN)


@program(traces=3)
def branches_return_different_structures(play: Play) -> None:
    def f(x: torch.Tensor) -> Any:
        if x.sum() > 0:
            return {"x": x, "y": x + 1}
        return (x, None) if x.max() < 0 else x.sum().item() == 0

    play_all(play, play.jit(f), 2, UP, DOWN, MIXED)


@program(traces=3)
def a_mask_of_zero_dimensions_and_an_empty_tensor(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        return x.sum() if x.numel() and x.any() else x.new_ones(())

    jitted = play.jit(f)
    for values in (UP, UP, (), (), (0.0,) * 3, UP, ()):
        play(jitted, torch.tensor(values))


@program(traces=3)
def the_outcome_comes_through_a_helper_and_a_closure(play: Play) -> None:
    limit = 0.0

    def positive(x: torch.Tensor) -> bool:
        return bool(x.sum() > limit)

    f = play.jit(lambda x: x + 1 if positive(x) else x - 1)
    play_all(play, f, 2, UP, DOWN)
    limit = 100.0
    play_all(play, f, 2, UP, DOWN)
