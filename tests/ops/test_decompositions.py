"""Every decomposition against the torch op that it stands for: values, shapes, dtypes, and the calls it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch

from dsjit.ir.graph import Value, map_values
from dsjit.ops.binding import bind
from dsjit.ops.builder import Builder
from dsjit.ops.decompositions import DECOMPOSITION_ROWS
from dsjit.ops.row import Decomposition
from dsjit.ops.table import rule_of
from tests.ops.checks import in_fp64, results_of_row
from tests.ops.samples import overload
from tests.ops.torch_scalars import node_of, run_nodes

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
Make = Callable[[torch.dtype], tuple[Any, ...]]


def normal(*shape: int, seed: int = 0) -> Callable[[torch.dtype], torch.Tensor]:
    def make(dtype: torch.dtype) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed + sum(shape))
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    return make


def positive(*shape: int) -> Callable[[torch.dtype], torch.Tensor]:
    return lambda dtype: normal(*shape, seed=7)(dtype).abs() + 0.5


def sometimes_infinite(dtype: torch.dtype) -> torch.Tensor:
    x = normal(6, 40)(dtype)
    x[0] = -math.inf
    x[1, 3] = math.inf
    x[2, 5] = -math.inf
    return x


@dataclass(frozen=True)
class Case:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any] = field(default_factory=dict)
    dtypes: tuple[torch.dtype, ...] = FLOATS

    def __str__(self) -> str:
        shown = ["T" if callable(a) else str(a) for a in (*self.args, *self.kwargs.values())]
        return f"{self.name}({', '.join(shown)})"


MATRIX = normal(9, 33)
VOLUME = normal(4, 5, 6)
IMAGE = normal(2, 6, 5, 4)
CHANNELS = normal(6)
VARIANCES = positive(6)
WIDE = (torch.float32, torch.float64)
MOVED = (torch.float32, torch.bfloat16, torch.int64, torch.bool)


def stack_of(dtype: torch.dtype) -> list[torch.Tensor]:
    return [normal(3, 4, seed=1)(dtype), normal(3, 4, seed=2)(dtype)]


def same(dtype: torch.dtype) -> torch.dtype:
    return dtype


def classes(dtype: torch.dtype) -> torch.Tensor:
    return torch.tensor([0, 32, 5, 5, -100, 17, 1, 2, 3])


def scalar(value: float) -> Callable[[torch.dtype], torch.Tensor]:
    return lambda dtype: torch.tensor(value, dtype=dtype)


CASES = [
    *(Case(f"{op}.default", (x, dim, False)) for op in ("_softmax", "_log_softmax")
      for x, dim in ((MATRIX, -1), (MATRIX, 0), (VOLUME, 1), (sometimes_infinite, 1), (normal(7), 0))),
    Case("softmax.int", (MATRIX, 1)),
    Case("softmax.int", (MATRIX, 1), {"dtype": torch.float32}),
    Case("log_softmax.int", (MATRIX, -1)),
    Case("_safe_softmax.default", (sometimes_infinite, 1)),
    Case("_softmax_backward_data.default", (MATRIX, lambda dtype: normal(9, 33, seed=2)(dtype).softmax(1), 1, same)),
    Case("_log_softmax_backward_data.default",
         (MATRIX, lambda dtype: normal(9, 33, seed=2)(dtype).log_softmax(-1), -1, same)),
    *(Case("nll_loss_backward.default", (grad, MATRIX, classes, None, reduction, -100, scalar(8.0)), {}, WIDE)
      for reduction, grad in ((0, normal(9)), (1, scalar(0.7)), (2, scalar(-1.0)))),
    *(Case("native_layer_norm.default", (MATRIX, [33], w, b, 1e-5))
      for w in (None, normal(33, seed=3)) for b in (None, normal(33, seed=4))),
    Case("native_layer_norm.default", (VOLUME, [5, 6], normal(5, 6, seed=3), normal(5, 6, seed=4), 1e-3)),
    Case("layer_norm.default", (MATRIX, [33], normal(33, seed=3), normal(33, seed=4))),
    Case("rms_norm.default", (MATRIX, [33], normal(33, seed=3), 1e-6)),
    Case("rms_norm.default", (MATRIX, [33])),
    Case("_fused_rms_norm.default", (MATRIX, [33], normal(33, seed=3), 1e-6)),
    *(Case("native_group_norm.default", (IMAGE, w, b, 2, 6, 20, groups, 1e-5))
      for groups in (1, 3) for w, b in ((None, None), (CHANNELS, normal(6, seed=5)))),
    *(Case("native_batch_norm.default", (IMAGE, w, b, CHANNELS, VARIANCES, False, 0.1, 1e-5))
      for w, b in ((None, None), (CHANNELS, normal(6, seed=5)))),
    Case("native_batch_norm.default", (IMAGE, CHANNELS, None, None, None, True, 0.1, 1e-5)),
    Case("_native_batch_norm_legit_no_training.default",
         (IMAGE, CHANNELS, normal(6, seed=5), CHANNELS, VARIANCES, 0.1, 1e-5)),
    Case("_native_batch_norm_legit.no_stats", (IMAGE, CHANNELS, normal(6, seed=5), True, 0.1, 1e-5)),
    *(Case("native_batch_norm_backward.default",
           (normal(2, 6, 5, 4, seed=8), IMAGE, w, None, None, CHANNELS, VARIANCES, True, 1e-5, [True, True, True]),
           {}, (torch.float32,))
      for w in (None, normal(6, seed=5))),
    *(Case("mean.dim", (VOLUME, dim, keep)) for dim in ([0], [1, 2], None) for keep in (False, True)),
    Case("mean.default", (MATRIX,)),
    Case("mean.default", (normal(0),)),
    Case("mean.default", (MATRIX,), {"dtype": torch.float64}),
    *(Case(f"{op}.correction", (VOLUME, dim), {"correction": correction, "keepdim": keep})
      for op in ("var", "std", "var_mean", "std_mean")
      for dim, correction, keep in ((None, None, False), ([1], 0, True), ([0, 2], 1.5, False))),
    *(Case(f"{op}.dim", (x, dim, keep), dtypes=(*FLOATS, torch.int64))
      for op in ("max", "min") for x, dim, keep in ((MATRIX, 1, False), (VOLUME, 0, True))),
    Case("aminmax.default", (MATRIX,), {"dim": 1}, (*FLOATS, torch.int32)),
    Case("aminmax.default", (MATRIX,), {}, (*FLOATS, torch.int32)),
    Case("logsumexp.default", (MATRIX, [1])),
    Case("logsumexp.default", (sometimes_infinite, [1], True)),
    Case("logsumexp.default", (VOLUME, [0, 2])),
    *(Case("linalg_vector_norm.default", (VOLUME, order, dim))
      for order in (2, 1, 0, math.inf, -math.inf) for dim in (None, [1], [0, 2])),
    Case("norm.ScalarOpt_dim", (MATRIX, 2, [1], True)),
    Case("norm.Scalar", (MATRIX, 1)),
    Case("count_nonzero.default", (MATRIX,), {}, (*FLOATS, torch.int64, torch.bool)),
    Case("count_nonzero.dim_IntList", (MATRIX, [0]), {}, (*FLOATS, torch.int64, torch.bool)),
    Case("nansum.default", (lambda dtype: torch.tensor([1, math.nan, 2.5], dtype=dtype),)),
    *(Case(f"{op}.default", (MATRIX, normal(9, 33, seed=9), reduction))
      for op in ("mse_loss", "soft_margin_loss") for reduction in (0, 1, 2)),
    Case("smooth_l1_loss.default", (MATRIX, normal(9, 33, seed=9), 0, 0.7), {}, (*WIDE, torch.bfloat16)),
    Case("huber_loss.default", (MATRIX, normal(9, 33, seed=9), 1, 0.7), {}, WIDE),
    Case("binary_cross_entropy_with_logits.default", (MATRIX, normal(9, 33, seed=9), None, None, 0)),
    Case("binary_cross_entropy_with_logits.default",
         (MATRIX, normal(9, 33, seed=9), normal(33, seed=2), positive(33), 1)),
    Case("log_sigmoid_forward.default", (MATRIX,)),
    *(Case(f"{op}.default", operands, scales, WIDE)
      for op, operands in (("addmm", (normal(5), normal(3, 4), normal(4, 5))),
                           ("addmv", (normal(3), normal(3, 4), normal(4))),
                           ("baddbmm", (normal(2, 3, 5), normal(2, 3, 4), normal(2, 4, 5))))
      for scales in ({}, {"beta": 0.5, "alpha": 2.0}, {"beta": 0})),
    Case("linear.default", (normal(2, 3, 4), normal(5, 4), normal(5)), {}, WIDE),
    Case("linear.default", (normal(2, 3, 4), normal(5, 4), None)),
    Case("stack.default", (stack_of, 1)),
    Case("stack.default", (stack_of, -1)),
    Case("glu.default", (normal(4, 8), -1)),
    Case("glu.default", (normal(4, 8), 0)),
    Case("dropout.default", (MATRIX, 0.5, False)),
    *(Case("constant_pad_nd.default", (IMAGE, pad, value), {}, MOVED) for value in (0, 3)
      for pad in ([1, 2], [1, 2, 3, 0], [0, 0, 1, 1], [-1, 2, 1, -2], [-1, -1], [0, 0], [-2, 0, 0, 0, 0, 0, 1, 0])),
    Case("constant_pad_nd.default", (IMAGE, [1, 1], -math.inf)),
    *(Case("slice_backward.default", (normal(2, 3, 4), [2, 8, 4], 1, start, end, 1), {}, MOVED)
      for start, end in ((0, 3), (5, 8), (-3, 2**63 - 1), (2, -3))),
    Case("slice_backward.default", (normal(2, 8, 4), [2, 8, 4], 1, -20, 20, 1), {}, MOVED),
    *(Case("select_backward.default", (normal(2, 4), [2, 5, 4], dim, index), {}, MOVED)
      for dim, index in ((1, 0), (1, 2), (-2, -1))),
    *(Case("slice_scatter.default", (VOLUME, normal(4, 2, 6, seed=3), 1, start, end, 1), {}, MOVED)
      for start, end in ((0, 2), (None, -3), (-2, None), (1, 3))),
    *(Case("select_scatter.default", (VOLUME, normal(4, 6, seed=3), 1, index), {}, MOVED) for index in (0, 2, -1)),
    *(Case("roll.default", (VOLUME, shifts, dims), {}, MOVED)
      for shifts, dims in (([1], [0]), ([-2, 3], [1, 2]), ([7], [-1]), ([5], []), ([0], [1]), ([1, 1], [2, 2]))),
    *(Case("repeat.default", (x, repeats), {}, MOVED)
      for x, repeats in ((MATRIX, [2, 3]), (CHANNELS, [2, 1, 3]), (VOLUME, [1, 1, 1]), (CHANNELS, [2, 0]))),
    Case("pixel_shuffle.default", (normal(2, 8, 3, 5), 2), {}, MOVED),
    Case("pixel_shuffle.default", (normal(9, 3, 5), 3), {}, MOVED),
    Case("pixel_unshuffle.default", (normal(2, 3, 4, 6), 2), {}, MOVED),
    Case("channel_shuffle.default", (IMAGE, 3), {}, MOVED),
    *(Case(f"{op}.default", (x, diagonal), {}, MOVED)
      for op in ("tril", "triu") for x in (MATRIX, VOLUME) for diagonal in (0, 2, -3)),
    *(Case("upsample_nearest2d.default", (IMAGE, [10, 12], *scales), {}, FLOATS)
      for scales in ((None, None), (2.0, 3.0))),
]  # fmt: skip


def made(case: Case, dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(arg(dtype) if callable(arg) else arg for arg in case.args)


def largest(args: tuple[Any, ...]) -> float:
    """The largest finite magnitude among the tensor arguments."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor) and arg.numel()]
    return max((float(t[t.isfinite()].abs().max()) for t in tensors if t.isfinite().any()), default=0.0)


