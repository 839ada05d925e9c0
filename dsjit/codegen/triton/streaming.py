"""Kernel of kept rows to Triton source: a loop along the rows, in tiles that matrix units multiply."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

from dsjit.codegen.triton.emitter import KernelEmitter, Variable
from dsjit.codegen.triton.indices import AxisVariable
from dsjit.codegen.triton.layout import Layout
from dsjit.codegen.triton.schedule import Schedule, Tile
from dsjit.codegen.triton.source import KernelSource, identifier
from dsjit.codegen.triton.stream import Band, Dot, Online, Stream
from dsjit.ir.kernel import Axis, Block, Kernel, Load, Reduce, Stmt, Store, known

__all__ = ["StreamTile", "emit_stream", "short_block"]

_LOG2_E: Final = 1.4426950408889634


@dataclass(frozen=True, slots=True)
class StreamTile:
    """How it is cut up: rows that a program holds, and how many stream by at a time: powers of 2, 16 at least.

    stages: of the pipeline of loads.
    """

    rows: int
    along: int
    warps: int
    stages: int


def short_block(axis: Axis) -> int:
    """The size of a tile that holds all of a short axis."""
    return max(16, 1 << (known(axis.size) - 1).bit_length())


def emit_stream(kernel: Kernel, stream: Stream, tile: StreamTile, name: str | None = None) -> KernelSource:
    """The Triton source of a Kernel of kept rows. The text depends on the arguments alone."""
    rows, along = Tile("y", stream.rows, tile.rows), Tile("x", (stream.along,), tile.along, looped=True)
    batch = (Tile("z", stream.batch, 1),) if stream.batch else ()
    blocks = tuple(kernel.blocks)
    schedule = Schedule((*batch, rows), blocks, (None,) * len(blocks), tile.warps, tile.stages)
    return _StreamEmitter(kernel, schedule, name or identifier(kernel.name), stream=stream, along=along).emit()


@dataclass(slots=True)
class _StreamEmitter(KernelEmitter):
    """along: the tile that is looped over, as columns of what has a row for each row that is held. turned: as rows."""

    stream: Stream | None = None
    along: Tile | None = None
    turned: Tile = field(init=False)

    def _programs(self) -> None:
        stream, along = self._stream, self._along
        rows = self.schedule.programs[-1]
        own = {dot.short.name for dot in stream.dots}
        self.taken |= {"x", "x_in", "x_start", "XBLOCK", "xt", "xt_in", *own}
        self.taken |= {f"{name}_in" for name in own} | {f"{name.upper()}BLOCK" for name in own}
        self.layout = self._layout(rows, along)
        wide = ".to(tl.int64)" if self.wide else ""
        count = self.layout.count(rows)
        self._line(f"program = tl.program_id(0){wide}")
        if stream.batch:
            self._line(f"z = program // {count}")
            batch = self.schedule.programs[0]
            found = self._decompose(batch, batch.axes)
            self.axes |= {name: AxisVariable(variable.axis, variable.name, "") for name, variable in found.items()}
        # The longest first: later rows may see more of the stream.
        backwards = stream.band is not None and stream.band.position == 1
        place = f"{int(count) - 1} - program % {count}" if backwards else f"program % {count}"
        self._line(f"y_start = ({place}) * {rows.constant}")
        self._line(f"y = y_start + {self.layout.lanes(rows)}")
        self._bound(rows)
        self.axes |= self._decompose(rows, rows.axes)
        self.turned = Tile("xt", along.axes, along.block, looped=True, shares="x")
        self.tiles |= {along.name: along, "xt": self.turned}

    @property
    def _stream(self) -> Stream:
        assert self.stream is not None
        return self.stream

    @property
    def _along(self) -> Tile:
        assert self.along is not None
        return self.along

    def _layout(self, first: Tile, second: Tile) -> Layout:
        return Layout(Schedule((first, second), self.schedule.blocks, (), self.schedule.warps), self.names)

    def _blocks(self) -> None:
        stream, rows, along = self._stream, self.schedule.programs[-1], self._along
        for block in stream.before:
            self._body(block.body, None)
        held: dict[str, str] = {}
        sums: dict[str, str] = {}
        for dot in stream.dots:
            short = self._short(dot.short)
            if dot.inner:
                held[dot.reduce.result] = self._operand(dot.left, dot, rows)
            else:
                sums[dot.reduce.result] = self._fresh(dot.reduce.result)
                shape = f"[{rows.constant}, {short.constant}]"
                self._line(f"{sums[dot.reduce.result]} = tl.full({shape}, 0.0, tl.float32)")
        online = stream.online
        if online is not None:
            for name, start in ((online.top, 'float("-inf")'), (online.total, "0.0")):
                sums[name] = self._fresh(name)
                self._line(f"{sums[name]} = tl.full([{rows.constant}, 1], {start}, tl.float32)")
        for axis in stream.repeats:
            name = self._fresh(axis.name)
            self.axes[axis.name] = AxisVariable(axis, name, "")
            self._line(f"for {name} in range({known(axis.size)}):")
            self.depth += 1
        start, stop = self._range(stream.band, rows, along)
        with self._inside(f"for x_start in range({start}, {stop}, {along.constant}):"):
            self._line(f"x = x_start + {self._layout(rows, along).lanes(along)}")
            self._bound(along)
            self._line(f"xt = x_start + {self._layout(self.turned, rows).lanes(self.turned)}")
            self._bound(self.turned)
            self.axes[stream.along.name] = AxisVariable(stream.along, "x", "x")
            self._steps(held, sums)
        self.depth -= len(stream.repeats)
        shorts = {dot.reduce.result: dot.short.name for dot in stream.dots}
        for name, variable in sums.items():
            tiles = frozenset({"y", shorts[name]} if name in shorts else {"y"})
            self.values[name] = Variable(variable, torch.float32, tiles)
        for block in stream.after:
            self._finish_block(block)

    def _range(self, band: Band | None, rows: Tile, along: Tile) -> tuple[str, str]:
        """The first place of the stream, a multiple of a block, and the end of it."""
        size = known(self._stream.along.size)
        if band is None:
            return "0", str(size)
        # low <= position * x - position * y + offset < high, for some y of the tile
        least = band.low - band.offset if band.position == 1 else band.offset - band.high + 1
        most = band.high - band.offset if band.position == 1 else band.offset - band.low + 1
        start, stop = "0", str(size)
        held = known(self._stream.rows[0].size)
        if least > -held + 1:
            start = self._fresh("first")
            self._line(f"{start} = tl.maximum(y_start + {least}, 0) // {along.constant} * {along.constant}")
        if most < size:
            stop = self._fresh("last")
            self._line(f"{stop} = tl.minimum(y_start + {rows.constant} + {most - 1}, {size})")
        return start, stop

    def _steps(self, held: dict[str, str], sums: dict[str, str]) -> None:
        """What is done for each tile of the stream."""
        stream, rows, along = self._stream, self.schedule.programs[-1], self._along
        whole = self._layout(rows, along)
        online, correction = stream.online, ""
        for step in stream.loop:
            if isinstance(step, Dot):
                result = step.reduce.result
                right = self._operand(step.right, step, self.turned)
                self.layout = whole
                source = step.reduce.source
                if step.inner:
                    name = self._fresh(result)
                    self._line(f"{name} = {self._product(held[result], f'tl.trans({right})', step)}", source)
                    self.values[result] = Variable(name, torch.float32, frozenset({"y", "x"}))
                    continue
                self._body(step.left[0], None)
                left = self.values[step.left[1]]
                assert left.dtype is step.operand
                total = f"{sums[result]} * {correction}" if correction else sums[result]
                self._line(f"{sums[result]} = {self._product(left.name, right, step, total)}", source)
                continue
            self.layout = whole
            if online is not None and any(isinstance(s, Reduce) and s.result == online.weight for s in step.body):
                correction = self._weights(online, sums)
                continue
            self._body([s for s in step.body if not isinstance(s, Reduce)], None)
            for reduce in [s for s in step.body if isinstance(s, Reduce) and s.over == () and online is None]:
                value = self.values[reduce.arg]
                if along.is_exact:
                    self.values[reduce.result] = value
                else:
                    name = self._fresh(reduce.result)
                    self._line(f"{name} = tl.where(x_in, {value.name}, 0.0)")
                    self.values[reduce.result] = Variable(name, value.dtype, frozenset({"y", "x"}))

    def _weights(self, online: Online, sums: dict[str, str]) -> str:
        """The weights of a tile, and what earlier sums are scaled by."""
        score = self.values[online.score].name
        if not self._along.is_exact:
            masked = self._fresh("score")
            self._line(f'{masked} = tl.where(x_in, {score}, float("-inf"))')
            score = masked
        top, total = sums[online.top], sums[online.total]
        higher, safe, scale = self._fresh("higher"), self._fresh("safe"), self._fresh("scale")
        weight = self._fresh(online.weight)
        maximum, added = self._use("maximum"), self._use("total")
        self._line(f"{higher} = {maximum}({top}, tl.reduce({score}, 1, {maximum}, keep_dims=True))")
        # Where all were -inf so far, so are their differences.
        self._line(f'{safe} = tl.where({higher} == float("-inf"), 0.0, {higher})')
        self._line(f"{scale} = {self._exponential(top, safe)}")
        self._line(f"{weight} = {self._exponential(score, safe)}")
        self._line(f"{total} = {total} * {scale} + tl.reduce({weight}, 1, {added}, keep_dims=True)")
        self._line(f"{top} = {higher}")
        self.values[online.weight] = Variable(weight, torch.float32, frozenset({"y", "x"}))
        return scale

    def _exponential(self, value: str, less: str) -> str:
        """exp(value - less): for weights that will be rounded to 16 bits, by the instruction for powers of 2."""
        if self._stream.operand is torch.float32:
            return f"libdevice.exp({value} - {less})"
        return f"tl.exp2(({value} - {less}) * {_LOG2_E})"

    def _product(self, left: str, right: str, dot: Dot, total: str | None = None) -> str:
        precision = "tf32" if dot.reduce.matrix == "tf32" else "ieee"
        added = f", {total}" if total is not None else ""
        return f"tl.dot({left}, {right}{added}, input_precision={precision!r})"

    def _short(self, axis: Axis) -> Tile:
        """The tile of all of a short axis, the second dimension of what has it."""
        tile = self.tiles.get(axis.name)
        if tile is None:
            tile = self.tiles[axis.name] = Tile(axis.name, (axis,), short_block(axis))
            self._line(f"{tile.name} = {self._layout(self.schedule.programs[-1], tile).lanes(tile)}")
            self._bound(tile)
        return tile

    def _operand(self, side: tuple[tuple[Stmt, ...], str], dot: Dot, across: Tile) -> str:
        """The tile of one operand, `across` by the short axis; what is loaded beyond the end of either is 0."""
        short, (statements, name) = self._short(dot.short), side
        self.layout = self._layout(across, short)
        before = dict(self.axes)
        self.axes[dot.short.name] = AxisVariable(dot.short, short.name, short.name)
        if across is self.turned:
            self.axes[self._stream.along.name] = AxisVariable(self._stream.along, across.name, across.name)
        self.fills = True
        self._body(statements, None)
        self.fills = False
        self.axes = before
        value = self.values[name]
        text = value.name
        both = frozenset({across.name, short.name})
        masks = [f"{tile.name}_in" for tile in (across, short) if not tile.is_exact]
        if masks and not isinstance(statements[-1], Load):
            text = f"tl.where({' & '.join(masks)}, {text}, 0.0)"
        if value.tiles != both:
            text = f"tl.broadcast_to({text}, {self.layout.shape(both, None)})"
        return text

    def _finish_block(self, block: Block) -> None:
        rows = self.schedule.programs[-1]
        if not block.axes:
            self._rows_body(block.body)
            return
        (axis,) = block.axes
        short = self._short(axis)
        self.layout = self._layout(rows, short)
        self.axes[axis.name] = AxisVariable(axis, short.name, short.name)
        self._body(block.body, None)

    def _rows_body(self, body: Sequence[Stmt]) -> None:
        """Of what there is one for each row."""
        for statement in body:
            if not isinstance(statement, Store):
                self._body([statement], None)
                continue
            pointer = self._pointer(statement.param, statement.index, frozenset({"y"}), None)
            mask = "" if self.schedule.programs[-1].is_exact else ", mask=y_in"
            self._line(f"tl.store({pointer}, {self.values[statement.arg].name}{mask})")
