"""What a call with gradients returns: views, shared memory, leaves, and results that are differentiated one by one."""

from __future__ import annotations

import pytest
import torch

import dsjit

pytestmark = pytest.mark.filterwarnings("error::dsjit.DsjitWarning")
"""A backward that runs op by op says so."""


def run(function, differentiate, count=3):
    """What `differentiate` says of the results of `function`, eagerly and compiled, several times."""
    jitted = dsjit.jit(function)
    for seed in range(count):
        found = []
        for each in (function, jitted):
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(3, 4, generator=generator, requires_grad=True)
            w = torch.randn(4, 4, generator=generator, requires_grad=True)
            found.append(outcome(differentiate, each(x, w), x, w))
        (said, *gradients), (expected, *expected_gradients) = found
        assert type(said) is type(expected)
        if isinstance(expected, str):
            assert said == expected
        else:
            torch.testing.assert_close(said, expected)
        torch.testing.assert_close(gradients, expected_gradients)
    assert jitted.counters.calls_compiled == count - 1
    assert not jitted.verdicts


def outcome(differentiate, results, x, w):
    try:
        said = differentiate(results, x, w)
    except RuntimeError as error:
        return str(error)[:20], x.grad, w.grad
    return said, x.grad, w.grad


def backward_of_all(results, x, w):
    sum(part.square().sum() for part in results if part.requires_grad).backward()
    return [part.requires_grad for part in results], [part.stride() for part in results]


def shares_memory(results, x, w):
    with torch.no_grad():
        results[0].fill_(7)
    return [part.detach().clone() for part in results]


def view_of_an_argument(x, w):
    return x.t(), x @ w


def only_a_view_of_an_argument(x, w):
    return (x[1:],)


def two_views(x, w):
    hidden = x @ w
    return hidden.t(), hidden[:, :2]


def chunks(x, w):
    return (x @ w).chunk(2, dim=1)


def with_its_view(x, w):
    hidden = torch.tanh(x @ w)
    return hidden, hidden.view(-1)


def with_its_content(x, w):
    hidden = x @ w
    return hidden, hidden.detach()


def expanded(x, w):
    return ((x @ w).sum(1, keepdim=True).expand(3, 4), x.exp())


def written_through_a_view(x, w):
    hidden = x @ w
    hidden[:, 0] = 0
    return hidden, hidden[1]


def same_twice(x, w):
    hidden = x @ w
    return hidden, hidden


SHARING = [view_of_an_argument, two_views, chunks, with_its_view, expanded, written_through_a_view, same_twice]


@pytest.mark.parametrize("function", [*SHARING, with_its_content, only_a_view_of_an_argument])
def test_gradients_flow_through_views(function):
    run(function, backward_of_all)


@pytest.mark.parametrize("function", [two_views, chunks, with_its_view, with_its_content, written_through_a_view])
def test_memory_is_shared_as_in_eager(function):
    run(function, shares_memory)


def test_a_view_of_an_argument_is_its_memory():
    jitted = dsjit.jit(only_a_view_of_an_argument)
    for _ in range(2):
        x = torch.zeros(3, 4, requires_grad=True)
        (view,) = jitted(x, x)
        assert view._base is x
        assert view.data_ptr() == x[1:].data_ptr()


def one_after_the_other(results, x, w):
    for part in results:
        part.sum().backward()


def second_first(results, x, w):
    results[1].sum().backward()
    results[0].sum().backward()


def nothing_shared(x, w):
    return x.exp(), w.sin()


def sums_shared(x, w):
    total = x + 1
    return total.sum() * 1, total.mean() + w.sum()


def one_trunk(x, w):
    hidden = torch.tanh(x @ w)
    return hidden.sum(), hidden.square().sum()


def two_of_three(x, w):
    hidden = torch.tanh(x)
    return hidden.sum(), hidden.exp().sum(), w.sin()


@pytest.mark.parametrize("differentiate", [one_after_the_other, second_first, backward_of_all])
@pytest.mark.parametrize("function", [nothing_shared, sums_shared, one_trunk, two_of_three])
def test_a_backward_uses_up_what_eagers_does(function, differentiate):
    run(function, differentiate)


def test_a_state_that_goes_on_is_differentiated_as_in_eager():
    """The state shares nothing with the loss that is kept, so the next call's backward goes back through it."""

    def step(state, x, w):
        return state + x.sin(), (x * w).sum()

    jitted = dsjit.jit(step)
    grads = []
    for each in (step, jitted):
        state, w = torch.zeros(3), torch.ones(3, requires_grad=True)
        xs = [torch.full((3,), float(number), requires_grad=True) for number in range(4)]
        for x in xs:
            state, loss = each(state, x, w)
            (loss + 0 * loss).backward()
        state.sum().backward()
        grads.append([w.grad, *[x.grad for x in xs]])
    torch.testing.assert_close(*grads)


def made_leaf(x, w):
    noise = torch.full((3, 4), 0.5, requires_grad=True)
    return noise, ((x + noise) @ w).square().sum()


def leaf_from_an_argument(x, w):
    other = (x * 2).detach().requires_grad_()
    return other, (other @ w).sum()


def differentiates_the_leaf(results, x, w):
    leaf, loss = results
    assert leaf.is_leaf
    loss.backward()
    return leaf.grad


@pytest.mark.parametrize("function", [made_leaf, leaf_from_an_argument])
def test_a_tensor_that_requires_a_gradient_may_be_made(function):
    run(function, differentiates_the_leaf)


def test_what_the_call_makes_may_be_all_that_requires_gradients():
    jitted = dsjit.jit(lambda x: (torch.ones(3, requires_grad=True) * x, torch.ones(2, requires_grad=True)))
    for _ in range(3):
        product, leaf = jitted(torch.ones(3))
        assert product.requires_grad
        assert leaf.is_leaf
        product.sum().backward()


def test_a_leaf_that_nobody_gets_is_forgotten():
    def function(x, w):
        return ((x + torch.ones(3, 4, requires_grad=True)) @ w,)

    run(function, backward_of_all)