@pytest.mark.parametrize(
    ("case", "dtype"), [pytest.param(case, dtype, id=f"{case}-{dtype}") for case in CASES for dtype in case.dtypes]
)
def test_is_no_further_from_fp64_than_torch(case: Case, dtype: torch.dtype) -> None:
    op, args = overload(f"aten.{case.name}"), made(case, dtype)
    results = results_of_row(op, *args, **case.kwargs)
    assert results is not None, "left to the library"
    outcome = op(*(in_fp64(arg) for arg in args), **{k: in_fp64(v) for k, v in case.kwargs.items()})
    truths = outcome if isinstance(outcome, tuple) else (outcome,)
    for actual, expected, truth in zip(*results, truths, strict=True):
        assert actual is not None
        assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype)
        if not expected.is_floating_point():
            assert torch.equal(actual, expected)
            continue
        assert torch.equal(actual.isnan(), expected.isnan())
        finite = truth.isfinite() & expected.isfinite()
        assert torch.equal(actual[~finite & ~expected.isnan()], expected[~finite & ~expected.isnan()])
        if finite.any():
            scale = max(float(truth[finite].abs().max()), largest(args))
            error = float((actual.double() - truth)[finite].abs().max())
            allowed = float((expected.double() - truth)[finite].abs().max())
            assert error <= max(1.5 * allowed, 8 * torch.finfo(expected.dtype).eps * scale), case


