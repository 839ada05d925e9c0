"""Cuts what is computed in the host's memory out of a Graph for a GPU, to be run ahead of it.

Why: step counts and learning rates are numbers in the host's memory. Beside library calls of the GPU they are library
calls, too, one after the other, and nothing that reads them can be recorded as a CUDA graph. On their own, they are one
kernel of the host's. Pointwise ops that read such a number of no dimension get a copy of it on the GPU, which is part
of their kernel.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, replace

import torch

from dsjit.ir.graph import Graph, Node, Value, Write
from dsjit.ops.properties import is_dynamic, is_pure
from dsjit.ops.table import is_pointwise
from dsjit.passes.cse import eliminate_common_subexpressions
from dsjit.passes.dce import eliminate_dead_code
from dsjit.passes.rewrite import substitute

__all__ = ["HostSplit", "split_host", "values_on_host"]

aten = torch.ops.aten


@dataclass(frozen=True, slots=True)
class HostSplit:
    """whole: what was cut, in which nothing is computed twice. host: what the host computes; it writes nothing.
    device: the rest, whose inputs are those of the whole, and outputs of `host`. written: outputs of `host` that are
    written at the end, when nothing can fail any more."""

    whole: Graph
    host: Graph
    device: Graph
    written: tuple[Write, ...]


def values_on_host(graph: Graph) -> Set[Value]:
    """What the host computes from what is in its memory alone."""
    found = {value for value in (*graph.inputs, *graph.constants) if value.type.device.type == "cpu"}
    for node in graph.nodes:
        at_home = all(value.type.device.type == "cpu" for value in node.outputs)
        if at_home and is_pure(node) and not is_dynamic(node) and all(value in found for value in node.inputs()):
            found.update(node.outputs)
    return found


def split_host(captured: Graph, device: torch.device) -> HostSplit | None:
    """The two Graphs; None when the host has nothing to do."""
    graph = eliminate_common_subexpressions(captured)
    on_host = values_on_host(graph)
    constants = graph.constants
    host: list[Node] = []
    late: list[Node] = []
    moved: dict[Value, Value] = {}
    made: dict[Value, None] = {}
    following = graph.next_id()
    for node in graph.nodes:
        given = list(node.inputs())
        if all(value in on_host for value in node.outputs):
            host.append(node)
        elif _moves(node) and given[0] in on_host and given[0] not in constants:
            host.append(node)
            made[node.output] = None
        else:
            for value in given if is_pointwise(node.op) else ():
                if value in on_host and value not in constants and value not in moved and not value.type.shape:
                    copy = Value(following, replace(value.type, device=device))
                    following += 1
                    keywords = {"dtype": value.type.dtype, "device": device, "non_blocking": True}
                    host.append(Node(aten._to_copy.default, (value,), keywords, (copy,), node.source))
                    moved[value] = copy
            late.append(substitute(node, moved) if is_pointwise(node.op) else node)
    computed = {value for node in host for value in node.outputs}
    written = tuple([write for write in graph.writes if write.value in computed and write.target in on_host])
    writes = tuple([write for write in graph.writes if write not in written])
    wanted = [*[value for node in late for value in node.inputs()], *graph.results()]
    made.update((value, None) for value in wanted if value in computed)
    if not made:
        return None
    read_there = tuple([value for value in graph.inputs if value in on_host])
    ahead = Graph(read_there, tuple(host), tuple(made), (), constants, f"{graph.name}_host")
    outputs = tuple([value for value in graph.outputs if value not in computed])
    inputs = (*graph.inputs, *made)
    rest = eliminate_dead_code(replace(graph, inputs=inputs, nodes=tuple(late), outputs=outputs, writes=writes))
    read = {*rest.results(), *[v for node in rest.nodes for v in node.inputs()], *[write.target for write in writes]}
    kept = tuple([value for value in inputs if value in read])
    return HostSplit(
        graph, eliminate_dead_code(ahead), replace(rest, inputs=kept, donated=graph.donated & read), written
    )


def _moves(node: Node) -> bool:
    return node.op is aten._to_copy.default and is_pure(node)
