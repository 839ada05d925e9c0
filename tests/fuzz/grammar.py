"""The statements of which random programs are made: templates of Python text, by family.

What a family says of its statements keeps programs decidable: where eager rounds another way than a compiled program
may, the two differ in the last bits, and what then *looks* at these bits (a comparison, a floor, an index) may go
another way on both sides without either being wrong. So `sensitive` statements only take operands that have eager's
very bits.

Which zero the larger of 0.0 and -0.0 is, differs in eager between the vectors of a loop and its tail: what takes maxima
adds 0 first, which leaves no -0.0.

Placeholders: {0}, {1}, {2} are operands; {dim} is a dimension of operand 0; {other} another draw of the same; {keep} a
bool; {number} a Python number; {size} a small size; {dtype} a dtype.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from dsjit.ops.pointwise import POINTWISE_ROWS
from dsjit.ops.row import OpRow, Pointwise
from tests.ops.samples import NUMBERS, PARAMETERS, overload

__all__ = [
    "DIFFERENTIABLE",
    "FAMILIES",
    "NUMBERS",
    "TABLE",
    "Family",
    "TableCall",
    "arity",
    "exact_row",
    "finite_row",
    "quotient_row",
    "scaling_row",
    "sensitive_row",
]


@dataclass(frozen=True, slots=True)
class Family:
    """templates: expressions, or whole statements when `writes`. weight: how often it is drawn.

    sensitive: operands must have eager's bits. rounded: results may have other last bits than eager's. tame: finite
    operands must be small, so that no order of a sum overflows. floating: operand 0 must be floating.
    writes: the statement changes operand 0 and makes no new value.
    """

    templates: tuple[str, ...]
    weight: int
    sensitive: bool = False
    rounded: bool = False
    tame: bool = False
    floating: bool = False
    writes: bool = False


def arity(template: str) -> int:
    """How many operands a template takes."""
    return len({field for _, field, _, _ in string.Formatter().parse(template) if field and field.isdigit()})


FAMILIES: Final[Mapping[str, Family]] = {
    "arithmetic": Family(
        ("{0} + {1}", "{0} - {1}", "{0} * {1}", "{0} / {1}", "{0} + {number}", "{0} * {number}", "{number} - {0}",
         "{0} / {number}", "{number} / {0}", "-{0}", "abs({0})", "torch.maximum({0} + 0, {1} + 0)",
         "torch.minimum({0} + 0, {1} + 0)",
         "torch.relu({0})", "{0}.clamp(-1, 2)", "({0} + 0).clamp(min={1} + 0)", "torch.where({0}.isnan(), {1}, {0})",
         "{0} ** 2", "{0}.square()", "{0}.clone()", "torch.add({0}, {1}, alpha=2)"), 8,
    ),
    "looks": Family(
        ("{0} > {1}", "{0} <= {number}", "{0} == {1}", "{0} != {number}", "torch.where({0} > {number}, {1}, {2})",
         "{0}.masked_fill({1} > 0, {number})", "{0}.floor()", "{0}.round()", "{0}.trunc()", "torch.sign({0})",
         "{0}.clamp(-99, 99) // {number}", "{0}.clamp(-99, 99) % {number}",
         "torch.fmod({0}.clamp(-99, 99), {1}.trunc())", "{0}.logical_not()", "{0}.bool()",
         "({0} > 0) & ({1} > 0)", "~({0} > {1})", "torch.isfinite({0})", "torch.signbit({0})",
         "{0}.nan_to_num().clamp(-100, 100).to(torch.int32)", "{0}.nan_to_num().clamp(-9, 9).long()",
         "torch.isclose({0}, {1})", "{0}.heaviside({1})"), 5, sensitive=True,
    ),
    "casts": Family(("{0}.to({dtype})", "{0}.float()", "{0}.type_as({1})"), 3),
    "views": Family(
        ("{0}.transpose({dim}, {other})", "{0}.reshape(-1)", "{0}.flatten()", "{0}.unsqueeze({dim})", "{0}.squeeze()",
         "{0}.squeeze({dim})", "{0}[0]", "{0}[..., 0]", "{0}[..., 1:]", "{0}[..., :-1]", "{0}[1:]", "{0}[..., ::2]",
         "{0}[:, None]", "{0}.expand({size}, *{0}.shape)", "{0}.unfold({dim}, 2, 1)", "{0}.select({dim}, 0)",
         "{0}.narrow({dim}, 0, 1)", "{0}.diagonal()", "{0}.movedim(0, {dim})", "{0}.chunk(2, {dim})[0]",
         "{0}.split(1, {dim})[-1]", "{0}.unbind({dim})[0]", "{0}.mT", "{0}.contiguous()", "{0}.view(-1)",
         "{0}.as_strided((2, {0}.numel() // 3), (1, 1))", "{0}.permute(*reversed(range({0}.dim())))", "{0}.detach()",
         "{0}.view_as({1})", "{0}.expand_as({1})", "{0}.t()"), 7,
    ),
    "movement": Family(
        ("{0}.flip({dim})", "torch.roll({0}, 1, {dim})", "torch.cat(({0}, {1}), {dim})", "torch.stack(({0}, {1}))",
         "torch.stack(({0}, {1}), {dim})", "torch.nn.functional.pad({0}, (1, 2))",
         "{0}.repeat({size}, *[1] * {0}.dim())",
         "{0}.tril()", "{0}.triu(1)",
         "torch.cat((*torch.broadcast_tensors({0}, {1}),), {dim})",
         "torch.nn.functional.pad({0}, (1, 0), value={number})", "{0}.index_select({dim}, torch.tensor([0, 0]))",
         "{0}.gather({dim}, torch.zeros_like({0}, dtype=torch.int64))", "torch.zeros_like({0})", "{0}.new_ones(2, 3)",
         "torch.full_like({0}, {number})", "{0}.repeat_interleave(2, {dim})", "torch.arange({0}.shape[{dim}])",
         "{0}.rot90()", "{0}[torch.tensor([0, -1])]", "torch.atleast_2d({0})", "{0}[torch.arange({0}.shape[0]) // 2]",
         "{0}[..., torch.tensor([[0, -1], [-1, 0]])]", "{0}[torch.tensor([0]), :, torch.tensor([[-1], [0]])]",
         "torch.nn.functional.embedding(torch.tensor([[0, 1], [1, 0]]), {0})"), 5,
    ),
    "selections": Family(
        ("({0} + 0).amax({dim}, keepdim={keep})", "({0} + 0).amin({dim}, keepdim={keep})", "({0} + 0).max()",
         "({0} + 0).min()", "({0} + 0).max({dim}).values", "{0}.cummax({dim}).values"), 3,
    ),
    "choices": Family(
        ("{0}.argmax({dim}, keepdim={keep})", "{0}.argmin()", "{0}.max({dim}, keepdim={keep}).indices",
         "{0}.any({dim}, keepdim={keep})", "{0}.all()", "{0}.any()", "{0}.sort({dim}, stable=True).values",
         "{0}.argsort({dim}, stable=True)", "{0}.topk(1, {dim}).values", "torch.count_nonzero({0}, {dim})",
         "{0}.gather({dim}, {0}.argsort(dim={dim}, stable=True))",
         "{0}[{0}.flatten()[:2].nan_to_num().clamp(-1, 1).long()]",
         "{0}[{0} > 0]", "{0}.nonzero()", "torch.unique({0})", "({0} > {number}).sum({dim})",
         "torch.searchsorted(torch.tensor([-1.0, 0.0, 1.0]), {0}.float())", "torch.isin({0}, {1})"), 3, sensitive=True,
    ),
    "sums": Family(
        ("{0}.sum({dim}, keepdim={keep})", "{0}.sum()", "{0}.mean({dim}, keepdim={keep})",
         "{0}.clamp(-1, 1).prod({dim})",
         "{0}.cumsum({dim})", "{0}.var({dim}, correction=0)", "{0}.norm()", "{0}.norm(dim={dim}, keepdim={keep})",
         "torch.softmax({0}, {dim})", "torch.log_softmax({0}, {dim})", "{0}.logsumexp({dim})",
         "torch.nn.functional.layer_norm({0}, {0}.shape[-1:])", "{0}.nansum({dim})",
         "{0}.std_mean({dim}, correction=0)[1]",
         "torch.nn.functional.normalize({0}, dim={dim})",
         "torch.nn.functional.rms_norm({0}, {0}.shape[-1:], eps=1e-6)",
         "torch.nn.functional.mse_loss({0}, {0}.detach() + 1)", "torch.cdist({0}, {0}, p=1.0)",
         "torch.trapezoid({0}, dim={dim})"), 5, rounded=True, tame=True, floating=True,
    ),
    "whole sums": Family(("{0}.long().sum({dim}, keepdim={keep})", "{0}.bool().sum()"), 1, sensitive=True, tame=True),
    "products": Family(
        ("{0} @ {1}", "{0} @ {0}.mT", "{0}.mT @ {1}", "torch.einsum('...i,...i->...', {0}, {1})",
         "torch.nn.functional.linear({0}, {1})", "torch.addmm({0}, {0} @ {0}.mT, {1})", "torch.outer({0}, {0})",
         "torch.nn.functional.linear({0}, {1}.new_ones(2, {0}.shape[-1]), {1}.new_zeros(2))",
         "torch.nn.functional.conv1d({0}[None, :1], {1}.new_ones(2, 1, 2))", "torch.tensordot({0}, {0}, {0}.dim())",
         "torch.nn.functional.scaled_dot_product_attention({0}, {0}, {0})"), 3, rounded=True, tame=True, floating=True,
    ),
    "smooth": Family(
        ("{0}.exp()", "torch.sigmoid({0})", "{0}.tanh()", "{0}.sin()", "{0}.cos()",
         "torch.nn.functional.gelu({0}.nan_to_num().clamp(-4, 99))",
         "torch.nn.functional.silu({0})", "torch.nn.functional.softplus({0})", "{0}.expm1()", "{0}.erf()",
         "{0}.atan()", "torch.nn.functional.gelu({0}.nan_to_num().clamp(-4, 99), approximate='tanh')",
         "{0}.abs().add(1).log()",
         "{0}.abs().add(0.5).rsqrt()", "{0}.square().add(1).sqrt()", "{0}.abs().log1p()", "{0}.sinh()",
         "torch.atan2({0}, {1})", "({0}.abs() + 0.5) ** 1.5", "torch.logaddexp({0}, {1})", "torch.lerp({0}, {1}, 0.3)",
         "torch.addcmul({0}, {0}, {1}, value=0.5)", "torch.nn.functional.elu({0})", "{0} ** 3"), 6,
        rounded=True, tame=True, floating=True,
    ),
    "writes": Family(
        ("{0}.add_({1})", "{0}.mul_({number})", "{0}.copy_({1})", "{0}[0] = {number}", "{0}[..., 0] = {1}[..., 0]",
         "{0}.transpose({dim}, {other}).add_(1)", "{0}[..., 1:] += {number}", "{0}.clamp_(-1, 2)", "{0}.zero_()",
         "{0}.fill_({number})", "{0}.relu_()", "{0}.neg_()", "{0} -= {1}", "{0}.unsqueeze(0).sub_({1})",
         "{0}.index_fill_({dim}, torch.tensor([0]), {number})", "{0}.flatten()[:1].fill_(2)",
         "torch.add({0}, {1}, out={0})", "{0}.t_()", "{0}.unsqueeze_({dim})"), 5, writes=True,
    ),
    "writes by content": Family(
        ("{0}[{0} > 0] = {number}", "{0}.masked_fill_({1} > 0, {number})", "{0}.floor_()",
         "{0}.index_put_((torch.tensor([0]),), {1}[:1])", "{0}.sign_()"), 2, sensitive=True, writes=True,
    ),
    "draws": Family(
        ("torch.rand_like({0})", "torch.nn.functional.dropout({0}, 0.5)", "torch.randn(2, {0}.shape[-1])",
         "torch.bernoulli(torch.full_like({0}, 0.5))", "torch.randint(0, 5, {0}.shape)", "torch.randperm(4)",
         "{0}.clone().uniform_()", "torch.nn.functional.dropout({0}, {number} > 5)"), 1, floating=True,
    ),
}  # fmt: skip
"""Without control flow, attributes and calls of modules, which `tests.fuzz.draw` has."""

DIFFERENTIABLE: Final = ("arithmetic", "views", "movement", "selections", "sums", "products", "smooth", "writes")
"""Families of programs whose gradients are compared."""


# -- every pointwise row of the op table -----------------------------------------------------------------------------

_EXACT: Final = frozenset(
    {"add", "sub", "rsub", "mul", "div", "neg", "abs", "sqrt", "reciprocal", "relu", "relu6", "clamp",
     "clamp_min", "clamp_max", "maximum", "minimum", "max", "min", "fmax", "fmin", "where", "masked_fill",
     "clone", "copy", "zero", "fill", "full_like", "zeros_like", "ones_like", "new_full", "new_zeros",
     "new_ones", "lift_fresh_copy", "square", "hardtanh", "leaky_relu", "nan_to_num", "true_divide",
     "_to_copy", "_prelu_kernel", "rrelu"}
)  # fmt: skip
_SENSITIVE: Final = frozenset(
    {"floor_divide", "remainder", "fmod", "sign", "sgn", "copysign", "heaviside", "nextafter", "floor",
     "ceil", "trunc", "round", "frac", "hardshrink", "threshold", "eq", "ne", "lt", "le", "gt", "ge",
     "signbit", "isnan", "isinf", "isfinite", "isposinf", "isneginf", "_to_copy"}
)  # fmt: skip


_LEFT_OUT: Final = frozenset(
    {"copy", "maximum", "minimum", "max", "min", "fmax", "fmin", "clamp", "clamp_min", "clamp_max"}
)  # fmt: skip
"""What chooses between zeros, and `copy`, which no program calls: it keeps the storage offset of what it replaces."""


@dataclass(frozen=True, slots=True)
class TableCall:
    """A call of an op of the table: names of its tensor arguments, and of those that are conditions; each a choice of
    the other arguments, as text."""

    row: OpRow
    text: str
    tensors: tuple[str, ...]
    conditions: tuple[str, ...]
    parameters: tuple[Mapping[str, str], ...]
    numbers: tuple[str, ...]


def sensitive_row(row: OpRow) -> bool:
    """Whether a small change of an operand may change the result by more."""
    name = _base(row)
    logical = name.startswith(("logical", "bitwise", "__", "isnan"))
    power = name == "pow"  # NaN for a base that is less than 0, however little, and an exponent that is not whole
    return power or name in _SENSITIVE or logical or name.endswith("_backward") or "_mode" in row.name


def finite_row(row: OpRow) -> bool:
    """Whether eager itself answers otherwise for infinities or NaN, from one place in a tensor to the next."""
    return _base(row) in ("gelu", "gelu_backward", "elu_backward", "signbit", "copysign")


def scaling_row(row: OpRow) -> bool:
    """Whether eager may round `alpha * other` in the tail of its loop, and not in the vectors; in bfloat16 and float16,
    that is more than a last bit."""
    return _base(row) in ("add", "sub", "rsub")


def quotient_row(row: OpRow) -> bool:
    """Whether the vectors of eager's loop give NaN where the quotient overflows, and its tail the remainder."""
    return _base(row) in ("floor_divide", "remainder", "fmod") or "_mode" in row.name