@pytest.mark.parametrize("case", CASES, ids=str)
def test_everything_is_on_the_device_of_the_operands(case: Case) -> None:
    """What is made of nothing (`full`, `arange`) would be on the CPU, and nothing could be fused with it."""
    device = torch.device("cuda", 1)

    def there(arg: Any) -> Any:
        return map_values(arg, lambda value: Value(value.id, replace(value.type, device=device)))

    op, args = overload(f"aten.{case.name}"), made(case, case.dtypes[0])
    node, _ = node_of(op, args, case.kwargs, op(*args, **case.kwargs))
    kwargs = {name: there(arg) for name, arg in node.kwargs.items()}
    node = replace(node, args=there(node.args), kwargs=kwargs, outputs=there(node.outputs))
    builder, rule = Builder(first_id=5000), rule_of(node)
    assert isinstance(rule, Decomposition)
    assert rule.rewrite(builder, tuple(value.type for value in node.outputs), **bind(node)) is not None
    for made_node in builder.nodes:
        assert all(value.type.device == device for value in made_node.outputs), made_node
        if not list(made_node.inputs()):
            assert made_node.kwargs.get("device") == device, made_node


def test_every_decomposition_has_a_case() -> None:
    assert {f"aten.{case.name}" for case in CASES} | {"aten.cudnn_batch_norm.default"} == set(DECOMPOSITION_ROWS)


