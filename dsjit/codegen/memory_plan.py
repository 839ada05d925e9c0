"""Where intermediate buffers live: one arena per run, its bytes reused by liveness."""

from __future__ import annotations

import heapq
from bisect import insort
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

__all__ = ["ALIGNMENT", "Lifetime", "MemoryPlan", "check_plan", "last_uses", "plan_memory"]

ALIGNMENT = 64
"""Bytes: one cache line, and the widest vector register."""

MUCH = 2**20
"""Bytes of an arena that are worth a second plan."""

LARGE = 2**16
"""Bytes of a buffer that is placed by its size."""

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Lifetime(Generic[Key]):
    """A buffer of `nbytes` that is written first at step `start` and read last at step `end` (inclusive).

    shares: another buffer, of the same size, whose memory this one takes over in place; its last read is at `start`.
    """

    key: Key
    nbytes: int
    start: int
    end: int
    shares: Key | None = None


@dataclass(frozen=True, slots=True)
class MemoryPlan(Generic[Key]):
    """Byte offset of each buffer in the arena, the arena's size, and the sum of all buffers' sizes."""

    offsets: dict[Key, int]
    nbytes: int
    total: int


def plan_memory(lifetimes: Sequence[Lifetime[Key]]) -> MemoryPlan[Key]:
    """Assign offsets so that buffers alive at the same step do not overlap.

    Buffers are placed in order of first use. Where that wastes much, the large ones are placed in order of size
    instead, the small ones behind them (Pisarchyk and Lee, Efficient Memory Management for Deep Neural Net Inference,
    2020: "greedy by size"), and the smaller arena is taken. Linear in the number of buffers but for the length of the
    list of gaps, or quadratic in that of the large ones.
    """
    last = last_uses(lifetimes)
    found = _in_order_of_use(lifetimes, last)
    if found.nbytes - _most_alive(lifetimes, last) < MUCH:
        return found
    other = _in_order_of_size(lifetimes, last)
    return other if other.nbytes < found.nbytes else found


def _size(life: Lifetime[Key]) -> int:
    return -(-max(life.nbytes, 1) // ALIGNMENT) * ALIGNMENT


def _most_alive(lifetimes: Sequence[Lifetime[Key]], last: dict[Key, int]) -> int:
    """No arena is smaller."""
    changes: dict[int, int] = {}
    for life in lifetimes:
        if life.shares is None:
            changes[life.start] = changes.get(life.start, 0) + _size(life)
            changes[last[life.key] + 1] = changes.get(last[life.key] + 1, 0) - _size(life)
    return max(accumulate([changes[step] for step in sorted(changes)]), default=0)


def _in_order_of_size(lifetimes: Sequence[Lifetime[Key]], last: dict[Key, int]) -> MemoryPlan[Key]:
    """Each large buffer goes as low as those that are alive with it leave room."""
    owners = {life.key for life in lifetimes if life.shares is None and life.nbytes >= LARGE}
    placed: list[tuple[int, int, int, int]] = []
    offsets: dict[Key, int] = {}
    top = 0
    large = [life for life in lifetimes if life.key in owners]
    for life in sorted(large, key=lambda life: (-life.nbytes, life.start)):
        end, size, offset = last[life.key], _size(life), 0
        for low, high, first, final in placed:
            if first <= end and life.start <= final:
                if low - offset >= size:
                    break
                offset = max(offset, high)
        offsets[life.key] = offset
        insort(placed, (offset, offset + size, life.start, end))
        top = max(top, offset + size)
    rest: list[Lifetime[Key]] = []
    for life in sorted(lifetimes, key=lambda life: life.start):
        if life.shares in owners:
            owners.add(life.key)
            offsets[life.key] = offsets[life.shares]
        elif life.key not in owners:
            rest.append(life)
    small = _in_order_of_use(rest, last)
    offsets.update((key, top + offset) for key, offset in small.offsets.items())
    return MemoryPlan(offsets, top + small.nbytes, sum(life.nbytes for life in lifetimes))


def _in_order_of_use(lifetimes: Sequence[Lifetime[Key]], last: dict[Key, int]) -> MemoryPlan[Key]:
    """Each buffer goes into the smallest free gap that holds it (best fit); gaps that touch are joined."""
    offsets: dict[Key, int] = {}
    sizes: dict[Key, int] = {}
    gaps: list[tuple[int, int]] = []
    active: list[tuple[int, int, Key]] = []
    top = 0
    total = 0
    for life in sorted(lifetimes, key=lambda life: life.start):
        total += life.nbytes
        if life.shares is not None:
            offsets[life.key] = offsets[life.shares]
            continue
        while active and active[0][0] < life.start:
            _, _, key = heapq.heappop(active)
            gaps = _release(gaps, offsets[key], sizes[key])
        size = _size(life)
        best = min((gap for gap in gaps if gap[1] >= size), key=lambda gap: gap[1], default=None)
        if best is not None:
            gaps.remove(best)
            offset = best[0]
            if best[1] > size:
                gaps.append((offset + size, best[1] - size))
        else:
            trailing = next((gap for gap in gaps if gap[0] + gap[1] == top), None)
            if trailing is not None:
                gaps.remove(trailing)
                offset = trailing[0]
            else:
                offset = top
            top = offset + size
        offsets[life.key] = offset
        sizes[life.key] = size
        heapq.heappush(active, (last[life.key], len(offsets), life.key))
    return MemoryPlan(offsets, top, total)


def last_uses(lifetimes: Sequence[Lifetime[Key]]) -> dict[Key, int]:
    """The last step at which each owner's memory is in use, by itself or by a buffer that took it over."""
    owner: dict[Key, Key] = {}
    last: dict[Key, int] = {}
    for life in sorted(lifetimes, key=lambda life: life.start):
        owner[life.key] = owner[life.shares] if life.shares is not None else life.key
        root = owner[life.key]
        last[root] = max(last.get(root, -1), life.end)
    return last


def _release(gaps: list[tuple[int, int]], offset: int, size: int) -> list[tuple[int, int]]:
    rest: list[tuple[int, int]] = []
    for start, length in gaps:
        if start + length == offset:
            offset, size = start, size + length
        elif offset + size == start:
            size += length
        else:
            rest.append((start, length))
    rest.append((offset, size))
    return rest


def check_plan(lifetimes: Sequence[Lifetime[Key]], plan: MemoryPlan[Key]) -> list[tuple[Key, Key]]:
    """Pairs of buffers that are alive at one step and overlap, though neither took the other's memory over."""
    owner: dict[Key, Key] = {}
    for life in sorted(lifetimes, key=lambda life: life.start):
        owner[life.key] = owner[life.shares] if life.shares is not None else life.key
    clashes: list[tuple[Key, Key]] = []
    for number, a in enumerate(lifetimes):
        for b in lifetimes[number + 1 :]:
            together = a.start <= b.end and b.start <= a.end
            low_a, low_b = plan.offsets[a.key], plan.offsets[b.key]
            overlap = low_a < low_b + b.nbytes and low_b < low_a + a.nbytes
            if together and overlap and owner[a.key] != owner[b.key]:
                clashes.append((a.key, b.key))
    return clashes
