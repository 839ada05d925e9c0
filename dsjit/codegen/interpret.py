"""Runs the steps of a Graph with an interpreter of Kernels in place of machine code: slow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from dsjit.codegen.interpreter import run_kernel
from dsjit.codegen.placement import Step
from dsjit.fusion.lower import FusedKernel
from dsjit.fusion.views import Views, view_source
from dsjit.ir.graph import Graph, Value
from dsjit.ir.kernel import Kernel
from dsjit.passes.reference import evaluate_node

__all__ = ["InterpretedProgram", "KernelRunner"]

KernelRunner: TypeAlias = Callable[[Kernel, Mapping[str, torch.Tensor]], None]
"""Runs a Kernel over 1-D CPU tensors, given by the names of its params, as `run_kernel` does."""


@dataclass(frozen=True, slots=True)
class InterpretedProgram:
    """Called as a `Program`: with the input tensors; returns the outputs.

    run_kernel: the definition of Kernels, or an interpreter of what an emitter made of them.
    """

    graph: Graph
    steps: Sequence[Step]
    views: Views
    run_kernel: KernelRunner = run_kernel

    def __call__(self, inputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        known: dict[Value, torch.Tensor] = dict(zip(self.graph.inputs, inputs, strict=True))
        known.update(self.graph.constants)
        for step in self.steps:
            if isinstance(step.work, FusedKernel):
                self._kernel(step.work, known)
            else:
                node = step.work.node
                for value in node.inputs():
                    self._look(value, known)
                known.update(zip(node.outputs, evaluate_node(node, known), strict=True))
        outputs = [self._look(value, known).clone(memory_format=torch.preserve_format) for value in self.graph.outputs]
        written = [
            (write.opened(known[write.target]), self._look(write.value, known).clone()) for write in self.graph.writes
        ]
        for target, content in written:
            target.copy_(content)
        return outputs

    def _look(self, value: Value, known: dict[Value, torch.Tensor]) -> torch.Tensor:
        """The tensor of `value`, made through its views if it is one."""
        if value not in known:
            node = self.views.producers[value]
            self._look(view_source(node), known)
            known.update(zip(node.outputs, evaluate_node(node, known), strict=True))
        return known[value]

    def _kernel(self, fused: FusedKernel, known: dict[Value, torch.Tensor]) -> None:
        buffers: dict[str, torch.Tensor] = {}
        for value, param in zip(fused.values, fused.kernel.params, strict=True):
            type_ = value.type
            if param.access != "read":
                known[value] = torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype)
            tensor = self._look(value, known)
            span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            buffers[param.name] = tensor.as_strided((span,), (1,))
        self.run_kernel(fused.kernel, buffers)
