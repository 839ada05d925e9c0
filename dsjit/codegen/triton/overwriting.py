"""When a kernel on a GPU may write over a tensor that it reads."""

from __future__ import annotations

from typing import Final

from dsjit.codegen.nest import has_reductions
from dsjit.codegen.placement import Overwrites, can_overwrite
from dsjit.ir.kernel import Kernel, Load, Store, names_read

__all__ = ["GPU_OVERWRITES", "writes_over"]


def writes_over(kernel: Kernel, read: str, written: str) -> bool:
    """Whether buffer `written` may be the same memory as buffer `read`.

    A tile of a map is one program's alone. Inside of it, threads may hold elements of a load that are not those that
    they store; what is stored was handed from one to the other after the load then, provided that it depends on it.
    """
    if has_reductions(kernel.blocks) or not can_overwrite(kernel, read, written):
        return False
    statements = [statement for block in kernel.blocks for statement in block.body]
    depends: set[str] = set()
    for statement in statements:
        if isinstance(statement, Store):
            if statement.param == written and statement.arg not in depends:
                return False
        elif (isinstance(statement, Load) and statement.param == read) or not depends.isdisjoint(names_read(statement)):
            depends.add(getattr(statement, "result", ""))
    return True


GPU_OVERWRITES: Final = Overwrites(operands=False, targets=writes_over, memory_ends=True)
"""Tensors of the caller's alone: buffers of a Program are not written over while they are read."""
