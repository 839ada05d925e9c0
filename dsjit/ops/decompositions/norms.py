"""Layer, RMS, group and batch norm.

Variances are taken around the mean (two passes over a row that stays in cache), which is what keeps them accurate
where the mean is large; see Chan, Golub and LeVeque, Algorithms for Computing the Sample Variance (1983).

What multiplies and adds is written `addcmul`, which rounds once: the compiler contracts those places in ATen's kernels
(aten/src/ATen/native/cpu/{layer_norm_kernel,group_norm_kernel,batch_norm_kernel}.cpp) too.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from dsjit.ir.graph import Value
from dsjit.ops.decompositions.precision import Outputs, Rewritten, cast, count, rewrites, widen
from dsjit.ops.row import Decomposition, GraphBuilder, OpRow
from dsjit.ops.views import view_strides

__all__ = ["ROWS"]

aten = torch.ops.aten


def _mean(b: GraphBuilder, x: Value, dims: tuple[int, ...]) -> Value:
    return b.call(aten.div.Tensor, b.call(aten.sum.dim_IntList, x, dims, True), count(x.type.shape, dims))


def _reciprocal_deviation(b: GraphBuilder, variance: Value, eps: float) -> Value:
    return b.call(aten.rsqrt.default, b.call(aten.add.Tensor, variance, eps))


def _standardise(b: GraphBuilder, x: Value, dims: tuple[int, ...], eps: float) -> tuple[Value, Value, Value]:
    """(x - mean, mean, 1 / sqrt(variance + eps)) over `dims`, which stay as size 1."""
    mean = _mean(b, x, dims)
    centred = b.call(aten.sub.Tensor, x, mean)
    variance = _mean(b, b.call(aten.mul.Tensor, centred, centred), dims)
    return centred, mean, _reciprocal_deviation(b, variance, eps)


def _affine(b: GraphBuilder, x: Value, weight: Value | None, bias: Value | None) -> Value:
    if weight is not None and bias is not None:
        return b.call(aten.addcmul.default, widen(b, bias), x, widen(b, weight))
    if weight is not None:
        return b.call(aten.mul.Tensor, x, widen(b, weight))
    return x if bias is None else b.call(aten.add.Tensor, x, widen(b, bias))


def _scaled_and_shifted(
    b: GraphBuilder, x: Value, mean: Value, rstd: Value, weight: Value | None, bias: Value | None
) -> Value:
    """x * scale + shift, with one scale and one shift a channel (all parameters already shaped to broadcast)."""
    scale = rstd if weight is None else b.call(aten.mul.Tensor, rstd, weight)
    if bias is None:
        shift = b.call(aten.neg.default, b.call(aten.mul.Tensor, mean, scale))
    else:
        shift = b.call(aten.addcmul.default, bias, mean, scale, value=-1)
    return b.call(aten.addcmul.default, shift, x, scale)


def _trailing(rank: int, normalized_shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(range(rank - len(normalized_shape), rank))


def native_layer_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    normalized_shape: tuple[int, ...],
    weight: Value | None,
    bias: Value | None,
    eps: float,
) -> Rewritten:
    if input.type.numel == 0:
        return None
    dims = _trailing(len(input.type.shape), normalized_shape)
    centred, mean, rstd = _standardise(b, widen(b, input), dims, eps)
    normalised = _affine(b, b.call(aten.mul.Tensor, centred, rstd), weight, bias)
    results = zip((normalised, mean, rstd), outputs, strict=True)
    return tuple(cast(b, value, output.dtype) for value, output in results)


def layer_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    normalized_shape: tuple[int, ...],
    weight: Value | None,
    bias: Value | None,
    eps: float,
    cudnn_enable: bool,
) -> Rewritten:
    if input.type.numel == 0:
        return None
    dims = _trailing(len(input.type.shape), normalized_shape)
    centred, _, rstd = _standardise(b, widen(b, input), dims, eps)
    normalised = _affine(b, b.call(aten.mul.Tensor, centred, rstd), weight, bias)
    return (cast(b, normalised, outputs[0].dtype),)


def fused_rms_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    normalized_shape: tuple[int, ...],
    weight: Value | None,
    eps: float | None,
) -> Rewritten:
    """Zhang and Sennrich, Root Mean Square Layer Normalization (2019). `eps` defaults to the input dtype's epsilon."""
    if input.type.numel == 0:
        return None
    x = widen(b, input)
    dims = _trailing(len(input.type.shape), normalized_shape)
    power = _mean(b, b.call(aten.mul.Tensor, x, x), dims)
    rstd = _reciprocal_deviation(b, power, torch.finfo(input.type.dtype).eps if eps is None else eps)
    normalised = _affine(b, b.call(aten.mul.Tensor, x, rstd), weight, None)
    results = zip((normalised, rstd), outputs, strict=False)
    return tuple(cast(b, value, output.dtype) for value, output in results)


