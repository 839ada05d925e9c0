"""Prints the steps of a Graph as one flat Python function, and binds it to a Program.

Consecutive kernels, matrix products and templates become one native sequence, a single call. Library calls stand
between them as plain Python calls on tensors: the caller's, tensors in the arena, or tensors that earlier calls
returned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd.graph import increment_version

from dsjit.codegen.gemm import MatmulPlan
from dsjit.codegen.llvm.engine import CompiledKernel
from dsjit.codegen.llvm.executor import Call, DeviceKernel
from dsjit.codegen.low_memory import LARGE_BUFFER, WORTH_A_BREAK, LowMemory, MemorySchedule, memory_schedule
from dsjit.codegen.native_calls import kernel_call, library_callable, native_call, refuse
from dsjit.codegen.offload.stores import open_stores
from dsjit.codegen.placement import Home, Place, Placement, Step, holders, last_reads, place_values
from dsjit.codegen.program import CPU_EXECUTOR, ArenaTensor, Executor, Program, ProgramParts, address_writer, link
from dsjit.codegen.steps import NativePlan, library_aliases, never_raising
from dsjit.codegen.watch import StepWatch, watched_values
from dsjit.fusion.affine import Affine, NotAffine, linearize
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views
from dsjit.ir.graph import Arg, Graph, Node, Value
from dsjit.ops.library import out_variant
from dsjit.ops.properties import is_dynamic, returns_many
from dsjit.ops.strided import fresh_copy, strided_view

__all__ = ["assemble", "assemble_parts"]


def assemble(
    graph: Graph,
    steps: Sequence[Step],
    native: Mapping[Node, NativePlan],
    views: Views,
    kernels: Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel],
    watch: StepWatch | None = None,
    check: bool = False,
    executor: Executor = CPU_EXECUTOR,
    low_memory: LowMemory | None = None,
) -> Program:
    """The Program that runs `steps` in order and returns the Graph's outputs.

    native: which library nodes run natively. kernels: of the fused kernels, and of the nodes that have a template.
    watch: is told what each step left in memory; the Program is then not reentrant. check: verify the memory plan;
        raises VerificationError. executor: runs the kernels.
    low_memory: makes a Program that takes little memory at once.
    """
    assembler = _Assembler(graph, steps, native, views, kernels, watch=watch, executor=executor, low_memory=low_memory)
    return link(assembler.assemble(), check=check)


def assemble_parts(
    graph: Graph,
    steps: Sequence[Step],
    native: Mapping[Node, NativePlan],
    views: Views,
    kernels: Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel],
    sizes: Mapping[FusedKernel, tuple[int, ...]],
    executor: Executor = CPU_EXECUTOR,
) -> ProgramParts:
    """The parts of that Program, with every integer among the names and none in the source.

    sizes: the values of the sizes that each kernel takes.
    """
    return _Assembler(graph, steps, native, views, kernels, sizes=sizes, executor=executor).assemble()


@dataclass(slots=True)
class _Assembler:
    graph: Graph
    steps: Sequence[Step]
    native: Mapping[Node, NativePlan]
    views: Views
    kernels: Mapping[FusedKernel | Node, CompiledKernel | DeviceKernel]
    sizes: Mapping[FusedKernel, tuple[int, ...]] | None = None
    watch: StepWatch | None = None
    executor: Executor = CPU_EXECUTOR
    low_memory: LowMemory | None = None
    aliases: dict[Value, Value] = field(init=False)
    placement: Placement = field(init=False)
    schedule: MemorySchedule | None = None
    lines: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    slots: dict[Place, int] = field(default_factory=dict)
    changing: list[Place] = field(default_factory=list)
    bound: dict[Any, str] = field(default_factory=dict)
    pending: list[Call] = field(default_factory=list)
    refusable: bool = False
    sequences: dict[str, tuple[Call, ...]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    dropped_bytes: int = 0
    arena_tensors: dict[ArenaTensor, int] = field(default_factory=dict)
    variables: dict[Value, str] = field(default_factory=dict)
    held: dict[str, str] = field(default_factory=dict)
    constants: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.aliases = library_aliases(self.steps)
        self.constants = list(self.graph.constants.values())
        self.placement = place_values(
            self.graph, self.steps, self.views, self.aliases, never_raising(self.native),
            overwrites=self.executor.overwrites,
            apart=LARGE_BUFFER if self.low_memory is not None else None,
        )  # fmt: skip
        if self.low_memory is not None:
            self.schedule = memory_schedule(
                self.graph, self.steps, self.views, self.aliases, self.placement, self.low_memory
            )
        for step in self.steps:
            for value in self._native_values(step):
                place = self.placement.places[value]
                if place.home in (Home.INPUT, Home.OUTPUT) and place not in self.slots and not self._comes_late(place):
                    self.slots[place] = len(self.slots)
                    self.changing.append(place)

    def _comes_late(self, place: Place) -> bool:
        """Whether the tensor is made or fetched just before a step."""
        if self.schedule is None or self.low_memory is None:
            return False
        return place.home is Home.OUTPUT or place.number in self.low_memory.fetched

    def _native_values(self, step: Step) -> tuple[Value, ...]:
        if isinstance(step.work, FusedKernel):
            return step.work.values
        plan = self.native.get(step.work.node)
        return () if plan is None else plan.buffers

    def assemble(self) -> ProgramParts:
        dying = self._deaths()
        for number, step in enumerate(self.steps):
            if self.schedule is not None:
                self._before_step(number, self.schedule)
            if isinstance(step.work, FusedKernel):
                self._kernel(step.work)
            elif step.work.node in self.native:
                self._native(step.work.node, self.native[step.work.node])
            else:
                self._flush()
                self._library(step.work.node, step.planned)
            if self.watch is not None:
                self._flush()
                self._watched(number, self.watch)
            for value in dying.get(number, ()):
                self._let_go(value, f"t{value.id}")
            if self.schedule is not None:
                self._after_step(number, self.schedule)
            if not self.pending:
                self._drop()
        self._flush()
        self._finish()
        header, prologue = self._prologue()
        body = [*prologue, *self.lines]
        source = "\n".join([header, *("    " + line for line in body)]) + "\n"
        return ProgramParts(
            source=source,
            names=self.names,
            sequences=self.sequences,
            slots=len(self.slots),
            fixed=tuple((s, p.number) for p, s in self.slots.items() if p.home is Home.ARENA),
            constants=tuple((s, self.constants[p.number]) for p, s in self.slots.items() if p.home is Home.CONSTANT),
            arena_tensors=tuple(self.arena_tensors),
            buffers=self.placement.buffers,
            executor=self.executor,
        )

    def _prologue(self) -> tuple[str, list[str]]:
        lines: list[str] = []
        if self.graph.inputs:
            lines.append(f"{', '.join(f'a{i}' for i in range(len(self.graph.inputs)))}, = inputs")
        if self.low_memory is not None and self.schedule is not None:
            stored = [self.graph.outputs[number].type for number in self.low_memory.stored]
            fetched = [number for _, numbers in sorted(self.schedule.fetched.items()) for number in numbers]
            opening, names = open_stores(stored, fetched, self.low_memory.tier)
            lines += opening
            self.names |= names
        lines.append("b = frame.tensors")
        for number, value in enumerate(self.placement.outputs if self.schedule is None else ()):
            lines.append(f"o{number} = {self._allocation(value)}")
        if self.watch is not None:
            self.names["before_steps"] = self.watch.before_steps
            made = range(len(self.placement.outputs) if self.schedule is None else 0)
            results = "".join(f"o{number}, " for number in made)
            lines.append(f"before_steps((frame.arena, {results}))")
        # One call writes all the addresses that change between runs.
        if self.changing:
            letters = {Home.INPUT: "a", Home.OUTPUT: "o"}
            tensors = ", ".join(f"{letters[place.home]}{place.number}" for place in self.changing)
            self.names["put"] = address_writer(len(self.changing))
            self.names["data_ptr"] = torch.Tensor.data_ptr
            lines.append(f"put(frame.buffer, 0, *map(data_ptr, ({tensors},)))")
        if self.slots:
            lines.append("address = frame.address")
            if self.schedule is not None or any(place.home in (Home.LIBRARY, Home.TABLE) for place in self.slots):
                lines.append("table = frame.table")
            if (flag := self.slots.get(Place(Home.TABLE, 0))) is not None:
                lines.append(f"table[{flag}] = address + {8 * (flag + 1)}")
        return "def run(inputs, frame, threads):", lines

    def _allocation(self, value: Value) -> str:
        type_ = value.type
        strides = self._bind("s", type_.strides)
        shape = self._bind("s", type_.shape)
        self.names["empty_strided"] = torch.empty_strided
        device = "" if self.executor is CPU_EXECUTOR else f", device={self._bind('d', self.executor.device)}"
        return f"empty_strided({shape}, {strides}, dtype={self._bind('d', type_.dtype)}{device})"

    # -- native steps --------------------------------------------------------------------------------------------

    def slot(self, value: Value) -> int:
        """The slot with the address of its buffer."""
        place = self.placement.places[value]
        slot = self.slots.get(place)
        if slot is None:
            slot = self.slots[place] = len(self.slots)
            if place.home is Home.LIBRARY:
                # Its address becomes known when the library call returns: ask for it just before the sequence runs.
                self.lines.append(f"table[{slot}] = {self.variables[value]}.data_ptr()")
        return slot

    def _kernel(self, fused: FusedKernel) -> None:
        self._take_over(fused.reads, fused.writes)
        if self.refusable and any(self.placement.places[value].home is Home.INPUT for value in fused.writes):
            self._flush()  # what the caller sees is written when nothing can be refused any more
        sizes = self.sizes[fused] if self.sizes is not None else ()
        self.pending.append(kernel_call(fused, self.kernels[fused], sizes, self))

    def _take_over(self, reads: Sequence[Value], writes: Sequence[Value]) -> None:
        """What is written to a tensor that something read had goes by its name."""
        for value in writes:
            place = self.placement.places[value]
            if place.home is Home.LIBRARY and value not in self.variables:
                holder = next(v for v in reads if self.placement.places.get(v) == place)
                self.variables[value] = self.variables[holder]

    def zero(self) -> int:
        """A slot of the table that holds 0."""
        return self.slots.setdefault(Place(Home.NOWHERE, 0), len(self.slots))

    def _native(self, node: Node, plan: NativePlan) -> None:
        if not isinstance(plan, MatmulPlan):
            self._take_over(tuple(node.inputs()), node.outputs)
        self.pending.append(native_call(plan, self.kernels.get(node), self))

    def flag(self) -> int:
        """A slot that holds the address of the next one, which a native step sets to 1 to refuse the run."""
        self.refusable = True
        address, _ = (self.slots.setdefault(Place(Home.TABLE, number), len(self.slots)) for number in range(2))
        return address

    def _flush(self) -> None:
        if self.pending:
            name = f"q{len(self.sequences)}"
            self.sequences[name] = tuple(self.pending)
            self.lines.append(f"{name}(address, threads)")
            self.pending = []
            if self.refusable:
                flag, self.names["refuse"] = self.slots[Place(Home.TABLE, 1)], refuse
                self.lines.append(f"if table[{flag}]: refuse(table, {flag})")
                self.refusable = False
            self._drop()

    def _watched(self, number: int, watch: StepWatch) -> None:
        """Hand over what is alive after a step, and what is dead."""
        last_read = last_reads(self.graph, self.steps, self.views, self.aliases)
        live, dead = watched_values(self.placement, last_read, self.steps, number)
        watch.live[number] = live
        self.names["after_step"] = watch.after_step
        handed = [f"({''.join(f'{self._base_tensor(value)}, ' for value in values)})" for values in (live, dead)]
        self.lines.append(f"after_step({number}, {', '.join(handed)})")

    def _drop(self) -> None:
        """Let go of library tensors that nobody wants any more, so that their memory is free for the next one."""
        if self.dropped:
            self.lines.append(f"del {', '.join(self.dropped)}")
            self.dropped = []
        self.dropped_bytes = 0

    # -- low memory ----------------------------------------------------------------------------------------------

    def _before_step(self, number: int, schedule: MemorySchedule) -> None:
        for fetched in schedule.fetched.get(number, ()):
            self._flush()
            self.lines.append(f"a{fetched} = a{fetched}.fetch()")
            self._put_address(Place(Home.INPUT, fetched), f"a{fetched}")
        values = schedule.made.get(number, [])
        if sum(value.type.nbytes for value in values) >= WORTH_A_BREAK:
            self._flush()
        for value in values:
            place = self.placement.places[value]
            if place.home is Home.LIBRARY:
                self.variables[value] = f"t{value.id}"
            name = self._base_tensor(value)
            self.lines.append(f"{name} = {self._allocation(value)}")
            if self.watch is not None:
                self.lines.append(f"before_steps(({name},))")
            self._put_address(place, name)

    def _put_address(self, place: Place, name: str) -> None:
        slot = self.slots.setdefault(place, len(self.slots))
        self.lines.append(f"table[{slot}] = {name}.data_ptr()")

    def _after_step(self, number: int, schedule: MemorySchedule) -> None:
        for left in schedule.left.get(number, ()):
            self._let_go(self.graph.inputs[left], f"a{left}")
        if self.dropped_bytes >= WORTH_A_BREAK or number in schedule.stored:
            self._flush()
        for output in schedule.stored.get(number, ()):
            name = self._base_tensor(self.graph.outputs[output])
            self.lines.append(f"{name} = store.put({name})")
        if number == schedule.arena_ends and self.executor is CPU_EXECUTOR:
            self._flush()
            self.lines.append("frame.release()")

    def _let_go(self, value: Value, name: str) -> None:
        self.dropped.append(name)
        self.dropped_bytes += value.type.nbytes

    # -- library calls -------------------------------------------------------------------------------------------

    def _library(self, node: Node, planned: bool) -> None:
        args = [self._argument(arg) for arg in node.args]
        for position in node.mutates:
            args[position] = self._cloned(node.args[position])
        keywords = [f"{name}={self._argument(arg)}" for name, arg in node.kwargs.items()]
        if planned:
            self._take_over(tuple(node.inputs()), node.outputs)
            target = self._tensor(node.output)
            if node.output in self.placement.over:
                args[0] = target  # the very tensor, or it would be copied there
            function = self._bind("f", out_variant(node.op))
            self.lines.append(f"{function}({', '.join([*args, *keywords, f'out={target}'])})")
            return
        function = self._bind("f", library_callable(node.op))
        call = f"{function}({', '.join([*args, *keywords])})"
        returned = node.outputs[: len(node.outputs) - len(node.mutates)]
        self.variables.update((value, f"t{value.id}") for value in node.outputs)
        targets = [self.variables[each] for each in returned]
        if not targets:
            self.lines.append(call)
        elif len(targets) == 1 and not returns_many(node):
            self.lines.append(f"{targets[0]} = {call}")
        else:
            self.lines.append(f"{', '.join(targets)}, = {call}")
        for position, value in zip(node.mutates, node.outputs[len(returned) :], strict=True):
            self.lines.append(f"{self.variables[value]} = {args[position]}")
        for value in returned:
            if value.type.numel > 1 and value.type.device.type != "meta":
                # Kernels rely on the strides that the Graph states; a library may lay its result out otherwise.
                name, strides = self.variables[value], self._bind("s", value.type.strides)
                self.names["fresh_copy"] = fresh_copy
                # Another shape than the recorded one is for the reader of the result to notice.
                right = f"{name}.shape == {self._bind('s', value.type.shape)} and " if is_dynamic(node) else ""
                self.lines.append(f"if {right}{name}.stride() != {strides}: {name} = fresh_copy({name}, {strides})")

    def _cloned(self, arg: Arg) -> str:
        name = f"m{len(self.lines)}"
        self.names["clone"] = torch.clone
        self.lines.append(f"{name} = clone({self._argument(arg)})")
        return name

    def _argument(self, arg: Arg) -> str:
        if isinstance(arg, Value):
            return self._held(self._tensor(arg))
        if isinstance(arg, tuple) and arg and self.sizes is not None and all(type(item) is int for item in arg):
            return self._bind("s", arg)
        if isinstance(arg, tuple):
            return "(" + "".join(self._argument(item) + ", " for item in arg) + ")"
        if arg is None or type(arg) in (bool, int, str):
            return self._integer(arg) if type(arg) is int else repr(arg)
        return self._bind("k", arg)

    def _held(self, tensor: str) -> str:
        """A variable for a view of what lives as long as the run, which other calls may want, too."""
        if self.low_memory is not None or not tensor.startswith(("strided_view(a", "strided_view(o")):
            return tensor
        if tensor not in self.held:
            self.held[tensor] = f"h{len(self.held)}"
            self.lines.append(f"{self.held[tensor]} = {tensor}")
        return self.held[tensor]

    def _integer(self, number: int) -> str:
        return self._bind("i", number) if self.sizes is not None else repr(number)

    def _tensor(self, value: Value) -> str:
        """An expression for the tensor that holds `value`, views applied."""
        node = self.views.transparent(value)
        if node is None:
            return self._base_tensor(value)
        try:
            base, index = self.views.follow(value, (Affine(),) * len(value.type.shape), {})
        except NotAffine:
            return self._view_call(node, value)
        offset = linearize(index, base.type.strides).offset if base.type.numel else 0
        if (place := self.placement.places[base]).home is Home.ARENA:
            shift = offset * base.type.dtype.itemsize
            spec = ArenaTensor(place.number, shift, value.type.dtype, value.type.shape, value.type.strides)
            return self._arena_tensor(spec)
        tensor = self._base_tensor(base)
        if value.type == base.type and offset == 0:
            return tensor
        transposed = (value.type.shape[::-1], value.type.strides[::-1]) == (base.type.shape, base.type.strides)
        if offset == 0 and len(value.type.shape) == 2 and transposed:
            return f"{tensor}.t()"
        self.names["strided_view"] = strided_view
        shape, strides = self._bind("s", value.type.shape), self._bind("s", value.type.strides)
        return f"strided_view({tensor}, {shape}, {strides}, {self._integer(offset)})"

    def _view_call(self, node: Node, value: Value) -> str:
        function = self._bind("v", node.op)
        args = [self._argument(arg) for arg in node.args]
        args += [f"{name}={self._argument(arg)}" for name, arg in node.kwargs.items()]
        call = f"{function}({', '.join(args)})"
        return call if len(node.outputs) == 1 else f"{call}[{node.outputs.index(value)}]"

    def _base_tensor(self, value: Value) -> str:
        place = self.placement.places[value]
        if place.home is Home.INPUT:
            return f"a{place.number}"
        if place.home is Home.OUTPUT:
            return f"o{place.number}"
        if place.home is Home.CONSTANT:
            return self._bind("c", self.constants[place.number])
        if place.home is Home.LIBRARY:
            return self.variables[value]
        type_ = value.type
        return self._arena_tensor(ArenaTensor(place.number, 0, type_.dtype, type_.shape, type_.strides))

    def _arena_tensor(self, spec: ArenaTensor) -> str:
        number = self.arena_tensors.setdefault(spec, len(self.arena_tensors))
        return f"b[{number}]"

    def _deaths(self) -> dict[int, list[Value]]:
        """After which step each library tensor is dropped, so that its memory is free for the next one."""
        table: dict[int, list[Value]] = {}
        for value, step in self.placement.last_use.items():
            if step < len(self.steps):
                table.setdefault(step, []).append(value)
        return table

    # -- the end -------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        held, results = set[str](), list[str]()
        for value in self.graph.outputs:
            base, name = self._owner(value), self._tensor(value)
            home, root = self.placement.places[base].home, self._base_tensor(base)
            given = home is Home.INPUT and base in self.placement.over
            if (home in (Home.INPUT, Home.CONSTANT, Home.ARENA) and not given) or root in held:
                if home is Home.INPUT and value in self.aliases:
                    results.append(name)
                    continue
                self.names["fresh_copy"] = fresh_copy
                strides = self._bind("s", value.type.strides)
                results.append(f"r{len(self.lines)}")
                self.lines.append(f"{results[-1]} = fresh_copy({name}, {strides})")
            else:
                held.add(root)
                results.append(name)
        if self.low_memory is not None and self.schedule is not None:
            for number in self.low_memory.stored.difference(*self.schedule.stored.values()):
                results[number] = f"store.put({results[number]})"
        targets = {write.target for write in self.graph.writes}
        copies, in_place = list[str](), list[str]()
        for write in self.graph.writes:
            source, target = self._tensor(write.value), self._tensor(write.target)
            if source == target:
                in_place += [target] if write.counted and write.value is not write.target else []
                continue
            if self._owner(write.value) in targets:
                # What is written was another target's old content: take it before any target changes.
                saved = f"w{len(self.lines)}"
                self.names["clone"] = torch.clone
                self.lines.append(f"{saved} = clone({source})")
                source = saved
            copies.append(f"{target}{'' if write.counted else '.data'}.copy_({source})")
        self.lines += copies
        if in_place:  # autograd has to know, as it does of copies
            self.names["increment_version"] = increment_version
            self.lines.append(f"increment_version(({', '.join(in_place)},))")
        self.lines.append(f"return [{', '.join(results)}]")

    def _owner(self, value: Value) -> Value:
        return holders(value, self.views, self.aliases)[-1]

    def _bind(self, prefix: str, value: Any) -> str:
        """A name for `value` in the printed function; equal sizes and dtypes share one."""
        key = (prefix, value if isinstance(value, tuple | torch.dtype | int) else id(value))
        name = self.bound.get(key)
        if name is None:
            name = self.bound[key] = f"{prefix}{len(self.bound)}"
            self.names[name] = value
        return name
