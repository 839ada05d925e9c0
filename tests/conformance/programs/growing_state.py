"""Containers and objects that each call adds to, reads from and trims: tables, histories, windows, meters."""

from __future__ import annotations

import bisect
import heapq
import logging
import sys
import warnings
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=3)
def counts_are_got_with_a_default(play: Play) -> None:
    counts: dict[str, int] = {}

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        counts[name] = counts.get(name, 0) + 1
        return x + 1

    jitted = play.jit(f)
    for name in ("a", "a", "a", "b", "b", "a", "b"):
        play(jitted, whole(2), name)


@program(traces=2)
def names_are_put_into_a_set(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def forward(self, x: torch.Tensor, name: str) -> torch.Tensor:
            self.seen.add(name)
            return x + 1

    jitted = play.jit(Net())
    for name in ("a", "a", "b", "b", "a", "b"):
        play(jitted, whole(2), name)


@program(traces=4)
def a_set_is_asked_and_then_filled(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.seen: set[str] = set()

        def forward(self, x: torch.Tensor, name: str) -> torch.Tensor:
            if name not in self.seen:
                self.seen.add(name)
                return x * 10
            return x + 1

    jitted = play.jit(Net())
    for name in ("a", "a", "b", "a", "b", "b"):
        play(jitted, whole(2), name)


@program(traces=2)
def a_deque_takes_the_last_losses(play: Play) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.recent: deque[float] = deque(maxlen=3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loss = x.sum()
            self.recent.append(loss.item())
            return loss

    jitted = play.jit(Net())
    for start in range(6):
        play(jitted, whole(2, start=start))


@program(traces=5)
def a_window_of_tensors_is_averaged(play: Play) -> None:
    window: deque[torch.Tensor] = deque(maxlen=2)

    def f(x: torch.Tensor) -> torch.Tensor:
        window.append(x * 2)
        return torch.stack(list(window)).sum(0)

    jitted = play.jit(f)
    for start in range(7):
        play(jitted, whole(2, start=start))


@program(traces=4)
def groups_are_appended_to(play: Play) -> None:
    groups: defaultdict[str, list[torch.Tensor]] = defaultdict(list)
    tables: dict[str, list[int]] = {}

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        groups[name].append(x.sum())
        tables.setdefault(name, []).append(x.shape[0])
        return x + 1

    jitted = play.jit(f)
    for name in ("a", "a", "b", "a", "b", "a", "b"):
        play(jitted, whole(2), name)


@program(traces=3)
def a_counter_is_updated(play: Play) -> None:
    words: Counter[str] = Counter()

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        words[name] += 1
        words.update([name, "all"])
        return x + 1

    jitted = play.jit(f)
    for name in ("a", "a", "b", "a", "b", "b"):
        play(jitted, whole(2), name)


@program(traces=None, compiled=False)
def a_cache_forgets_what_was_used_least(play: Play) -> None:
    cache: OrderedDict[int, torch.Tensor] = OrderedDict()

    def f(x: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        if n in cache:
            cache.move_to_end(n)
        else:
            cache[n] = torch.arange(n) * 2
            if len(cache) > 2:
                cache.popitem(last=False)
        return x + cache[n]

    jitted = play.jit(f)
    for width in (2, 3, 2, 4, 3, 3, 2):
        play(jitted, whole(width))


@program(traces=2)
def a_table_is_updated_with_keywords(play: Play) -> None:
    report: dict[str, Any] = {"runs": 0}

    def f(x: torch.Tensor) -> torch.Tensor:
        report.update(loss=x.sum(), first=x[0].item())
        report["runs"] += 1
        return x + 1

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(2, start=start))


@program(traces=3)
def nested_tables_count(play: Play) -> None:
    stats = {"train": {"n": 0, "loss": 0.0}, "test": {"n": 0, "loss": 0.0}}

    def f(x: torch.Tensor, split: str) -> torch.Tensor:
        stats[split]["n"] += x.shape[0]
        stats[split]["loss"] += x.sum().item()
        return x + 1

    jitted = play.jit(f)
    for split in ("train", "train", "test", "train", "test", "test"):
        play(jitted, whole(2), split)


@program(traces=3)
def the_last_of_several_histories_grows(play: Play) -> None:
    histories: list[list[Any]] = [[]]

    def f(x: torch.Tensor) -> torch.Tensor:
        histories[-1].append(x.sum())
        return x + 1

    jitted = play.jit(f)
    for start in range(3):
        play(jitted, whole(2, start=start))
    histories.append([])
    for start in range(3):
        play(jitted, whole(2, start=start))


@program(traces=None)
def a_ring_is_written_round_and_round(play: Play) -> None:
    class Ring(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("rows", torch.zeros(3, 2))
            self.next = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.rows[self.next] = x
            self.next = (self.next + 1) % self.rows.shape[0]
            return self.rows.sum(0)

    f = play.jit(Ring())
    for start in range(8):
        play(f, whole(2, start=start))


@program(traces=2)
def a_meter_averages_losses(play: Play) -> None:
    @dataclass
    class Meter:
        total: float = 0.0
        count: int = 0
        average: float = 0.0
        values: list[float] = field(default_factory=list)

        def update(self, value: float, n: int = 1) -> None:
            self.values.append(value)
            self.total += value * n
            self.count += n
            self.average = self.total / self.count

    meter = Meter()

    def f(x: torch.Tensor) -> torch.Tensor:
        loss = (x * x).sum()
        meter.update(loss.item(), x.shape[0])
        return loss

    jitted = play.jit(f)
    play.watch(meter=meter)
    for start in range(6):
        play(jitted, whole(2, start=start))


@program(traces=2)
def text_is_formatted_in_every_way(play: Play) -> None:
    log = logging.getLogger("conformance.growing_state")

    def f(x: torch.Tensor, epoch: int) -> torch.Tensor:
        loss = x.sum().item()
        print("epoch %d: loss %.3f" % (epoch, loss))  # noqa: UP031
        print("epoch {}: loss {:.2e} ({name})".format(epoch, loss, name="train"))
        print("loss " + str(loss) + ", last " + repr(x[-1].item()))
        sys.stdout.write("%5.1f\n" % loss)  # noqa: UP031
        log.info("loss %.1f in %s", loss, f"epoch {epoch}")
        return x + 1

    jitted = play.jit(f)
    for epoch in range(5):
        play(jitted, whole(2, start=epoch), epoch)


@program(traces=2)
def a_warning_tells_a_number(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        largest = x.max().item()
        warnings.warn(f"largest is {largest:.1f}", stacklevel=1)
        return x / 2

    jitted = play.jit(f)
    for start in range(4):
        play(jitted, whole(2, start=start))


@program(traces=None)
def scores_are_kept_in_a_heap_and_in_order(play: Play) -> None:
    heap: list[tuple[float, int]] = []
    order: list[float] = []

    def f(x: torch.Tensor, number: int) -> torch.Tensor:
        score = x.sum().item()
        heapq.heappush(heap, (score, number))
        if len(heap) > 3:
            heapq.heappop(heap)
        bisect.insort(order, score)
        return x + 1

    jitted = play.jit(f)
    for number, start in enumerate((3, 1, 2, 5, 0)):
        play(jitted, whole(2, start=start), number)


@program(traces=2)
def a_history_is_made_anew_each_time(play: Play) -> None:
    state = SimpleNamespace(losses=[], rows=())

    def f(x: torch.Tensor) -> torch.Tensor:
        state.losses = [*state.losses[-2:], x.sum().item()]
        return x + len(state.losses)

    jitted = play.jit(f)
    for start in range(7):
        play(jitted, whole(2, start=start))


@program(traces=None)
def tensors_grow_in_a_dictionary(play: Play) -> None:
    cache: dict[str, torch.Tensor] = {}

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        cache[name] = torch.cat([cache[name], x]) if name in cache else x
        return cache[name] * 2

    jitted = play.jit(f)
    for start in range(5):
        for name in ("k", "v"):
            play(jitted, whole(2, start=start), name)


@program(traces=None)
def a_list_grows_while_values_are_small(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        steps = []
        while x.sum() < 40:
            x = x * 2
            steps.append(x)
        return torch.stack(steps).sum(0)

    jitted = play.jit(f)
    for start in (1, 2, 3, 1, 4, 2):
        play(jitted, whole(2, start=start))


@program(traces=3)
def a_class_counts_and_the_count_is_read(play: Play) -> None:
    class Net(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Net.calls += 1
            return x * Net.calls

    net = play.jit(Net())
    play.watch(net=Net)
    for _ in range(6):
        play(net, whole(3))
