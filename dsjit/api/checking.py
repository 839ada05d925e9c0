"""From a Compilation to a Program that checks itself: DSJIT_CHECK=2."""

from __future__ import annotations

from dsjit.api.compile import Compilation, compile_part
from dsjit.codegen.llvm.engine import KernelCache
from dsjit.codegen.program import Program
from dsjit.config import Numerics
from dsjit.oracle.checked import CheckedProgram
from dsjit.oracle.fault import CompiledGraph

__all__ = ["checked_program"]


def checked_program(compilation: Compilation, numerics: Numerics, cache: KernelCache) -> CheckedProgram:
    """compilation: of a Graph with exact sizes, made under DSJIT_CHECK=2."""
    program = compilation.program
    assert isinstance(program, Program)
    compiled = CompiledGraph(
        compilation.stages, compilation.steps, compilation.native, compilation.plan.views, compilation.compiled,
        program,
    )  # fmt: skip
    return CheckedProgram(compiled, lambda part: compile_part(part, numerics, cache))
