"""The LLVM IR of a direct convolution: `define void @NAME(ptr %args, i64 %begin, i64 %end)`, as a kernel's.

One work item is a block of output pixels times some blocks of output channels. It goes through the input channels in
chunks. Of a chunk it copies the pixels that it needs into a buffer on the stack, with zeros where the window reaches
beyond the image. Then, tile by tile, it keeps `rows * vectors` sums in registers while it runs over the taps of the
window and the channels of the chunk, and adds them to the output in memory, which stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.loops import add, counted_loop, i64, minimum, multiply, subtract
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.templates.arguments import load_arguments
from dsjit.codegen.llvm.types import vector
from dsjit.codegen.templates.convolution import ARGUMENTS, BUFFERS, Tile

__all__ = ["choose_tile", "emit_convolution"]


def choose_tile(width: int, target: Target) -> Tile:
    """The tile for weights in blocks of `width` output channels (a multiple of 16).

    The sums take most of the registers; what is left holds one row of weights and one element of the image, and what
    LLVM loads ahead where multiply-adds do not take an operand from memory. More than eight rows would need more
    addresses than there are general registers.
    """
    whole = width // target.lanes
    most = 4 if target.vector_registers == 32 else 2
    vectors = max(count for count in range(1, most + 1) if whole % count == 0)
    spare = 1 if target.is_x86 and target.has_fma else 5
    rows = min(8, (target.vector_registers - vectors - spare) // vectors)
    return Tile(rows, vectors, target.lanes, width)


def emit_convolution(name: str, tile: Tile, target: Target) -> str:
    """The module with the function `name`."""
    builder = FunctionBuilder()
    _Emitter(builder, tile, target).emit()
    body = "\n".join(builder.lines)
    header = f'target triple = "{target.triple}"\n'
    function = f"define void @{name}(ptr %args, i64 %begin, i64 %end) nounwind {{\n{body}\n}}\n"
    return "\n".join([header, *builder.declarations.values(), "", function])


class _Emitter:
    def __init__(self, builder: FunctionBuilder, tile: Tile, target: Target) -> None:
        self.b = builder
        self.tile = tile
        self.target = target
        self.vector = vector(tile.lanes, "float")
        self.n: dict[str, Operand] = {}

    # -- small parts ---------------------------------------------------------------------------------------------

    def times(self, *factors: Operand) -> Operand:
        product = factors[0]
        for factor in factors[1:]:
            product = multiply(self.b, product, factor)
        return product

    def maximum(self, x: Operand, y: Operand) -> Operand:
        return self.b.select(self.b.compare("icmp sgt", x, y), x, y)

    def floats(self, pointer: Operand, index: Operand) -> Operand:
        return self.b.offset(pointer, "float", index)

    def load(self, type_: str, pointer: Operand) -> Operand:
        return self.b.assign(type_, f"load {type_}, {pointer}, align {8 if type_ == 'i64' else 4}")

    def store(self, value: Operand, pointer: Operand) -> None:
        self.b.emit(f"store {value}, {pointer}, align {8 if value.type == 'i64' else 4}")

    def allocate(self, count: Operand, element: str) -> Operand:
        return self.b.assign("ptr", f"alloca {element}, {count}, align 64")

    def loop(self, count: Operand, body: Callable[[Operand], None], start: Operand | None = None) -> None:
        """`for i in range(start, count): body(i)`."""

        def run(counter: Operand, _: list[Operand]) -> list[Operand]:
            body(counter)
            return []

        counted_loop(self.b, start or i64(0), count, 1, [], run)

    def when(self, condition: Operand, then: Callable[[], None], otherwise: Callable[[], None]) -> None:
        yes, no, after = (self.b.fresh_label(hint) for hint in ("then", "else", "after"))
        self.b.branch(condition, yes, no)
        for label, body in ((yes, then), (no, otherwise)):
            self.b.label(label)
            body()
            self.b.jump(after)
        self.b.label(after)

    def split(self, item: Operand, size: Operand) -> tuple[Operand, Operand]:
        return self.b.binary("udiv", item, size), self.b.binary("urem", item, size)

    # -- the whole -----------------------------------------------------------------------------------------------

    def emit(self) -> None:
        b, n = self.b, self.n
        b.label("entry")
        n.update(load_arguments(b, BUFFERS, ARGUMENTS))
        pixels = self.times(n["block_images"], n["block_height"], n["block_width"])
        padded = add(b, pixels, i64(self.tile.rows))
        self.scratch_row = self.times(n["scratch_width"], n["chunk"])
        self.scratch_image = self.times(n["scratch_height"], self.scratch_row)
        self.scratch = self.allocate(self.times(n["block_images"], self.scratch_image), "float")
        self.reads = self.allocate(padded, "i64")
        self.writes = self.allocate(padded, "i64")
        self.sums = self.allocate(i64(self.tile.rows * self.tile.vectors), self.vector)
        self.taps = self.allocate(self.times(n["window_height"], n["taps_across"]), "i64")
        self.loop(n["window_height"], self.tap_row)
        self.loop(Operand("i64", "%end"), self.item, Operand("i64", "%begin"))
        b.emit("ret void")

    def tap_row(self, y: Operand) -> None:
        """Notes where the taps in row `y` of the window lie in the scratch buffer, in floats from its first."""
        b, n = self.b, self.n
        line = self.times(y, n["dilation_height"], self.scratch_row)
        first = self.times(y, n["taps_across"])

        def tap(x: Operand) -> None:
            position = add(b, line, self.times(x, n["dilation_width"], n["chunk"]))
            self.store(position, b.offset(self.taps, "i64", add(b, first, x)))

        self.loop(n["taps_across"], tap)

    def item(self, item: Operand) -> None:
        b, n = self.b, self.n
        place, across = self.split(item, n["inner_items"])
        group = b.select(b.compare("icmp ne", n["channels_outer"], i64(0)), place, across)
        spot = b.select(b.compare("icmp ne", n["channels_outer"], i64(0)), across, place)
        rest, column = self.split(spot, n["blocks_across"])
        images, row = self.split(rest, n["blocks_down"])
        self.image = self.times(images, n["block_images"])
        self.images = minimum(b, subtract(b, n["batch"], self.image), n["block_images"])
        self.top = self.times(row, n["block_height"])
        self.left = self.times(column, n["block_width"])
        self.rows = minimum(b, subtract(b, n["out_height"], self.top), n["block_height"])
        self.columns = minimum(b, subtract(b, n["out_width"], self.left), n["block_width"])
        self.pixels = self.times(self.images, self.rows, self.columns)
        self.block = self.times(group, n["block_channels"])
        self.blocks = minimum(b, subtract(b, n["channel_blocks"], self.block), n["block_channels"])
        self.chunk_weight = self.times(n["window_height"], n["window_width"], n["chunk"], i64(self.tile.width))
        self.addresses()
        self.inside()
        self.clear()
        self.loop(n["chunks"], self.one_chunk)

    def addresses(self) -> None:
        """Where each pixel of the block reads in the scratch buffer and writes in the output, in floats.

        Rows of the last tile that have no pixel read like the last pixel, and write nothing.
        """
        b, n = self.b, self.n
        across = self.times(n["step_width"], n["chunk"])
        down = self.times(n["step_height"], self.scratch_row)

        def image(i: Operand) -> None:
            plane = self.times(add(b, self.image, i), n["out_height"])
            corner = self.times(i, self.scratch_image)

            def row(r: Operand) -> None:
                line = self.times(add(b, plane, add(b, self.top, r)), n["out_width"])
                start = self.times(add(b, self.times(i, self.rows), r), self.columns)
                read = add(b, corner, self.times(r, down))

                def pixel(c: Operand) -> None:
                    number = add(b, start, c)
                    self.store(add(b, read, self.times(c, across)), b.offset(self.reads, "i64", number))
                    position = self.times(add(b, line, add(b, self.left, c)), n["out_channels"])
                    self.store(position, b.offset(self.writes, "i64", number))

                self.loop(self.columns, pixel)

            self.loop(self.rows, row)

        self.loop(self.images, image)
        last = self.load("i64", b.offset(self.reads, "i64", subtract(b, self.pixels, i64(1))))
        for extra in range(self.tile.rows):
            self.store(last, b.offset(self.reads, "i64", add(b, self.pixels, i64(extra))))

    def clear(self) -> None:
        """Zeros in the output block."""
        b, width = self.b, self.tile.width
        first = multiply(b, self.block, width)
        count = minimum(b, subtract(b, self.n["out_channels"], first), multiply(b, self.blocks, width))

        def pixel(number: Operand) -> None:
            position = self.load("i64", b.offset(self.writes, "i64", number))
            self.fill(self.floats(self.n["output"], add(b, position, first)), count)

        self.loop(self.pixels, pixel)

    def fill(self, pointer: Operand, count: Operand) -> None:
        """`count` zeros."""
        self.b.declarations["memset"] = "declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)"
        self.b.emit(f"call void @llvm.memset.p0.i64({pointer}, i8 0, {multiply(self.b, count, 4)}, i1 false)")

    def move(self, source: Operand, target: Operand, count: Operand) -> None:
        """Copies `count` floats."""
        self.b.declarations["memcpy"] = "declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)"
        size = multiply(self.b, count, 4)
        self.b.emit(f"call void @llvm.memcpy.p0.p0.i64({target}, {source}, {size}, i1 false)")

    # -- one chunk of channels -----------------------------------------------------------------------------------

    def one_chunk(self, number: Operand) -> None:
        b, n = self.b, self.n
        start = self.times(number, n["chunk"])
        count = minimum(b, subtract(b, n["channels"], start), n["chunk"])
        self.loop(self.images, lambda image: self.gather(image, start, count))
        self.loop(self.blocks, lambda block: self.one_block(add(b, self.block, block), number, count))

    def one_block(self, block: Operand, number: Operand, count: Operand) -> None:
        """Adds the chunk's products to one block of output channels."""
        b, n = self.b, self.n
        strip = self.tile.vectors * self.tile.lanes
        weight = self.floats(n["weight"], self.times(add(b, self.times(block, n["chunks"]), number), self.chunk_weight))
        first = multiply(b, block, self.tile.width)
        here = minimum(b, subtract(b, n["out_channels"], first), i64(self.tile.width))
        strips = i64(1)
        if strip < self.tile.width:
            strips, _ = self.split(add(b, here, i64(strip - 1)), i64(strip))

        def one(part: Operand) -> None:
            shift = multiply(b, part, strip)
            self.strip(self.floats(weight, shift), count, add(b, first, shift), subtract(b, here, shift))

        self.loop(strips, one)

    def inside(self) -> None:
        """Which columns of the scratch buffer lie in the image: from `self.begin` to before `self.end`."""
        b, n = self.b, self.n
        self.origin_y = subtract(b, self.times(self.top, n["stride_height"]), n["pad_height"])
        self.origin_x = subtract(b, self.times(self.left, n["stride_width"]), n["pad_width"])

        def first_from(x: Operand) -> Operand:
            """The first column at `x` or further right."""
            distance = self.maximum(subtract(b, x, self.origin_x), i64(0))
            rounded = add(b, distance, subtract(b, n["skip_width"], i64(1)))
            return minimum(b, b.binary("udiv", rounded, n["skip_width"]), n["scratch_width"])

        self.begin, self.end = first_from(i64(0)), first_from(n["width"])

    def gather(self, image: Operand, start: Operand, count: Operand) -> None:
        """Copies `count` channels from `start` on of the pixels that the block reads of an image."""
        b, n = self.b, self.n
        plane = self.times(add(b, self.image, image), n["height"])
        corner = self.floats(self.scratch, self.times(image, self.scratch_image))
        left = self.times(self.begin, n["chunk"])
        middle = self.times(subtract(b, self.end, self.begin), n["chunk"])
        right = subtract(b, self.scratch_row, add(b, left, middle))
        x = add(b, self.origin_x, self.times(self.begin, n["skip_width"]))
        one_run = b.binary(
            "and", b.compare("icmp eq", n["chunk"], n["channels"]), b.compare("icmp eq", n["skip_width"], i64(1))
        )

        def row(r: Operand) -> None:
            y = add(b, self.origin_y, self.times(r, n["skip_height"]))
            target = self.floats(corner, self.times(r, self.scratch_row))
            pixel = add(b, self.times(add(b, plane, y), n["width"]), x)
            source = self.floats(n["image"], add(b, self.times(pixel, n["channels"]), start))
            to = self.floats(target, left)

            def copy() -> None:
                self.fill(target, left)
                self.when(one_run, lambda: self.move(source, to, middle), lambda: self.copy_pixels(source, to, count))
                self.fill(self.floats(to, middle), right)

            self.when(b.compare("icmp ult", y, n["height"]), copy, lambda: self.fill(target, self.scratch_row))

        self.loop(n["scratch_height"], row)

    def copy_pixels(self, source: Operand, target: Operand, count: Operand) -> None:
        """Copies `count` channels of each pixel of a row that lies in the image."""
        b, n, lanes = self.b, self.n, self.tile.lanes
        whole = b.binary("and", count, i64(-lanes))
        stride = self.times(n["skip_width"], n["channels"])

        def pixel(_: Operand, carried: list[Operand]) -> list[Operand]:
            source, target = carried

            def copy(type_: str) -> Callable[[Operand, list[Operand]], list[Operand]]:
                def body(position: Operand, _: list[Operand]) -> list[Operand]:
                    self.store(self.load(type_, self.floats(source, position)), self.floats(target, position))
                    return []

                return body

            counted_loop(b, i64(0), whole, lanes, [], copy(self.vector))
            counted_loop(b, whole, count, 1, [], copy("float"))
            return [self.floats(source, stride), self.floats(target, n["chunk"])]

        counted_loop(b, self.begin, self.end, 1, [source, target], pixel)

    # -- tiles ---------------------------------------------------------------------------------------------------

    def strip(self, weight: Operand, count: Operand, first: Operand, left: Operand) -> None:
        """All pixels of the block, for as many output channels as a tile has: of `left` channels from `first` on."""

        def tile(pixel: Operand, _: list[Operand]) -> list[Operand]:
            self.one_tile(pixel, self.tile.rows, weight, count, first, left)
            return []

        counted_loop(self.b, i64(0), self.pixels, self.tile.rows, [], tile)

    def one_tile(
        self, first: Operand, rows: int, weight: Operand, count: Operand, shift: Operand, left: Operand
    ) -> None:
        b, tile = self.b, self.tile
        reads = b.offset(self.reads, "i64", first)
        pointers = [self.floats(self.scratch, self.load("i64", b.offset(reads, "i64", i64(r)))) for r in range(rows)]
        sums = self.window(pointers, weight, count)
        writes = b.offset(self.writes, "i64", first)
        present = subtract(b, self.pixels, first)
        full = b.binary(
            "and",
            b.compare("icmp sge", present, i64(rows)),
            b.compare("icmp sge", left, i64(tile.vectors * tile.lanes)),
        )

        def add_all() -> None:
            for r in range(rows):
                out = self.floats(self.n["output"], add(b, self.load("i64", b.offset(writes, "i64", i64(r))), shift))
                for v in range(tile.vectors):
                    place = self.floats(out, i64(v * tile.lanes))
                    old = self.load(self.vector, place)
                    self.store(b.binary("fadd", old, sums[r * tile.vectors + v]), place)

        def add_some() -> None:
            for number, value in enumerate(sums):
                self.store(value, self.floats(self.sums, i64(number * tile.lanes)))
            there = minimum(b, left, i64(tile.vectors * tile.lanes))

            def row(r: Operand) -> None:
                out = self.floats(self.n["output"], add(b, self.load("i64", b.offset(writes, "i64", r)), shift))
                mine = self.floats(self.sums, multiply(b, r, tile.vectors * tile.lanes))

                def one(o: Operand) -> None:
                    place = self.floats(out, o)
                    self.store(
                        b.binary("fadd", self.load("float", place), self.load("float", self.floats(mine, o))), place
                    )

                self.loop(there, one)

            self.loop(minimum(b, present, i64(rows)), row)

        self.when(full, add_all, add_some)

    def window(self, pointers: Sequence[Operand], weight: Operand, count: Operand) -> list[Operand]:
        """The sums of a tile over the taps of the window and `count` channels."""
        b, n, tile = self.b, self.n, self.tile
        zero = Operand(self.vector, "zeroinitializer")
        run = self.times(count, n["merged"])
        tap_weights = self.times(n["chunk"], n["merged"], i64(tile.width))
        start: list[Operand] = [weight, *[zero] * (len(pointers) * tile.vectors)]

        def channel(column: Operand, carried: list[Operand]) -> list[Operand]:
            row, sums = carried[0], carried[1:]
            return [self.floats(row, i64(tile.width)), *self.products(pointers, column, row, sums)]

        def tap(number: Operand, carried: list[Operand]) -> list[Operand]:
            first = self.load("i64", b.offset(self.taps, "i64", number))
            inner = counted_loop(b, first, add(b, first, run), 1, carried, channel, may_be_empty=False)
            return [self.floats(carried[0], tap_weights), *inner[1:]]

        taps = self.times(n["window_height"], n["taps_across"])
        return counted_loop(b, i64(0), taps, 1, start, tap, may_be_empty=False)[1:]

    def products(
        self, pointers: Sequence[Operand], column: Operand, row: Operand, sums: Sequence[Operand]
    ) -> list[Operand]:
        """One channel of one tap: `sums[r][v] += image[r] * weight[v]`. Many sums hide the cost of the loop around."""
        b, tile = self.b, self.tile
        weights = [self.load(self.vector, self.floats(row, i64(v * tile.lanes))) for v in range(tile.vectors)]
        result: list[Operand] = []
        for r, pointer in enumerate(pointers):
            pixel = self.load("float", self.floats(pointer, column))
            one = b.assign(self.vector, f"insertelement {self.vector} poison, {pixel}, i32 0")
            lanes = f"<{tile.lanes} x i32> zeroinitializer"
            spread = b.assign(self.vector, f"shufflevector {one}, {self.vector} poison, {lanes}")
            for v, weight in enumerate(weights):
                result.append(self.multiply_add(spread, weight, sums[r * tile.vectors + v]))
        return result

    def multiply_add(self, x: Operand, y: Operand, z: Operand) -> Operand:
        if self.target.has_fma:
            return self.b.intrinsic("fma", [x, y, z])
        return self.b.binary("fadd", self.b.binary("fmul", x, y), z)
