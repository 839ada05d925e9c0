"""A Graph as Python: what `print_graph` returns can be executed.

    from math import inf, nan
    import torch
    aten = torch.ops.aten

    def graph(x0: f32[2, 128], x1: f32[128]):
        t2 = aten.add.Tensor(x0, x1)  # f32[2, 128]  model.py:12
        return t2

Inputs are `x7`, constants `c7` (keyword arguments of the function), results `t7`, where 7 is the id of the Value.
Annotations and comments give dtype and shape, strides where they are not row-major, and the device when it is
not the CPU.
"""

from __future__ import annotations

import keyword
import os
import re
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from dsjit.ir.dtypes import short_name
from dsjit.ir.graph import Arg, Graph, Node, Source, TensorType, Value

__all__ = ["function_name", "op_name", "print_graph", "print_short", "print_type"]


def print_type(type_: TensorType) -> str:
    """`f32[2, 128]`; with `strides=(1, 2)` when not contiguous, and `@cuda:0` when not on the CPU."""
    text = f"{short_name(type_.dtype)}[{', '.join(map(str, type_.shape))}]"
    if not type_.is_contiguous:
        text += f" strides={type_.strides}"
    if type_.device.type != "cpu":
        text += f" @{type_.device}"
    return text


def print_graph(graph: Graph) -> str:
    """Runnable Python text of `graph`: imports, one function, a line a node with type and source line in a comment."""
    names = _names(graph, lambda value: value.id)
    lines = ["from __future__ import annotations", "from math import inf, nan", "import torch"]
    lines += dict.fromkeys(line for node in graph.nodes for line in _imports(node))
    lines += ["", "", _header(graph, names)]
    for node in graph.nodes:
        lines += [f"    {line}" for line in _node(node, names, comment=True)]
    lines += [f"    {line}" for line in _tail(graph, names, comment=True)]
    return "\n".join(lines) + "\n"


def print_short(graph: Graph) -> str:
    """The function alone, without comments, Values numbered from 0 in order of definition: equal Graphs print equal."""
    order: dict[Value, int] = {}
    for value in [*graph.inputs, *graph.constants, *(value for node in graph.nodes for value in node.outputs)]:
        order.setdefault(value, len(order))
    names = _names(graph, order.__getitem__)
    lines = [_header(graph, names)]
    for node in graph.nodes:
        lines += [f"    {line}" for line in _node(node, names, comment=False)]
    lines += [f"    {line}" for line in _tail(graph, names, comment=False)]
    return "\n".join(lines) + "\n"


def _names(graph: Graph, number: Callable[[Value], int]) -> dict[Value, str]:
    names = {value: f"t{number(value)}" for node in graph.nodes for value in node.outputs}
    names.update((value, f"c{number(value)}") for value in graph.constants)
    names.update((value, f"x{number(value)}") for value in graph.inputs)
    return names


def _header(graph: Graph, names: Mapping[Value, str]) -> str:
    params = [f"{names[value]}: {_annotation(value.type)}" for value in graph.inputs]
    if graph.constants:
        params += ["*", *(f"{names[value]}: {_annotation(value.type)}" for value in graph.constants)]
    return f"def {function_name(graph)}({', '.join(params)}):"


def function_name(graph: Graph) -> str:
    """The name of the printed function: that of the Graph, as an identifier (`_lambda_` for `<lambda>`)."""
    name = re.sub(r"\W", "_", graph.name)
    return name if name.isidentifier() and not keyword.iskeyword(name) else f"graph_{name}"


def _annotation(type_: TensorType) -> str:
    if type_.is_contiguous and type_.device.type == "cpu":
        return f"{short_name(type_.dtype)}[{', '.join(map(str, type_.shape)) or '()'}]"
    return repr(print_type(type_))


def _imports(node: Node) -> list[str]:
    called = [arg for arg in node.args if isinstance(arg, torch._ops.OpOverload | types.BuiltinFunctionType)]
    return [line for op in (node.op, *called) for line in _import(op)]


def _import(op: Callable[..., Any]) -> list[str]:
    if isinstance(op, torch._ops.OpOverload):
        return [f"{op.namespace} = torch.ops.{op.namespace}"]
    module = getattr(op, "__module__", None)
    return [f"from {module} import {op.__name__}"] if module else []


def op_name(op: Callable[..., Any]) -> str:
    """`aten.add.Tensor`, or the name of a function that is no overload."""
    if isinstance(op, torch._ops.OpOverload):
        return str(op)
    name = getattr(op, "__name__", repr(op))
    return name if getattr(op, "__module__", None) else f"torch.{name}"


def _node(node: Node, names: Mapping[Value, str], *, comment: bool) -> list[str]:
    note = ""
    if comment:
        note = f"  # {', '.join(print_type(value.type) for value in node.outputs)}{_source(node.source)}"
    args = [_arg(arg, names) for arg in node.args]
    targets = [names[value] for value in node.outputs]
    if node.mutates:
        clones = targets[len(targets) - len(node.mutates) :]
        fresh = targets[: len(targets) - len(node.mutates)]
        before = [f"{clone} = {args[position]}.clone()" for clone, position in zip(clones, node.mutates, strict=True)]
        for clone, position in zip(clones, node.mutates, strict=True):
            args[position] = clone
        call = _call(node, args, names)
        if not fresh:
            return [*before, f"{call}{note}"]
        return [*before, f"{_unpack(node, fresh)} = {call}{note}"]
    return [f"{_unpack(node, targets)} = {_call(node, args, names)}{note}"]


def _call(node: Node, args: list[str], names: Mapping[Value, str]) -> str:
    kwargs = [f"{name}={_arg(arg, names)}" for name, arg in node.kwargs.items()]
    return f"{op_name(node.op)}({', '.join([*args, *kwargs])})"


def _unpack(node: Node, targets: list[str]) -> str:
    if len(targets) == 1:
        schema = getattr(node.op, "_schema", None)
        several = schema is not None and (len(schema.returns) != 1 or str(schema.returns[0].type) != "Tensor")
        return f"({targets[0]},)" if several else targets[0]
    return ", ".join(targets) or "_"


def _tail(graph: Graph, names: Mapping[Value, str], *, comment: bool) -> list[str]:
    def note(source: Source) -> str:
        return f"  #{_source(source)[1:]}" if comment and _source(source) else ""

    lines: list[str] = []
    if graph.outputs and graph.writes:
        lines.append(f"results = {_returned(graph, names)}")
    for write in graph.writes:
        data = "" if write.counted else ".data"
        lines.append(f"{names[write.target]}{data}.copy_({names[write.value]}){note(write.source)}")
    if graph.outputs and graph.writes:
        lines.append("return results")
    elif graph.outputs:
        lines.append(f"return {_returned(graph, names)}")
    return lines or ["pass"]


def _returned(graph: Graph, names: Mapping[Value, str]) -> str:
    return ", ".join(names[value] for value in graph.outputs)


def _source(source: Source) -> str:
    if not source.line:
        return ""
    scope = f" ({source.scope})" if source.scope else ""
    return f"  {os.path.basename(source.file)}:{source.line}{scope}"


def _arg(arg: Arg, names: Mapping[Value, str]) -> str:
    if isinstance(arg, Value):
        return names[arg]
    if isinstance(arg, tuple):
        return f"[{', '.join(_arg(item, names) for item in arg)}]"
    return _literal(arg)


def _literal(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, torch._ops.OpOverload | types.BuiltinFunctionType):
        return op_name(value)
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    return repr(value)
