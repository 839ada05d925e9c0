"""The checker of Graphs: what it accepts, later stages may rely on.

- Every Value is defined once, before its uses, and types are sane (sizes >= 0, one stride per size).
- Every output and written value is defined; writes go to inputs, with the input's shape and dtype.
- Constants have the shape and dtype of their Value.
- No op writes to an argument, but to those that its node lists in `mutates`.
- With `run_ops`: shapes and dtypes of results, and strides of views, are what the op computes on meta tensors.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dsjit.errors import VerificationError
from dsjit.ir.graph import Arg, Graph, Node, TensorType, Value

__all__ = ["verify_graph"]


def verify_graph(graph: Graph, *, run_ops: bool = False) -> None:
    """Raise VerificationError, naming the node and its source line, when `graph` breaks a rule of the IR.

    run_ops: also run every op on meta tensors (some 20-100 us a node); ops without a meta kernel pass unchecked.
    """
    defined: set[Value] = set()
    ids: set[int] = set()

    def define(values: Iterable[Value], where: object) -> None:
        for value in values:
            if value in defined or value.id in ids:
                raise VerificationError(f"{where}: {value!r} is defined twice")
            if len(value.type.shape) != len(value.type.strides) or any(size < 0 for size in value.type.shape):
                raise VerificationError(f"{where}: {value!r} has an impossible type {value.type}")
            defined.add(value)
            ids.add(value.id)

    define(graph.inputs, "inputs")
    define(graph.constants, "constants")
    for value, tensor in graph.constants.items():
        _require_same(value.type, tensor, f"constant {value!r}")
    for node in graph.nodes:
        where = f"{node.op} at {node.source}"
        for value in node.inputs():
            if value not in defined:
                raise VerificationError(f"{where}: uses {value!r} before it is defined")
        define(node.outputs, where)
        _verify_mutation(node, where)
        if run_ops and not node.mutates:
            _verify_results(node, where)
    for value in graph.results():
        if value not in defined:
            raise VerificationError(f"result {value!r} is never defined")
    inputs = set(graph.inputs)
    for write in graph.writes:
        if write.target not in inputs:
            raise VerificationError(f"write at {write.source}: {write.target!r} is not an input")
        if _kind(write.target.type) != _kind(write.value.type):
            raise VerificationError(f"write at {write.source}: {write.value!r} does not fit {write.target!r}")


def _kind(type_: TensorType) -> tuple[tuple[int, ...], torch.dtype]:
    return type_.shape, type_.dtype


def _require_same(type_: TensorType, tensor: torch.Tensor, where: str) -> None:
    if _kind(type_) != (tuple(tensor.shape), tensor.dtype):
        raise VerificationError(f"{where}: {tuple(tensor.shape)} of {tensor.dtype} is not {type_}")


def _verify_mutation(node: Node, where: str) -> None:
    if len(node.mutates) > len(node.outputs) or not all(0 <= position < len(node.args) for position in node.mutates):
        raise VerificationError(f"{where}: mutates={node.mutates} does not fit its arguments and outputs")
    schema = getattr(node.op, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for position, argument in enumerate(schema.arguments):
        writes = argument.alias_info is not None and argument.alias_info.is_write
        given = position < len(node.args) or argument.name in node.kwargs
        if writes and given and position not in node.mutates:
            raise VerificationError(f"{where}: writes to its argument {argument.name!r}")


def _verify_results(node: Node, where: str) -> None:
    schema = getattr(node.op, "_schema", None)
    kwargs = {name: _meta(arg) for name, arg in node.kwargs.items()}
    if next(node.inputs(), None) is None:
        # A factory: without a device it would do its work here, and draw random numbers that eager would not draw.
        if schema is None or not any(argument.name == "device" for argument in schema.arguments):
            return
        kwargs["device"] = None
    if "device" in kwargs:
        kwargs["device"] = torch.device("meta")
    try:
        returned = node.op(*[_meta(arg) for arg in node.args], **kwargs)
    except Exception as error:
        # Ops whose result depends on data, or that have no meta kernel, cannot be checked this way.
        if isinstance(error, NotImplementedError) or "meta" in str(error).lower():
            return
        raise VerificationError(f"{where}: rejected by torch: {error}") from error
    problem = _mismatch(node, _flatten(returned))
    # A few meta kernels give other types than the kernels that they stand for: those have the last word.
    if problem is not None and _mismatch(node, _run_on_zeros(node)) is not None:
        raise VerificationError(f"{where}: {problem}")


def _mismatch(node: Node, results: list[torch.Tensor]) -> str | None:
    """What is wrong with the types of the node's outputs, given what the op computes."""
    if len(results) != len(node.outputs):
        return f"gives {len(results)} tensors for {len(node.outputs)} outputs"
    schema = getattr(node.op, "_schema", None)
    is_view = schema is not None and not schema.is_mutable and any(r.alias_info is not None for r in schema.returns)
    for value, tensor in zip(node.outputs, results, strict=True):
        if value.type.device.type == "meta":  # what the op leaves undefined
            continue
        if _kind(value.type) != (tuple(tensor.shape), tensor.dtype):
            return f"result {value!r}: {tuple(tensor.shape)} of {tensor.dtype} is not {value.type}"
        if is_view and _strides(tensor.stride(), value.type) != _strides(value.type.strides, value.type):
            return f"{value!r} has strides {value.type.strides}, not {tensor.stride()}"
    return None


def _run_on_zeros(node: Node) -> list[torch.Tensor]:
    """The results of the op on tensors of zeros; none when it raises."""
    with torch.random.fork_rng(devices=[]):
        try:
            return _flatten(
                node.op(*[_zeros(arg) for arg in node.args], **{name: _zeros(arg) for name, arg in node.kwargs.items()})
            )
        except Exception:
            return []


def _zeros(arg: Arg) -> Any:
    if isinstance(arg, Value):
        type_ = arg.type
        return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device=type_.device).zero_()
    if isinstance(arg, tuple):
        return [_zeros(item) for item in arg]
    return arg


def _strides(strides: tuple[int, ...], type_: TensorType) -> tuple[int, ...]:
    """The strides that address memory: those of dimensions of size 1 never do, nor any when there are no elements."""
    return () if type_.numel == 0 else tuple([s for s, size in zip(strides, type_.shape, strict=True) if size != 1])


def _meta(arg: Arg) -> Any:
    if isinstance(arg, Value):
        type_ = arg.type
        return torch.empty_strided(type_.shape, type_.strides, dtype=type_.dtype, device="meta")
    if isinstance(arg, tuple):
        return [_meta(item) for item in arg]
    return torch.device("meta") if isinstance(arg, torch.device) else arg


def _flatten(returned: Any) -> list[torch.Tensor]:
    if isinstance(returned, torch.Tensor):
        return [returned]
    if isinstance(returned, (tuple, list)):
        undefined = torch.empty(0, device="meta")
        results = [undefined if item is None or type(item) is int else item for item in returned]
        return [tensor for item in results for tensor in _flatten(item)]
    return []
