"""A jitted function's way to a GPU, with a machine that stands for one at its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch

from dsjit.api import builder
from dsjit.api.entry import session
from dsjit.codegen import steps
from dsjit.ir.graph import Graph, Value
from dsjit.ops.properties import is_pure
from dsjit.passes import split_host
from tests.codegen.triton.machines import InterpretingDriver, TapeRecorder, interpreting_machine


@dataclass
class StandInGpu:
    """stream: the current one. recorder: of CUDA graphs."""

    stream: int = 7
    driver: InterpretingDriver = field(default_factory=InterpretingDriver)
    recorder: TapeRecorder = field(init=False)

    def __post_init__(self) -> None:
        self.recorder = TapeRecorder(self.driver)


def numbers(graph: Graph) -> set[Value]:
    """What stands for the values in the host's memory: tensors of no dimension, and what comes of these alone, but for
    what is converted to float32, which is taken to be on the GPU then."""
    found = {value for value in (*graph.inputs, *graph.constants) if not value.type.shape}
    for node in graph.nodes:
        given = list(node.inputs())
        moved = node.op is torch.ops.aten._to_copy.default and node.output.type.dtype is torch.float32
        if given and found.issuperset(given) and not moved and is_pure(node):
            found.update(node.outputs)
    return found


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInGpu]:
    """With backend="triton", tensors of the CPU are compiled for as if they were on a GPU."""
    found, device = StandInGpu(), torch.device("cpu")
    machine = interpreting_machine(found.driver, None, found.recorder, lambda: found.stream)
    monkeypatch.setattr(builder, "gpu_of", lambda graph: device)
    monkeypatch.setattr(split_host, "values_on_host", numbers)
    monkeypatch.setattr(steps, "_plan_native", lambda node, views: None)
    shared = session()
    shared.programs.clear()
    shared.trainings.clear()
    monkeypatch.setitem(shared.gpus, device, machine)
    yield found
    shared.programs.clear()
    shared.trainings.clear()
