"""A fused group while it is being formed: its loop axes, its members, and the elements that it needs.

Groups grow from consumer to producer. The first member (the *anchor*) sets the axes; each further member is reached
at one or more *accesses*: the index, over the group's axes, at which its elements are wanted. A member that nobody
outside wants is never stored: that is what fusion saves.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod

from dsjit.fusion.affine import Affine, IndexMap, Split, linearize, substitute
from dsjit.ir.graph import Node, Value, contiguous_strides

__all__ = ["Access", "Group", "Guard", "covers"]


@dataclass(frozen=True, slots=True)
class Guard:
    """The access happens only where `low <= form < high` (an operand of a concatenation, a padded border)."""

    form: Affine
    low: int
    high: int


@dataclass(frozen=True, slots=True)
class Access:
    """One affine index per dimension of a Value, and the conditions under which it is read.

    An axis with a negative number is none of the group's: it stands for a place that data decide (`GatheredSource`).
    """

    index: IndexMap
    guards: tuple[Guard, ...] = ()

    @property
    def is_gathered(self) -> bool:
        """Whether data decide which element is read."""
        return any(axis < 0 for form in self.index for axis, _ in form.terms)

    def axes(self) -> set[int]:
        """The axes that the element depends on."""
        used = {axis for form in self.index for axis, _ in form.terms}
        used.update(axis for guard in self.guards for axis, _ in guard.form.terms)
        return used

    def substituted(self, axis: int, replacement: Affine) -> Access:
        return Access(
            tuple(substitute(form, axis, replacement) for form in self.index),
            tuple(Guard(substitute(g.form, axis, replacement), g.low, g.high) for g in self.guards),
        )


@dataclass(slots=True, eq=False)
class Group:
    """One future Kernel.

    sizes: extent of each axis. order: the axes, outermost first, as the anchor's dimensions have them.
    row: the axes that reductions run over; empty for a pure map.
    members: each fused Node with its accesses (a reduction has exactly one).
    needs: Values wanted and not (yet) members; what is left in the end is loaded.
    stored: Values of members that other units or the caller want, with the access at which they are stored.
    """

    number: int
    sizes: dict[int, int] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    row: set[int] = field(default_factory=set)
    members: dict[Node, list[Access]] = field(default_factory=dict)
    needs: dict[Value, list[Access]] = field(default_factory=dict)
    stored: dict[Value, Access] = field(default_factory=dict)
    reduced: dict[Node, IndexMap] = field(default_factory=dict)
    high: int = 0

    def new_axis(self, size: int) -> int:
        axis = max(self.order, default=-1) + 1
        self.sizes[axis] = size
        self.order.append(axis)
        return axis

    def outer(self) -> list[int]:
        return [axis for axis in self.order if axis not in self.row]

    def row_axes(self) -> list[int]:
        return [axis for axis in self.order if axis in self.row]

    def extent(self, axes: Iterable[int]) -> int:
        return prod(self.sizes[axis] for axis in axes)

    def want(self, value: Value, access: Access) -> None:
        accesses = self.needs.setdefault(value, [])
        if access not in accesses:
            accesses.append(access)

    def split(self, split: Split) -> None:
        """Replace an axis by two; the meaning of every access stays."""
        high, low = self._fresh_pair()
        size = self.sizes.pop(split.axis)
        self.sizes[high] = size // split.factor
        self.sizes[low] = split.factor
        position = self.order.index(split.axis)
        self.order[position : position + 1] = [high, low]
        if split.axis in self.row:
            self.row.remove(split.axis)
            self.row.update((high, low))
        replacement = Affine.axis(high).times(split.factor).plus(Affine.axis(low))

        def renew(accesses: list[Access]) -> list[Access]:
            return [access.substituted(split.axis, replacement) for access in accesses]

        self.members = {node: renew(accesses) for node, accesses in self.members.items()}
        self.needs = {value: renew(accesses) for value, accesses in self.needs.items()}
        self.stored = {value: access.substituted(split.axis, replacement) for value, access in self.stored.items()}
        self.reduced = {
            node: tuple(substitute(form, split.axis, replacement) for form in index)
            for node, index in self.reduced.items()
        }

    def _fresh_pair(self) -> tuple[int, int]:
        first = max(self.order) + 1
        return first, first + 1


def covers(access: Access, shape: tuple[int, ...], sizes: dict[int, int]) -> bool:
    """Whether the access visits every element of `shape` exactly once as its axes run over their sizes."""
    if access.guards:
        return False
    linear = linearize(access.index, contiguous_strides(shape))
    if linear.offset:
        return False
    expected = 1
    for axis, coefficient in sorted(linear.terms, key=lambda term: term[1]):
        if coefficient != expected:
            return False
        expected *= sizes[axis]
    return expected == prod(shape)
