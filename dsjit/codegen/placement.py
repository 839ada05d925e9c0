"""Decides where every Value of a Graph lives while its Program runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from dsjit.codegen.memory_plan import Lifetime
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import LibraryUnit
from dsjit.fusion.views import Views
from dsjit.ir.graph import Graph, Node, Value
from dsjit.ir.kernel import Kernel, Load, Store, has_checks
from dsjit.ops.library import writes_over_first

__all__ = ["Home", "Overwrites", "Place", "Placement", "Step", "can_overwrite", "holders", "last_reads", "place_values"]


class Home(Enum):
    """Who owns the memory of a Value."""

    INPUT = "the caller"
    CONSTANT = "the program"
    ARENA = "the arena, shared by liveness"
    OUTPUT = "a tensor made for each call, which the caller gets"
    LIBRARY = "a tensor that a library call returned, or one made for a large buffer"
    NOWHERE = "no memory: the address is 0"
    TABLE = "the table of addresses: a slot with the address of the next one, and that one, a flag"


@dataclass(frozen=True, slots=True)
class Place:
    """`number` counts inputs, constants, outputs and the buffers in the arena; for a library result it names the Value
    (by id) whose tensor holds it."""

    home: Home
    number: int


@dataclass(frozen=True, slots=True)
class Step:
    """One unit of work: a fused kernel, or a library call that writes into planned buffers when `planned` is set."""

    work: FusedKernel | LibraryUnit
    planned: bool = False

    @property
    def nodes(self) -> tuple[Node, ...]:
        """What the step computes."""
        return self.work.nodes if isinstance(self.work, FusedKernel) else (self.work.node,)

    @property
    def reads(self) -> tuple[Value, ...]:
        """The Values (or views of them) that the step reads."""
        return self.work.reads if isinstance(self.work, FusedKernel) else tuple(self.work.node.inputs())

    @property
    def writes(self) -> tuple[Value, ...]:
        return self.work.writes if isinstance(self.work, FusedKernel) else self.work.node.outputs


@dataclass(slots=True)
class Placement:
    """places: of every Value that is no transparent view. buffers: in the arena, by their numbers.

    last_use: for library results, the step after which nobody wants them. over: results of library calls that are
    written over the first operand, in its memory. all_made: the step before which all tensors have to be made, as
    nothing may fail from then on; None when there is none.
    """

    places: dict[Value, Place] = field(default_factory=dict)
    buffers: tuple[Lifetime[int], ...] = ()
    last_use: dict[Value, int] = field(default_factory=dict)
    outputs: list[Value] = field(default_factory=list)
    over: set[Value] = field(default_factory=set)
    all_made: int | None = None


def place_values(
    graph: Graph,
    steps: Sequence[Step],
    views: Views,
    aliases: Mapping[Value, Value],
    native: Container[Node] = frozenset(),
    *,
    overwrites: Overwrites | None = None,
    apart: int | None = None,
) -> Placement:
    """Assign a Place to every Value in memory.

    aliases: results of library calls that are views of another Value's memory. native: nodes whose library steps run
    without Python, and so do not raise. overwrites: what kernels may write over; on a CPU by default. apart: buffers of
    so many bytes are tensors of their own (`Home.LIBRARY`), not parts of the arena.
    """
    over = Overwrites() if overwrites is None else overwrites
    placement = Placement()
    places = placement.places

    def owner(value: Value) -> Value:
        return holders(value, views, aliases)[-1]

    for number, value in enumerate(graph.inputs):
        places[value] = Place(Home.INPUT, number)
    for number, value in enumerate(graph.constants):
        places[value] = Place(Home.CONSTANT, number)
    last = last_reads(graph, steps, views, aliases)
    returned = {owner(value) for value in graph.outputs}
    first = _last_failure(graph, steps, native, owner, over)
    in_place = _written_in_place(graph, steps, last, returned, first, owner, over)
    if over.memory_ends:
        written = [number for number, step in enumerate(steps) if not in_place.keys().isdisjoint(step.writes)]
        placement.all_made = min(written, default=None)
    lifetimes: list[Lifetime[Value]] = []
    end = len(steps)
    for number, step in enumerate(steps):
        if isinstance(step.work, LibraryUnit) and not step.planned:
            for value in step.writes:
                places[value] = Place(Home.LIBRARY, value.id)
                placement.last_use[value] = end if owner(value) in returned else last.get(value, number)
            continue
        taken: set[Value] = set()

        def take(source: Value, value: Value, work: object = step.work, taken: set[Value] = taken) -> None:
            taken.add(source)
            if isinstance(work, LibraryUnit):
                placement.over.add(value)

        for value in step.writes:
            if value in in_place:
                places[value] = places[in_place[value]]
                continue
            source = None
            if over.operands:
                given = graph.donated if apart is None else frozenset[Value]()
                source = _reusable(step.work, value, number, last, places, taken, returned, given, owner)
            if source is not None and places[source].home is Home.INPUT:
                take(source, value)
                places[value] = places[source]
                continue
            if value in returned:
                owned = apart is not None and source is not None and source not in aliases
                if owned and source is not None and places[source].home is Home.LIBRARY:
                    take(source, value)
                    places[value] = places[source]
                    continue
                places[value] = Place(Home.OUTPUT, len(placement.outputs))
                placement.outputs.append(value)
                if source is not None and _alone(source, lifetimes):
                    # The operand is made in the memory of the result, which then replaces it in place.
                    take(source, value)
                    lifetimes = [life for life in lifetimes if life.key is not source]
                    places[source] = places[value]
                continue
            if source is not None:
                take(source, value)
                if places[source].home is Home.LIBRARY:
                    places[value] = places[source]
                    continue
            if apart is not None and source is None and _span_bytes(value) >= apart:
                places[value] = Place(Home.LIBRARY, value.id)
                placement.last_use[value] = last.get(value, number)
                continue
            places[value] = Place(Home.ARENA, 0)
            lifetimes.append(Lifetime(value, _span_bytes(value), number, last.get(value, number), source))
    _extend_library_uses(placement, last)
    numbers = {life.key: number for number, life in enumerate(lifetimes)}
    placement.buffers = tuple(
        [
            Lifetime(number, life.nbytes, life.start, life.end, numbers[life.shares] if life.shares else None)
            for number, life in enumerate(lifetimes)
        ]
    )
    for value, number in numbers.items():
        places[value] = Place(Home.ARENA, number)
    return placement


SMALL: Final = 2**20
"""Bytes that there is room for, where whole tensors were made before: allocators keep some for what is small."""


def _last_failure(
    graph: Graph,
    steps: Sequence[Step],
    native: Container[Node],
    owner: Callable[[Value], Value],
    over: Overwrites,
) -> int:
    """The first step from which on nothing may raise; a call that fails goes on eagerly. (Tensors that the rest of the
    steps make can be made ahead of it.)"""
    made = {value for step in steps for value in step.writes}
    copied = [value for value in graph.outputs if owner(value) not in made]  # at the end
    if over.memory_ends and any(value.type.nbytes > SMALL for value in copied):
        return len(steps)
    return max([number + 1 for number, step in enumerate(steps) if _may_raise(step.work, native)], default=0)


def _written_in_place(
    graph: Graph,
    steps: Sequence[Step],
    last: Mapping[Value, int],
    returned: set[Value],
    first: int,
    owner: Callable[[Value], Value],
    over: Overwrites,
) -> dict[Value, Value]:
    """What kernels may write into the caller's tensor at once, with that input, rather than to be copied there: from
    step `first` on, where no later one wants what was there."""
    sources = Counter(owner(write.value) for write in graph.writes)
    targets = {write.value: write.target for write in graph.writes if owner(write.value) is write.value}
    found: dict[Value, Value] = {}
    for number, step in enumerate(steps[first:], first):
        fused = step.work
        for value in fused.writes if isinstance(fused, FusedKernel) else ():
            target = targets.get(value)
            if target is None or value in returned or value.type != target.type or sources[value] > 1:
                continue
            if last.get(target, -1) > number or target in sources or target in returned:
                continue
            assert isinstance(fused, FusedKernel)
            names = {v: p.name for v, p in zip(fused.values, fused.kernel.params, strict=True)}
            if target not in names or over.targets(fused.kernel, names[target], names[value]):
                found[value] = target
    return found


def _may_raise(work: FusedKernel | LibraryUnit, native: Container[Node]) -> bool:
    return has_checks(work.kernel) if isinstance(work, FusedKernel) else work.node not in native


def holders(value: Value, views: Views, aliases: Mapping[Value, Value]) -> list[Value]:
    """The Value, and the tensors that it is a view of, one of the other; the last one owns the memory."""
    found = [value, views.base(value)]
    while found[-1] in aliases:
        found += [aliases[found[-1]], views.base(aliases[found[-1]])]
    return found


def last_reads(graph: Graph, steps: Sequence[Step], views: Views, aliases: Mapping[Value, Value]) -> dict[Value, int]:
    """The last step that reads each Value or a view of it; results are read after the last step."""
    last: dict[Value, int] = {}
    for number, step in enumerate(steps):
        for value in step.reads:
            last.update((holder, number) for holder in holders(value, views, aliases))
    for value in graph.results():
        last.update((holder, len(steps)) for holder in holders(value, views, aliases))
    return last


def _extend_library_uses(placement: Placement, last: Mapping[Value, int]) -> None:
    """A library tensor that a later Value took over lives as long as that Value."""
    tensors = {value.id: value for value in placement.last_use}
    for value, place in placement.places.items():
        if place.home is Home.LIBRARY and place.number != value.id:
            holder = tensors[place.number]
            placement.last_use[holder] = max(placement.last_use[holder], last.get(value, 0))


def _span_bytes(value: Value) -> int:
    """Bytes from the first to the last element of a buffer with the Value's strides."""
    type_ = value.type
    if type_.numel == 0:
        return 0
    reach = sum((size - 1) * stride for size, stride in zip(type_.shape, type_.strides, strict=True))
    return (reach + 1) * type_.dtype.itemsize


