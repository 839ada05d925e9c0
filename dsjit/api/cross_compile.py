"""`dsjit.compile_for`: the kernels of a function for a GPU that is not at hand."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dsjit.api.builder import no_collection
from dsjit.api.compile import lower_units
from dsjit.api.entry import session
from dsjit.codegen.target import Target, gpu_target
from dsjit.codegen.templates.fuse import fuse_templates
from dsjit.codegen.triton.code import GpuCode, Resources
from dsjit.codegen.triton.emit import emit_for_target
from dsjit.codegen.triton.load import gpu_compiler
from dsjit.codegen.triton.source import KernelSource
from dsjit.codegen.triton.target import TritonTarget
from dsjit.codegen.triton.tuning import saves_traffic
from dsjit.config import Autotune, Numerics, Options
from dsjit.errors import CaptureError, OptionError
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.planner import plan_fusion
from dsjit.ir.graph import Graph, Source
from dsjit.ir.print_graph import op_name
from dsjit.passes.partition import partition
from dsjit.passes.pipeline import JOINT_PASSES, run_passes
from dsjit.trace.capture import Capture, capture

__all__ = ["CrossCompilation", "CrossKernel", "compile_for", "gpu_units"]


@dataclass(frozen=True, slots=True)
class CrossKernel:
    """One kernel: its Triton source, what it was compiled to, and what that takes.

    sources: the user's lines that it computes.
    """

    source: KernelSource
    code: GpuCode
    resources: Resources
    sources: tuple[Source, ...]

    @property
    def name(self) -> str:
        return self.source.name


@dataclass(frozen=True, slots=True)
class CrossCompilation:
    """What `compile_for` made. kernels: equal ones are listed once. library: the ops that stay calls of a library."""

    target: str
    kernels: tuple[CrossKernel, ...]
    library: tuple[str, ...]

    def __str__(self) -> str:
        table = Table("kernel", "lines", "registers", "spills", "shared", "threads", box=None, title=self.target)
        for kernel in self.kernels:
            lines = ", ".join(dict.fromkeys(str(source) for source in kernel.sources))
            numbers = (kernel.resources.registers, kernel.resources.spills, kernel.code.shared, kernel.code.threads)
            table.add_row(kernel.name, lines, *map(str, numbers))
        stream = io.StringIO()
        console = Console(file=stream, width=120, force_terminal=False)
        console.print(table)
        if self.library:
            console.print(f"library calls: {', '.join(self.library)}", highlight=False)
        return stream.getvalue()


def compile_for(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: str,
    numerics: Numerics = "eager",
    autotune: Autotune = "off",
) -> CrossCompilation:
    """The kernels of `function` for the GPU `target`: `cuda:sm_90`, `hip:gfx942`, or the like.

    No GPU is needed: the function is called once, for real, on the CPU tensors given, and captured as `dsjit.jit`
    captures it. Where gradients are wanted, the kernels of the backward are there, too. With autotune="model", matrix
    products that something is fused behind are among them; nothing can be measured here.

    Raises OptionError for a target or numerics that there are not, CaptureError when the call cannot be captured,
    BackendError when a kernel cannot be compiled, MissingPackageError without Triton, and what the function raises.
    """
    machine = TritonTarget.parse(target)
    options = Options(numerics=numerics, autotune=autotune)
    fast = options.numerics == "fast"
    if options.autotune == "measure":
        raise OptionError('dsjit.compile_for measures nothing: use autotune="model"')
    compile_source = gpu_compiler()
    kernels: dict[str, CrossKernel] = {}
    library: dict[str, None] = {}
    for unit in gpu_units(function, args, kwargs, fast, autotune == "model"):
        if not isinstance(unit, FusedKernel):
            library[unit] = None
            continue
        source = emit_for_target(unit.kernel, machine)
        if source.text not in kernels:
            code, resources = compile_source(source, machine, fast)
            lines = tuple(dict.fromkeys(node.source for node in unit.nodes))
            kernels[source.text] = CrossKernel(source, code, resources, lines)
    return CrossCompilation(str(machine), tuple(kernels.values()), tuple(library))


def gpu_units(
    function: Callable[..., Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    fast: bool = False,
    products: bool = False,
) -> Iterator[FusedKernel | str]:
    """What `function` is on a GPU, in order, repeats included: fused Kernels, and the names of library calls.

    products: matrix products that something is fused behind are Kernels, too.

    The function is called once, as `compile_for` calls it. Raises CaptureError, and what the function raises.
    """
    for graph in _graphs(_captured(function, tuple(args), kwargs or {})):
        yield from _units(graph, gpu_target(torch.device("cpu")), fast, products)


def _captured(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Capture:
    name = type(function).__name__ if isinstance(function, torch.nn.Module) else getattr(function, "__name__", "call")
    called = function._call_impl if isinstance(function, torch.nn.Module) else function
    with no_collection(), session().tracing():
        captured = capture(called, args, kwargs, name)
    if captured.observer is not None:
        captured.observer.let_go()
    if not captured.segments:
        problem = captured.problems[0]
        raise CaptureError(f"{name} cannot be captured as one graph: {problem.reason} (at {problem.source})")
    return captured


def _graphs(captured: Capture) -> Iterator[Graph]:
    """What was captured, and the backward where gradients are wanted."""
    if captured.joint is None:
        yield from [segment.graph for segment in captured.segments]
        return
    joint = captured.joint
    halves = partition(replace(joint, graph=run_passes(joint.graph, passes=JOINT_PASSES)))
    yield from (halves.forward, halves.backward)


def _units(graph: Graph, target: Target, fast: bool, products: bool) -> Iterator[FusedKernel | str]:
    """The Kernels of a Graph, and the names of its library calls."""
    optimized = run_passes(graph, passes=target.passes)
    plan = plan_fusion(optimized, target.limits, target.device)
    units = lower_units(plan, fast)
    if products:
        units = fuse_templates(units, plan.views, optimized, fast, saves_traffic)
    for unit in units:
        if isinstance(unit, FusedKernel):
            yield unit
        elif not unit.view:
            yield op_name(unit.node.op)