def exact_row(row: OpRow) -> bool:
    """Whether results have eager's bits when the operands do."""
    return _base(row) in _EXACT | _SENSITIVE


def _base(row: OpRow) -> str:
    return row.name.split(".")[1]


def _call(row: OpRow) -> TableCall | None:
    rule = row.rule
    assert isinstance(rule, Pointwise)
    schema = overload(row.name)._schema
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    choices = PARAMETERS.get(row.name.removeprefix("aten."), [{}])
    named = [n for n in (*rule.shape_only, *rule.tensors) if n not in choices[0]]
    extra = [n for n in kinds if n not in (*rule.shape_only, *rule.tensors) and kinds[n] == "Tensor"]
    tensors = (*[n for n in named if "Tensor" in kinds[n]], *extra)
    required = {a.name for a in schema.arguments if not a.has_default_value()}
    given = {*tensors, *choices[0]}
    numbers = tuple(n for n in required - given if kinds[n] in ("number", "Scalar"))
    if not tensors or required - given - set(numbers):
        return None
    parameters = tuple({name: _text(value) for name, value in choice.items()} for choice in choices)
    if _base(row) in _LEFT_OUT:
        return None
    return TableCall(row, f"torch.ops.{row.name}", tensors, rule.conditions, parameters, numbers)


def _text(value: Any) -> str:
    text = repr(value)
    if text.startswith("tensor("):
        return f"torch.{text}"
    return {"inf": "float('inf')", "nan": "float('nan')"}.get(text, text)


TABLE: Final = tuple(call for call in map(_call, POINTWISE_ROWS.values()) if call is not None)
"""Each pointwise row that can be called with tensors."""
