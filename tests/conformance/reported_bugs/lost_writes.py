"""Writes to tensors that were lost, done twice, or seen too early or too late."""

from __future__ import annotations

import torch

from tests.conformance.harness import Play, program


@torch.library.custom_op("reported_bugs::increment_both", mutates_args={"first", "second"})
def increment_both(first: torch.Tensor, second: torch.Tensor) -> None:
    first.add_(1)
    second.add_(10)


@program()
def view_of_another_dtype_before_a_write(play: Play) -> None:
    """pytorch/pytorch#198101: what was computed from a dtype view of an input was read after a later write to it."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.view(torch.int32) * 2
        y.sub_(-4)
        x[:, 2:5] = 2
        return y.view(torch.int64)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(-12, 12).reshape(4, 6))


@program()
def copy_before_the_source_is_written(play: Play) -> None:
    """pytorch/pytorch#198131: a copy of one input to another happened after the source had been changed."""

    def run(target: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        target[0:, :] = source[0:, :]
        source.add_(1)
        return source

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.zeros(3, 4), torch.arange(12.0).view(3, 4))


@program()
def write_through_an_expanded_tensor(play: Play) -> None:
    """pytorch/pytorch#152425: a write to one element of an expanded scalar changed only that element."""

    def run(numbers: torch.Tensor) -> list[torch.Tensor]:
        results = []
        for index in range(len(numbers)):
            row = numbers[index].expand(2)
            row[-1] = 3
            results.append(row)
        return results

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(2))


@program(traces=3)
def inputs_that_overlap_in_a_later_call(play: Play) -> None:
    """pytorch/pytorch#139789: a program made for separate inputs answered a call whose inputs share memory."""

    def run(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return x + y

    f = play.jit(run)
    for _ in range(2):
        play(f, torch.ones(4), torch.ones(4))
    for _ in range(2):
        base = torch.ones(8)
        play(f, base[:4], base[2:6])
    for _ in range(2):
        same = torch.ones(4)
        play(f, same, same)
    play(f, torch.ones(4), torch.ones(4))


@program()
def view_of_an_input_that_overlaps_the_written_one(play: Play) -> None:
    """pytorch/pytorch#198095: a view of the second of two overlapping inputs was made from the first."""

    def run(whole: torch.Tensor, tail: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        whole.add_(100)
        return tail[0], tail.view(-1)

    f = play.jit(run)
    for _ in range(3):
        whole = torch.arange(24.0).reshape(4, 6)
        play(f, whole, whole[1:])


@program()
def strided_read_after_a_write_to_a_strided_input(play: Play) -> None:
    """pytorch/pytorch#133512: after an in-place op the input's strides were taken to be contiguous."""

    def run(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return torch.as_strided_copy(x, (3,), (2,))

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(10)[::2])


@program()
def as_strided_of_a_view(play: Play) -> None:
    """pytorch/pytorch#104505: `as_strided` of a diagonal was applied on top of the view, not to the storage."""

    def run(x: torch.Tensor) -> torch.Tensor:
        x.diagonal().as_strided((2,), (1,), 0).add_(1.0)
        return x

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(8.0).view(2, 4))


@program()
def stack_of_one_before_a_write(play: Play) -> None:
    """pytorch/pytorch#93283: a stack of a single tensor shared memory with it, and saw a later in-place op."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        stacked, joined = torch.stack([x]), torch.cat([x])
        torch.nn.functional.relu(x, inplace=True)
        return stacked, joined

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([-1.0, 1.0]))


@program()
def result_and_input_written_from_neighbours(play: Play) -> None:
    """pytorch/pytorch#94693: the input's memory was overwritten by results while it was still being read."""

    def run(x: torch.Tensor) -> torch.Tensor:
        shifted = torch.cat([x[2:], x[:2]]) + x.flip(0)
        x.copy_(shifted)
        return shifted - x + x.roll(1)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(67.0))


@program(traces=2)
def rows_shifted_by_one(play: Play) -> None:
    """pytorch/pytorch#197829: `x[1:] = x[:-1].clone()` copied over overlapping memory, without the clone."""

    def shift(x: torch.Tensor) -> torch.Tensor:
        x[1:] = x[:-1].clone()
        return x

    f = play.jit(shift)
    for shape in ((3, 16, 16), (3, 16, 16), (130, 33), (130, 33)):
        play(f, torch.arange(float(torch.Size(shape).numel())).view(shape))


@program()
def squeezed_view_of_a_constant(play: Play) -> None:
    """pytorch/pytorch#97083: a squeezed view missed a write that came after a branch on a value."""

    def run() -> torch.Tensor:
        a = torch.tensor([1])[0:1]
        b = a.squeeze()
        a[0] = 0
        if a[0] < 100:
            pass
        a[0] = 2
        return b

    f = play.jit(run)
    for _ in range(3):
        play(f)


