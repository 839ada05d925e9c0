"""Indices: repeated, negative, out of range, and along expanded dimensions."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program


@program()
def doubled_through_repeated_indices(play: Play) -> None:
    """pytorch/pytorch#174074: `x[[0, 0]] += x[[0, 0]]` added twice, since reads and writes were one kernel."""

    def run(x: torch.Tensor) -> torch.Tensor:
        x[[0, 0]] += x[[0, 0]]
        return x

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([[-0.875, 0.125], [3.0, 4.0]], dtype=torch.float64))


@program()
def doubled_through_a_repeated_computed_index(play: Play) -> None:
    """pytorch/pytorch#138908: `y[x] += y[x]` with equal indices gave four times the row."""

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        index = x + 10
        y[index] += y[index]
        return index

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.full((1, 2), -10), torch.arange(64.0).view(2, 32))


@program()
def increment_through_repeated_indices(play: Play) -> None:
    """pytorch/pytorch#197582: `v[i] = v[i] + 1` with `i = arange(n) % 2` read values that had been written already."""

    def run(x: torch.Tensor) -> torch.Tensor:
        v = x.view(-1)
        index = torch.arange(v.numel()) % 2
        v[index] = v[index] * 0 + 7.0
        return x

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


@program()
def accumulation_over_repeated_indices(play: Play) -> None:
    """torch-spyre/torch-spyre#4411: `index_put_(accumulate=True)` did not add up the values of equal indices."""

    def run(cache: torch.Tensor, slots: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        cache.index_put_((slots,), values, accumulate=True)
        return cache * 2

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.ones(8, 3), torch.tensor([5, 5, 5, 7]), torch.arange(12.0).view(4, 3))


@program()
def gather_from_what_was_scattered(play: Play) -> None:
    """pytorch/pytorch#191571: reads from the target of a `scatter_add_` of one row came before the additions."""

    def run(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        rows = torch.zeros(1, x.shape[1])
        rows.scatter_add_(0, index.unsqueeze(-1).expand(-1, x.shape[1]), x)
        return torch.index_select(rows, 0, index)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(32.0).view(8, 4), torch.zeros(8, dtype=torch.long))


@program()
def index_ops_on_expanded_tensors(play: Play) -> None:
    """pytorch/pytorch#183986: ops by index on an expanded tensor wrote to the memory that all its rows share."""

    def run(source: torch.Tensor, index: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = torch.zeros(1, 8).expand(4, -1)
        return (
            x.index_add(0, index, source),
            x.index_copy(0, index[:2], source[:2]),
            x.index_fill(0, index, 5.0),
            x.index_put((index,), source, accumulate=True),
        )

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.ones(3, 8), torch.tensor([0, 1, 0]))


@program()
def negative_index_in_a_list(play: Play) -> None:
    """pytorch/pytorch#102602: `x[:, [-1]]` read from before the row instead of from its end."""
    f = play.jit(lambda x: (x[:, [-1], :], x[[-1, 0, -2]], x[:, -2:, [-1]]))
    for _ in range(3):
        play(f, torch.arange(24.0).view(3, 4, 2))


@program()
def negative_index_that_scatter_refuses(play: Play) -> None:
    """pytorch/pytorch#131321: a negative index counted from the end in a scatter, which eager refuses."""

    def run(x: torch.Tensor, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return torch.scatter_reduce(x, 0, index, source, "sum")

    f = play.jit(run)
    for last in (3, 3, -1, 3):
        play(f, torch.arange(4.0), torch.tensor([0, 1, 0, 1, 2, last]), torch.arange(6.0))


@program()
def negative_index_that_index_select_refuses(play: Play) -> None:
    """pytorch/pytorch#169779: `index_select` took a negative index, which eager refuses."""
    f = play.jit(lambda x, index: torch.index_select(x, 0, index) + 1)
    for index in (2, 2, -1, 2):
        play(f, torch.arange(10.0).view(5, 2), torch.tensor([index]))


@program(traces=2)
def index_out_of_range(play: Play) -> None:
    """pytorch/pytorch#183769: `select` beyond the end returned values from beside the tensor."""

    def run(x: torch.Tensor, index: int) -> torch.Tensor:
        wide = x.unsqueeze(1)
        return torch.cat([torch.select(wide, 1, 0), torch.select(wide, 1, index)], dim=-1)

    f = play.jit(run)
    for index in (0, 0, 1, 0):
        play(f, torch.arange(12.0).view(3, 4), index)


@program()
def embedding_out_of_range(play: Play) -> None:
    """pytorch/pytorch#183769: the same where the index comes with the data."""
    f = play.jit(lambda table, index: torch.nn.functional.embedding(index, table) * 2)
    for index in (1, 2, 5, 0):
        play(f, torch.arange(8.0).view(4, 2), torch.tensor([0, index]))


@program()
def indices_of_extremes_of_booleans(play: Play) -> None:
    """pytorch/pytorch#184893: `min` along a dimension of booleans gave indices of elements that are not the least."""
    f = play.jit(lambda x: (*x.min(0), *x.max(0), x.int().argmin(0), x.int().argmax(0)))
    for _ in range(3):
        play(f, torch.randint(2, (7, 33), dtype=torch.bool))


@program(exact=False)
def argmax_of_a_transposed_intermediate(play: Play) -> None:
    """pytorch/pytorch#183082: `argmax` of a transposed tensor counted in the order of the memory."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.clone()
        y.sin_()
        return y.t().argmax(), y.t().argmin(), y.t().argmax(0), y.t()[::2].argmax(1)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.randn(5, 7))


@program()
def ties(play: Play) -> None:
    """pytorch/pytorch#99879: among equal elements, `argmin` and `min` chose another index than eager."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.argmin(), x.argmax(), x.argmin(1), *x.max(1), *x.min(0), x.sort(stable=True, dim=1).indices

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.randint(3, (6, 35)).float())


@program()
def slices_written_at_the_edges(play: Play) -> None:
    """pytorch/pytorch#122291: `slice_scatter` returned wrong values, outside or inside of the slice."""

    def run(x: torch.Tensor, source: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (
            torch.slice_scatter(x, source, dim=1, start=4, end=6),
            torch.slice_scatter(x, source, dim=1, start=-2),
            torch.slice_scatter(x, source[:, :1], dim=1, start=0, end=20, step=16),
            torch.select_scatter(x, source[:, 0], dim=1, index=-1),
        )

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.zeros(8, 16), torch.ones(8, 2) + torch.arange(2.0))
