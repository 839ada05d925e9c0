"""A short program that shows a wrong answer: the smallest part of a Graph that is wrong, as Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch

from dsjit.ir.graph import Graph, TensorType, Value
from dsjit.ir.print_graph import function_name, print_graph
from dsjit.oracle.subgraph import part_of
from dsjit.passes.reference import evaluate_node
from dsjit.verification.fill import filled

__all__ = ["reproducer", "shrink"]

SEED: Final = 0


def shrink(
    graph: Graph, inputs: Sequence[torch.Tensor], differs: Callable[[Graph, Sequence[torch.Tensor]], bool]
) -> tuple[Graph, list[torch.Tensor]]:
    """The smallest part of `graph`, with its inputs, for which `differs` still holds; it holds for the whole.

    First one output is left, then what is computed is made an input wherever that keeps the difference: by halves of
    the Graph as long as that goes, and then op by op.
    """
    env = _values(graph, inputs)
    best = Graph(graph.inputs, graph.nodes, tuple(dict.fromkeys(graph.results())), constants=graph.constants)

    def attempt(outputs: Sequence[Value], given: set[Value]) -> Graph | None:
        part = part_of(best, outputs, given, graph.name)
        return part if part.nodes and differs(part, [env[value] for value in part.inputs]) else None

    best = part_of(best, best.outputs, set(best.inputs) | set(best.constants), graph.name)
    for value in best.outputs:
        smaller = attempt([value], set(best.inputs))
        if smaller is not None:
            best = smaller
            break
    # An op in the middle may do as the output.
    for node in best.nodes[:-1]:
        smaller = attempt(node.outputs[:1], set(best.inputs))
        if smaller is not None and len(smaller.nodes) < len(best.nodes):
            best = smaller
            break
    halved: Graph | None = best
    while halved is not None:
        best = halved
        half = {value for node in best.nodes[: len(best.nodes) // 2] for value in node.outputs}
        halved = attempt(best.outputs, {*best.inputs, *half} - set(best.outputs))
        if halved is not None and len(halved.nodes) == len(best.nodes):
            break
    for node in reversed(best.nodes):
        if node in best.nodes and not set(best.outputs) & set(node.outputs):
            smaller = attempt(best.outputs, {*best.inputs, *node.outputs})
            if smaller is not None and len(smaller.nodes) < len(best.nodes):
                best = smaller
    return best, [env[value] for value in best.inputs]


def reproducer(
    graph: Graph,
    inputs: Sequence[torch.Tensor],
    differs: Callable[[Graph, Sequence[torch.Tensor]], bool],
    title: str,
) -> str:
    """A Python file that verifies the smallest part of `graph` that is wrong, on random tensors if these will do.

    Empty when only large tensors with the very content of `inputs` show the difference.
    """
    part, values = shrink(graph, inputs, differs)
    torch.manual_seed(SEED)
    made = [filled(value.type.shape, value.type.dtype, value.type.strides) for value in part.inputs]
    expressions = [_expression(value.type) for value in part.inputs]
    if not differs(part, made):
        if sum(tensor.numel() for tensor in values) > MOST_LITERALS:
            return ""
        expressions = [_literal(tensor, value.type) for tensor, value in zip(values, part.inputs, strict=True)]
    code = print_graph(part).replace("def ", "@dsjit.jit\ndef ", 1).replace("\n\n\n", "\n\n")
    code = code.replace("import torch\n", "import torch\nimport dsjit\nfrom dsjit.testing import filled\n", 1)
    name = function_name(part)
    lines = [
        f"# {title}",
        code,
        f"torch.manual_seed({SEED})",
        f"inputs = [{', '.join(expressions)}]",
        'if __name__ == "__main__":',
        "    with torch.no_grad():",
        f"        report = dsjit.verify({name}, *inputs)",
        "    print(report)",
        "    raise SystemExit(not report.ok)",
    ]
    return "\n".join(lines) + "\n"


MOST_LITERALS: Final = 64
"""Elements that are written out."""


def _values(graph: Graph, inputs: Sequence[torch.Tensor]) -> dict[Value, torch.Tensor]:
    env = dict(zip(graph.inputs, inputs, strict=True)) | dict(graph.constants)
    with torch.no_grad():
        for node in graph.nodes:
            env.update(zip(node.outputs, evaluate_node(node, env), strict=True))
    return env


def _expression(type_: TensorType) -> str:
    strides = "" if type_.is_contiguous else f", {type_.strides}"
    return f"filled({type_.shape}, {type_.dtype}{strides})"


def _literal(tensor: torch.Tensor, type_: TensorType) -> str:
    text = f"torch.tensor({tensor.tolist()}, dtype={type_.dtype})"
    if type_.is_contiguous:
        return text
    return f"torch.empty_strided({type_.shape}, {type_.strides}, dtype={type_.dtype}).copy_({text})"
