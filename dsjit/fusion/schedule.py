"""Loop order: which axes merge, which is innermost, and along which the vector lanes run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dsjit.fusion.affine import Affine
from dsjit.ir.kernel import Axis, Index

__all__ = ["Footprint", "LoopAxis", "Schedule", "schedule_loops"]


@dataclass(frozen=True, slots=True)
class Footprint:
    """The address of one load or store, in elements, and its weight: the bytes it touches (stores count double)."""

    address: Affine
    weight: int


@dataclass(frozen=True, slots=True)
class LoopAxis:
    """One loop of the Kernel: the group axes that it runs over, slowest first, as one mixed-radix counter."""

    axis: Axis
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Schedule:
    """outer: parallel loops. inner: loops of each block. vector_axis: name of the axis that lanes run along."""

    outer: tuple[LoopAxis, ...]
    inner: tuple[LoopAxis, ...]
    vector_axis: str | None

    def index(self, form: Affine) -> Index:
        """An affine form over group axes as one over loop axes."""
        if not form.terms:
            return Index(form.offset)
        coefficients = dict(form.terms)
        terms = []
        for loop in self.outer + self.inner:
            coefficient = coefficients.get(loop.parts[-1], 0)
            if coefficient:
                terms.append((loop.axis.name, coefficient))
        return Index(form.offset, tuple(terms))

    def inner_axes(self) -> frozenset[int]:
        """The group axes that the blocks loop over."""
        return frozenset(part for loop in self.inner for part in loop.parts)


def schedule_loops(
    outer: Sequence[int],
    row: Sequence[int],
    sizes: dict[int, int],
    footprints: Sequence[Footprint],
    others: Iterable[Affine],
) -> Schedule:
    """Merge, order and name the loops.

    outer, row: the group's axes by role, slowest first. footprints: what decides on locality.
    others: further affine forms (masks, positions) that must stay affine when axes merge.
    """
    forms = [footprint.address for footprint in footprints] + list(others)
    outer_runs = _merge([(axis,) for axis in outer if sizes[axis] != 1], sizes, forms)
    row_runs = _merge([(axis,) for axis in row if sizes[axis] != 1], sizes, forms)
    if row_runs:
        row_runs = _innermost_last(row_runs, sizes, footprints)
        outer_runs = _by_stride(outer_runs, footprints)
        vector = row_runs[-1]
        best = max(outer_runs, key=lambda run: _unit_weight(run, footprints), default=None)
        if best is not None and _unit_weight(best, footprints) > _unit_weight(vector, footprints):
            outer_runs = [run for run in outer_runs if run is not best] + [best]
            vector = best
        inner_runs = row_runs
    elif outer_runs:
        outer_runs = _innermost_last(_by_stride(outer_runs, footprints), sizes, footprints)
        vector = outer_runs[-1]
        outer_runs, inner_runs = outer_runs[:-1], [vector]
    else:
        return Schedule((), (), None)
    loops: dict[tuple[int, ...], LoopAxis] = {}
    for prefix, runs in (("i", outer_runs), ("j", inner_runs)):
        for number, run in enumerate(runs):
            loops[run] = LoopAxis(Axis(f"{prefix}{number}", _extent(run, sizes)), run)
    return Schedule(
        tuple(loops[run] for run in outer_runs), tuple(loops[run] for run in inner_runs), loops[vector].axis.name
    )


def _extent(run: tuple[int, ...], sizes: dict[int, int]) -> int:
    extent = 1
    for axis in run:
        extent *= sizes[axis]
    return extent


def _merge(runs: list[tuple[int, ...]], sizes: dict[int, int], forms: Sequence[Affine]) -> list[tuple[int, ...]]:
    """Join runs (slow, fast) wherever every form steps through both as through one longer axis."""
    runs = list(runs)
    changed = True
    while changed:
        changed = False
        for slow in runs:
            for fast in runs:
                if slow is not fast and _joins(slow, fast, sizes, forms):
                    position = runs.index(slow)
                    runs[position] = slow + fast
                    runs.remove(fast)
                    changed = True
                    break
            if changed:
                break
    return runs


def _joins(slow: tuple[int, ...], fast: tuple[int, ...], sizes: dict[int, int], forms: Sequence[Affine]) -> bool:
    extent = _extent(fast, sizes)
    return all(form.coefficient(slow[-1]) == form.coefficient(fast[-1]) * extent for form in forms)


def _unit_weight(run: tuple[int, ...], footprints: Sequence[Footprint]) -> int:
    return sum(f.weight for f in footprints if f.address.coefficient(run[-1]) == 1)


def _innermost_last(
    runs: list[tuple[int, ...]], sizes: dict[int, int], footprints: Sequence[Footprint]
) -> list[tuple[int, ...]]:
    """Move the run with the most unit-stride traffic to the end; the last one wins a tie."""
    best = max(range(len(runs)), key=lambda i: (_unit_weight(runs[i], footprints), i))
    return runs[:best] + runs[best + 1 :] + [runs[best]]


def _by_stride(runs: list[tuple[int, ...]], footprints: Sequence[Footprint]) -> list[tuple[int, ...]]:
    """Order runs by the stride of the heaviest access, largest first, so that neighbours in time are near in memory."""
    if not footprints:
        return runs
    heaviest = max(footprints, key=lambda f: f.weight)
    return sorted(runs, key=lambda run: -abs(heaviest.address.coefficient(run[-1])))
