"""What can be jitted, and that it stays what it was."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.errors import BackendError, CaptureError, DsjitError, OptionError, UnsupportedCallableError
from tests.api.checks import assert_same, call_compiled, check, counters_of

X = torch.linspace(-2, 2, 12).reshape(3, 4)


def double(x: torch.Tensor) -> torch.Tensor:
    """Twice the sigmoid."""
    return x.sigmoid() * 2


class Scaler:
    def __init__(self, factor: float) -> None:
        self.factor = factor

    @dsjit.jit
    def scale(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor

    @dsjit.jit(fullgraph=True)
    def shift(self, x: torch.Tensor, *, by: float = 1.0) -> torch.Tensor:
        return x + by * self.factor

    @staticmethod
    @dsjit.jit
    def square(x: torch.Tensor) -> torch.Tensor:
        return x * x

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x - self.factor


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)).relu()


def test_bare_with_options_and_as_a_call_are_the_same() -> None:
    parameterised = dsjit.jit(fullgraph=True)(double)
    forms = (dsjit.jit(double), dsjit.jit()(double), parameterised, dsjit.jit(double, dynamic=False))
    for jitted in forms:
        jitted(X)
        assert_same(call_compiled(jitted, X), double(X))


def test_a_jitted_function_keeps_its_name_documentation_and_signature() -> None:
    jitted = dsjit.jit(double)
    assert (jitted.__name__, jitted.__doc__) == ("double", "Twice the sigmoid.")
    assert inspect.signature(jitted) == inspect.signature(double)
    assert jitted.__wrapped__ is double


CALLABLES: dict[str, Any] = {
    "lambda": lambda x: x.exp() + 1,
    "callable object": Scaler(3.0),
    "partial": functools.partial(torch.add, torch.ones(4), alpha=2),
    "bound method": Net().eval().forward,
    "builtin": torch.tanh,
    "operator": torch.ops.aten.gelu.default,
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_every_kind_of_callable_is_compiled(kind: str) -> None:
    jitted = dsjit.jit(CALLABLES[kind])
    with torch.no_grad():
        jitted(X)
        assert_same(call_compiled(jitted, X), CALLABLES[kind](X))


def test_methods_are_bound_to_their_instance_and_read_its_attributes_anew() -> None:
    small, large = Scaler(2.0), Scaler(5.0)
    for _ in range(2):
        for scaler in (small, large):
            assert torch.equal(scaler.scale(X), X * scaler.factor)
    counters = counters_of(small.scale)
    assert counters.calls_compiled == 2
    small.factor = 7.0
    assert torch.equal(small.scale(X), X * 7)
    assert torch.equal(small.shift(X, by=0.5), X + 3.5)
    assert torch.equal(Scaler.square(X), X * X)


def test_a_module_is_compiled_in_place() -> None:
    net = Net().eval()
    expected = net(X)
    keys = list(net.state_dict())
    assert dsjit.jit(net) is net
    assert type(net) is Net
    assert list(net.state_dict()) == keys
    with torch.no_grad():
        net(X)
        assert_same(call_compiled(net, X), expected.detach())


def test_hooks_of_a_jitted_module_run_and_can_be_added_and_removed() -> None:
    net = dsjit.jit(Net().eval())
    with torch.no_grad():
        plain = net(X)
        handle = net.register_forward_hook(lambda module, args, output: output + 1)
        for _ in range(2):
            assert_same(net(X), plain + 1)
        inner = net.linear.register_forward_pre_hook(lambda module, args: (args[0] * 0,))
        changed = net(X)
        inner.remove()
        assert not torch.equal(changed, plain + 1)
        handle.remove()
        assert_same(net(X), plain)
        assert_same(call_compiled(net, X), plain)


def test_a_jitted_module_is_pickled_and_deep_copied_as_the_original() -> None:
    net = dsjit.jit(Net().eval())
    with torch.no_grad():
        expected = net(X)
        for twin in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
            assert type(twin) is Net
            assert twin.state_dict().keys() == net.state_dict().keys()
            assert_same(twin(X), expected)


def test_a_copy_of_a_jitted_module_uses_its_own_parameters() -> None:
    net = dsjit.jit(Net().eval())
    with torch.no_grad():
        net(X)
        twin = copy.deepcopy(net)
        twin.norm.bias.add_(1)
        assert not torch.equal(twin(X), net(X))
        assert_same(net(X), Net.forward(net, X))


def test_disable_gives_the_original_back() -> None:
    assert dsjit.disable(dsjit.jit(double)) is double
    net = dsjit.jit(Net())
    assert dsjit.disable(net) is net
    assert jitted_of(net) is None


def test_the_option_disable_runs_eagerly_and_traces_nothing() -> None:
    jitted = dsjit.jit(double, disable=True)
    assert_same(jitted(X), double(X))
    counters = counters_of(jitted)
    assert (counters.traces, counters.calls_eager) == (0, 1)
    assert list(counters.eager_reasons) == ["compilation is disabled"]


def test_a_jitted_function_inside_another_belongs_to_the_outer_graph() -> None:
    inner = dsjit.jit(double)

    @dsjit.jit
    def outer(x: torch.Tensor) -> torch.Tensor:
        return inner(x) + 1

    outer(X)
    assert_same(call_compiled(outer, X), double(X) + 1)
    assert counters_of(inner).traces == 0
    assert len(jitted_of(outer).compilations[0].plan.units) == 1


def test_jitting_twice_compiles_once() -> None:
    assert dsjit.jit(dsjit.jit(double)).__wrapped__ is double


async def coroutine(x: torch.Tensor) -> torch.Tensor:
    return x


def generator(x: torch.Tensor) -> Iterator[torch.Tensor]:
    yield x


@pytest.mark.parametrize("thing", [3, "f", None.__class__, Net, int, coroutine, generator, torch.ones(1)])
def test_what_cannot_be_called_or_is_no_single_call_is_refused(thing: object) -> None:
    with pytest.raises(UnsupportedCallableError):
        dsjit.jit(thing)  # type: ignore[call-overload]


def test_unknown_options_are_refused_with_the_nearest_name() -> None:
    with pytest.raises(OptionError, match="no option 'full_graph'; did you mean 'fullgraph'"):
        dsjit.jit(full_graph=True)
    with pytest.raises(OptionError, match=r"recompile_limit=0 .* use None or an int of 1 or more"):
        dsjit.jit(recompile_limit=0)


def test_fullgraph_names_the_line_that_cannot_be_captured() -> None:
    def leaves(x: torch.Tensor) -> Any:
        return (x + 1).numpy()

    jitted = dsjit.jit(leaves, fullgraph=True)
    line = leaves.__code__.co_firstlineno + 1
    for _ in range(2):
        with pytest.raises(CaptureError, match=f"{Path(__file__).name}:{line}"):
            jitted(X)
    assert issubclass(CaptureError, DsjitError) and issubclass(BackendError, DsjitError)


def test_without_fullgraph_the_call_runs_eagerly_with_one_warning() -> None:
    jitted = dsjit.jit(lambda x: (x + 1).numpy())
    with pytest.warns(dsjit.DsjitWarning, match="numpy") as caught:
        for _ in range(3):
            assert (jitted(X) == (X + 1).numpy()).all()
    assert len(caught) == 1
    assert counters_of(jitted).calls_eager == 3


def test_every_program_beyond_the_limit_runs_eagerly_and_the_warning_names_what_changed() -> None:
    jitted = dsjit.jit(lambda x, n: x.repeat(n, 1) * 2, recompile_limit=2)
    with pytest.warns(dsjit.DsjitWarning, match="limit of 2 programs") as caught:
        for number in (2, 3, 4, 5):
            assert torch.equal(jitted(X, number), X.repeat(number, 1) * 2)
    assert len(caught) == 1
    assert "args[1]" in str(caught[0].message)
    counters = counters_of(jitted)
    assert (counters.compiles, counters.calls_eager) == (2, 2)
    assert torch.equal(call_compiled(jitted, X, 3), X.repeat(3, 1) * 2)


def test_threads_may_call_one_object_at_once() -> None:
    jitted = dsjit.jit(lambda x, w: (x @ w).softmax(-1) @ w)
    w = torch.randn(16, 16)
    inputs = [torch.randn(8 + number % 2, 16) for number in range(4)]
    failures: list[str] = []

    def work(x: torch.Tensor) -> None:
        expected = (x @ w).softmax(-1) @ w
        for _ in range(50):
            if not torch.allclose(jitted(x, w), expected, atol=1e-5):
                failures.append("wrong result")

    threads = [threading.Thread(target=work, args=(x,)) for x in inputs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert counters_of(jitted).calls_compiled >= 190


@pytest.mark.parametrize("backend", ["llvm", "interpreter", "eager"])
def test_each_backend_gives_the_same_answer(backend: str) -> None:
    jitted = dsjit.jit(double, backend=backend)
    jitted(X)
    assert_same(call_compiled(jitted, X), double(X))


def test_an_empty_function_and_a_function_without_tensors_work() -> None:
    check(lambda: None)
    check(lambda a, b: a + b, 2, 3)
    check(lambda: torch.ones(3) + 1)


def test_equal_layers_that_are_jitted_one_by_one_compile_once() -> None:
    layers = [nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval() for _ in range(12)]
    eager = [copy.deepcopy(layer) for layer in layers]
    jitted = [dsjit.jit(layer) for layer in layers]
    x = torch.randn(2, 5, 16)
    dsjit.reset_stats()
    with torch.no_grad():
        for _ in range(2):
            found = expected = x
            for mine, theirs in zip(jitted, eager, strict=True):
                found, expected = mine(found), theirs(expected)
            assert_same(found, expected)
    totals = dsjit.stats().total
    assert (totals.compiles, totals.calls_traced, totals.calls_compiled) == (1, 12, 12)
