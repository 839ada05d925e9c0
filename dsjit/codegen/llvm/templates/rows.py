"""The LLVM IR that adds rows to the rows that an index names: `define void @NAME(ptr %args, i64 %begin, i64 %end)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.loops import add, counted_loop, i64, minimum, multiply, subtract
from dsjit.codegen.llvm.target import Target
from dsjit.codegen.llvm.templates.arguments import load_arguments
from dsjit.codegen.llvm.types import MEMORY_TYPES, vector
from dsjit.codegen.templates.rows import BUFFERS, COLUMNS, AddRowsSizes, AddRowsTemplate

__all__ = ["emit_add_rows"]


def emit_add_rows(template: AddRowsTemplate, name: str, target: Target) -> str:
    """The module with the function `name`."""
    b = FunctionBuilder()
    element = MEMORY_TYPES[template.dtype]
    number_type = MEMORY_TYPES[template.index]
    bytes_of_element, bytes_of_number = template.dtype.itemsize, template.index.itemsize
    lanes = target.lanes * 4 // bytes_of_element
    instruction = "fadd" if template.dtype.is_floating_point else "add"

    def load(type_: str, pointer: Operand, alignment: int) -> Operand:
        return b.assign(type_, f"load {type_}, {pointer}, align {alignment}")

    b.label("entry")
    n = load_arguments(b, BUFFERS, [field.name for field in fields(AddRowsSizes)])
    first = multiply(b, Operand("i64", "%begin"), COLUMNS)
    stop = minimum(b, multiply(b, Operand("i64", "%end"), COLUMNS), n["columns"])
    width = subtract(b, stop, first)
    whole = b.binary("and", width, i64(-lanes))

    def across(to_row: Operand, operands: Sequence[Operand]) -> None:
        """Writes the sum of what lies in these rows, from the first column of this share on, to the row `to_row`."""

        def some(type_: str, column: Operand) -> list[Operand]:
            found = [load(type_, b.offset(row, element, column), bytes_of_element) for row in operands]
            total = found[0] if len(found) == 1 else b.binary(instruction, *found)
            b.emit(f"store {total}, {b.offset(to_row, element, column)}, align {bytes_of_element}")
            return []

        counted_loop(b, i64(0), whole, lanes, [], lambda column, _: some(vector(lanes, element), column))
        counted_loop(b, whole, width, 1, [], lambda column, _: some(element, column))

    def row_of(buffer: str, number: Operand) -> Operand:
        return b.offset(n[buffer], element, add(b, multiply(b, number, n["columns"]), first))

    def copy_row(number: Operand, _: list[Operand]) -> list[Operand]:
        across(row_of("output", number), [row_of("first", number)])
        return []

    def add_row(number: Operand, _: list[Operand]) -> list[Operand]:
        place = b.offset(n["index"], number_type, multiply(b, number, n["index_stride"]))
        named = load(number_type, place, bytes_of_number)
        named = named if named.type == "i64" else b.convert("sext", named, "i64")
        inside, outside, done = (b.fresh_label(hint) for hint in ("inside", "outside", "done"))
        b.branch(b.compare("icmp ult", named, n["extent"]), inside, outside)
        b.label(outside)
        b.emit(f"store i64 1, {n['flag']}, align 8")
        b.jump(done)
        b.label(inside)
        total = row_of("output", named)
        across(total, [total, row_of("source", number)])
        b.jump(done)
        b.label(done)
        return []

    apart, sums = b.fresh_label("apart"), b.fresh_label("sums")
    b.branch(b.compare("icmp eq", n["first"], n["output"]), sums, apart)
    b.label(apart)
    counted_loop(b, i64(0), n["extent"], 1, [], copy_row)
    b.jump(sums)
    b.label(sums)
    counted_loop(b, i64(0), n["rows"], 1, [], add_row)
    b.emit("ret void")
    header = f'target triple = "{target.triple}"\n'
    body = "\n".join(b.lines)
    function = f"define void @{name}(ptr %args, i64 %begin, i64 %end) nounwind {{\n{body}\n}}\n"
    return "\n".join([header, *b.declarations.values(), "", function])
