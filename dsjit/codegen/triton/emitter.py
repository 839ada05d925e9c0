"""Kernel to Triton source: a module of helper functions and one `@triton.jit` function."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import PurePath
from typing import Final

import torch

from dsjit.codegen.nest import statement_index
from dsjit.codegen.triton.casts import cast_text
from dsjit.codegen.triton.indices import AxisVariable, implied_bounds, index_text, size_text
from dsjit.codegen.triton.layout import Layout
from dsjit.codegen.triton.reductions import Accumulator, Reduction, reduction_of
from dsjit.codegen.triton.schedule import Schedule, Tile, needs_wide_index
from dsjit.codegen.triton.source import KernelSource, identifier, origin_comments, source_of
from dsjit.codegen.triton.spellings import HELPERS, SPELLINGS, helpers_of
from dsjit.codegen.triton.types import TRITON_TYPES, as_taken, literal, typed_number
from dsjit.errors import BackendError
from dsjit.ir.dtypes import is_floating
from dsjit.ir.graph import Source
from dsjit.ir.kernel import (
    Apply,
    Axis,
    Block,
    Cast,
    Check,
    Constant,
    Gathered,
    Index,
    IndexValue,
    InRange,
    Kernel,
    Load,
    Reduce,
    SizeParam,
    Stmt,
    Store,
)

__all__ = ["KernelEmitter", "Variable", "emit_kernel"]

_INDENT: Final = "    "


def emit_kernel(kernel: Kernel, processors: int, name: str | None = None, narrow: bool = False) -> KernelSource:
    """The Triton source of a Kernel that `verify_kernel` accepts. processors: of the GPU, which tile sizes depend on.
    narrow: for sizes, where these are parameters, of which 32 bits hold every index.

    Raises BackendError for rows that are kept: `emit_stream` is for these. The text depends on the arguments alone.
    """
    if any(isinstance(s, Reduce) and s.over is not None for block in kernel.blocks for s in block.body):
        raise BackendError(f"{kernel.name} keeps rows in a form that no emitter knows")
    return KernelEmitter(kernel, Schedule.of(kernel, processors), name or identifier(kernel.name), narrow).emit()


@dataclass(frozen=True, slots=True)
class Variable:
    """A value of the Kernel in the source. tiles: along which it varies, by name; its shape is 1 along the others."""

    name: str
    dtype: torch.dtype
    tiles: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Stored:
    """The last store to a param: where to, and which line does it."""

    pointer: str
    line: int
    depth: int


@dataclass(slots=True)
class KernelEmitter:
    """narrow: see `emit_kernel`. fills: what is loaded beyond the end of a tile is 0, and not anything."""

    kernel: Kernel
    schedule: Schedule
    name: str
    narrow: bool = False
    lines: list[str] = field(default_factory=list)
    depth: int = 1
    taken: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)
    axes: dict[str, AxisVariable] = field(default_factory=dict)
    values: dict[str, Variable] = field(default_factory=dict)
    known: dict[object, Variable] = field(default_factory=dict)
    helpers: dict[str, None] = field(default_factory=dict)
    held: dict[str, dict[str, AxisVariable]] = field(default_factory=dict)
    stores: dict[str, _Stored] = field(default_factory=dict)
    loaded: set[str] = field(default_factory=set)
    fills: bool = False
    float8_as_bits: bool = True
    tiles: dict[str, Tile] = field(init=False)
    layout: Layout = field(init=False)
    wide: bool = field(init=False)

    def __post_init__(self) -> None:
        self.tiles = {tile.name: tile for tile in self.schedule.tiles}
        self.layout = Layout(self.schedule, self.names)
        self.wide = needs_wide_index(self.schedule) and not self.narrow
        constants = [tile.constant for tile in self.tiles.values()]
        own = [self.name, "tl", "triton", "libdevice", "program", "range", "float", *HELPERS, *constants]
        parts = [text for name in self.tiles for text in (name, f"{name}_in", f"{name}_start")]
        self.taken = {*own, *parts, *keyword.kwlist}

    def emit(self) -> KernelSource:
        kernel = self.kernel
        for param in kernel.params:
            self.names[param.name] = self._fresh(param.name)
        sizes = {size.name: self._fresh(size.name) for size in kernel.sizes}
        for size, name in sizes.items():
            self.names[size] = name
            if self.narrow:
                self._line(f"{name} = {name}.to(tl.int32)")
        self._programs()
        self._blocks()
        if not self.lines:
            self._line("pass")
        params = tuple([as_taken(param, self.names[param.name], self.float8_as_bits) for param in kernel.params])
        constants = tuple(dict.fromkeys([(tile.constant, tile.block) for tile in self.tiles.values()]))
        arguments = [param.name for param in params] + list(sizes.values())
        arguments += [f"{name}: tl.constexpr" for name, _ in constants]
        signature = [f"def {self.name}({', '.join(arguments)}):"]
        if len(signature[0]) > 120:
            signature = [f"def {self.name}(", *[f"{_INDENT}{argument}," for argument in arguments], "):"]
        helpers = [HELPERS[helper].text + "\n\n" for helper in helpers_of(self.helpers)]
        text = (
            "".join(helpers)
            + "\n".join(["@triton.jit", *signature, *origin_comments(self.kernel), *filter(None, self.lines)])
            + "\n"
        )
        return KernelSource(self.name, text, kernel, params, tuple(sizes.values()), constants, self.schedule)

    def _blocks(self) -> None:
        for block, rows in zip(self.schedule.blocks, self.schedule.rows, strict=True):
            if rows is None:
                self._body(block.body, None)
            elif rows.looped:
                self._loop(block, rows)
            else:
                self._hold(block, rows)
                self._body(block.body, rows)

    # -- names and lines -----------------------------------------------------------------------------------------

    def _fresh(self, name: str) -> str:
        name = re.sub(r"\W", "_", name)
        found, number = name, 1
        while found in self.taken:
            found, number = f"{name}_{number}", number + 1
        self.taken.add(found)
        return found

    def _line(self, text: str, source: Source | None = None) -> None:
        comment = "" if source is None else f"  # {PurePath(source.file).name}:{source.line}"
        self.lines.append(f"{_INDENT * self.depth}{text}{comment}")

    def _use(self, helper: str) -> str:
        self.helpers[helper] = None
        return helper

    def _define(self, result: str, text: str, dtype: torch.dtype, tiles: frozenset[str], key: object,
                source: Source | None = None) -> None:  # fmt: skip
        """Bind a result of the Kernel to an expression, unless the same is known under another name."""
        variable = self.known.get(key)
        if variable is None:
            variable = Variable(self._fresh(result), dtype, tiles)
            self._line(f"{variable.name} = {text}", source)
            self.known[key] = variable
        self.values[result] = variable

    # -- tiles and axes ------------------------------------------------------------------------------------------

    def _programs(self) -> None:
        """What each program works on."""
        tiles = [tile for tile in self.schedule.programs if tile.axes]
        wide = ".to(tl.int64)" if self.wide else ""
        left = f"tl.program_id(0){wide}"
        for position, tile in enumerate(reversed(tiles)):
            number = left
            if position + 1 < len(tiles):
                if position == 0:
                    self._line(f"program = {left}")
                    left = "program"
                count = self.layout.count(tile)
                number, left = f"{left} % {count}", f"{left} // {count}"
                number, left = f"({number})", f"({left})"
            lanes = self.layout.lanes(tile)
            self._line(f"{tile.name} = {number} * {tile.constant} + {lanes}")
            self._bound(tile)
            self.axes |= self._decompose(tile, tile.axes)

    def _bound(self, tile: Tile) -> None:
        if not tile.is_exact:
            self._line(f"{tile.name}_in = {tile.name} < {self.layout.size(tile)}")

    def _decompose(self, tile: Tile, axes: Sequence[Axis]) -> dict[str, AxisVariable]:
        """The variables of the axes; those that no index uses are left out of the source."""
        used = {
            axis
            for block in self.schedule.blocks
            for statement in block.body
            if (index := statement_index(statement)) is not None
            for axis, _ in index.terms
        }
        if len(axes) == 1:
            return {axes[0].name: AxisVariable(axes[0], tile.name, tile.name)}
        found: dict[str, AxisVariable] = {}
        for number, axis in enumerate(axes):
            inner = [other.size for other in axes[number + 1 :]]
            known = math.prod([size for size in inner if not isinstance(size, SizeParam)])
            below = [size_text(size, self.names) for size in inner if isinstance(size, SizeParam)]
            divisor = " * ".join(([str(known)] if known != 1 else []) + below)
            text = tile.name
            if divisor:
                text += f" // {divisor}" if " " not in divisor else f" // ({divisor})"
            if number:
                text += f" % {size_text(axis.size, self.names)}"
            variable = AxisVariable(axis, self._fresh(axis.name), tile.name)
            found[axis.name] = variable
            if axis.name in used:
                self._line(f"{variable.name} = {text}")
        return found

    def _hold(self, block: Block, rows: Tile) -> None:
        """The variables of a tile that covers whole rows; blocks that share it share them."""
        held = self.held.get(rows.name)
        if held is None:
            lanes = self.layout.lanes(rows)
            self._line(f"{rows.name} = {lanes}{'.to(tl.int64)' if self.wide else ''}")
            self._bound(rows)
            held = self.held[rows.name] = self._decompose(rows, block.axes)
        variables = list(held.values())
        self.axes |= {axis.name: variable for axis, variable in zip(block.axes, variables, strict=True)}

    def _loop(self, block: Block, rows: Tile) -> None:
        reductions = [
            (statement, self._reduction(statement, rows)) for statement in block.body if isinstance(statement, Reduce)
        ]
        for _, reduction in reductions:
            for accumulator in reduction.accumulators:
                self._line(f"{accumulator.name} = {accumulator.start}")
        start = f"{rows.name}_start"
        with self._inside(f"for {start} in range(0, {self.layout.size(rows)}, {rows.constant}):"):
            self._line(f"{rows.name} = {start} + {self.layout.lanes(rows)}")
            self._bound(rows)
            self.axes |= self._decompose(rows, block.axes)
            self._body(block.body, rows, {statement.result: reduction for statement, reduction in reductions})
        for statement, reduction in reductions:
            self._finish(statement, reduction, [a.name for a in reduction.accumulators], frozenset({"x"}))

    @contextmanager
    def _inside(self, header: str) -> Iterator[None]:
        """The body of a loop: what it defines is unknown outside."""
        self._line(header)
        self.depth += 1
        known, values = dict(self.known), dict(self.values)
        yield
        self.known, self.values = known, values
        self.depth -= 1

    # -- statements ----------------------------------------------------------------------------------------------

    def _body(self, body: Sequence[Stmt], rows: Tile | None, running: dict[str, Reduction] | None = None) -> None:
        """running: by result, the reductions whose accumulators the body of a loop updates."""
        for statement in body:
            match statement:
                case Load():
                    self._load(statement, rows)
                case Store():
                    self._store(statement, rows)
                case Reduce():
                    if running is not None:
                        self._accumulate(statement, running[statement.result], rows)
                    else:
                        self._reduce(statement, rows)
                case Check():
                    self._check(statement)
                case _:
                    self._scalar(statement)

    def _scalar(self, statement: Constant | IndexValue | InRange | Apply | Cast) -> None:
        dtype = torch.int64 if isinstance(statement, IndexValue) else torch.bool
        match statement:
            case Constant():
                dtype = statement.dtype
                text = self._constant(statement)
                tiles: frozenset[str] = frozenset()
            case IndexValue():
                text, tiles = self._index_value(statement.index)
            case InRange():
                text, tiles = self._in_range(statement)
            case Apply():
                args = [self.values[arg] for arg in statement.args]
                dtype = statement.dtype
                text = SPELLINGS[statement.op](args[-1].dtype, [arg.name for arg in args], self._use)
                tiles = frozenset().union(*[arg.tiles for arg in args])
            case Cast():
                arg = self.values[statement.arg]
                if arg.dtype is statement.dtype:
                    self.values[statement.result] = arg
                    return
                dtype = statement.dtype
                text, tiles = cast_text(arg.name, arg.dtype, dtype, self._use, self.float8_as_bits), arg.tiles
        self._define(statement.result, text, dtype, tiles, (text, dtype), source_of(statement))

    def _constant(self, statement: Constant) -> str:
        if isinstance(statement.value, SizeParam):
            return f"{self.names[statement.value.name]}.to({TRITON_TYPES[statement.dtype]})"
        return typed_number(statement.value, statement.dtype)

    def _tiles_of(self, index: Index) -> frozenset[str]:
        return frozenset({tile for axis, _ in index.terms if (tile := self.axes[axis].tile)})

    def _index_value(self, index: Index) -> tuple[str, frozenset[str]]:
        text, tiles = index_text(index, self.axes, self.names), self._tiles_of(index)
        if not tiles and not isinstance(index.offset, SizeParam):
            return typed_number(index.offset, torch.int64), tiles
        return f"({text}).to(tl.int64)", tiles

    def _in_range(self, statement: InRange) -> tuple[str, frozenset[str]]:
        tiles = self._tiles_of(statement.index)
        above, below = implied_bounds(statement, self.axes)
        text = index_text(statement.index, self.axes, self.names)
        tests = [] if above else [f"({text} >= {size_text(statement.low, self.names)})"]
        tests += [] if below else [f"({text} < {size_text(statement.high, self.names)})"]
        if not tests:
            return typed_number(True, torch.bool), frozenset()
        if not tiles and not any(
            isinstance(size, SizeParam) for size in (statement.index.offset, statement.low, statement.high)
        ):
            return typed_number(False, torch.bool), tiles
        return " & ".join(tests) if len(tests) > 1 else tests[0][1:-1], tiles

    # -- memory --------------------------------------------------------------------------------------------------

    def _pointer(
        self, param: str, index: Index, tiles: frozenset[str], rows: Tile | None, gathered: Gathered = ()
    ) -> str:
        """Pointers that vary along `tiles`, which are at least those of the index and of what is gathered, which has 64
        bits."""
        text, own = index_text(index, self.axes, self.names), self._tiles_of(index)
        for name, coefficient in gathered:
            place = self.values[name]
            scale = "" if coefficient == 1 else f" * {size_text(coefficient, self.names)}"
            text, own = f"{text} + {place.name}{scale}" if text != "0" else f"{place.name}{scale}", own | place.tiles
        name = self.names[param]
        if tiles == own:
            return name if text == "0" else f"{name} + ({text})" if " " in text else f"{name} + {text}"
        shape = self.layout.shape(tiles, rows)
        if own:
            return f"{name} + tl.broadcast_to({text}, {shape})"
        return f"{name} + tl.full({shape}, {text}, {'tl.int64' if self.wide else 'tl.int32'})"

    def _bounds(self, tiles: frozenset[str]) -> list[str]:
        return [f"{name}_in" for name, tile in self.tiles.items() if name in tiles and not tile.is_exact]

    def _load(self, statement: Load, rows: Tile | None) -> None:
        mask = None if statement.mask is None else self.values[statement.mask]
        tiles = self._tiles_of(statement.index) | (mask.tiles if mask is not None else frozenset())
        tiles = tiles.union(*[self.values[name].tiles for name, _ in statement.gathered])
        pointer = self._pointer(statement.param, statement.index, tiles, rows, statement.gathered)
        masks = self._bounds(tiles) + ([mask.name] if mask is not None else [])
        text = f"tl.load({pointer}"
        if masks:
            text += f", mask={' & '.join(masks)}"
        other = ""
        if mask is not None or (self.fills and masks):
            other = literal(statement.other, statement.dtype)
            text += f", other={other}"
        key = ("load", statement.param, pointer, mask.name if mask else None, other)
        if key not in self.known and statement.param in self.stores:
            # What this program stored may have been stored by another of its threads.
            self._line("tl.debug_barrier()")
            del self.stores[statement.param]
        if key not in self.known:
            self.loaded.add(statement.param)
        self._define(statement.result, f"{text})", statement.dtype, tiles, key)
        lost = mask is not None and is_floating(statement.dtype) and literal(statement.other, statement.dtype) == "-0.0"
        if lost and mask is not None:
            loaded = self.values[statement.result]
            text = f"tl.where({mask.name}, {loaded.name}, {typed_number(-0.0, statement.dtype)})"
            self._define(f"{statement.result}_signed", text, statement.dtype, tiles, (text, statement.dtype))
            self.values[statement.result] = self.values[f"{statement.result}_signed"]

    def _check(self, statement: Check) -> None:
        """An assertion: that of a tile's elements beyond the end of its range says nothing."""
        condition = self.values[statement.condition]
        bounds = self._bounds(condition.tiles)
        text = condition.name
        if bounds:
            text = f"tl.where({' & '.join(bounds)}, {text}, {typed_number(True, torch.bool)})"
        self._line(f'tl.device_assert({text}, "an index is out of range")', source_of(statement))

    def _store(self, statement: Store, rows: Tile | None) -> None:
        tiles = frozenset(
            {tile.name for tile in self.layout.schedule.programs} | ({rows.name} if rows is not None else set())
        )
        pointer = self._pointer(statement.param, statement.index, tiles, rows)
        masks = self._bounds(tiles)
        value = self.values[statement.arg]
        if statement.param in self.loaded:
            # Another thread may be about to read what this one overwrites.
            self._line("tl.debug_barrier()")
            self.loaded.clear()
        earlier = self.stores.get(statement.param)
        if earlier is not None and earlier.pointer == pointer and earlier.depth == self.depth == 1:
            # Nothing but this program has read what it overwrites.
            self.lines[earlier.line] = ""
        self.stores[statement.param] = _Stored(pointer, len(self.lines), self.depth)
        mask = f", mask={' & '.join(masks)}" if masks else ""
        self._line(f"tl.store({pointer}, {value.name}{mask})")
        for key in [key for key in self.known if isinstance(key, tuple) and key[:2] == ("load", statement.param)]:
            del self.known[key]
        if value.tiles == tiles:
            self.known["load", statement.param, pointer, None, ""] = value

    # -- reductions ----------------------------------------------------------------------------------------------

    def _reduction(self, statement: Reduce, rows: Tile) -> Reduction:
        """How the statement is computed; its accumulators get names."""
        reduction = reduction_of(statement.kind, self._reduced_dtype(statement), self.wide)
        shape = self.layout.shape(frozenset(self.layout.order(rows)), rows)
        accumulators = [
            Accumulator(
                self._fresh(f"{statement.result}_{part.suffix}"), f"tl.full({shape}, {part.start}, {part.type})"
            )
            for part in reduction.parts
        ]
        return replace(reduction, accumulators=tuple(accumulators))

    def _reduced_dtype(self, statement: Reduce) -> torch.dtype:
        """Of the operand."""
        if statement.kind in ("argmax", "argmin"):
            return self._dtype_of(statement.arg)
        return statement.dtype

    def _dtype_of(self, result: str) -> torch.dtype:
        """The dtype of a result of the Kernel that may not be emitted yet."""
        if result in self.values:
            return self.values[result].dtype
        for block in self.kernel.blocks:
            for statement in block.body:
                if not isinstance(statement, Store | Check) and statement.result == result:
                    if isinstance(statement, IndexValue):
                        return torch.int64
                    return torch.bool if isinstance(statement, InRange) else statement.dtype
        raise KeyError(result)

    def _elements(self, statement: Reduce, reduction: Reduction) -> list[str]:
        """What is combined at each element: the operand, and where it is when that is wanted."""
        arg = self.values[statement.arg]
        found = [reduction.prepare(arg.name)]
        if statement.index is not None:
            found.append(index_text(statement.index, self.axes, self.names))
        return found

    def _accumulate(self, statement: Reduce, reduction: Reduction, rows: Tile | None) -> None:
        assert rows is not None
        names = [accumulator.name for accumulator in reduction.accumulators]
        combined = reduction.combine(names, self._elements(statement, reduction), self._use)
        bound = None if rows.is_exact else f"{rows.name}_in"
        if len(names) == 1:
            text = combined if bound is None else f"tl.where({bound}, {combined}, {names[0]})"
            self._line(f"{names[0]} = {text}", statement.source)
            return
        fresh = [self._fresh(f"{name}_next") for name in names]
        self._line(f"{', '.join(fresh)} = {combined}", statement.source)
        for name, new in zip(names, fresh, strict=True):
            self._line(f"{name} = {new if bound is None else f'tl.where({bound}, {new}, {name})'}")

    def _reduce(self, statement: Reduce, rows: Tile | None) -> None:
        """Of a row that is held."""
        assert rows is not None
        arg = self.values[statement.arg]
        reduction = reduction_of(statement.kind, arg.dtype, self.wide)
        elements = self._elements(statement, reduction)
        tiles = arg.tiles | {rows.name}
        shape = self.layout.shape(tiles, rows)
        operands: list[str] = []
        for part, text in zip(reduction.parts, elements, strict=True):
            operand = text if rows.is_exact else f"tl.where({rows.name}_in, {text}, {part.start})"
            covers = part.suffix != "at" and (arg.tiles == tiles or (not rows.is_exact and len(elements) == 1))
            operands.append(operand if covers else f"tl.broadcast_to({operand}, {shape})")
        self._finish(statement, reduction, operands, tiles - {rows.name})

    def _finish(self, statement: Reduce, reduction: Reduction, operands: Sequence[str], tiles: frozenset[str]) -> None:
        axis = len(self.schedule.programs)
        text = reduction.finish(operands, axis, self._use)
        self._define(statement.result, text, statement.dtype, tiles, (text, statement.dtype), statement.source)
