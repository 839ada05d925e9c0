"""A printer of textual LLVM IR: names instructions, knows nothing of Kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

__all__ = ["FunctionBuilder", "Operand"]


class Operand(NamedTuple):
    """An LLVM value: its type (`<16 x float>`, `i64`, `ptr`) and its spelling (`%v12`, `0x3FF0...`), as text."""

    type: str
    text: str

    def __str__(self) -> str:
        return f"{self.type} {self.text}"


@dataclass(slots=True)
class FunctionBuilder:
    """Collects the lines of one function.

    declarations: the module-level declares that its calls need, by symbol.
    block: the label of the basic block that is being written, for the phis of its successors.
    """

    lines: list[str] = field(default_factory=list)
    declarations: dict[str, str] = field(default_factory=dict)
    counter: int = 0
    block: str = "entry"

    def fresh(self, hint: str = "v") -> str:
        self.counter += 1
        return f"%{hint}{self.counter}"

    def emit(self, line: str) -> None:
        self.lines.append("  " + line)

    def label(self, name: str) -> None:
        """Starts the basic block `name`."""
        self.lines.append(f"{name}:")
        self.block = name

    def fresh_label(self, hint: str) -> str:
        self.counter += 1
        return f"{hint}{self.counter}"

    def jump(self, label: str) -> None:
        self.emit(f"br label %{label}")

    def branch(self, condition: Operand, then: str, otherwise: str) -> None:
        self.emit(f"br {condition}, label %{then}, label %{otherwise}")

    def reserve(self) -> int:
        """A line to be written later, with `fill`."""
        self.lines.append("")
        return len(self.lines) - 1

    def fill(self, line: int, text: str) -> None:
        self.lines[line] = "  " + text

    def assign(self, type_: str, expression: str, hint: str = "v") -> Operand:
        """`%vN = expression`, an Operand of `type_`."""
        self.counter += 1
        name = f"%{hint}{self.counter}"
        self.lines.append(f"  {name} = {expression}")
        return Operand(type_, name)

    def binary(self, instruction: str, a: Operand, b: Operand) -> Operand:
        """`fadd`, `mul`, `and`, ...: both operands of one type, which is the result's."""
        return self.assign(a.type, f"{instruction} {a.type} {a.text}, {b.text}")

    def compare(self, instruction: str, a: Operand, b: Operand) -> Operand:
        """`fcmp olt`, `icmp slt`, ...: the result is `i1`, or a vector of it."""
        return self.assign(with_element(a.type, "i1"), f"{instruction} {a.type} {a.text}, {b.text}")

    def offset(self, pointer: Operand, element: str, index: Operand) -> Operand:
        """The address `index` elements after `pointer`; a vector of addresses for a vector index."""
        if index.text == "0":
            return pointer
        return self.assign(with_element(index.type, "ptr"), f"getelementptr {element}, {pointer}, {index}", "a")

    def select(self, condition: Operand, a: Operand, b: Operand) -> Operand:
        return self.assign(a.type, f"select {condition}, {a}, {b}")

    def convert(self, instruction: str, a: Operand, element: str) -> Operand:
        """`fptosi`, `bitcast`, `sext`, ...: to the same number of lanes of `element`."""
        target = with_element(a.type, element)
        return self.assign(target, f"{instruction} {a} to {target}")

    def call(self, result: str, symbol: str, args: list[Operand], attributes: str = "") -> Operand:
        """Call `@symbol`, declaring it; `result` is its return type (not void)."""
        self.declare(result, symbol, [a.type for a in args], attributes)
        return self.assign(result, f"call {result} @{symbol}({', '.join(map(str, args))})")

    def intrinsic(self, name: str, args: list[Operand], result: str | None = None) -> Operand:
        """Call the LLVM intrinsic `llvm.<name>` overloaded on the type of its first argument."""
        type_ = result or args[0].type
        return self.call(type_, f"llvm.{name}.{mangle(args[0].type)}", args)

    def declare(self, result: str, symbol: str, params: list[str], attributes: str = "") -> None:
        if symbol not in self.declarations:
            self.declarations[symbol] = f"declare {result} @{symbol}({', '.join(params)}) {attributes}".rstrip()


@cache
def lanes(type_: str) -> int:
    """16 for `<16 x float>`, 1 for a scalar type."""
    return int(type_[1:].split(" x ")[0]) if type_.startswith("<") else 1


@cache
def element(type_: str) -> str:
    """`float` for `<16 x float>` and for `float`."""
    return type_[1:-1].split(" x ")[1] if type_.startswith("<") else type_


@cache
def with_element(type_: str, new: str) -> str:
    """`<16 x i1>` for (`<16 x float>`, `i1`)."""
    return f"<{lanes(type_)} x {new}>" if type_.startswith("<") else new


@cache
def mangle(type_: str) -> str:
    """The suffix by which LLVM overloads intrinsics: `v16f32` for `<16 x float>`."""
    names = {"float": "f32", "double": "f64", "half": "f16", "bfloat": "bf16"}
    base = names.get(element(type_), element(type_))
    return f"v{lanes(type_)}{base}" if type_.startswith("<") else base
