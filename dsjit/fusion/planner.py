"""Decides which nodes become one Kernel.

Nodes are visited from the last to the first. When a node is visited, every consumer has its place, so all that is
wanted of it is known: by which groups, at which indices, and whether something outside a group wants it in memory.
It then joins one of the groups that want it, or anchors a group of its own, or stays a library call.

Legality, score and reason are apart: `why_not` names what forbids a node to join a group (None when nothing does),
`_gain` orders the groups that it may join by the bytes it saves, and the reasons are kept for `dsjit.explain`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, Final, TypeAlias

import torch

from dsjit.fusion.affine import Affine, IndexMap, NotAffine, digits, linearize
from dsjit.fusion.costs import Costs
from dsjit.fusion.decisions import Decisions
from dsjit.fusion.dependences import Dependences
from dsjit.fusion.group import Access, Group, covers
from dsjit.fusion.limits import Limits
from dsjit.fusion.operands import LIBRARY, GatheredSource, NodeInfo, NodeKind, describe, operand_access
from dsjit.fusion.siblings import absorb_sibling, axis_map
from dsjit.fusion.views import Views, is_view
from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.template import Mismatch
from dsjit.ops.properties import may_raise
from dsjit.passes.fuel import Fuel, Rewrite, RewriteKind

__all__ = ["FusionPlan", "LibraryUnit", "Reason", "Unit", "plan_fusion"]

NO_FUEL: Final = "there is no optimisation fuel left"


@dataclass(frozen=True, slots=True)
class Reason:
    """Why `producer` was not fused into a unit that uses it."""

    producer: Node
    consumer: Node | None
    text: str

    def __str__(self) -> str:
        where = f" (used at {self.consumer.source})" if self.consumer is not None else ""
        return f"{self.producer.op} at {self.producer.source}{where}: {self.text}"


@dataclass(slots=True, eq=False)
class LibraryUnit:
    """A node that runs as a library call. `view` marks a re-indexing that has no affine form."""

    node: Node
    number: int
    high: int
    view: bool = False


Unit: TypeAlias = Group | LibraryUnit


@dataclass(frozen=True, slots=True)
class FusionPlan:
    """Units in an order in which they can run, and why producers stayed apart from their consumers.

    decisions: what was decided by sizes, attempt by attempt, the last of which became the plan.
    """

    units: tuple[Unit, ...]
    info: Mapping[Node, NodeInfo]
    views: Views
    reasons: tuple[Reason, ...]
    decisions: tuple[tuple[Any, ...], ...] = ()


def plan_fusion(
    graph: Graph, limits: Limits, device: torch.device, fuel: Fuel | None = None, like: FusionPlan | None = None
) -> FusionPlan:
    """Partition the nodes of `graph` into groups fused for `device`, and library calls.

    fuel: each op that goes into a kernel burns some, and so does each fusion.
    like: a plan of the same program at other sizes; this one is to have its form. Raises Mismatch when it cannot.
    """
    opaque: dict[Node, None] = {}
    taken: list[tuple[Any, ...]] = []
    while True:
        attempt = None if fuel is None else fuel.fork()
        if like is not None and len(taken) == len(like.decisions):
            raise Mismatch("other sizes want other views in memory")
        decisions = Decisions(None if like is None else like.decisions[len(taken)])
        views = Views(graph.producers(), dict(opaque))
        planner = _Planner(graph, limits, device, views, decisions, attempt)
        plan = planner.run()
        taken.append(tuple(decisions.taken))
        if len(planner.views.opaque) == len(opaque):
            if fuel is not None and attempt is not None:
                fuel.adopt(attempt)
            return replace(plan, decisions=tuple(taken))
        # A view turned out to need memory of its own after others had looked through it: plan again, knowing it.
        opaque = planner.views.opaque


@dataclass(slots=True)
class _Planner:
    graph: Graph
    limits: Limits
    device: torch.device
    views: Views
    decisions: Decisions
    fuel: Fuel | None = None
    costs: Costs = field(default_factory=Costs)
    info: dict[Node, NodeInfo] = field(default_factory=dict)
    units: list[Unit] = field(default_factory=list)
    reasons: list[Reason] = field(default_factory=list)
    wanted_by: dict[Value, dict[Unit, None]] = field(default_factory=dict)
    required: dict[Value, None] = field(default_factory=dict)
    dependences: Dependences[Unit] = field(default_factory=Dependences)
    last_effect: LibraryUnit | None = None

    def run(self) -> FusionPlan:
        for value in self.graph.results():
            self._require(value)
        for position in range(len(self.graph.nodes) - 1, -1, -1):
            self._place(self.graph.nodes[position], position)
        for value in list(self.wanted_by):
            self._unite_readers(value)
        self.units.reverse()
        return FusionPlan(tuple(self.dependences.in_order(self.units)), self.info, self.views, tuple(self.reasons))

    # -- what is wanted ------------------------------------------------------------------------------------------

    def _require(self, value: Value, by: LibraryUnit | None = None) -> None:
        """`value` must exist in memory: for a library call, or because the run returns it."""
        base = self.views.require(value)
        self.required[base] = None
        if by is not None:
            self.wanted_by.setdefault(base, {})[by] = None

    def _want(self, group: Group, node: Node, number: int) -> None:
        """Record what access `number` of `node`, a member of `group`, reads."""
        info = self.info[node]
        for operand in info.operands:
            while True:
                wanted = operand_access(group, node, operand, group.members[node][number])
                sizes = {**group.sizes, **operand.extents} if isinstance(operand, GatheredSource) else group.sizes
                try:
                    base, index = self.views.follow(operand.value, wanted.index, sizes)
                except NotAffine as obstacle:
                    assert obstacle.split is not None
                    group.split(obstacle.split)
                    continue
                break
            read = replace(wanted, index=index)
            group.want(base, read)
            self.wanted_by.setdefault(base, {})[group] = None
            if read.is_gathered:
                self.required[base] = None

    def _may(self, kind: RewriteKind, node: Node, *groups: Group) -> bool:
        """Whether there is fuel for one more rewrite: of `node`, into `groups`."""
        if self.fuel is None:
            return True
        anchors = [next(iter(group.members)) for group in groups]
        into = ", ".join(f"the kernel of {anchor.op} at {anchor.source}" for anchor in anchors)
        return self.fuel.burn(Rewrite(kind, str(node.op), node.source, f"into {into}" if into else ""))

    # -- placing one node ----------------------------------------------------------------------------------------

    def _place(self, node: Node, position: int) -> None:
        if is_view(node) and node not in self.views.opaque:
            return
        wanted = any(value in self.wanted_by or value in self.required for value in node.outputs)
        if not wanted and not node.effect and not may_raise(node):
            return
        info = LIBRARY if is_view(node) else describe(node, self.limits, self.device)
        if info.kind is NodeKind.LIBRARY or not self._may("kernel", node):
            self._place_library(node, position)
            return
        self.info[node] = info
        value = node.output
        self._unite_readers(value)
        consumers = list(self.wanted_by.get(value, ()))
        groups = [unit for unit in consumers if isinstance(unit, Group)]
        if value not in self.required and self._duplicate(node, groups):
            return
        for group in self._by_gain(node, groups):
            text = self.why_not(node, group, consumers)
            if text is None and not self._may("fusion", node, group):
                text = NO_FUEL
            if text is None:
                self._join(node, group)
                return
            self.reasons.append(Reason(node, _reader(group, value, self.views), text))
        self._anchor(node, position)

    def _unite_readers(self, value: Value) -> None:
        """Make one kernel of groups that read `value` over the same points and do not depend on each other."""
        groups = [unit for unit in self.wanted_by.get(value, ()) if isinstance(unit, Group)]
        for number, first in enumerate(groups):
            for second in groups[number + 1 :]:
                for group, sibling in ((first, second), (second, first)):
                    mapping = axis_map(group, sibling, value)
                    if mapping is None or not self._may_unite(group, sibling):
                        continue
                    if self._may("fusion", next(iter(sibling.members)), group):
                        self._unite(group, sibling, mapping)
                        self._unite_readers(value)
                        return

    def _may_unite(self, group: Group, sibling: Group) -> bool:
        if len(group.members) + len(sibling.members) > self.limits.members:
            return False
        if len(group.needs) + len(sibling.needs) > self.limits.buffers:
            return False
        return not self.dependences.reaches(group, sibling) and not self.dependences.reaches(sibling, group)

    def _unite(self, group: Group, sibling: Group, mapping: dict[int, int]) -> None:
        for value in sibling.needs:
            self.wanted_by[value].pop(sibling)
            self.wanted_by[value][group] = None
        absorb_sibling(group, sibling, mapping)
        self.units.remove(sibling)
        self.dependences.merge(group, sibling)

    def _place_library(self, node: Node, position: int) -> None:
        unit = LibraryUnit(node, len(self.units), position, view=is_view(node))
        self.units.append(unit)
        self._link(unit, node.outputs)
        if node.effect:
            if self.last_effect is not None:
                self.dependences.add(unit, self.last_effect)
            self.last_effect = unit
        for value in dict.fromkeys(node.inputs()):
            self._require(value, unit)

    def _link(self, unit: Unit, values: tuple[Value, ...]) -> None:
        for value in values:
            for consumer in self.wanted_by.get(value, ()):
                if consumer is not unit:
                    self.dependences.add(unit, consumer)

    def _duplicate(self, node: Node, groups: list[Group]) -> bool:
        """A value that costs nothing to rebuild is rebuilt by everyone who wants it, and never stored."""
        if len(groups) < 2 or not self._is_free(node):
            return False
        for group in groups:
            if len(group.members) >= self.limits.members:
                return False
        if not self._may("fusion", node, *groups):
            return False
        for group in groups:
            self._absorb(node, group)
        return True

    def _by_gain(self, node: Node, groups: list[Group]) -> list[Group]:
        """The one first that it saves most to fuse `node` into."""
        if len(groups) < 2:
            return groups
        by_gain = sorted(groups, key=lambda group: self._gain(node, group), reverse=True)
        order = self.decisions.take(("order", str(node.op)), lambda: [groups.index(group) for group in by_gain])
        return [groups[number] for number in order]

    def _gain(self, node: Node, group: Group) -> int:
        """Bytes that fusing `node` into `group` saves: the re-read, and the write when nobody else wants it."""
        value = node.output
        others = len(self.wanted_by[value]) > 1 or value in self.required
        return value.type.nbytes * (1 if others else 2) + (1 if group.row else 0)

    def why_not(self, node: Node, group: Group, consumers: list[Unit]) -> str | None:
        """What forbids `node` to join `group`; None when nothing does."""
        value = node.output
        accesses = group.needs[value]
        stored = value in self.required or len(consumers) > 1
        if any(access.is_gathered for access in accesses):
            return "which of its elements are read depends on data: it has to be in memory"
        if len(group.members) >= self.limits.members:
            return f"the kernel already has {self.limits.members} ops"
        if len(group.needs) >= self.limits.buffers:
            return f"the kernel already reads {self.limits.buffers} buffers"
        if stored and not any(self._storable(value, access, group) for access in accesses):
            return "its result is wanted in memory too, and this kernel does not visit each element once"
        for other in consumers:
            if other is not group and self.dependences.reaches(other, group):
                return "another consumer of its result must run before this kernel"
        if self.info[node].kind is NodeKind.REDUCTION:
            return self._why_not_reduce(node, group, accesses)
        if len(accesses) > self.limits.duplicates and not self._is_free(node):
            return f"it would be computed {len(accesses)} times for each element"
        return self.decisions.take(("recompute", str(node.op)), lambda: self._why_not_recompute(node, group, accesses))

    def _is_free(self, node: Node) -> bool:
        return self.decisions.take(("free", str(node.op)), lambda: self.costs.is_free(node, self.info[node]))

    def _storable(self, value: Value, access: Access, group: Group) -> bool:
        if not covers(access, value.type.shape, group.sizes):
            return False
        axes = access.axes()
        return axes == set(group.order) or (bool(group.row) and axes == set(group.outer()))

    def _why_not_recompute(self, node: Node, group: Group, accesses: list[Access]) -> str | None:
        own = max(node.output.type.numel, 1)
        for access in accesses:
            axes = access.axes()
            if group.row and not axes & group.row:
                continue  # evaluated once per row, outside the loops
            if not group.row and group.order and _innermost(group) not in axes:
                continue  # evaluated once per outer point
            points = group.extent(group.order)
            times = points // own
            often = times >= self.limits.repeats and points >= self.limits.repeated_elements
            if times > 1 and self.costs.of(node, self.info[node]) > (1 if often else self.limits.recompute):
                return f"broadcasting would compute it {times} times"
        return None

    def _why_not_reduce(self, node: Node, group: Group, accesses: list[Access]) -> str | None:
        if len(accesses) != 1 or accesses[0].guards:
            return "a reduction is wanted at more than one index"
        access = accesses[0]
        if not covers(access, node.output.type.shape, group.sizes):
            return "the reduction is wanted at an index that does not visit its results once"
        axes = access.axes()
        if group.row:
            if axes != set(group.outer()):
                return "the kernel's rows run over other axes"
            row = group.row_axes()
        else:
            row = [axis for axis in group.order if axis not in axes]
        extent = prod(self._reduced_shape(node))
        points = group.extent(axes)
        if self.decisions.take(
            ("rows", str(node.op)), lambda: points < self.limits.rows and extent > self.limits.row_elements
        ):
            return f"only {points} rows of {extent} elements: too few to share among threads"
        if not row:
            return None  # the kernel's points become the rows, and the reduction brings the loop over them
        if group.extent(row) != extent:
            return "the reduction runs over axes that the kernel does not have"
        if self._row_index(node, group, access, row) is None:
            return "the reduced dimensions do not line up with the kernel's rows"
        return None

    def _row_index(self, node: Node, group: Group, access: Access, row: list[int]) -> IndexMap | None:
        """The index of the reduced operand when `node` reduces over the axes `row`; None when they do not line up."""
        shape = self.info[node].operands[0].value.type.shape
        dims = self.info[node].dims
        try:
            parts = iter(self._row_digits(node, group, row))
        except NotAffine as obstacle:
            return None if obstacle.split is None else ()
        kept = iter(access.index)
        keepdim = len(access.index) == len(shape)
        index: list[Affine] = []
        for d in range(len(shape)):
            if d in dims:
                index.append(next(parts))
                if keepdim:
                    next(kept)
            else:
                index.append(next(kept))
        return tuple(index)

    def _row_digits(self, node: Node, group: Group, row: list[int]) -> IndexMap:
        """The index of each reduced dimension of `node` over the axes `row`; raises NotAffine."""
        shape = self._reduced_shape(node)
        linear = Affine()
        weight = 1
        for axis in reversed(row):
            linear = linear.plus(Affine.axis(axis).times(weight))
            weight *= group.sizes[axis]
        return digits(linear, shape, group.sizes) if shape else ()

    def _reduced_shape(self, node: Node) -> tuple[int, ...]:
        info = self.info[node]
        shape = info.operands[0].value.type.shape
        return tuple(shape[d] for d in info.dims)

    # -- joining -------------------------------------------------------------------------------------------------

    def _join(self, node: Node, group: Group) -> None:
        value = node.output
        accesses = group.needs[value]
        if value in self.required or len(self.wanted_by[value]) > 1:
            group.stored[value] = next(a for a in accesses if self._storable(value, a, group))
        if self.info[node].kind is NodeKind.REDUCTION:
            (access,) = accesses
            if not group.row:
                group.row = {axis for axis in group.order if axis not in access.axes()}
            if group.row:
                self._set_row_index(node, group)
            else:
                group.reduced[node] = self._anchor_rows(node, group, access)
        self._link(group, (value,))
        self._absorb(node, group)

    def _set_row_index(self, node: Node, group: Group) -> None:
        while True:
            (access,) = group.needs[node.output]
            row = group.row_axes()
            try:
                self._row_digits(node, group, row)
            except NotAffine as obstacle:
                assert obstacle.split is not None
                group.split(obstacle.split)
                continue
            index = self._row_index(node, group, access, row)
            assert index is not None
            group.reduced[node] = index
            return

    def _absorb(self, node: Node, group: Group) -> None:
        value = node.output
        group.members[node] = group.needs.pop(value)
        self.wanted_by[value].pop(group)
        for number in range(len(group.members[node])):
            self._want(group, node, number)

    def _anchor(self, node: Node, position: int) -> None:
        group = Group(len(self.units), high=position)
        self.units.append(group)
        value = node.output
        index = tuple(Affine.axis(group.new_axis(size)) if size != 1 else Affine() for size in value.type.shape)
        access = Access(index)
        if self.info[node].kind is NodeKind.REDUCTION:
            group.reduced[node] = self._anchor_rows(node, group, access)
        group.needs[value] = [access]
        group.stored[value] = access
        self._link(group, (value,))
        self.wanted_by.setdefault(value, {})[group] = None
        self._absorb(node, group)

    def _anchor_rows(self, node: Node, group: Group, access: Access) -> IndexMap:
        shape = self.info[node].operands[0].value.type.shape
        dims = self.info[node].dims
        keepdim = len(access.index) == len(shape)
        kept = iter(access.index)
        index: list[Affine] = []
        for d, size in enumerate(shape):
            if d not in dims:
                index.append(next(kept))
                continue
            if keepdim:
                next(kept)
            if size == 1:
                index.append(Affine())
            else:
                axis = group.new_axis(size)
                group.row.add(axis)
                index.append(Affine.axis(axis))
        return tuple(index)


def _innermost(group: Group) -> int:
    """The axis that lanes will most likely run along: where what the group writes lies side by side."""
    value, access = max(group.stored.items(), key=lambda stored: stored[0].type.nbytes)
    address = linearize(access.index, value.type.strides)
    return next((axis for axis in group.order if address.coefficient(axis) == 1), group.order[-1])


def _reader(group: Group, value: Value, views: Views) -> Node | None:
    """A member of `group` that uses `value`, directly or through views, for messages."""
    for node in group.members:
        if any(views.base(operand) is value for operand in node.inputs()):
            return node
    return None