def native_group_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    N: int,
    C: int,
    HxW: int,
    group: int,
    eps: float,
) -> Rewritten:
    grouped = (N, group, C // group, HxW)
    if input.type.numel == 0 or view_strides(input.type, grouped) is None:
        return None
    x = widen(b, b.call(aten.view.default, input, grouped))
    _, mean, rstd = _standardise(b, x, (2, 3), eps)
    channels = (1, group, C // group, 1)
    parameters = (None if p is None else b.call(aten.view.default, widen(b, p), channels) for p in (weight, bias))
    normalised = cast(b, _scaled_and_shifted(b, x, mean, rstd, *parameters), outputs[0].dtype)
    statistics = (cast(b, b.call(aten.view.default, value, (N, group)), outputs[1].dtype) for value in (mean, rstd))
    return (b.call(aten.view.default, normalised, input.type.shape), *statistics)


def _per_channel(b: GraphBuilder, parameter: Value, rank: int) -> Value:
    return b.call(aten.view.default, widen(b, parameter), (parameter.type.shape[0], *(1,) * (rank - 2)))


def _batch_norm_inference(
    b: GraphBuilder,
    outputs: Outputs,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    eps: float,
) -> Rewritten:
    if running_mean is None or running_var is None:
        return None
    rank = len(input.type.shape)
    rstd = _reciprocal_deviation(b, _per_channel(b, running_var, rank), eps)
    parameters = (None if p is None else _per_channel(b, p, rank) for p in (weight, bias))
    result = _scaled_and_shifted(b, widen(b, input), _per_channel(b, running_mean, rank), rstd, *parameters)
    empty = (b.call(aten.full.default, o.shape, 0.0, dtype=o.dtype, device=o.device) for o in outputs[1:])
    return (cast(b, result, outputs[0].dtype), *empty)


def native_batch_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Rewritten:
    """Training that also updates running statistics has the new ones as further results."""
    if training:
        if running_mean is None and running_var is None:
            return _batch_norm_of_batch(b, outputs, input, weight, bias, eps)
        if running_mean is None or running_var is None:
            return None
        return _batch_norm_training(b, outputs, input, weight, bias, running_mean, running_var, momentum, eps)
    return _batch_norm_inference(b, outputs, input, weight, bias, running_mean, running_var, eps)


def cudnn_batch_norm(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    training: bool,
    exponential_average_factor: float,
    epsilon: float,
) -> Rewritten:
    """What CUDA takes for float32 and float16, outside of training, too. In training it stays the library's, whose
    backward wants what it reserves."""
    if training:
        return None
    return _batch_norm_inference(b, outputs, input, weight, bias, running_mean, running_var, epsilon)


def native_batch_norm_no_training(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> Rewritten:
    return _batch_norm_inference(b, outputs, input, weight, bias, running_mean, running_var, eps)


def native_batch_norm_no_stats(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    training: bool,
    momentum: float,
    eps: float,
) -> Rewritten:
    return _batch_norm_of_batch(b, outputs, input, weight, bias, eps) if training else None


def _batch_norm_of_batch(
    b: GraphBuilder, outputs: Outputs, input: Value, weight: Value | None, bias: Value | None, eps: float
) -> Rewritten:
    """Statistics of the batch itself (instance norm)."""
    if input.type.numel == 0:
        return None
    rank = len(input.type.shape)
    dims = (0, *range(2, rank))
    x = widen(b, input)
    _, mean, rstd = _standardise(b, x, dims, eps)
    parameters = (None if p is None else _per_channel(b, p, rank) for p in (weight, bias))
    result = _scaled_and_shifted(b, x, mean, rstd, *parameters)
    statistics = (
        cast(b, b.call(aten.view.default, value, output.shape), output.dtype)
        for value, output in zip((mean, rstd), outputs[1:], strict=True)
    )
    return (cast(b, result, outputs[0].dtype), *statistics)


def _batch_norm_training(
    b: GraphBuilder,
    outputs: Outputs,
    input: Value,
    weight: Value | None,
    bias: Value | None,
    running_mean: Value,
    running_var: Value,
    momentum: float,
    eps: float,
) -> Rewritten:
    """Statistics in float64, which ATen accumulates them in, too; all else in float32. Normalising is apart from them,
    so that it fuses with what follows, and can be done again from the statistics."""
    operands = [value for value in (input, weight, bias, running_mean, running_var) if value is not None]
    if input.type.numel == 0 or any(value.type.dtype is not torch.float32 for value in operands):
        return None
    rank = len(input.type.shape)
    channels = input.type.shape[1:2]
    dims = (0, *range(2, rank))
    size = count(input.type.shape, dims)
    if size < 2:
        return None
    wide = cast(b, input, torch.float64)
    mean = _mean(b, wide, dims)
    centred = b.call(aten.sub.Tensor, wide, mean)
    squares = b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, centred, centred), dims, True)
    rstd = _reciprocal_deviation(b, b.call(aten.div.Tensor, squares, size), eps)

    def narrow(value: Value) -> Value:
        return cast(b, b.call(aten.view.default, value, channels), torch.float32)

    def updated(running: Value, fresh: Value) -> Value:
        new = b.call(aten.mul.Tensor, b.call(aten.view.default, fresh, channels), momentum)
        old = b.call(aten.mul.Tensor, cast(b, running, torch.float64), 1 - momentum)
        return cast(b, b.call(aten.add.Tensor, new, old), torch.float32)

    saved_mean, saved_rstd = narrow(mean), narrow(rstd)
    parameters = (None if p is None else _per_channel(b, p, rank) for p in (weight, bias))
    statistics = (_per_channel(b, saved_mean, rank), _per_channel(b, saved_rstd, rank))
    result = _scaled_and_shifted(b, input, *statistics, *parameters)
    unbiased = b.call(aten.div.Tensor, squares, size - 1)
    return result, saved_mean, saved_rstd, updated(running_mean, mean), updated(running_var, unbiased)


def native_batch_norm_backward(
    b: GraphBuilder,
    outputs: Outputs,
    *,
    grad_out: Value,
    input: Value,
    weight: Value | None,
    running_mean: Value | None,
    running_var: Value | None,
    save_mean: Value | None,
    save_invstd: Value | None,
    train: bool,
    eps: float,
    output_mask: tuple[bool, bool, bool],
) -> Rewritten:
    """Of a batch norm in training. Sums are in float64, as ATen's are; all else is in float32."""
    if not train or save_mean is None or save_invstd is None or input.type.numel == 0:
        return None
    operands = [value for value in (grad_out, input, weight, save_mean, save_invstd) if value is not None]
    if any(value.type.dtype is not torch.float32 for value in operands):
        return None
    rank = len(input.type.shape)
    channels = input.type.shape[1:2]
    dims = (0, *range(2, rank))
    size = count(input.type.shape, dims)
    mean, rstd = _per_channel(b, save_mean, rank), _per_channel(b, save_invstd, rank)
    wide = cast(b, grad_out, torch.float64)
    centred = b.call(aten.sub.Tensor, cast(b, input, torch.float64), cast(b, mean, torch.float64))
    total = b.call(aten.sum.dim_IntList, wide, dims, True)
    product = b.call(aten.sum.dim_IntList, b.call(aten.mul.Tensor, wide, centred), dims, True)
    wide_rstd = cast(b, rstd, torch.float64)

    def parameter(value: Value) -> Value:
        return cast(b, b.call(aten.view.default, value, channels), torch.float32)

    of_input = of_weight = of_bias = None
    if output_mask[0]:
        slope = b.call(aten.mul.Tensor, b.call(aten.mul.Tensor, product, wide_rstd), wide_rstd)
        slope = cast(b, b.call(aten.div.Tensor, slope, size), torch.float32)
        level = cast(b, b.call(aten.div.Tensor, total, size), torch.float32)
        scale = rstd if weight is None else b.call(aten.mul.Tensor, rstd, _per_channel(b, weight, rank))
        along = b.call(aten.mul.Tensor, b.call(aten.sub.Tensor, input, mean), slope)
        across = b.call(aten.sub.Tensor, b.call(aten.sub.Tensor, grad_out, level), along)
        of_input = b.call(aten.mul.Tensor, across, scale)
    if output_mask[1]:
        of_weight = parameter(b.call(aten.mul.Tensor, product, wide_rstd))
    if output_mask[2]:
        of_bias = parameter(total)
    return of_input, of_weight, of_bias


_UPDATING: Final = OpRow("aten.native_batch_norm.default", Decomposition(native_batch_norm, updates=(3, 4)))

ROWS: Final[Mapping[str, OpRow]] = {
    _UPDATING.name: _UPDATING,
    **rewrites(
        {
            "native_layer_norm.default": native_layer_norm,
            "layer_norm.default": layer_norm,
            "_fused_rms_norm.default": fused_rms_norm,
            "rms_norm.default": fused_rms_norm,
            "native_group_norm.default": native_group_norm,
            "native_batch_norm_backward.default": native_batch_norm_backward,
            "cudnn_batch_norm.default": cudnn_batch_norm,
            "_native_batch_norm_legit.no_stats": native_batch_norm_no_stats,
            "_native_batch_norm_legit_no_training.default": native_batch_norm_no_training,
        }
    ),
}
