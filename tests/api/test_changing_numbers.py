"""Numbers of Python's that change from call to call are inputs of one program, wherever they are kept."""

from __future__ import annotations

import json
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import dsjit
from tests.api.checks import counters_of

X = torch.ones(2)
GLOBAL = 0


class Slotted:
    __slots__ = ("n",)

    def __init__(self) -> None:
        self.n = 0


class Shared:
    n: ClassVar[int] = 0


def of_global() -> Callable[[torch.Tensor], torch.Tensor]:
    def f(x: torch.Tensor) -> torch.Tensor:
        global GLOBAL
        GLOBAL += 1
        return x * GLOBAL

    global GLOBAL
    GLOBAL = 0
    return f


def of_cell() -> Callable[[torch.Tensor], torch.Tensor]:
    n = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        nonlocal n
        n += 1
        return x * n

    return f


def of_class() -> Callable[[torch.Tensor], torch.Tensor]:
    Shared.n = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        Shared.n += 1
        return x * Shared.n

    return f


def of_attribute(owner: Any) -> Callable[[], Callable[[torch.Tensor], torch.Tensor]]:
    def make() -> Callable[[torch.Tensor], torch.Tensor]:
        owner.n = 0

        def f(x: torch.Tensor) -> torch.Tensor:
            owner.n = owner.n + 1
            return x * owner.n

        return f

    return make


def of_table(table: Any) -> Callable[[], Callable[[torch.Tensor], torch.Tensor]]:
    def make() -> Callable[[torch.Tensor], torch.Tensor]:
        table.clear()
        table["n"] = 0

        def f(x: torch.Tensor) -> torch.Tensor:
            table["n"] = table.get("n", 0) + 1
            return x * table["n"]

        return f

    return make


PLACES: dict[str, Callable[[], Callable[[torch.Tensor], torch.Tensor]]] = {
    "global": of_global,
    "cell": of_cell,
    "class": of_class,
    "slot": of_attribute(Slotted()),
    "module": of_attribute(nn.Module()),
    "namespace": of_attribute(SimpleNamespace()),
    "dict": of_table({}),
    "ordered": of_table(OrderedDict()),
    "counter": of_table(Counter()),
    "default": of_table(defaultdict(int)),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_counter_is_opened_where_it_is_kept(place: str) -> None:
    jitted = dsjit.jit(PLACES[place]())
    with torch.no_grad():
        assert [jitted(X)[0].item() for _ in range(6)] == [1, 2, 3, 4, 5, 6]
    assert counters_of(jitted).traces == 2
    assert counters_of(jitted).calls_eager == 0


@pytest.mark.parametrize("numbers", [(1, 2, 3, -5, 2**62), (0.5, 1.5, -0.0, 1e300, float("inf"))], ids=["int", "float"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64])
def test_arguments_are_opened_with_eagers_bits(numbers: tuple[float, ...], dtype: torch.dtype) -> None:
    def f(x: torch.Tensor, n: float, *, scale: float) -> torch.Tensor:
        return x * n + scale

    x = torch.arange(4).to(dtype)
    jitted = dsjit.jit(f)
    with torch.no_grad():
        for n in numbers:
            found, expected = jitted(x, n, scale=n), f(x, n, scale=n)
            assert found.dtype is expected.dtype
            assert torch.equal(found, expected) or bool((found.isnan() == expected.isnan()).all())


def test_each_truth_of_a_comparison_is_a_branch() -> None:
    def f(x: torch.Tensor, step: int) -> torch.Tensor:
        return x * 2 if step % 3 == 0 else x - step

    jitted = dsjit.jit(f)
    with torch.no_grad():
        for step in range(12):
            assert torch.equal(jitted(X, step), f(X, step))
    assert counters_of(jitted).traces == 3


@pytest.mark.parametrize(
    "seen",
    [
        lambda x, n: x.repeat(n),
        lambda x, n: x + len(range(n)),
        lambda x, n: x + {1: 5, 2: 6, 3: 7}[n],
        lambda x, n: x[n:],
    ],
    ids=["repeat", "range", "key", "slice"],
)
def test_a_number_that_is_seen_is_guarded_as_before(seen: Callable[..., torch.Tensor]) -> None:
    jitted = dsjit.jit(seen)
    with torch.no_grad():
        for n in (1, 2, 3, 1, 2, 3):
            assert torch.equal(jitted(X, n), seen(X, n))
    assert counters_of(jitted).traces == 3
    assert counters_of(jitted).calls_compiled == 3


def test_an_exception_leaves_the_number_where_it_was() -> None:
    owner = SimpleNamespace(n=1)

    def f(x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] == 3:
            raise ValueError(owner.n)
        return x * owner.n

    jitted = dsjit.jit(f)
    with torch.no_grad():
        jitted(X)
        owner.n = 1 << 40
        with pytest.raises(ValueError, match=str(1 << 40)):
            jitted(torch.ones(3))
        assert type(owner.n) is int
        assert owner.n == 1 << 40
        assert torch.equal(jitted(X), X * (1 << 40))


def test_other_types_and_large_ints_are_traced_anew() -> None:
    def f(x: torch.Tensor, n: float) -> torch.Tensor:
        return x * n

    jitted = dsjit.jit(f)
    with torch.no_grad():
        for n in (1, 2, 3, 2.5, True, 3, 2.5):
            assert torch.equal(jitted(X, n), f(X, n))
        with pytest.raises(OverflowError):
            f(X.long(), 1 << 70)
        with pytest.raises(OverflowError):
            jitted(X.long(), 1 << 70)


def test_gradients_keep_numbers_exact() -> None:
    weight = torch.ones(2, requires_grad=True)
    jitted = dsjit.jit(lambda x, n: (weight * x * n).sum())
    for n in (1.0, 2.0, 3.0):
        weight.grad = None
        jitted(X, n).backward()
        assert torch.equal(weight.grad, X * n)  # type: ignore[arg-type]


def test_what_is_returned_and_stored_is_the_number_of_the_call() -> None:
    owner = SimpleNamespace(last=None)

    def f(x: torch.Tensor, n: int) -> Any:
        owner.last = n
        return x, n, n + 1, {"n": n}

    jitted = dsjit.jit(f)
    with torch.no_grad():
        for n in (1000, 2000, 3000):
            assert jitted(X, n)[1:] == (n, n + 1, {"n": n})
            assert owner.last == n
    assert counters_of(jitted).traces == 2


def test_other_threads_never_find_a_traced_number() -> None:
    owner = SimpleNamespace(n=1 << 40)
    entered, left = threading.Event(), threading.Event()
    found: list[str] = []

    def look() -> None:
        entered.wait(10)
        found.append(json.dumps(owner.n))
        left.set()

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * owner.n
        entered.set()
        left.wait(10)
        return y

    jitted = dsjit.jit(f)
    left.set()
    with torch.no_grad():
        jitted(X)
        owner.n += 1
        entered.clear()
        left.clear()
        thread = threading.Thread(target=look)
        thread.start()
        assert torch.equal(jitted(X), X * owner.n)
        thread.join()
    assert found == [str((1 << 40) + 1)]
