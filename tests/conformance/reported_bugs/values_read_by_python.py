"""Numbers that Python takes out of tensors, and branches and loops on them."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program


@program()
def item_inside_a_training_loop(play: Play) -> None:
    """pytorch/pytorch#185382: in-place updates scaled by an `.item()` in a loop were wrong from the third step on."""

    def step(weight: torch.Tensor, gradient: torch.Tensor, m: torch.Tensor, v: torch.Tensor, t: torch.Tensor) -> None:
        t.add_(1)
        m.mul_(0.5).add_(gradient, alpha=0.5)
        v.mul_(0.75).addcmul_(gradient, gradient, value=0.25)
        number = t.item()
        size = 0.125 / (1 - 0.5**number)
        denominator = (v / (1 - 0.75**number) ** 0.5).add_(1e-8)
        weight.addcdiv_(m, denominator, value=-size)

    def train(start: torch.Tensor, gradient: torch.Tensor, steps: int) -> torch.Tensor:
        weight, m, v, t = start.clone(), torch.zeros_like(start), torch.zeros_like(start), torch.tensor(0.0)
        for _ in range(steps):
            step(weight, gradient, m, v, t)
        return weight

    f = play.jit(train)
    for number in (1.0, 1.0, 2.0, 3.0):
        play(f, torch.arange(4.0), torch.full((4,), number), 6)


@program(exact=False)
def item_in_one_update(play: Play) -> None:
    """pytorch/pytorch#185382: the same when the update itself is jitted and called again and again."""

    def step(weight: torch.Tensor, gradient: torch.Tensor, m: torch.Tensor, t: torch.Tensor) -> None:
        t.add_(1)
        m.mul_(0.5).add_(gradient, alpha=0.5)
        weight.sub_(m * (0.125 / (1 - 0.5 ** t.item())))

    f = play.jit(step)
    weight, m, t = torch.arange(4.0), torch.zeros(4), torch.tensor(0.0)
    for _ in range(6):
        play(f, weight, torch.ones(4), m, t)


@program()
def item_as_a_factor(play: Play) -> None:
    """tinygrad/tinygrad#14039: the number that `.item()` gave at the first calls was used in all later ones."""
    f = play.jit(lambda x, y: x * y.item() + y.sum().item())
    for number in (2.0, 3.0, 4.0, 2.0, 7.0):
        play(f, torch.ones(3), torch.tensor([number]))


@program(traces=None)
def item_as_a_size(play: Play) -> None:
    """tinygrad/tinygrad#14039: the same where the number is the size of a result."""
    f = play.jit(lambda x, n: x[: n.item()] * 2)
    for number in (2, 2, 3, 4, 2, 3):
        play(f, torch.arange(5.0), torch.tensor(number))


@program(traces=2)
def branch_between_two_writes(play: Play) -> None:
    """pytorch/pytorch#97083: a value that was read between two writes through views was the later one, or lost."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        a = x[0:1]
        b = a.squeeze()
        a[0] = 0 if x[1] > 0 else 5
        if a[0] < 3:
            x[1:] += 10
        a[0] += 2
        return b, x

    f = play.jit(run)
    for sign in (1.0, 1.0, -1.0, -1.0, 1.0):
        play(f, torch.tensor([7.0, sign, 3.0]))


@program(traces=None)
def counter_tensor_that_stops_a_loop(play: Play) -> None:
    """pytorch/pytorch#185382: the number of rounds depends on tensors that the rounds themselves change."""

    def run(x: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
        while left.item() > 0:
            x = x * 2 + left
            left.sub_(1)
        return x

    f = play.jit(run)
    for rounds in (1, 3, 2, 3, 0, 5):
        play(f, torch.ones(2), torch.tensor(rounds))


@program(traces=None)
def list_of_numbers_from_a_tensor(play: Play) -> None:
    """pytorch/pytorch#125387: indices from a tensor were right when returned, and stale when used for indexing."""

    def run(table: torch.Tensor, index: torch.Tensor) -> tuple[list[int], torch.Tensor]:
        chosen = index.tolist()
        return chosen, torch.stack([table[i] for i in chosen])

    f = play.jit(run)
    for first in (0, 0, 1, 2, 3, 1):
        play(f, torch.arange(8.0) * 3, torch.tensor([first, first + 2]))


@program(traces=2)
def truth_of_an_input_that_changes(play: Play) -> None:
    """pytorch/pytorch#97083: a branch on a tensor was decided by the value of an earlier call."""

    class Gate:
        def __init__(self) -> None:
            self.open = torch.tensor(True)

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x + 1 if self.open else x - 1

    gate = Gate()
    f = play.jit(gate.__call__)
    for value in (True, True, False, False, True):
        gate.open.fill_(value)
        play(f, torch.zeros(2))


@program(traces=None)
def sizes_that_depend_on_values(play: Play) -> None:
    """tinygrad/tinygrad#14290: views whose size is a variable were broken in jitted functions."""
    f = play.jit(lambda x: (x[x > 2] * 2, torch.nonzero(x > 2).flatten() + 1, torch.unique(x)))
    for shift in (0.0, 0.0, 1.0, -5.0, 2.0, 0.0):
        play(f, torch.arange(6.0) + shift)
