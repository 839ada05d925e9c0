"""The Triton source of any Kernel for a target."""

from __future__ import annotations

from dsjit.codegen.triton.contraction import contraction_of, emit_contraction
from dsjit.codegen.triton.emitter import emit_kernel
from dsjit.codegen.triton.product_tiles import product_tiles
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.stream import stream_of
from dsjit.codegen.triton.stream_tiles import stream_tiles
from dsjit.codegen.triton.streaming import emit_stream
from dsjit.codegen.triton.target import TritonTarget
from dsjit.ir.kernel import Kernel

__all__ = ["candidates", "emit_for_target", "narrow_source"]


def candidates(kernel: Kernel, target: TritonTarget) -> tuple[KernelSource, ...]:
    """What the Kernel may be on `target`, the one that the cost model holds to be fastest first.

    The text depends on the arguments alone.
    """
    stream = stream_of(kernel)
    if stream is not None:
        return tuple([emit_stream(kernel, stream, tile) for tile in stream_tiles(stream, target)])
    contraction = contraction_of(kernel)
    if contraction is None:
        return (emit_kernel(kernel, target.processors),)
    tiles = product_tiles(contraction, target)
    return tuple([emit_contraction(kernel, contraction, tile) for tile in tiles])


def emit_for_target(kernel: Kernel, target: TritonTarget) -> KernelSource:
    """The first of `candidates`."""
    return candidates(kernel, target)[0]


def narrow_source(source: KernelSource, target: TritonTarget) -> KernelSource | None:
    """The same for sizes of which 32 bits hold every index; None where sizes are no parameters."""
    kernel = source.kernel
    return emit_kernel(kernel, target.processors, source.name, narrow=True) if kernel.sizes else None
