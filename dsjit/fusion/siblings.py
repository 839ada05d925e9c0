"""Sibling fusion: two groups that read one Value over the same points become one kernel with more outputs."""

from __future__ import annotations

from dsjit.fusion.affine import Affine, IndexMap, substitute
from dsjit.fusion.group import Access, Group, Guard
from dsjit.ir.graph import Value

__all__ = ["absorb_sibling", "axis_map"]


def axis_map(group: Group, sibling: Group, value: Value) -> dict[int, int] | None:
    """Which axis of `group` each axis of `sibling` is, judged by how both read `value`; None when they do not match.

    They match when the points of the sibling are all points of the group, or its rows, and both reduce along the
    same axes (or the sibling does not reduce).
    """
    theirs, ours = sibling.needs.get(value), group.needs.get(value)
    if theirs is None or ours is None or len(theirs) != 1 or len(ours) != 1:
        return None
    if theirs[0].guards or ours[0].guards or theirs[0].is_gathered or ours[0].is_gathered:
        return None
    mapping: dict[int, int] = {}
    for their, our in zip(theirs[0].index, ours[0].index, strict=True):
        if their == our and not their.terms:
            continue
        axis, other = _single_axis(their), _single_axis(our)
        if axis is None or other is None or sibling.sizes[axis] != group.sizes[other] or axis in mapping:
            return None
        mapping[axis] = other
    if set(mapping) != set(sibling.order) or len(set(mapping.values())) != len(mapping):
        return None
    reached = set(mapping.values())
    rows = {mapping[axis] for axis in sibling.row}
    if rows and rows != group.row:
        return None
    if reached == set(group.order) or (not rows and group.row and reached == set(group.outer())):
        return mapping
    return None


def _single_axis(form: Affine) -> int | None:
    if form.offset or len(form.terms) != 1 or form.terms[0][1] != 1:
        return None
    return form.terms[0][0]


def absorb_sibling(group: Group, sibling: Group, mapping: dict[int, int]) -> None:
    """Make the members, needs and stored Values of `sibling` those of `group`, its axes renamed by `mapping`."""
    # By way of fresh names: the two groups number their axes alike.
    top = max([*group.order, *sibling.order], default=-1) + 1
    first = {axis: top + axis for axis in mapping}
    second = {top + axis: target for axis, target in mapping.items()}

    def form(f: Affine) -> Affine:
        for renaming in (first, second):
            for axis, target in renaming.items():
                f = substitute(f, axis, Affine.axis(target))
        return f

    def index(forms: IndexMap) -> IndexMap:
        return tuple(form(f) for f in forms)

    def access(a: Access) -> Access:
        return Access(index(a.index), tuple(Guard(form(g.form), g.low, g.high) for g in a.guards))

    for node, accesses in sibling.members.items():
        group.members[node] = [access(a) for a in accesses]
    for value, accesses in sibling.needs.items():
        for a in accesses:
            group.want(value, access(a))
    group.stored.update((value, access(a)) for value, a in sibling.stored.items())
    group.reduced.update((node, index(forms)) for node, forms in sibling.reduced.items())
    group.high = max(group.high, sibling.high)
