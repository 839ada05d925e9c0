"""What the functions of templates begin with."""

from __future__ import annotations

from collections.abc import Iterable

from dsjit.codegen.llvm.builder import FunctionBuilder, Operand
from dsjit.codegen.llvm.loops import i64

__all__ = ["load_arguments"]


def load_arguments(b: FunctionBuilder, buffers: Iterable[str], integers: Iterable[str]) -> dict[str, Operand]:
    """What `ptr %args` holds, by name: the addresses of `buffers`, then i64 `integers`."""
    args = Operand("ptr", "%args")
    named = [*[(name, "ptr") for name in buffers], *[(name, "i64") for name in integers]]
    return {
        name: b.assign(type_, f"load {type_}, {b.offset(args, 'i64', i64(place))}, align 8", "n")
        for place, (name, type_) in enumerate(named)
    }
