"""Holds a row against the torch op that it describes."""

from __future__ import annotations

from typing import Any

import torch

from dsjit.ir.dtypes import compute_dtype
from dsjit.ir.graph import Node, Value
from dsjit.ops.binding import bind
from dsjit.ops.builder import Builder
from dsjit.ops.evaluation import convert, evaluate
from dsjit.ops.inference import pointwise_type, reduction_type
from dsjit.ops.row import Decomposition, Pointwise, Reduction, View
from dsjit.ops.table import rule_of
from tests.ops.torch_scalars import TorchScalars, node_of, run_nodes

Tensor = torch.Tensor


def ulps_between(actual: Tensor, expected: Tensor) -> Tensor:
    """How many representable numbers lie between; 0 for NaN against NaN, huge for NaN or infinity against a number."""
    if not expected.is_floating_point():
        return (actual != expected).to(torch.float64) * 2.0**53
    words = {2: torch.int16, 4: torch.int32, 8: torch.int64}[expected.element_size()]

    def ordered(x: Tensor) -> tuple[Tensor, Tensor]:
        """(whether the sign bit is set, distance from zero in representable numbers)"""
        bits = x.contiguous().view(words).to(torch.int64)
        return bits < 0, bits & torch.iinfo(words).max

    (negative, size), (expected_negative, expected_size) = ordered(actual), ordered(expected)
    same_side = (size - expected_size).abs().double()
    distance = torch.where(negative == expected_negative, same_side, size.double() + expected_size.double())
    nan = actual.isnan() | expected.isnan()
    return torch.where(nan, (actual.isnan() != expected.isnan()).double() * 2.0**53, distance)


def further_from_truth(actual: Tensor, expected: Tensor, truth: Tensor) -> Tensor:
    """Where `actual` is further from the fp64 `truth` than `expected` is."""
    error, allowed = (actual.double() - truth).abs(), (expected.double() - truth).abs()
    return ~((error <= allowed) | (actual.double() == truth) | (actual.isnan() & truth.isnan()))


def in_fp64(value: Any) -> Any:
    """A call argument with every floating tensor and dtype widened to fp64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, torch.dtype):
        return torch.float64 if value.is_floating_point else value
    if isinstance(value, (list, tuple)):
        return [in_fp64(item) for item in value]
    return value


def evaluate_pointwise(rule: Pointwise, node: Node, tensors: dict[Value, Tensor], b: TorchScalars) -> Tensor:
    result: Tensor = evaluate(rule, node, b, tensors.__getitem__)
    return result.expand(node.output.type.shape)


def evaluate_reduction(rule: Reduction, node: Node, tensors: dict[Value, Tensor]) -> Tensor:
    bound = bind(node)
    source = tensors[bound["self"]]
    output = node.output.type
    dims = rule.dims(bound, source.dim())
    kept = [d for d in range(source.dim()) if d not in dims]
    b = TorchScalars()
    x = convert(b, convert(b, source, compute_dtype(source.dtype)), rule.compute(source.dtype, output.dtype))
    rows = x.permute([*kept, *dims]).reshape([*(x.shape[d] for d in kept), -1])
    reduce = {
        "sum": lambda r: r.sum(-1), "prod": lambda r: r.prod(-1), "max": lambda r: r.amax(-1),
        "min": lambda r: r.amin(-1), "any": lambda r: r.any(-1), "all": lambda r: r.all(-1),
        "argmax": lambda r: r.argmax(-1), "argmin": lambda r: r.argmin(-1),
    }[rule.kind]  # fmt: skip
    return convert(b, reduce(rows), output.dtype).reshape(output.shape)


def results_of_row(op: Any, *args: Any, **kwargs: Any) -> tuple[list[Tensor | None], list[Tensor]] | None:
    """(what the row computes, what torch computes), or None when the row leaves this call to the library."""
    outcome = op(*args, **kwargs)
    expected = list(outcome) if isinstance(outcome, (tuple, list)) else [outcome]
    node, tensors = node_of(op, args, kwargs, outcome)
    rule = rule_of(node)
    if rule is None:
        return None
    if isinstance(rule, Pointwise):
        inferred = pointwise_type(rule, bind(node))
        assert (inferred.shape, inferred.dtype) == (node.output.type.shape, node.output.type.dtype)
        return [evaluate_pointwise(rule, node, tensors, TorchScalars())], expected
    if isinstance(rule, Reduction):
        inferred = reduction_type(rule, bind(node))
        assert (inferred.shape, inferred.dtype) == (node.output.type.shape, node.output.type.dtype)
        return [evaluate_reduction(rule, node, tensors)], expected
    if isinstance(rule, View):
        types = rule.types(bind(node))
        assert types == tuple(value.type for value in node.outputs)
        return list(expected), expected
    assert isinstance(rule, Decomposition)
    builder = Builder(first_id=5000)
    rewritten = rule.rewrite(builder, tuple(v.type for v in node.outputs), **bind(node))
    if rewritten is None:
        return None
    known = run_nodes(builder.nodes, tensors)
    return [None if value is None else known[value] for value in rewritten], expected