@program()
def custom_op_that_writes_views(play: Play) -> None:
    """pytorch/pytorch#153389: what a custom op wrote to a view of an input was overwritten with the old values."""

    def run(x: torch.Tensor) -> torch.Tensor:
        increment_both(x[:3], x[3:])
        return x * 2

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(6.0))


@program()
def two_writes_to_one_input(play: Play) -> None:
    """Lightning-AI/lightning-thunder#720: of two in-place ops on an input, only the first reached the caller."""

    def run(x: torch.Tensor) -> torch.Tensor:
        x.relu_()
        x.add_(1.0)
        return x + 1

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(-4.0, 4.0).view(2, 4))


@program()
def write_through_a_view_of_an_intermediate(play: Play) -> None:
    """Lightning-AI/lightning-thunder#652: users of a tensor did not see a write through its view."""

    def run(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
        c, d = a + 1, b * 2
        e = c.view(-1)
        e.add_(d.flatten())
        d.div_(a)
        return c, d, e / 2.0

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([[1.0, 2.0], [4.0, 8.0]]), torch.arange(4.0).view(2, 2))


@program()
def buffer_that_is_shifted_each_call(play: Play) -> None:
    """tinygrad/tinygrad#13364: a buffer of frames, given back by each call to the next, was overwritten too early."""

    def shift(frames: torch.Tensor, frame: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        shifted = torch.cat([frames[1:], frame])
        return shifted.contiguous(), shifted[:1].contiguous()

    f = play.jit(shift)
    frames = torch.zeros(5, 4)
    for number in range(8):
        frames, _ = play(f, frames, torch.full((1, 4), float(number)))


@program()
def argument_assigned_and_not_returned(play: Play) -> None:
    """tinygrad/tinygrad#16618: a new value assigned to an argument was dropped from the second call on."""
    inputs, targets = torch.arange(6.0).view(3, 2), torch.arange(3.0)

    def step(weight: torch.Tensor) -> torch.Tensor:
        error = inputs @ weight - targets
        weight.copy_(weight - 0.5 * (error.unsqueeze(1) * inputs).sum(0))
        return error.square().sum()

    f = play.jit(step)
    weight = torch.zeros(2)
    for _ in range(4):
        play(f, weight)


@program()
def result_given_to_the_next_call(play: Play) -> None:
    """tinygrad/tinygrad#14278: when the input of a call was the result of the one before, results were wrong."""
    f = play.jit(lambda x, y: (x * 2 + y, x - y))
    x, y = torch.arange(40.0), torch.ones(40)
    for _ in range(4):
        x, y = play(f, x, y)


@program()
def results_kept_over_later_calls(play: Play) -> None:
    """tinygrad/tinygrad#2417: a result that was kept got the value of the next call's."""
    f = play.jit(lambda x: (x.sum(), x + 1))
    kept: list[torch.Tensor] = []
    play.watch(kept=kept)
    for number in (1.0, 2.0, 3.0, 4.0):
        kept.extend(play(f, torch.full((2,), number)))


@program()
def results_compared_with_each_other(play: Play) -> None:
    """tinygrad/tinygrad#7020: two results of one program, compared, were the same memory and so always equal."""
    f = play.jit(lambda x: x + 1)
    first, second = torch.tensor([1.0]), torch.tensor([2.0])
    for _ in range(3):
        a, b = play(f, first), play(f, second)
        play.note("equal", a == b)


@program(compiled=False)
def view_resized_in_place(play: Play) -> None:
    """pytorch/pytorch#191449: `resize_` of a view resized the tensor that it is a view of."""

    def run(x: torch.Tensor) -> torch.Tensor:
        base = x + 1
        alias = base.view(-1)
        alias.resize_(12)
        return base + 1

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.zeros(1))


@program(compiled=False)
def view_made_before_the_data_is_replaced(play: Play) -> None:
    """pytorch/pytorch#94773: a view `x[:]` followed `x` when the storage of `x` was replaced."""

    def run(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        view = x[:]
        x.set_(torch.ones(3, 4).untyped_storage())
        return view, x + 1

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(6.0).view(2, 3))


@program()
def out_argument_of_another_dtype(play: Play) -> None:
    """pytorch/pytorch#117623: a cumulative sum into an int32 `out` was computed in float, and cast at the end."""

    def run(x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return torch.cumsum(x, 0, out=out)

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.tensor([0.75, 0.5, 2.75, 1.5]), torch.zeros(4, dtype=torch.int32))


@program()
def transposed_view_written_and_returned(play: Play) -> None:
    """pytorch/pytorch#111417: a transposed view, written in place and returned, had contiguous strides."""

    def run(x: torch.Tensor) -> torch.Tensor:
        y = x.t()
        y.mul_(2)
        return y

    f = play.jit(run)
    for _ in range(3):
        play(f, torch.arange(6.0).view(2, 3))
