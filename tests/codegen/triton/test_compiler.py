"""Triton source is accepted by Triton's compiler, for real targets: every spelling, cast and kind of reduction."""

from __future__ import annotations

import re

import pytest
import torch

from dsjit.codegen.triton.compiler import compile_source, resources
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.target import TritonTarget
from dsjit.ir.dtypes import KERNEL_DTYPES, short_name
from dsjit.ir.kernel import Apply, Axis, Block, Cast, Kernel, Load, Param, Reduce, Stmt, Store
from dsjit.ir.scalar import SCALAR_OPS, accepts
from dsjit.ir.verify_kernel import verify_kernel
from tests.codegen.kernels import at, generic, layer_norm, pointwise, row_reduce

TARGETS = ("cuda:sm_90", "hip:gfx942")
COMPUTED = (torch.float32, torch.float64, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
f32, i64 = torch.float32, torch.int64


def compiled(kernel: Kernel, target: str):
    verify_kernel(kernel)
    chosen = TritonTarget.parse(target)
    return compile_source(emit_kernel(kernel, chosen.processors), chosen)


def every_op(dtype: torch.dtype) -> Kernel:
    """All ops of `dtype`, each on two operands, stored apart."""
    params = [Param("a", dtype, "read"), Param("b", dtype, "read"), Param("c", torch.bool, "read")]
    body: list[Stmt] = [Load(f"v_{p.name}", p.name, at(i0=1), p.dtype) for p in params]
    for op, row in SCALAR_OPS.items():
        if accepts(row.domain, dtype):
            operands = ("v_c", "v_a", "v_b") if op == "select" else ("v_a", "v_b", "v_a")[: row.arity]
            result = torch.bool if row.result == "bool" else dtype
            params.append(Param(f"p_{op}", result, "write"))
            body += [Apply(f"r_{op}", op, operands, result), Store(f"p_{op}", at(i0=1), f"r_{op}")]
    return pointwise(1000, body, params)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", COMPUTED, ids=short_name)
def test_every_spelling_compiles(dtype: torch.dtype, target: str) -> None:
    assert compiled(every_op(dtype), target).binary


def test_arguments_are_eight_bytes_each_and_two_are_tritons_own() -> None:
    """As a launch packs them: addresses, sizes, and the scratch memory that no kernel wants."""
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    code = compiled(kernel, "cuda:sm_90")
    start = code.assembly.index(".entry")
    declared = re.findall(r"\.param (\S+) .*_param_\d+", code.assembly[start : code.assembly.index(")", start)])
    assert set(declared) == {".u64"} and len(declared) == code.parameters == 2 + len(sizes) + 2
    assert f".entry {code.name}(" in code.assembly


@pytest.mark.parametrize("target", TARGETS)
def test_every_cast_compiles(target: str) -> None:
    dtypes = sorted(KERNEL_DTYPES, key=short_name)
    params = [Param(f"x_{short_name(dtype)}", dtype, "read") for dtype in dtypes]
    body: list[Stmt] = [Load(f"v_{p.name}", p.name, at(i0=1), p.dtype) for p in params]
    for to in dtypes:
        for source in list(params[: len(dtypes)]):
            name = f"{source.name}_to_{short_name(to)}"
            params.append(Param(f"p_{name}", to, "write"))
            body += [Cast(f"r_{name}", f"v_{source.name}", to), Store(f"p_{name}", at(i0=1), f"r_{name}")]
    assert compiled(pointwise(4096, body, params), target).binary


@pytest.mark.parametrize(("columns", "target"), [(700, TARGETS[0]), (700, TARGETS[1]), (70_000, TARGETS[0])])
def test_every_reduction_compiles(columns: int, target: str) -> None:
    kinds = {
        f32: ("sum", "prod", "max", "min", "argmax", "argmin"),
        torch.int8: ("max", "min", "argmax", "argmin"),
        torch.uint8: ("max", "argmin"),
        i64: ("sum", "max", "argmax"),
        torch.bool: ("any", "all"),
    }
    params: list[Param] = []
    body: list[Stmt] = []
    tail: list[Stmt] = []
    for dtype, names in kinds.items():
        params.append(Param(f"x_{short_name(dtype)}", dtype, "read"))
        body.append(Load(f"v_{short_name(dtype)}", params[-1].name, at(i0=columns, i1=1), dtype))
        for kind in names:
            name = f"{kind}_{short_name(dtype)}"
            picks = kind.startswith("arg")
            result = i64 if picks else dtype
            params.append(Param(f"p_{name}", result, "write"))
            body.append(Reduce(name, kind, f"v_{short_name(dtype)}", result, at(i1=1) if picks else None))
            tail.append(Store(f"p_{name}", at(i0=1), name))
    blocks = (Block((Axis("i1", columns),), tuple(body)), Block((), tuple(tail)))
    assert compiled(Kernel("reductions", tuple(params), (Axis("i0", 50),), blocks, "i1"), target).binary


def test_sizes_and_tritons_own_parameters_are_counted() -> None:
    kernel, sizes = generic(row_reduce("sum", 5, 70), 1000)
    code = compiled(kernel, "cuda:sm_90")
    assert code.parameters == 2 + len(sizes) + 2
    assert code.threads % 32 == 0


def test_buffers_that_are_not_aligned_are_read_in_narrower_pieces() -> None:
    source, target = emit_kernel(layer_norm(64, 1024), 132), TritonTarget.parse("cuda:sm_90")
    wide = compile_source(source, target)
    narrow = compile_source(source, target, aligned=[False] * len(source.params))
    assert "ld.global.v4" in wide.assembly and "ld.global.v4" not in narrow.assembly
    assert resources(wide).spills == 0


def test_divisions_and_roots_are_correctly_rounded_and_denormals_kept() -> None:
    body = [
        Load("a", "x", at(i0=1), f32),
        Apply("b", "div", ("a", "a"), f32),
        Apply("c", "sqrt", ("b",), f32),
        Apply("d", "exp", ("c",), f32),
        Store("y", at(i0=1), "d"),
    ]
    assembly = compiled(
        pointwise(4096, body, (Param("x", f32, "read"), Param("y", f32, "write"))), "cuda:sm_90"
    ).assembly
    assert "div.rn.f32" in assembly and "sqrt.rn.f32" in assembly
    assert ".ftz" not in assembly.replace("ex2.approx.ftz", "")
