"""What is counted, by object and over all."""

from __future__ import annotations

from collections import Counter

from dsjit.api.stats import Counters, Registry


def test_objects_of_one_name_are_numbered() -> None:
    registry = Registry()
    for counters in [registry.register(name) for name in ("f", "f", "f#2", "f", "g")]:
        counters.traces += 1
    assert list(registry.snapshot().by_object) == ["f", "f#2", "f#2#2", "f#3", "g"]


def test_the_total_is_the_sum_and_what_counted_nothing_is_left_out() -> None:
    registry = Registry()
    first, second, _ = (registry.register(name) for name in "abc")
    first.calls_eager, first.eager_reasons = 2, Counter(clock=2)
    second.calls_eager, second.calls_compiled, second.eager_reasons = 1, 5, Counter(clock=1)
    told = registry.snapshot()
    assert told.total == Counters(calls_eager=3, calls_compiled=5, eager_reasons=Counter(clock=3))
    assert list(told.by_object) == ["a", "b"]
    assert first.eager_reasons == Counter(clock=2)


def test_a_snapshot_stays_what_it_was_and_a_reset_begins_anew() -> None:
    registry = Registry()
    counters = registry.register("f")
    counters.recompile_causes["size"] += 1
    told = registry.snapshot()
    counters.recompile_causes["size"] += 1
    assert told.total.recompile_causes == Counter(size=1)
    registry.reset()
    assert registry.snapshot().total == Counters()
