"""What `python -m tests.fuzz` found in dsjit, reduced: each case differed from eager once."""

from __future__ import annotations

import pytest
import torch

import dsjit
from tests.api.checks import assert_same, call_compiled, check


def test_a_shape_that_is_returned_holds_numbers_when_sizes_are_open() -> None:
    """It held symbols of the run that found out which sizes may be open."""
    jitted = dsjit.jit(lambda x: (x.sinh(), x.shape))
    for size in (4, 6, 7):
        _, shape = jitted(torch.ones(1, size))
        assert shape == (1, size)
        assert type(shape) is torch.Size
        assert all(type(each) is int for each in shape)


@pytest.mark.parametrize(
    ("function", "good", "bad"),
    [
        (lambda x, i: (x // i, x + 1)[1], torch.tensor([1]), torch.tensor([0])),
        (lambda x, i: (x % i, x + 1)[1], torch.tensor([1]), torch.tensor([0])),
        (lambda x, i: (x[i], x + 1)[1], torch.tensor([1]), torch.tensor([9])),
        (lambda x, i: (x.index_select(0, i), x + 1)[1], torch.tensor([1]), torch.tensor([9])),
        (lambda x, i: (x.gather(0, i), x + 1)[1], torch.tensor([1]), torch.tensor([9])),
    ],
    ids=["//", "%", "index", "index_select", "gather"],
)
def test_an_op_whose_result_is_not_used_still_refuses_bad_operands(function, good, bad) -> None:
    """It was removed as dead code, and its exception with it."""
    jitted = dsjit.jit(function, fullgraph=True)
    x = torch.arange(3)
    jitted(x, good)
    assert torch.equal(call_compiled(jitted, x, good), function(x, good))
    with pytest.raises((RuntimeError, IndexError)) as expected:
        function(x, bad)
    with pytest.raises(expected.type):
        jitted(x, bad)


def test_the_backward_of_a_call_does_not_go_into_an_earlier_one_that_it_does_not_depend_on() -> None:
    """A state with gradients made the later call's backward enter the earlier one's, whose buffers were freed."""
    state = [torch.ones(1, requires_grad=True)]

    def step(x):
        state[0] = state[0] + 1
        return x.sigmoid()

    def gradients(function):
        state[0] = torch.ones(1, requires_grad=True)
        xs = [torch.full((3,), float(number), requires_grad=True) for number in range(4)]
        for x in xs:
            function(x).sum().backward()
        return [x.grad for x in xs]

    torch.testing.assert_close(gradients(dsjit.jit(step)), gradients(step))


def test_a_write_through_a_view_whose_elements_share_memory_is_eagers() -> None:
    """Which of the writes to one place is the last is left open by torch: the program read all of them first."""

    def step(x):
        view = x.as_strided((2, 2), (1, 1))
        view.add_(view)
        return x

    jitted = dsjit.jit(step)
    with pytest.warns(dsjit.DsjitWarning, match="elements share it"):
        for _ in range(2):
            assert torch.equal(jitted(torch.arange(4)), step(torch.arange(4)))
    assert jitted.counters.calls_compiled == 0


@pytest.mark.parametrize("part", [lambda t: t.view_as(t), lambda t: t[1:], lambda t: t.detach()])
def test_results_that_need_no_gradient_share_memory_beside_one_that_does(part) -> None:
    """Each had memory of its own in programs that have a backward."""

    def results(x):
        fixed = torch.full_like(x, 2.0).cos()
        return x * fixed, fixed, part(fixed)

    jitted = dsjit.jit(results, fullgraph=True)
    x = torch.ones(3, requires_grad=True)
    jitted(x)
    product, fixed, view = call_compiled(jitted, x)
    assert product.requires_grad and not view.requires_grad
    assert view.untyped_storage().data_ptr() == fixed.untyped_storage().data_ptr()
    wanted = part(fixed)
    assert (view.shape, view.stride(), view.storage_offset()) == (
        wanted.shape, wanted.stride(), wanted.storage_offset(),
    )  # fmt: skip


@pytest.mark.parametrize("backend", ["llvm", "interpreter"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_first_of_several_extremes_is_found_whatever_the_order_of_memory(backend, dtype) -> None:
    """Loops run in the order of memory, and the first that they met was taken."""

    def places(x):
        other = x.permute(2, 0, 1)
        return x.argmin(), x.argmax(), other.argmin(), other.argmax(), x.argmax(1)

    jitted = dsjit.jit(places, fullgraph=True, backend=backend)
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randint(0, 3, (5, 4, 18), generator=generator).to(dtype).permute(2, 1, 0)
        if dtype.is_floating_point and seed:
            x[11, 2, 3] = x[9, 3, 4] = float("nan")
        jitted(x)
        for found, wanted in zip(call_compiled(jitted, x), places(x), strict=True):
            assert torch.equal(found, wanted)


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_a_view_of_an_argument_that_shares_memory_with_itself_has_eagers_gradients() -> None:
    """Autograd divides the gradient of a strided view among the elements that share memory."""

    def gradient(function):
        x = torch.tensor([3.0]).expand(4).requires_grad_()
        view, product = function(x)
        (view * torch.arange(4.0) + product).sum().backward()
        return x.grad

    jitted = dsjit.jit(lambda x: (x[None], x * 2))
    for _ in range(3):
        assert torch.equal(gradient(jitted), gradient(lambda x: (x[None], x * 2)))


def test_a_size_less_one_is_told_from_another_size_less_some() -> None:
    """The sizes that a backward was fitted at were 23, 29, 31, 37 and 53, 59, 61, 67: always 30 apart."""

    def gradient(function, shape):
        x = torch.linspace(0.5, 1.5, torch.Size(shape).numel()).reshape(shape).requires_grad_()
        function(x).sum().backward()
        return x.grad

    def product(x):
        return x.prod(0)

    jitted = dsjit.jit(product)
    for shape in ((17, 5, 4), (19, 7, 6), (19, 7, 6), (18, 6, 5)):
        torch.testing.assert_close(gradient(jitted, shape), gradient(product, shape))
    assert jitted.counters.calls_compiled == 2


def test_a_zero_that_equals_a_bound_keeps_its_sign() -> None:
    x = torch.tensor([-0.0, 0.0, -1.0, 5.0], dtype=torch.bfloat16)
    call = dsjit.jit(lambda x: (x.clamp(0, 3), x.clamp(max=-0.0)))
    for _ in range(2):
        for found, expected in zip(call(x), (x.clamp(0, 3), x.clamp(max=-0.0)), strict=True):
            assert torch.equal(found.view(torch.int16), expected.view(torch.int16))


@pytest.mark.parametrize(
    "write",
    [
        lambda x: torch.add(x, x[..., :1], out=x),
        lambda x: x.mul_(x[1]),
        lambda x: x[:, 1:].copy_(x[:, :-1]),
        lambda x: x.add_(x.t()),
    ],
    ids=["out", "broadcast", "shifted", "transposed"],
)
@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_a_write_to_memory_that_an_operand_reads_at_other_places_is_eagers(write) -> None:
    """Eager reads what it has just written, where torch does not see that tensors with gaps in memory overlap."""

    def step(x):
        x.transpose(0, 1).add_(1)
        write(x)
        return -x

    jitted = dsjit.jit(step)
    for seed in range(3):
        given = [torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))[:, ::2] for _ in range(2)]
        assert torch.equal(jitted(given[0]), step(given[1]))
        assert torch.equal(given[0], given[1])


def test_a_call_that_fails_for_some_sizes_is_made_for_others() -> None:
    """When sizes were opened, the call failed for all that were tried, and was left out."""

    def rows(x):
        try:
            return x.view(-1, 7) + 1
        except RuntimeError:
            return x + 1

    jitted = dsjit.jit(rows)
    for size in (17, 19, 23, 21):
        assert torch.equal(jitted(torch.arange(size)), rows(torch.arange(size)))


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
@pytest.mark.parametrize("part", [lambda t: t.chunk(2)[0], lambda t: t.unbind()[1]], ids=["chunk", "unbind"])
def test_autograd_refuses_a_view_of_several_whose_memory_was_written_since(part) -> None:
    """Compiled, its gradient was that of any other view."""

    def step(x):
        rows = x.sum(1)
        first = part(rows)
        rows[0] = 3
        return rows, first

    jitted = dsjit.jit(step)
    for function in (step, jitted, jitted):
        _, first = function(torch.randn(3, 4).requires_grad_())
        with pytest.raises(RuntimeError, match="is a view and its base"):
            first.sum().backward()


def test_an_int_is_traced_after_a_float_was() -> None:
    """Once a tensor had given an int and then a float, the next int went into torch's functions as a constant."""

    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        filled = torch.full_like(y, int(y.amax()))
        if float(filled.amin()) < 1:
            filled = filled + 1
        return torch.full_like(filled, x.amax().item())

    jitted = dsjit.jit(function)
    for number in (3, 2, 5):
        args = torch.tensor([number], dtype=torch.uint8), torch.zeros(4)
        assert torch.equal(jitted(*args), function(*args))


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
@pytest.mark.parametrize("part", [lambda x: x.diagonal(), lambda x: x[:1], lambda x: x])
def test_a_view_of_memory_beyond_a_tensor_is_eagers(part) -> None:
    """It read whatever lay behind the elements of the tensor."""

    def window(x):
        return part(x).as_strided((2, 2), (1, 1)) + 1

    jitted = dsjit.jit(window)
    for start in range(3):
        x = torch.arange(start, start + 8.0).reshape(4, 2)[:, ::2]
        assert torch.equal(jitted(x), window(x))


@pytest.mark.parametrize(
    "part",
    [lambda x: x.diagonal(), lambda x: x[0], lambda x: (x + 1)[0], lambda x: (x * 2)[1:2, 0], lambda x: x[:, 0]],
    ids=["diagonal", "row", "row of a sum", "slice", "column"],
)
def test_as_strided_reaches_what_lies_around_a_view(part) -> None:
    """The elements beyond those of the view were taken to follow them without gaps."""

    def around(x):
        return part(x).as_strided((2, 2), (1, 1)).cosh()

    jitted = dsjit.jit(around)
    for seed in range(3):
        x = torch.randn(4, 2, generator=torch.Generator().manual_seed(seed))[:, ::2]
        assert torch.equal(jitted(x), around(x))


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_as_strided_gives_no_gradient_to_what_lies_between_its_elements() -> None:
    """Autograd leaves out elements that are read, but are none of the argument's; the compiled call did not."""

    def step(x):
        return (x + 0)[::2].as_strided((2, 2), (1, 1))

    jitted = dsjit.jit(step)
    for seed in range(3):
        mine, theirs = (
            torch.randn(9, generator=torch.Generator().manual_seed(seed)).requires_grad_() for _ in range(2)
        )
        jitted(mine).sum().backward()
        step(theirs).sum().backward()
        assert torch.equal(mine.grad, theirs.grad)


def test_a_view_without_elements_is_written_in_a_differentiated_call() -> None:
    """Its place in memory was looked for where it has none, and the function ran eagerly."""

    def step(x):
        part = (x + 1)[..., 1:]
        part.relu_()
        return part

    jitted = dsjit.jit(step, fullgraph=True)
    for _ in range(3):
        x = torch.randn(0, 5).requires_grad_()
        jitted(x).sum().backward()
        assert x.grad is not None and x.grad.shape == (0, 5)


@pytest.mark.parametrize("join", [torch.stack, torch.cat])
def test_parts_that_are_numbers_stand_where_they_belong(join):
    def function(x):
        filled = x.clone()
        filled.fill_(2)
        return join([filled * number for number in range(3)]), x + 1

    check(function, torch.randn(9, 2), exact=True)
    check(function, torch.zeros(2, 9, dtype=torch.int16).t(), exact=True)


@pytest.mark.parametrize("backend", ["llvm", "interpreter"])
def test_rows_are_picked_of_a_single_one_that_the_same_kernel_computes(backend) -> None:
    """The place is known whatever the index holds, so that the source was thought to need no memory; it was read."""
    rows = torch.tensor([0, -1])

    def picked(x):
        y = x * 2
        return y[True], y[None][rows], y.sum(0, keepdim=True)[rows] + y[0]

    jitted = dsjit.jit(picked, fullgraph=True, backend=backend)
    for first in range(3):
        x = torch.arange(first, first + 6.0).view(3, 2)
        jitted(x)
        assert_same(call_compiled(jitted, x), picked(x), exact=True)
    rows[0] = 1
    with pytest.raises(IndexError):
        jitted(x)


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.gt_(0),
        lambda x: x.logical_not_(),
        lambda x: x[1:].eq_(x[1:]),
        lambda x: x.cumsum_(0),
        lambda x: torch.ge(x, 0, out=x),
        lambda x: torch.cat([x.double() / 3, x], out=torch.empty(2 * len(x))),
    ],
)
@pytest.mark.parametrize("dtype", [torch.int8, torch.float32])
def test_what_an_op_writes_has_the_dtype_of_what_it_writes_to(monkeypatch, write, dtype) -> None:
    """The Graph held the result of the functional form, which has another dtype, as if it had the target's."""

    def step(x):
        x = x.clone()
        return write(x), x * 2

    monkeypatch.setenv("DSJIT_CHECK", "1")
    for size in (3, 0):
        check(step, torch.arange(size).to(dtype), exact=True)