@pytest.mark.parametrize("training", [False, True])
def test_the_batch_norm_of_cudnn_is_that_of_torch_outside_of_training(training: bool) -> None:
    f32 = torch.float32
    operands = IMAGE(f32), CHANNELS(f32), normal(6, seed=5)(f32), normal(6, seed=6)(f32), VARIANCES(f32)
    expected = torch.ops.aten.native_batch_norm.default(*operands, False, 0.1, 1e-5)
    reserved = torch.empty(0, dtype=torch.uint8)
    args = (*operands, training, 0.1, 1e-5)
    node, tensors = node_of(torch.ops.aten.cudnn_batch_norm.default, args, {}, (*expected, reserved))
    builder, rule = Builder(first_id=5000), rule_of(node)
    assert isinstance(rule, Decomposition)
    results = rule.rewrite(builder, tuple(value.type for value in node.outputs), **bind(node))
    if training:
        assert results is None
        return
    assert results is not None
    known = run_nodes(builder.nodes, tensors)
    found = [known[value] for value in results if value is not None]
    assert [(each.shape, each.dtype) for each in found] == [(each.shape, each.dtype) for each in (*expected, reserved)]
    torch.testing.assert_close(found[0], expected[0])


def refused(name: str, *args: Any, **kwargs: Any) -> bool:
    op = overload(f"aten.{name}")
    node, _ = node_of(op, args, kwargs, op(*args, **kwargs))
    rule = rule_of(node)
    assert isinstance(rule, Decomposition)
    return results_of_row(op, *args, **kwargs) is None


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("addmm.default", tuple(torch.ones(2, 2, dtype=torch.bfloat16) for _ in range(3))),
        ("addmm.default", tuple(torch.ones(2, 2, dtype=torch.int64) for _ in range(3))),
        ("linalg_vector_norm.default", (torch.ones(3), 3)),
        ("_softmax.default", (torch.ones(0, 3), 1, False)),
        ("nll_loss_backward.default", (torch.ones(()), torch.ones(3), torch.tensor(1), None, 1, -100, torch.ones(()))),
        ("dropout.default", (torch.ones(3), 0.5, True)),
        ("max.dim", (torch.tensor([True, False]), 0)),
        ("slice_backward.default", (torch.ones(2), [4], 0, 0, 4, 2)),
        ("slice_scatter.default", (torch.ones(4), torch.ones(2), 0, 0, 4, 2)),
        ("select_scatter.default", (torch.ones(4), torch.ones((), dtype=torch.int64), 0, 1)),
        ("upsample_nearest2d.default", (torch.ones(1, 1, 4, 4), [6, 8])),
        ("upsample_nearest2d.default", (torch.ones(1, 1, 4, 4), [8, 8], 2.1, 2.0)),
    ],
)
def test_leaves_to_the_library_what_it_does_not_cover(name: str, args: tuple[Any, ...]) -> None:
    assert refused(name, *args)


