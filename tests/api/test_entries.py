"""One entry of a dictionary, one element of a set: the others may come, go and change without a new trace."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dsjit
from dsjit.api.entry import jitted_of


class State(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.masks: dict[Any, Tensor] = {}
        self.table: dict[Any, Any] = {"scale": 2.0, "tensor": torch.ones(1), "list": [1.0], "nested": {"n": 1.0}}
        self.seen: set[Any] = set()
        self.recent: deque[Any] = deque(maxlen=3)
        self.every: deque[Any] = deque()
        self.counter: Counter[str] = Counter()
        self.groups: defaultdict[str, list[Any]] = defaultdict(list)
        self.ordered: OrderedDict[str, Any] = OrderedDict(a=1.0)


Case = Callable[[State, Tensor, Any], Any]


def kept_by_key(self: State, x: Tensor, key: Any) -> Any:
    if key not in self.masks:
        self.masks[key] = x * 3
    return x + self.masks[key]


def kept_by_get(self: State, x: Tensor, key: Any) -> Any:
    mask = self.masks.get(key)
    if mask is None:
        mask = x * 3
        self.masks[key] = mask
    return x + mask


def asked_and_added(self: State, x: Tensor, key: Any) -> Any:
    if key in self.seen:
        return x + 1
    self.seen.add(key)
    return x * 2


def added(self: State, x: Tensor, key: Any) -> Any:
    self.seen.add(key)
    self.seen.add("all")
    return x * 2


def only_asked(self: State, x: Tensor, key: Any) -> Any:
    return x * 2 if key in self.seen else x + 1


def appended_with_a_limit(self: State, x: Tensor, key: Any) -> Any:
    self.recent.append(x.sum())
    self.recent.append(1)
    self.every.append(key)
    return x + 1


def appended_and_read(self: State, x: Tensor, key: Any) -> Any:
    self.recent.append(x * 2)
    return torch.stack(list(self.recent)).sum(0)


def counted(self: State, x: Tensor, key: Any) -> Any:
    self.counter["all"] += 1
    return x + 1


def read_from_a_table(self: State, x: Tensor, key: Any) -> Any:
    return x * self.table["scale"] + self.table["tensor"] + self.table["list"][0] + self.table["nested"]["n"]


def read_after_it_was_written(self: State, x: Tensor, key: Any) -> Any:
    self.table[key] = x * 2
    return self.table[key] + self.table["scale"]


def read_and_walked(self: State, x: Tensor, key: Any) -> Any:
    scale = self.table["scale"]
    return x * scale + len(self.table)


def read_from_a_defaultdict(self: State, x: Tensor, key: Any) -> Any:
    return x + len(self.groups[key])


def read_from_an_ordered_one(self: State, x: Tensor, key: Any) -> Any:
    return x + self.ordered.get(key, 5.0) + (key in self.ordered)


CASES: list[tuple[Case, int]] = [
    (kept_by_key, 6), (kept_by_get, 6), (asked_and_added, 6), (added, 3), (only_asked, 6), (appended_with_a_limit, 3),
    (appended_and_read, 6), (counted, 4), (read_from_a_table, 6), (read_after_it_was_written, 6), (read_and_walked, 8),
    (read_from_a_defaultdict, 8), (read_from_an_ordered_one, 8),
]  # fmt: skip
"""With the most traces that it may take."""

CHANGES: dict[int, Callable[[State], Any]] = {
    9: lambda state: state.table.update(other=1),
    10: lambda state: state.table.update(scale=4.0),
    11: lambda state: state.seen.discard("a"),
    12: lambda state: state.masks.pop("b", None),
    13: lambda state: state.table["list"].__setitem__(0, 7.0),
    14: lambda state: state.table["nested"].update(n=9.0),
    15: lambda state: state.recent.clear(),
    16: lambda state: setattr(state, "seen", {"c"}),
    17: lambda state: state.table.update(tensor=torch.ones(1) * 5),
}
"""What happens before a call, by its number."""


@pytest.mark.parametrize(("case", "most"), CASES, ids=[case.__name__ for case, _ in CASES])
def test_calls_are_as_in_eager(case: Case, most: int) -> None:
    plain, traced = State(), State()
    jitted = dsjit.jit(lambda x, key: case(traced, x, key))
    traces = 0
    for number, key in enumerate("abcabcabcabcabcabcab"):
        if number == 9:
            behind = jitted_of(jitted)
            assert behind is not None
            traces = behind.counters.traces
        for state in (plain, traced):
            CHANGES.get(number, lambda _: None)(state)
        x = torch.arange(3.0) + number
        assert torch.equal(jitted(x, key), case(plain, x, key))
        for name in ("masks", "table", "seen", "recent", "every", "counter", "groups", "ordered"):
            assert str(getattr(plain, name)) == str(getattr(traced, name))
    assert traces <= most


def test_equal_keys_of_other_types_are_one_entry() -> None:
    class Holder:
        def __init__(self) -> None:
            self.table: dict[Any, float] = {1: 2.0}
            self.marks: set[Any] = {1}

    holder = Holder()

    @dsjit.jit
    def f(x: Tensor, key: Any) -> Tensor:
        return x * holder.table.get(key, 5.0) + (key in holder.marks)

    for key in (1, True, 1.0, 2, 1, True):
        assert torch.equal(f(torch.ones(2), key), torch.ones(2) * holder.table.get(key, 5.0) + (key in holder.marks))
    holder.table[True], holder.marks = 7.0, {2.0}
    for key in (1, True, 1.0, 2):
        assert torch.equal(f(torch.ones(2), key), torch.ones(2) * holder.table.get(key, 5.0) + (key in holder.marks))
