"""Mutation and aliasing: in-place ops through views, buffers, `out=`, results that share memory, strides."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


def twice(play: Play, function: Any, *makers: Any) -> None:
    """Three steps, each with new arguments."""
    for _ in range(3):
        play(function, *(make() for make in makers))


@program()
def an_argument_is_changed_in_place_and_returned(play: Play) -> None:
    f = play.jit(lambda x: x.add_(1).mul_(2))
    twice(play, f, lambda: whole(3))


@program()
def an_argument_is_changed_through_chained_views(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        rows = x.view(2, 3, 2)
        rows[:, 1:].transpose(1, 2)[0] += 10
        x[::2].neg_()
        return rows.select(2, 1)

    twice(play, play.jit(f), lambda: whole(12))


@program()
def a_view_is_read_after_its_base_was_written(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        head = x[:2]
        before = head + 0
        x.mul_(10)
        return before, head + 0

    twice(play, play.jit(f), lambda: whole(4))


@program()
def a_view_of_a_new_tensor_is_written(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.zeros(3, 3)
        y.diagonal().copy_(x)
        y[0] += 1
        y.t()[2].fill_(5)
        return y

    twice(play, play.jit(f), lambda: whole(3))


@program()
def slices_that_overlap_are_written_in_order(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x[:3] = x[1:4].clone()
        x[1:] *= 2
        x[:-1] += x[1:].clone()
        return x[1:3]

    twice(play, play.jit(f), lambda: whole(5))


@program()
def results_alias_each_other_and_the_argument(play: Play) -> None:
    def f(x: torch.Tensor) -> dict[str, Any]:
        y = x + 1
        of_x = {"x": x, "again": x, "view": x.t(), "alias": x[:]}
        return of_x | {"y": y, "flat": y.view(-1), "row": y[1], "twin": x + 1}

    twice(play, play.jit(f), lambda: whole(2, 3))


@program()
def a_result_is_written_by_the_caller(play: Play) -> None:
    f = play.jit(lambda x: (x.view(-1), x * 2))
    for _ in range(3):
        x = whole(2, 2)
        play.watch(x=x)
        view, fresh = play(f, x)
        view.add_(100)
        fresh.zero_()
    play(f, x)


@program()
def results_of_earlier_calls_keep_their_values(play: Play) -> None:
    f = play.jit(lambda x: (x + 1, (x * 2).t(), x.sum()))
    kept: list[Any] = []
    play.watch(kept=kept)
    for start in range(4):
        kept.append(play(f, whole(2, 3, start=start)))


@program()
def a_result_is_fed_back_as_the_argument(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x += y
        return y, x * 2

    jitted = play.jit(f)
    x, y = whole(3), whole(3, start=1)
    for _ in range(4):
        x, y = play(jitted, x, y)


@program()
def strides_of_results_are_as_eager_makes_them(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
        t = x.permute(2, 0, 1)
        return [
            t + 1, t.contiguous(), t + y, x.sum(1), t.clone(), torch.zeros_like(t), t.expand(2, 4, 2, 3) * 2,
            torch.cat([t, t]), x[:, ::2], torch.empty_strided((2, 3), (1, 2)).fill_(1), x.double().mT, t.relu(),
        ]  # fmt: skip

    twice(play, play.jit(f), lambda: whole(2, 3, 4), lambda: whole(4, 2, 3))


@program()
def channels_last_is_kept(play: Play) -> None:
    rows = torch.contiguous_format
    f = play.jit(lambda x: (x + 1, x.relu().mean((2, 3)), x.contiguous(), x.clone(memory_format=rows)))
    twice(play, f, lambda: whole(1, 4, 2, 2).to(memory_format=torch.channels_last))


@program()
def an_expanded_result_stays_expanded(play: Play) -> None:
    def expand(x: torch.Tensor) -> list[torch.Tensor]:
        return [(x * 2).expand(4, 3), x.expand(2, 3), torch.ones(()).expand(3), x[None].broadcast_to(2, 2, 3)]

    f = play.jit(expand)
    twice(play, f, lambda: whole(1, 3))


@program()
def out_arguments_are_filled_and_returned(play: Play) -> None:
    def f(x: torch.Tensor, out: torch.Tensor, rows: torch.Tensor) -> Any:
        total = torch.sum(x, 0, out=rows[1])
        return torch.add(x, 1, out=out), total

    twice(play, play.jit(f), lambda: whole(2, 3), lambda: torch.zeros(2, 3), lambda: torch.zeros(3, 3))


@program(compiled=False)
def an_out_argument_is_resized(play: Play) -> None:
    def f(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        torch.mul(x, 2, out=out)
        x.resize_(2)
        return out

    twice(play, play.jit(f), lambda: whole(4), lambda: torch.empty(0))


@program()
def a_tensor_is_given_other_data(play: Play) -> None:
    holder = SimpleNamespace(weight=whole(3))

    def f(x: torch.Tensor) -> torch.Tensor:
        holder.weight.data = x * 2
        return holder.weight + 1

    jitted = play.jit(f)
    play.watch(holder=holder)
    twice(play, jitted, lambda: whole(3))


@program(traces=2, exact=False)
def running_statistics_are_updated(play: Play) -> None:
    net = play.jit(nn.Sequential(nn.BatchNorm1d(3, momentum=0.5), nn.BatchNorm1d(3, momentum=None)))
    play.watch(net=net)
    for start in range(4):
        play(net, whole(4, 3, start=start))


@program()
def a_buffer_counts_the_calls(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
            self.register_buffer("ring", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            self.ring[1:] = self.ring[:-1].clone()
            self.ring[0] = x.sum()
            return self.ring.mean() * self.steps

    net = play.jit(Net())
    for start in (3, 6, 9, 12):
        play(net, whole(3, start=start))


@program()
def a_buffer_is_assigned_a_new_tensor(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("state", torch.zeros(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            previous, self.state = self.state, self.state * 2 + x
            return previous

    net = play.jit(Net())
    for start in (1, 2, 3, 4):
        play(net, whole(3, start=start))


@program()
def duplicate_indices_accumulate_and_overwrite(play: Play) -> None:
    index = torch.tensor([0, 2, 0, 2])

    def f(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        x.index_put_((index,), values, accumulate=True)
        x.scatter_add_(0, index, values)
        x[index] += 1
        return x.index_add(0, index, values).index_fill(0, index[1:2], -1.0)

    twice(play, play.jit(f), lambda: whole(3), lambda: whole(4))


@program()
def in_place_ops_keep_the_dtype(play: Play) -> None:
    def f(i: torch.Tensor, h: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        i += True
        i //= 2
        h += 0.1
        h *= torch.tensor(3.0, dtype=torch.float64)
        b |= i > 0
        return (i / 2).to(h.dtype).add_(h)

    twice(
        play, play.jit(f), lambda: whole(4, dtype=torch.int8), lambda: whole(4, dtype=torch.bfloat16),
        lambda: torch.zeros(4, dtype=torch.bool),
    )  # fmt: skip


@program(exact=False)
def a_random_fill_writes_into_a_view(play: Play) -> None:
    f = play.jit(lambda x: x[1:].uniform_() + x[:-1].normal_(2.0, 3.0))
    twice(play, f, lambda: whole(9))


@program()
def memory_under_as_strided_is_written(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        window = x.as_strided((3, 2), (2, 1), 1)
        window[1] = 50
        x.as_strided((2,), (3,)).sub_(7)
        return x.unfold(0, 3, 2)

    twice(play, play.jit(f), lambda: whole(8))


@program()
def arguments_in_an_offset_window_of_larger_memory(play: Play) -> None:
    f = play.jit(lambda x: x.mul_(2).view(-1)[1:])
    memory = whole(20)
    play.watch(memory=memory)
    for offset in (0, 4, 4, 7):
        play(f, memory[offset : offset + 6].view(2, 3))


@program()
def nothing_but_the_mutation_is_wanted(play: Play) -> None:
    def f(state: dict[str, torch.Tensor], x: torch.Tensor) -> None:
        state["sum"].add_(x)
        state["top"].copy_(torch.maximum(state["top"], x))
        state["sum"], state["top"].swapaxes(0, 0)

    jitted, state = play.jit(f), {"sum": torch.zeros(3), "top": torch.zeros(3)}
    for start in (0, 5, -9):
        play(jitted, state, whole(3, start=start))


@program(traces=2)
def a_swap_through_a_temporary(play: Play) -> None:
    def f(x: torch.Tensor, y: torch.Tensor) -> None:
        old = x.clone()
        x.copy_(y)
        y.copy_(old)

    jitted = play.jit(f)
    twice(play, jitted, lambda: whole(3), lambda: whole(3, start=7))
    same = whole(3)
    play(jitted, same, same)
    play(jitted, same, same)


@program(traces=3)
def a_no_op_returns_the_argument_itself(play: Play) -> None:
    def same(x: torch.Tensor) -> list[torch.Tensor]:
        return [x.contiguous(), x.float(), x.to(x.device), x.reshape(2, 2), x.detach(), x.expand(2, 2), x.clone()]

    f = play.jit(same)
    twice(play, f, lambda: whole(2, 2))
    play(f, whole(2, 2).t())
    play(f, whole(2, 2, dtype=torch.float64))


@program(traces=2)
def a_list_of_tensors_is_changed_by_foreach_and_split(play: Play) -> None:
    def f(tensors: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        torch._foreach_add_(tensors, 1)
        first, *rest = tensors[0].chunk(2)
        first.zero_()
        return (*rest, *torch._foreach_mul(tensors, 2))

    twice(play, play.jit(f), lambda: [whole(4), whole(2, 2)])


@program(compiled=False)
def memory_shared_with_numpy(play: Play) -> None:
    array = np.arange(4, dtype=np.float32)
    held = torch.from_numpy(array)

    def f(x: torch.Tensor) -> Any:
        held.add_(x)
        x.numpy()[0] = 99
        return array * 2, held * 2, x + 1

    jitted = play.jit(f)
    play.watch(array=array)
    twice(play, jitted, lambda: whole(4))
    array += 100
    play(jitted, whole(4))


@program(grad=True, compiled=False)
def writing_a_saved_tensor_is_noticed_by_backward(play: Play) -> None:
    f = play.jit(lambda x: x.add_(1))

    def run(weight: torch.Tensor) -> None:
        saved = whole(3)
        loss = (saved * weight).sum()
        f(saved)
        loss.backward()

    for _ in range(3):
        play(run, whole(3).requires_grad_())


@program(compiled=False, grad=True)
def gradients_flow_through_and_into_what_was_mutated(play: Play) -> None:
    f = play.jit(lambda x, w: (x * w).mul_(2))
    w = whole(3).requires_grad_()
    for start in (1, 2):
        x = whole(3, start=start)
        out = play(f, x, w)
        out.sum().backward()
    play(f, x, w)
