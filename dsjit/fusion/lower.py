"""Lowers a fused group to a Kernel.

Statements are generated from the stores backwards. Each element wanted lives at one of three places: outside the
inner loops (it depends on outer axes only), in the loop of the block in which it is wanted, or behind a reduction,
which puts it one *level* later. Block number `level` holds everything that needs exactly that many reductions first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.fusion.affine import Affine, linearize
from dsjit.fusion.costs import Costs
from dsjit.fusion.group import Access, Group, Guard
from dsjit.fusion.operands import GatheredSource, IndexOperand, NodeInfo, NodeKind, operand_access
from dsjit.fusion.schedule import Footprint, Schedule, schedule_loops
from dsjit.fusion.views import Views
from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import Node, Source, Value
from dsjit.ir.kernel import (
    Apply,
    Block,
    Cast,
    Check,
    Constant,
    InRange,
    Kernel,
    Load,
    Param,
    Reduce,
    Stmt,
    Store,
)
from dsjit.ir.scalar import SCALAR_OPS
from dsjit.ops.evaluation import evaluate
from dsjit.ops.row import Pointwise, Reduction

__all__ = ["FusedKernel", "kernel_name", "lower_group"]

SPILL_COST: Final = 6
"""Scalar ops beyond which an element is kept in memory between blocks (a store and a load from L1) and not rebuilt."""


@dataclass(frozen=True, slots=True, eq=False)
class FusedKernel:
    """A Kernel and the Values that its params stand for, in order.

    nodes: what was fused, in program order. margins: of the places that it reads behind reshapes (`digit_margins`).
    """

    kernel: Kernel
    values: tuple[Value, ...]
    nodes: tuple[Node, ...]
    margins: tuple[int, ...] = ()

    @property
    def reads(self) -> tuple[Value, ...]:
        return tuple(v for v, p in zip(self.values, self.kernel.params, strict=True) if p.access == "read")

    @property
    def writes(self) -> tuple[Value, ...]:
        return tuple(v for v, p in zip(self.values, self.kernel.params, strict=True) if p.access != "read")


def lower_group(group: Group, info: Mapping[Node, NodeInfo], views: Views) -> FusedKernel:
    """The Kernel of a group whose `needs` are all in memory and whose `stored` Values get buffers of their own."""
    return _Lowering(group, info, views).run()


@dataclass(slots=True)
class _Lowering:
    group: Group
    info: Mapping[Node, NodeInfo]
    views: Views
    producers: dict[Value, Node] = field(init=False)
    schedule: Schedule = field(init=False)
    inner: frozenset[int] = field(init=False)
    scalar_bodies: dict[int, list[Stmt]] = field(default_factory=dict)
    loop_bodies: dict[int, list[Stmt]] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    memo: dict[Any, str] = field(default_factory=dict)
    levels: dict[tuple[Value, Access], int] = field(default_factory=dict)
    params: dict[Value, str] = field(default_factory=dict)
    reloaded: set[Value] = field(default_factory=set)
    finished: set[Value] = field(default_factory=set)
    spills: dict[Value, dict[tuple[Value, Access], tuple[int, int]]] = field(default_factory=dict)
    costs: Costs = field(default_factory=Costs)
    margins: list[int] = field(default_factory=list)
    counter: int = 0

    def __post_init__(self) -> None:
        self.producers = {node.output: node for node in self.group.members}
        self.schedule = self._schedule()
        self.inner = self.schedule.inner_axes()

    def run(self) -> FusedKernel:
        group = self.group
        for value, access in sorted(group.stored.items(), key=lambda item: self._level(*item)):
            level = self._level(value, access)
            looped = bool(access.axes() & self.inner)
            name = self._element(value, access, level, looped)
            address = linearize(access.index, value.type.strides)
            body = self._body(level, looped)
            body.append(Store(self._param(value), self.schedule.index(address), name))
            self.finished.add(value)
        nodes = tuple(sorted(group.members, key=lambda node: node.output.id))
        kernel = Kernel(
            name=kernel_name(nodes),
            params=tuple(
                Param(name, value.type.dtype, self._access_mode(value)) for value, name in self.params.items()
            ),
            outer=tuple(loop.axis for loop in self.schedule.outer),
            blocks=self._blocks(),
            vector_axis=self.schedule.vector_axis,
        )
        return FusedKernel(kernel, tuple(self.params), nodes, tuple(self.margins))

    def _access_mode(self, value: Value) -> Any:
        if value not in self.group.stored:
            return "read"
        return "readwrite" if value in self.reloaded else "write"

    def _blocks(self) -> tuple[Block, ...]:
        axes = tuple(loop.axis for loop in self.schedule.inner)
        blocks: list[Block] = []
        for level in range(max([*self.scalar_bodies, *self.loop_bodies], default=-1) + 1):
            if self.scalar_bodies.get(level):
                blocks.append(Block((), tuple(self.scalar_bodies[level])))
            if self.loop_bodies.get(level):
                blocks.append(Block(axes, tuple(self.loop_bodies[level])))
        return tuple(blocks)

    # -- schedule ------------------------------------------------------------------------------------------------

    def _schedule(self) -> Schedule:
        group = self.group
        footprints: list[Footprint] = []
        others: list[Affine] = []
        for value, accesses in group.needs.items():
            for access in accesses:
                others.extend(guard.form for guard in access.guards)
                if not access.is_gathered:
                    address = linearize(access.index, value.type.strides)
                    footprints.append(self._footprint(address, value.type.dtype.itemsize))
        for value, access in group.stored.items():
            address = linearize(access.index, value.type.strides)
            footprints.append(self._footprint(address, 2 * value.type.dtype.itemsize))
        for node, accesses in group.members.items():
            if self._is_positional(node):
                others.append(self._position(node))
            others.extend(guard.form for access in accesses for guard in access.guards)
            if self.info[node].kind is NodeKind.CONCAT:  # its parts may be numbers that nothing is loaded for
                parts = [operand.access(access) for access in accesses for operand in self.info[node].operands]
                others.extend(guard.form for part in parts for guard in part.guards)
            if self.info[node].kind is NodeKind.GATHER:
                for access in accesses:
                    base, source = self._operands(node, access)[0]
                    weight = base.type.dtype.itemsize * group.extent(access.axes())
                    footprints.append(Footprint(linearize(source.index, base.type.strides), weight))
        return schedule_loops(group.outer(), group.row_axes(), group.sizes, footprints, others)

    def _footprint(self, address: Affine, weight: int) -> Footprint:
        """An access, weighted by the number of distinct elements that it touches."""
        return Footprint(address, weight * self.group.extent(axis for axis, _ in address.terms))

    def _loops(self, node: Node) -> bool:
        """Whether `node` reduces over more than one element; over one it is its operand."""
        index = self.group.reduced.get(node)
        return index is not None and any(index[dim].terms for dim in self.info[node].dims)

    def _is_positional(self, node: Node) -> bool:
        rule = self.info[node].rule
        return isinstance(rule, Reduction) and rule.kind in ("argmax", "argmin")

    def _position(self, node: Node) -> Affine:
        """The linear position of an element among the reduced dimensions: what argmax returns."""
        info = self.info[node]
        shape = info.operands[0].value.type.shape
        index = self.group.reduced[node]
        weights: list[int] = []
        weight = 1
        for dim in reversed(info.dims):
            weights.insert(0, weight)
            weight *= shape[dim]
        return linearize([index[dim] for dim in info.dims], weights)

    # -- levels --------------------------------------------------------------------------------------------------

    def _level(self, value: Value, access: Access) -> int:
        """How many reductions must have finished before this element can be computed."""
        key = (value, access)
        known = self.levels.get(key)
        if known is not None:
            return known
        node = self.producers.get(value)
        level = 0
        if node is not None:
            inner_access = self._operands(node, access)
            level = max((self._level(v, a) for v, a in inner_access), default=0)
            if self._loops(node):
                level += 1
        self.levels[key] = level
        return level

    def _operands(self, node: Node, access: Access) -> list[tuple[Value, Access]]:
        """What `access` of `node` reads: members of the group or Values in memory, views looked through."""
        found: list[tuple[Value, Access]] = []
        for operand in self.info[node].operands:
            wanted = operand_access(self.group, node, operand, access)
            sizes = self.group.sizes
            if isinstance(operand, GatheredSource):
                sizes = {**sizes, **operand.extents}
            base, index = self.views.follow(operand.value, wanted.index, sizes, self.margins)
            found.append((base, Access(index, wanted.guards)))
        return found

    # -- elements ------------------------------------------------------------------------------------------------

    def _element(self, value: Value, access: Access, level: int, looped: bool) -> str:
        """The name of element `access` of `value`, in the dtype of `value`, emitting what computes it."""
        looped = looped and bool(access.axes() & self.inner)
        own_level = self._level(value, access)
        if not looped:
            level = own_level
        key = (value, access, level, looped)
        name = self.memo.get(key)
        if name is None:
            node = self.producers.get(value)
            if node is None:
                name = self._load(value, access, level, looped)
            elif looped and own_level < level and self.group.stored.get(value) == access:
                self.reloaded.add(value)
                name = self._load(value, access, level, looped)
            elif looped and own_level < level and (home := self._spill_home(value, access, own_level, level)):
                name = self._spill(home, value, access, own_level, level)
            else:
                name = self._compute(node, access, level, looped)
            self.memo[key] = name
        return name

    def _spill_home(self, value: Value, access: Access, own_level: int, level: int) -> Value | None:
        """An output whose memory can keep an expensive element from its own block until block `level`.

        The output's final elements must be stored later, in the same place of the iteration.
        """
        if self._rebuild_cost(value, access) <= SPILL_COST:
            return None
        for home, target in self.group.stored.items():
            if home in self.finished or home.type.dtype is not value.type.dtype or not target.axes() & self.inner:
                continue
            busy = self.spills.get(home, {})
            others = (interval for key, interval in busy.items() if key != (value, access))
            if all(own_level > use or level < own for own, use in others) and self._level(home, target) >= level:
                return home
        return None

    def _spill(self, home: Value, value: Value, access: Access, own_level: int, level: int) -> str:
        target = self.group.stored[home]
        address = self.schedule.index(linearize(target.index, home.type.strides))
        busy = self.spills.setdefault(home, {})
        known = busy.get((value, access))
        if known is None:
            kept = self._element(value, access, own_level, True)
            self._body(own_level, True).append(Store(self._param(home), address, kept))
        busy[value, access] = (own_level, max(level, known[1] if known else 0))
        self.reloaded.add(home)
        name = self._fresh("x", value.type.dtype)
        self._body(level, True).append(Load(name, self._param(home), address, value.type.dtype))
        return name

    def _rebuild_cost(self, value: Value, access: Access) -> int:
        """Scalar ops and loads that computing an element anew in a later block takes."""
        node = self.producers.get(value)
        if node is None or self.group.stored.get(value) == access:
            return 1
        if not access.axes() & self.inner or self.info[node].kind is NodeKind.REDUCTION:
            return 0
        operands = self._operands(node, access)
        if self.info[node].kind is NodeKind.GATHER and not any(a.axes() & self.inner for _, a in operands[1:]):
            return 1  # a row of the source, whose place is known outside of the loop
        return self.costs.of(node, self.info[node]) + sum(self._rebuild_cost(v, a) for v, a in operands)

    def _load(
        self, value: Value, access: Access, level: int, looped: bool, places: Mapping[int, str] | None = None
    ) -> str:
        """places: by the axis that stands for it, the result that holds the place."""
        mask = self._mask(access.guards, level, looped)
        form = linearize(access.index, value.type.strides)
        address = self.schedule.index(form)
        gathered = tuple([(places[axis], coefficient) for axis, coefficient in form.terms if places and axis < 0])
        key = ("load", value, address, gathered, mask, level if looped else -1, looped)
        if key in self.memo:
            return self.memo[key]
        name = self._fresh("x", value.type.dtype)
        self.memo[key] = name
        body = self._body(level, looped)
        body.append(Load(name, self._param(value), address, value.type.dtype, mask, gathered=gathered))
        return name

    def _mask(self, guards: tuple[Guard, ...], level: int, looped: bool) -> str | None:
        if not guards:
            return None
        looped = looped and any(axis in self.inner for guard in guards for axis, _ in guard.form.terms)
        level = level if looped else 0
        key = ("mask", guards, level, looped)
        if key not in self.memo:
            builder = _Statements(self, level, looped, None)
            names = []
            for guard in guards:
                name = self._fresh("m", torch.bool)
                self._body(level, looped).append(InRange(name, self.schedule.index(guard.form), guard.low, guard.high))
                names.append(name)
            combined = names[0]
            for name in names[1:]:
                combined = builder.op("and", combined, name)
            self.memo[key] = combined
        return self.memo[key]

    def _compute(self, node: Node, access: Access, level: int, looped: bool) -> str:
        info = self.info[node]
        if info.kind is NodeKind.REDUCTION:
            return self._reduce(node, info, access, level, looped)
        if info.kind is NodeKind.GATHER:
            return self._gather(node, info, access, level, looped)
        builder = _Statements(self, level, looped, node.source)
        found = self._operands(node, access)
        if info.kind is NodeKind.CONCAT:
            names = [self._element(value, wanted, level, looped) for value, wanted in found]
            return self._concat(info, access, names, builder, level, looped)
        wanted = {operand.value: where for operand, where in zip(info.operands, found, strict=True)}
        assert isinstance(info.rule, Pointwise)
        name: str = evaluate(info.rule, node, builder, lambda value: self._element(*wanted[value], level, looped))
        return name

    def _gather(self, node: Node, info: NodeInfo, access: Access, level: int, looped: bool) -> str:
        (base, picked), *found = self._operands(node, access)
        source, *indices = info.operands
        places: dict[int, str] = {}
        for operand, (value, wanted) in zip(indices, found, strict=True):
            assert isinstance(source, GatheredSource) and isinstance(operand, IndexOperand)
            axis = source.places[operand.dim]
            places[axis] = self._place(node, info.wraps, source.extents[axis], value, wanted, level, looped)
        if not picked.is_gathered:  # of one place to choose from: the source may be computed here
            return self._element(base, picked, level, looped)
        return self._load(base, picked, level, looped, places)

    def _place(
        self, node: Node, wraps: bool, extent: int, value: Value, access: Access, level: int, looped: bool
    ) -> str:
        """The result that holds the place which this element of an index means, as i64: one of `extent` places, the
        first of them where the element is out of range, of which a check makes an error. There is a first one: what has
        a size of 0 is in no kernel, and open sizes are 1 and more."""
        looped = looped and bool(access.axes() & self.inner)
        if not looped:
            level = self._level(value, access)
        builder = _Statements(self, level, looped, node.source)
        given = builder.cast(self._element(value, access, level, looped), torch.int64)
        zero, end = builder.constant(0, torch.int64), builder.constant(extent, torch.int64)
        number = given
        if wraps:
            number = builder.op("select", builder.op("lt", given, zero), builder.op("add", given, end), given)
        inside = builder.op("and", builder.op("ge", number, zero), builder.op("lt", number, end))
        allowed = inside
        mask = self._mask(access.guards, level, looped)
        if mask is not None:
            allowed = builder.op("or", inside, builder.op("not", mask))
        builder.check(allowed, (value, access, extent, wraps))
        return builder.op("select", inside, number, zero)

    def _concat(
        self, info: NodeInfo, access: Access, names: list[str], builder: _Statements, level: int, looped: bool
    ) -> str:
        result = names[-1]
        for operand, name in zip(reversed(info.operands[:-1]), reversed(names[:-1]), strict=True):
            mask = self._mask((operand.access(access).guards[-1],), level, looped)
            assert mask is not None
            dtype = self.dtypes[name]
            wide = compute_dtype(dtype)
            chosen = builder.op("select", mask, builder.cast(name, wide), builder.cast(result, wide))
            result = builder.cast(chosen, dtype)
        return result

    def _reduce(self, node: Node, info: NodeInfo, access: Access, level: int, looped: bool) -> str:
        rule = info.rule
        assert isinstance(rule, Reduction)
        out = node.output.type.dtype
        ((value, wanted),) = self._operands(node, access)
        compute = rule.compute(value.type.dtype, out)
        positional = self._is_positional(node)
        after = _Statements(self, level, looped, node.source)
        if not self._loops(node):
            if positional:
                return after.constant(0, torch.int64)
            return after.cast(after.cast(self._element(value, wanted, level, looped), compute), out)
        inside = level - 1
        builder = _Statements(self, inside, True, node.source)
        element = builder.cast(self._element(value, wanted, inside, True), compute)
        result_dtype = torch.int64 if positional else compute
        result = self._fresh("r", result_dtype)
        position = self.schedule.index(self._position(node)) if positional else None
        self._body(inside, True).append(Reduce(result, rule.kind, element, result_dtype, position, node.source))
        return after.cast(result, out)

    # -- bodies, names -------------------------------------------------------------------------------------------

    def _body(self, level: int, looped: bool) -> list[Stmt]:
        return (self.loop_bodies if looped else self.scalar_bodies).setdefault(level, [])

    def _fresh(self, prefix: str, dtype: torch.dtype) -> str:
        name = f"{prefix}{self.counter}"
        self.counter += 1
        self.dtypes[name] = dtype
        return name

    def _param(self, value: Value) -> str:
        return self.params.setdefault(value, f"t{value.id}")


@dataclass(slots=True)
class _Statements:
    """The ScalarBuilder that appends statements to one body of the Kernel; equal statements are emitted once."""

    lowering: _Lowering
    level: int
    looped: bool
    source: Source | None

    def _once(self, key: Any, prefix: str, dtype: torch.dtype, make: Any) -> str:
        low = self.lowering
        full = (key, self.level, self.looped)
        name = low.memo.get(full)
        if name is None:
            name = low._fresh(prefix, dtype)
            low.memo[full] = name
            low._body(self.level, self.looped).append(make(name))
        return name

    def op(self, name: str, *args: str) -> str:
        dtype = torch.bool if SCALAR_OPS[name].result == "bool" else self.lowering.dtypes[args[-1]]
        return self._once(("op", name, args), "v", dtype, lambda r: Apply(r, name, args, dtype, self.source))

    def const(self, value: float | int | bool, like: str) -> str:
        return self.constant(value, self.lowering.dtypes[like])

    def constant(self, value: float | int | bool, dtype: torch.dtype) -> str:
        key = ("constant", type(value), repr(value), dtype)
        return self._once(key, "c", dtype, lambda r: Constant(r, value, dtype))

    def cast(self, a: str, dtype: torch.dtype) -> str:
        if self.lowering.dtypes[a] is dtype:
            return a
        return self._once(("cast", a, dtype), "v", dtype, lambda r: Cast(r, a, dtype))

    def dtype_of(self, a: str) -> torch.dtype:
        return self.lowering.dtypes[a]

    def check(self, condition: str, key: Any) -> None:
        """key: equal for checks of the same at every point, one of which is enough for all blocks."""
        low = self.lowering
        if ("check", key) not in low.memo:
            low.memo["check", key] = condition
            low._body(self.level, self.looped).append(Check(condition, self.source))


def kernel_name(nodes: tuple[Node, ...]) -> str:
    """A readable name from the ops, in program order, repeats dropped."""
    names: list[str] = []
    for node in nodes:
        name = getattr(node.op, "_opname", node.op.__name__).strip("_")
        if name not in names:
            names.append(name)
    shown = names if len(names) <= 6 else [*names[:3], "etc", *names[-2:]]
    return "fused_" + "_".join(shown)