@pytest.mark.parametrize(
    ("views", "argument"),
    [
        (lambda z: ((z * 1).real, (z * 1).imag), torch.complex(torch.rand(3), torch.rand(3))),
        (lambda z: (z.real, z.imag[1:], z * 2), torch.complex(torch.rand(3), torch.rand(3))),
        (lambda x: (x.view(torch.int32)[1:], x + 1), torch.rand(3)),
        (lambda x: (x.add_(1).view(torch.int16), x), torch.rand(3)),
        (lambda x: (lambda y: (y.view(torch.int32), y[1:]))(x + 1), torch.rand(3)),
        (lambda z: (lambda y: (y.real, y.imag) if y.real.sum() > 0 else (y.imag,))(z.exp()), torch.zeros(3) + 0.5j),
    ],
)
def test_a_view_as_another_dtype_shares_memory_as_eagers_does(views, argument) -> None:
    """It was a copy of its own, beside other results on its memory, and where it was a part of an argument."""
    report = dsjit.verify(views, argument)
    assert report.ok and report.compiled, report


@pytest.mark.parametrize(
    "views", [lambda z: (lambda y: (y.conj(), y))(z * 1), lambda z: z.conj()[1:], lambda z: (z.conj()[1:], z * 2)]
)
@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_a_conjugated_view_that_shares_memory_is_eagers(views) -> None:
    report = dsjit.verify(views, torch.complex(torch.rand(3), torch.rand(3)))
    assert report.ok and not report.compiled, report


