"""Results that shared memory, or were one object, where they must not; and layouts that differed."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program


@program()
def detached_beside_the_original(play: Play) -> None:
    """pytorch/pytorch#100348: a result and its `detach()` came back as one object."""

    def run(x: torch.Tensor) -> dict[str, torch.Tensor]:
        loss = x.mean()
        return {"loss": loss, "detached": loss.detach(), "again": loss}

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(4.0))


@program()
def equal_results(play: Play) -> None:
    """pytorch/pytorch#88813: two results with the same expression were merged into one tensor."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x * 2, x * 2, torch.zeros(3), torch.zeros(3)

    f = play.jit(run)
    for _ in range(3):
        doubled, other, zeros, _ = play(f, torch.arange(5.0))
        doubled.add_(1)
        zeros.add_(1)
        play.note("after a write to the first", (other, zeros))


@program(traces=2)
def neutral_operand(play: Play) -> None:
    """pytorch/pytorch#197893: `x / 1.0`, `x * 1` and `x + 0` gave the input itself, which a later write destroyed."""

    def run(x: torch.Tensor, divisor: float, term: int) -> tuple[torch.Tensor, ...]:
        return x / divisor, x * divisor, x + term

    f = play.jit(run)
    for divisor, term in ((0.5, 1), (0.5, 1), (1.0, 0), (1.0, 0)):
        x = torch.arange(4.0)
        for result in play(f, x, divisor, term) or ():
            result.add_(1)
        play.note("argument", x)


@program()
def other_operations_that_change_nothing(play: Play) -> None:
    """pytorch/pytorch#197893: the same for ops that copy although their result equals the input."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.clone(), x.abs(), x.to(torch.float32, copy=True), x.repeat(1), torch.cat([x]), x - 0, x**1

    f = play.jit(run)
    for _ in range(3):
        x = torch.arange(4.0)
        for result in play(f, x):
            result.add_(1)
        play.note("argument", x)


@program()
def operations_that_return_their_input(play: Play) -> None:
    """pytorch/pytorch#197893: the reverse: ops that give the input itself, or a view of it, in eager."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.to(torch.float32), x.contiguous(), x.view(-1), x.expand(1, 4), x.reshape(2, 2), x.float(), x.T

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(4.0))


@program()
def complex_view_of_an_intermediate(play: Play) -> None:
    """pytorch/pytorch#122457: memory under a complex view was used again while the view was still read."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        z = torch.view_as_complex(x + 1)
        return torch.view_as_real(z) + 1, torch.view_as_real(z + 1)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.zeros(4, 2))


@program()
def column_of_a_clone(play: Play) -> None:
    """pytorch/pytorch#142118 (comment): a column of a clone, written in place, came back with a stride of 1."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.clone()[:, 1]
        y.masked_fill_(torch.ones_like(y, dtype=torch.bool), 0)
        return y

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(16.0).view(4, 4))


@program()
def strides_of_an_empty_tensor(play: Play) -> None:
    """pytorch/pytorch#130394: a result from `empty_strided` with gaps between its rows came back without gaps."""

    def run(x: torch.Tensor) -> torch.Tensor:
        result = torch.empty_strided(x.size(), x.stride())
        result[:] = x + x
        return result

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(256.0).view(16, 16)[:, :8])


@program()
def layout_after_a_transposed_input(play: Play) -> None:
    """pytorch/pytorch#198364: several ops gave contiguous results where eager keeps a transposed input's layout."""

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            torch.copysign(a, b - 1.5),
            torch.floor_divide(a, b),
            torch.div(a, b, rounding_mode="floor"),
            torch.addr(a, b[:, 0], b[0], beta=0.0),
            a.put(torch.tensor([0, 7]), torch.tensor([1.0, 2.0])),
            a.where(b > 1.5, b),
        )

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(30.0).view(6, 5).mT, torch.arange(30.0).view(5, 6).remainder(3) + 1)


@program()
def detached_view_of_an_argument(play: Play) -> None:
    """pytorch/functorch#1052: the result of `detach()`, as the only one, required gradients."""
    f = play.jit(lambda x: x.detach())
    for _ in range(3):
        play(f, torch.ones(1, requires_grad=True))


@program()
def overlapping_results(play: Play) -> None:
    """pytorch/pytorch#191449 (comments): an intermediate and a view of it came back as one object."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x + 1
        return y, y.view(-1), y[1:], y.view(2, 2), *y.chunk(2)

    f = play.jit(run)
    for _ in range(3):
        y, *views = play(f, torch.zeros(4))
        views[1].add_(5)
        play.note("base after a write to a view", (y, views))
