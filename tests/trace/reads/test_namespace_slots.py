"""What a traced call does to a `types.SimpleNamespace` is seen, whichever way it does it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import dsjit
from dsjit.trace.reads.namespace_slots import NamespaceSlots, namespace_slots


@pytest.fixture
def told() -> Any:
    seen: list[tuple[Any, ...]] = []
    slots = namespace_slots(lambda *read: seen.append(read), lambda *write: seen.append(write))
    assert isinstance(slots, NamespaceSlots)
    slots.take()
    yield seen
    slots.give_back()


def test_accesses_are_told_before_they_happen(told: list[tuple[Any, ...]]) -> None:
    namespace = SimpleNamespace(a=1)
    told.clear()
    namespace.b = 2
    assert namespace.a == 1
    del namespace.b
    with pytest.raises(AttributeError, match=r"'types\.SimpleNamespace' object has no attribute 'b'"):
        _ = namespace.b
    assert [(name, str(value)) for _, name, value in told] == [
        ("b", "2"), ("a", "None"), ("b", "absent"), ("b", "None"),
    ]  # fmt: skip


def test_reads_of_the_whole_are_told(told: list[tuple[Any, ...]]) -> None:
    one, two = SimpleNamespace(a=1), SimpleNamespace(a=1)
    told.clear()
    assert f"{one}" == "namespace(a=1)"
    assert one == two
    assert vars(one) == {"a": 1}
    names = [name for _, name, _ in told if name not in ("__format__", "__str__")]
    assert names == [None, None, "__dict__"]
    assert told[-2][2] is two


def test_the_class_is_what_it_was_afterwards() -> None:
    before = SimpleNamespace(a=1)
    seen: list[Any] = []
    slots = namespace_slots(lambda *read: seen.append(read), lambda *write: seen.append(write))
    assert slots is not None
    slots.take()
    slots.give_back()
    before.a += 1
    assert repr(before) == "namespace(a=2)" and seen == []


WAYS: list[Callable[[Any], Any]] = [
    lambda n: n.scale,
    lambda n: getattr(n, "sca" + "le"),
    lambda n: vars(n)["scale"],
    lambda n: n.__dict__["scale"],
    lambda n: float(repr(n).split("=")[1][:3]),
    lambda n: float(f"{n}".split("=")[1][:3]),
    lambda n: 2.0 if n == SimpleNamespace(scale=2.0, other=0) else 5.0,
    lambda n: copy.copy(n).scale,
    lambda n: sum(float(getattr(n, name)) for name in sorted(n.__dict__) if name == "scale"),
]


@pytest.mark.parametrize("read", WAYS)
def test_a_changed_attribute_is_never_stale(read: Callable[[Any], Any]) -> None:
    config = SimpleNamespace(scale=2.0, other=0)
    jitted, x = dsjit.jit(lambda x: x * read(config)), torch.ones(3)
    with torch.no_grad():
        for scale in (2.0, 2.0, 3.0, 3.0, 2.0):
            config.scale = scale
            assert torch.equal(jitted(x), x * read(config))


def test_only_what_was_read_is_guarded_and_counters_are_added_to() -> None:
    state = SimpleNamespace(calls=0, scale=2.0, unused=0, log=[])

    @dsjit.jit
    def f(x: torch.Tensor) -> torch.Tensor:
        state.calls += 1
        state.log.append("call")
        state.last = x.sum()
        return x * state.scale

    x = torch.ones(3)
    dsjit.reset_stats()
    with torch.no_grad():
        for _ in range(5):
            state.unused += 1
            assert torch.equal(f(x), x * 2)
    assert (state.calls, len(state.log), state.last.item()) == (5, 5, 3.0)
    assert dsjit.stats().total.traces == 1
