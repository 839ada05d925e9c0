"""The op table as a whole: every row is well formed, and nothing pointwise is missing unawares."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._ops import OpOverload

from dsjit.ir.graph import Node
from dsjit.ops.row import Decomposition, Pointwise, Reduction, View
from dsjit.ops.table import OP_TABLE, row_of, rule_of
from tests.ops.samples import overload
from tests.ops.torch_scalars import node_of

NO_SCALAR_OP = {
    "digamma", "erfinv", "i0", "igamma", "igammac", "mvlgamma", "polygamma", "gcd", "lcm", "special_log_ndtr",
    "special_ndtri", "special_erfcx", "special_i0e", "special_i1", "special_i1e", "special_zeta", "special_airy_ai",
}  # fmt: skip
"""Pointwise ops whose function no row of `ir.scalar.SCALAR_OPS` computes."""

FAMILIES = ("bessel", "chebyshev", "hermite", "laguerre", "legendre", "modified", "scaled", "shifted", "spherical")
SPECIAL_FAMILIES = tuple(f"special_{family}" for family in FAMILIES)

LEFT_OUT = {
    "_conj_physical": "complex only",
    "angle": "complex mostly",
    "conj_physical": "complex only",
    "clip": "composite: reaches a trace as clamp",
    "float_power": "composite: reaches a trace as pow",
    "equal": "answers with a Python bool",
    "frexp": "two outputs, one of them an exponent",
    "ldexp": "the dtype of its power of two differs between releases",
    "logit_backward": "rarely met",
}


def test_rows_are_named_after_existing_functional_overloads() -> None:
    for name, row in OP_TABLE.items():
        op = overload(name)
        assert str(op) == name == row.name
        assert not op._schema.is_mutable, name


def test_operands_and_options_of_a_pointwise_row_are_schema_arguments() -> None:
    for name, row in OP_TABLE.items():
        if not isinstance(row.rule, Pointwise):
            continue
        arguments = {argument.name: str(argument.type) for argument in overload(name)._schema.arguments}
        named = (*row.rule.tensors, *row.rule.shape_only)
        assert set(named) <= set(arguments), name
        assert set(row.rule.conditions) <= set(row.rule.tensors), name
        assert not [n for n, type_ in arguments.items() if "Tensor" in type_ and n not in named and n != "self"], name


def test_a_decomposition_takes_every_schema_argument() -> None:
    for name, row in OP_TABLE.items():
        if isinstance(row.rule, Decomposition):
            accepted = inspect.signature(row.rule.rewrite).parameters
            takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
            missing = {a.name for a in overload(name)._schema.arguments} - set(accepted)
            assert takes_any or not missing, (name, missing)


def pointwise_overloads() -> list[OpOverload]:
    found = []
    for qualified in torch._C._dispatch_get_all_op_names():
        if not qualified.startswith("aten::"):
            continue
        packet, _, overload_name = qualified.removeprefix("aten::").partition(".")
        op = getattr(getattr(torch.ops.aten, packet, None), overload_name or "default", None)
        if op is None or torch.Tag.pointwise not in op.tags:
            continue
        if not any(argument.alias_info for argument in op._schema.arguments):
            found.append(op)
    return found


def test_every_functional_pointwise_op_of_aten_has_a_row_or_a_reason() -> None:
    missing = []
    for op in pointwise_overloads():
        packet = str(op).split(".")[1]
        excused = packet in NO_SCALAR_OP or packet in LEFT_OUT or packet.startswith(SPECIAL_FAMILIES)
        if row_of(op) is None and not excused:
            missing.append(str(op))
    assert missing == []


def test_a_row_is_found_by_overload_and_only_by_overload() -> None:
    row = row_of(torch.ops.aten.add.Tensor)
    assert row is OP_TABLE["aten.add.Tensor"]
    assert row_of(torch.ops.aten.abs.default) is OP_TABLE["aten.abs.default"]
    assert row_of(torch.ops.aten.mm.default) is None
    assert row_of(torch.add) is None


def test_complex_operands_have_no_rule_except_for_views() -> None:
    x = torch.ones(2, 3, dtype=torch.complex64)
    for op, result in ((torch.ops.aten.add.Tensor, x + x), (torch.ops.aten.abs.default, x.abs())):
        args = (x, x) if op is torch.ops.aten.add.Tensor else (x,)
        assert rule_of(node_of(op, args, {}, result)[0]) is None
    assert isinstance(rule_of(node_of(torch.ops.aten.t.default, (x,), {}, x.t())[0]), View)


@pytest.mark.parametrize("change", [{"mutates": (0,)}, {"effect": True}])
def test_nodes_with_side_effects_have_no_rule(change: dict[str, object]) -> None:
    x = torch.ones(2)
    node, _ = node_of(torch.ops.aten.exp.default, (x,), {}, x.exp())
    assert isinstance(rule_of(node), Pointwise)
    assert rule_of(Node(node.op, node.args, node.kwargs, node.outputs, **change)) is None


def test_a_division_that_could_raise_is_left_to_the_library() -> None:
    x, zero = torch.tensor([7, 8]), torch.tensor([2, 0])
    op = torch.ops.aten.remainder.Tensor
    assert rule_of(node_of(op, (x, x), {}, op(x, x))[0]) is None
    by_number = torch.ops.aten.remainder.Scalar
    assert isinstance(rule_of(node_of(by_number, (x, 3), {}, by_number(x, 3))[0]), Pointwise)
    assert isinstance(rule_of(node_of(op, (x, zero.float()), {}, op(x, zero.float()))[0]), Pointwise)


def test_a_bound_that_is_nan_is_left_to_the_library() -> None:
    x, op = torch.ones(3), torch.ops.aten.clamp.default
    assert rule_of(node_of(op, (x, torch.nan), {}, x)[0]) is None
    assert isinstance(rule_of(node_of(op, (x, 0.5), {}, x)[0]), Pointwise)


def test_the_four_kinds_of_rule_are_all_there() -> None:
    assert {type(row.rule) for row in OP_TABLE.values()} == {Pointwise, Reduction, View, Decomposition}
