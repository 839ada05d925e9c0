"""Triton source to machine code of a GPU, which need not be at hand."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource
from triton.language.extra import libdevice
from triton.runtime.jit import JITFunction

from dsjit.codegen.triton.code import GpuCode, Resources
from dsjit.codegen.triton.function import load_function
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.types import POINTER_TYPES
from dsjit.errors import BackendError
from dsjit.ir.kernel import has_checks

__all__ = ["compile_source", "resources"]

_ALIGNMENT: Final = 16
"""Bytes, the widest access of one thread; of sizes, elements."""

_ASSEMBLY: Final = {"cuda": "ptx", "hip": "amdgcn"}
_BINARY: Final = {"cuda": "cubin", "hip": "hsaco"}


def compile_source(
    source: KernelSource,
    target: TritonTarget,
    fast: bool = False,
    aligned: Sequence[bool] | None = None,
    divisible: Sequence[bool] = (),
) -> GpuCode:
    """fast: multiply-adds may be contracted. aligned: which buffers start at a multiple of 16 bytes (default: all).
    divisible: which sizes are multiples of 16 (default: none).

    Raises BackendError, with Triton's message, and for code that wants scratch memory.
    """
    function = load_function(source, JITFunction, libdevice)
    signature = {
        **{param.name: POINTER_TYPES[param.dtype] for param in source.params},
        **dict.fromkeys(source.sizes, "i64"),
        **{name: "constexpr" for name, _ in source.constants},
    }
    starts = aligned if aligned is not None else [True] * len(source.params)
    known = [*starts, *divisible]
    attributes = {(n,): [["tt.divisibility", _ALIGNMENT]] for n, is_multiple in enumerate(known) if is_multiple}
    # Denormals are numbers to eager, in libdevice's functions, too. Overflow checks are for debugging.
    options = {
        "num_warps": max(1, source.warps * 32 // target.warp_size),
        "enable_fp_fusion": fast,
        "enable_reflect_ftz": False,
        "sanitize_overflow": False,
        "debug": has_checks(source.kernel),  # as assertions are
    }
    if source.schedule.stages is not None:
        options["num_stages"] = source.schedule.stages
    try:
        compiled = triton.compile(
            ASTSource(function, signature, dict(source.constants), attributes),
            target=GPUTarget(target.backend, target.arch, target.warp_size),
            options=options,
        )
    except Exception as error:
        raise BackendError(f"Triton cannot compile {source.name} for {target}: {error}\n{source.text}") from error
    metadata: Any = compiled.metadata
    if any(getattr(metadata, f"{kind}_scratch_size", 0) for kind in ("global", "profile")):
        raise BackendError(f"{source.name} wants memory for {target} that a launch does not give it")
    assembly: str = compiled.asm[_ASSEMBLY[target.backend]]
    return GpuCode(
        source,
        target,
        metadata.name,
        assembly,
        compiled.asm[_BINARY[target.backend]],
        metadata.shared,
        metadata.num_warps * target.warp_size,
        _parameter_count(assembly, target),
    )


def _parameter_count(assembly: str, target: TritonTarget) -> int:
    if target.backend == "hip":
        return len(re.findall(r"\.value_kind: +(?:global_buffer|by_value)", assembly))
    start = assembly.index(".entry")
    return len(re.findall(r"\.param .*_param_\d+", assembly[start : assembly.index(")", start)]))


def resources(code: GpuCode) -> Resources:
    """What the machine's assembler says. Raises BackendError when it cannot be run."""
    if code.target.backend == "cuda":
        return _of_ptxas(code)
    return Resources(
        _number(r"\.vgpr_count: +(\d+)", code.assembly),
        4
        * (
            _number(r"\.vgpr_spill_count: +(\d+)", code.assembly)
            + _number(r"\.sgpr_spill_count: +(\d+)", code.assembly)
        ),
    )


def _of_ptxas(code: GpuCode) -> Resources:
    assert isinstance(code.target.arch, int)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "kernel.ptx"
        path.write_text(code.assembly, encoding="utf-8")
        command = [get_ptxas(code.target.arch).path, "-v", "--fmad=false", str(path), "-o", f"{path}.cubin"]
        command.append(f"--gpu-name={sm_arch_from_capability(code.target.arch)}")
        try:
            said = subprocess.run(command, check=True, capture_output=True, text=True).stderr
        except (OSError, subprocess.CalledProcessError) as error:
            raise BackendError(f"ptxas: {error} {getattr(error, 'stderr', '')}") from error
    stores, loads = _number(r"(\d+) bytes spill stores", said), _number(r"(\d+) bytes spill loads", said)
    return Resources(_number(r"Used (\d+) registers", said), stores + loads)


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else 0