@pytest.mark.parametrize("shape", [(4, 6), (2, 6, 5, 4)])
@pytest.mark.parametrize("affine", [False, True])
def test_batch_norm_in_training_is_no_further_from_fp64_than_torch(shape: tuple[int, ...], affine: bool) -> None:
    def arguments(dtype: torch.dtype) -> tuple[Any, ...]:
        x = (normal(*shape)(torch.float32) + 3).to(dtype)
        parameters = [normal(6, seed=s)(torch.float32).to(dtype) if affine else None for s in (1, 2)]
        return (x, *parameters, CHANNELS(torch.float32).to(dtype), VARIANCES(torch.float32).to(dtype), True, 0.1, 1e-5)

    op = overload("aten.native_batch_norm.default")
    args, expected_args, truth_args = arguments(torch.float32), arguments(torch.float32), arguments(torch.float64)
    expected = [*op(*expected_args), *expected_args[3:5]]
    truths = [*op(*truth_args), *truth_args[3:5]]
    node, tensors = node_of(op, args, {}, expected)
    node = replace(node, mutates=(3, 4))
    rule = rule_of(node)
    assert isinstance(rule, Decomposition)
    builder = Builder(first_id=5000)
    rewritten = rule.rewrite(builder, tuple(value.type for value in node.outputs), **bind(node))
    assert rewritten is not None
    known = run_nodes(builder.nodes, tensors)
    for value, eager, truth in zip(rewritten, expected, truths, strict=True):
        assert value is not None
        error, allowed = ((result.double() - truth).abs().max() for result in (known[value], eager))
        assert error <= max(1.5 * allowed, 2 * torch.finfo(torch.float32).eps * truth.abs().max())


def test_new_nodes_carry_the_source_and_fresh_ids() -> None:
    builder = Builder(first_id=40)
    op = overload("aten._softmax.default")
    x = torch.randn(2, 3)
    node, _ = node_of(op, (x, 1, False), {}, op(x, 1, False))
    rule = rule_of(node)
    assert isinstance(rule, Decomposition)
    rule.rewrite(builder, (node.output.type,), self=node.args[0], dim=1, half_to_float=False)
    ids = [value.id for made_node in builder.nodes for value in made_node.outputs]
    assert ids == list(range(40, builder.next_id))
    assert {made_node.source for made_node in builder.nodes} == {builder.source}