def _alone(value: Value, lifetimes: Sequence[Lifetime[Value]]) -> bool:
    """Whether `value` has a buffer in the arena that it neither took over nor handed on."""
    own = [life for life in lifetimes if life.key is value]
    return len(own) == 1 and own[0].shares is None and not any(life.shares is value for life in lifetimes)


def _reusable(
    work: FusedKernel | LibraryUnit,
    value: Value,
    number: int,
    last: Mapping[Value, int],
    places: Mapping[Value, Place],
    taken: set[Value],
    returned: set[Value],
    donated: Container[Value],
    owner: Callable[[Value], Value],
) -> Value | None:
    """A Value that dies at this step and whose memory `value` can take over: element by element, or, in a library call,
    as the first operand, of which the call copies nothing then. donated: inputs that are among these."""
    candidates: tuple[Value, ...] = ()
    if isinstance(work, FusedKernel):
        candidates = work.reads
    elif writes_over_first(work.node.op):
        first, *others = work.node.inputs()
        candidates = () if any(owner(other) is first for other in others) else (first,)
    for source in candidates:
        place = places.get(source)
        if place is None or source in taken or source in returned:
            continue
        if place.home not in (Home.ARENA, Home.LIBRARY) and not (isinstance(work, LibraryUnit) and source in donated):
            continue
        if last.get(source) != number or source.type.dtype is not value.type.dtype:
            continue
        if source.type.shape != value.type.shape or source.type.strides != value.type.strides:
            continue
        if isinstance(work, LibraryUnit):
            return source
        names = {v: p.name for v, p in zip(work.values, work.kernel.params, strict=True)}
        if can_overwrite(work.kernel, names[source], names[value]):
            return source
    return None


def can_overwrite(kernel: Kernel, read: str, written: str) -> bool:
    """Whether buffer `written` may be the same memory as buffer `read`: each element is read, at the index at which
    it is stored and earlier in the same body, before it is overwritten, and never again."""
    stored = None
    for block in kernel.blocks:
        for stmt in block.body:
            if isinstance(stmt, Load) and stmt.param == read:
                if stored is not None or stmt.mask is not None or stmt.gathered:
                    return False
                index, body = stmt.index, block
                for other in kernel.blocks:
                    for s in other.body:
                        if isinstance(s, Store) and s.param == written and (s.index != index or other is not body):
                            return False
            elif isinstance(stmt, Store) and stmt.param == written:
                stored = stmt
    return stored is not None


@dataclass(frozen=True, slots=True)
class Overwrites:
    """What kernels may write over. operands: buffers that they read for the last time.

    targets: whether a Kernel that reads the caller's tensor in a param may write over it in another one.
    memory_ends: whether making a tensor may fail, as on a GPU, whose memory is not the host's.
    """

    operands: bool = True
    targets: Callable[[Kernel, str, str], bool] = can_overwrite
    memory_ends: bool = False