@pytest.mark.parametrize(
    "write",
    [
        lambda x: x.addmm_(x.mT, x),
        lambda x: torch.mm(x.mT, x, out=x),
        lambda x: torch.addmm(x, x.mT, x, out=x),
    ],
)
def test_a_product_that_is_written_over_its_operands_is_eagers(write) -> None:
    """Eager reads rows that it has just written; the program read the old ones."""

    def step(x):
        write(x)
        return x + 1

    jitted = dsjit.jit(step)
    with pytest.warns(dsjit.DsjitWarning, match="a product is written to memory of its operands"):
        for _ in range(2):
            x = torch.arange(9.0).view(3, 3)
            assert torch.equal(jitted(x), step(torch.arange(9.0).view(3, 3)))
    assert jitted.counters.calls_compiled == 0


def test_what_lies_in_one_row_of_large_sizes_is_read_right_for_small_ones() -> None:
    """Programs for open sizes are fitted at sizes of 17 and more, where the first four elements are in one row."""

    def first(x):
        return (x * 1).flatten()[:4] + 1, x.view(-1)[1::2][:3] * 2 if x.is_contiguous() else x

    jitted = dsjit.jit(first)
    for shape in ((6, 4), (7, 5), (4, 7), (3, 7), (9, 2), (2, 3)):
        for x in (torch.arange(float(shape[0] * shape[1])).view(shape), torch.rand(shape[::-1]).t()):
            assert_same(jitted(x), first(x), exact=True)


def test_one_of_two_open_sizes_is_divided() -> None:
    """The sizes that such programs are fitted at could not be chosen: the call ran eagerly, for good."""

    def first_half(x):
        return x[:, : x.shape[1] // 2] * 2

    jitted = dsjit.jit(first_half, fullgraph=True)
    for rows, columns in ((4, 6), (5, 8)):
        jitted(torch.ones(rows, columns))
    for rows, columns in ((3, 10), (6, 6), (9, 12)):
        x = torch.rand(rows, columns)
        assert_same(call_compiled(jitted, x), first_half(x), exact=True)
