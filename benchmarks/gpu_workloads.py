"""What `benchmarks.gpu` measures: functions of a few ops, and a layer, each bound by memory or by matrix units."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F

__all__ = ["WORKLOADS", "Program", "Workload"]

Program = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Workload:
    """inputs: shape and dtype of each. streams: whether memory bounds it: each input is read once, each output written.

    relative, absolute: how far an element may be from eager's. library: the same as a call of
    scaled_dot_product_attention. scale: of inputs after the first one: of weights, so that results stay of order 1.
    waits: whether the time from call to call counts, which is the host's; else calls are timed on the device alone.
    """

    name: str
    program: Program
    inputs: tuple[tuple[tuple[int, ...], torch.dtype], ...]
    streams: bool
    relative: float = 1.3e-6
    absolute: float = 1e-5
    library: Program | None = None
    scale: float = 1.0
    waits: bool = False

    def arguments(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator(device).manual_seed(0)
        first, *others = [_drawn(shape, dtype, generator, device) for shape, dtype in self.inputs]
        return (first, *[other if self.scale == 1 else other * self.scale for other in others])


def _drawn(
    shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator, device: torch.device
) -> torch.Tensor:
    if not dtype.is_floating_point:
        numbers = torch.iinfo(dtype)
        return torch.randint(numbers.min + 1, numbers.max, shape, generator=generator, device=device, dtype=dtype)
    return torch.randn(shape, generator=generator, device=device).to(dtype)


def _rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * w


def _chain(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x.sigmoid() * y + x.tanh()).relu() * F.gelu(y)


def _layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def _residual(x: torch.Tensor, w: torch.Tensor, scale: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
    return residual + F.linear(x, w) * scale


def _int8_linear(x: torch.Tensor, w: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    return F.silu(F.linear(x, w.to(x.dtype) * scales[:, None]))


def _int4_linear(x: torch.Tensor, packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Two numbers in a byte, groups of 128 with a scale each."""
    w = torch.stack((packed & 0xF, packed >> 4), -1).view(*scales.shape, -1).to(x.dtype) - 8
    return F.silu(F.linear(x, (w * scales[..., None]).flatten(1)))


def _float8_linear(x: torch.Tensor, w: torch.Tensor, scale_x: torch.Tensor, scale_w: torch.Tensor) -> torch.Tensor:
    return torch._scaled_mm(x, w.t(), scale_x[0], scale_w[0], out_dtype=torch.bfloat16).relu()


def _latent(q: torch.Tensor, q_rotary: torch.Tensor, latents: torch.Tensor, k_rotary: torch.Tensor) -> torch.Tensor:
    """Latent attention of one token (DeepSeek-V2, 2024), with what makes keys and values absorbed into the query."""
    scores = torch.einsum("bhc,btc->bht", q, latents) + torch.einsum("bhr,btr->bht", q_rotary, k_rotary)
    return torch.einsum("bht,btc->bhc", (scores * 0.04).softmax(-1), latents)


def _attention_gradients(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, gradient: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    with torch.enable_grad():
        leaves = [each.detach().requires_grad_() for each in (q, k, v)]
        out = F.scaled_dot_product_attention(leaves[0], leaves[1], leaves[2], is_causal=True)
        return torch.autograd.grad(out, leaves, gradient)


def _written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return (q @ k.transpose(-2, -1) * 0.125 + bias).softmax(-1) @ v


def _biased(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=0.125)


def _decoder_layer(
    x: torch.Tensor, qkv: torch.Tensor, out: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, down: torch.Tensor
) -> torch.Tensor:
    """Attention and a gated layer behind RMS norms, with residuals: (batch, length, width)."""
    heads = [part.view(*part.shape[:2], -1, 64).transpose(1, 2) for part in F.linear(_unit(x), qkv).chunk(3, -1)]
    attended = F.scaled_dot_product_attention(heads[0], heads[1], heads[2], is_causal=True)
    x = x + F.linear(attended.transpose(1, 2).flatten(2), out)
    y = _unit(x)
    return x + F.linear(F.silu(F.linear(y, gate)) * F.linear(y, up), down)


def _unit(x: torch.Tensor) -> torch.Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


def _scores(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    return torch.tanh(q @ k.transpose(-2, -1) * 0.125)


_f32, _bf16, _fp8 = torch.float32, torch.bfloat16, torch.float8_e4m3fn
_HEADS: Final = ((8, 16, 1024, 64), _bf16)

WORKLOADS: Final[tuple[Workload, ...]] = (
    Workload("pointwise chain", _chain, (((8192, 4096), _f32),) * 2, True),
    Workload(
        "pointwise chain, bfloat16", _chain, (((8192, 4096), _bf16),) * 2, True, relative=1.6e-2, absolute=1e-2
    ),
    Workload("softmax", lambda x: x.softmax(-1), (((8192, 4096), _f32),), True),
    Workload("long softmax", lambda x: x.softmax(-1), (((512, 50257), _f32),), True),
    Workload("layer norm", _layer_norm, (((8192, 4096), _f32), ((4096,), _f32), ((4096,), _f32)), True),
    Workload("rms norm, bfloat16", _rms_norm, (((8192, 4096), _bf16), ((4096,), _bf16)), True, 1.6e-2, 1e-2),
    Workload("transposed add", lambda x, y: x.t() + y, (((4096, 8192), _f32), ((8192, 4096), _f32)), True),
    Workload("column sum", lambda x: x.sum(0), (((8192, 4096), _f32),), True, absolute=1e-3),
    Workload(
        "linear and gelu, bfloat16", lambda x, w, b: F.gelu(F.linear(x, w, b)),
        (((4096, 1024), _bf16), ((4096, 1024), _bf16), ((4096,), _bf16)), False, 1.6e-2, 5e-1,
    ),
    Workload(
        "linear, scale and residual, bfloat16", _residual,
        (((4096, 1024), _bf16), ((4096, 1024), _bf16), ((4096,), _bf16), ((4096, 4096), _bf16)), False, 1.6e-2, 5e-1,
    ),
    Workload(
        "linear of int8 weights, bfloat16", _int8_linear,
        (((64, 4096), _bf16), ((4096, 4096), torch.int8), ((4096,), _bf16)), False, 1.6e-2, 5e1,
    ),
    Workload(
        "linear of int4 weights, bfloat16", _int4_linear,
        (((64, 4096), _bf16), ((4096, 2048), torch.uint8), ((4096, 32), _bf16)), False, 1.6e-2, 5e0,
    ),
    Workload(
        "linear of float8", _float8_linear,
        (((4096, 4096), _fp8), ((4096, 4096), _fp8), ((1,), _f32), ((1,), _f32)), False, 1.6e-2, 5e-1,
    ),
    Workload(
        "capped scores, bfloat16", _scores, (((64, 1024, 64), _bf16), ((64, 1024, 64), _bf16)), False, 1.6e-2, 1e-1
    ),
    Workload(
        "causal attention, bfloat16", _attention, (_HEADS, _HEADS, _HEADS), False, 1.6e-2, 1e-2, _attention
    ),
    Workload(
        "attention with a bias, bfloat16", _biased, (_HEADS, _HEADS, _HEADS, ((1, 16, 1024, 1024), _bf16)), False,
        1.6e-2, 1e-2, _biased,
    ),
    Workload(
        "attention written out, bfloat16", _written_out, (_HEADS, _HEADS, _HEADS, ((1, 16, 1024, 1024), _bf16)), False,
        1.6e-2, 2e-2, _biased,
    ),
    Workload(
        "attention of one query, bfloat16", lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
        (((8, 16, 1, 128), _bf16), ((8, 16, 8192, 128), _bf16), ((8, 16, 8192, 128), _bf16)), False, 1.6e-2, 1e-2,
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v),
    ),
    Workload(
        "latent attention of one token, bfloat16", _latent,
        (((8, 128, 512), _bf16), ((8, 128, 64), _bf16), ((8, 4096, 512), _bf16), ((8, 4096, 64), _bf16)), False,
        1.6e-2, 2e-2,
    ),
    Workload(
        "gradients of causal attention, bfloat16", _attention_gradients, (_HEADS, _HEADS, _HEADS, _HEADS), False,
        1.6e-2, 4e-2, _attention_gradients,
    ),
    Workload(
        "decoder layer, bfloat16", _decoder_layer,
        (((4, 1024, 1024), _bf16), ((3072, 1024), _bf16), ((1024, 1024), _bf16), ((2816, 1024), _bf16),
         ((2816, 1024), _bf16), ((1024, 2816), _bf16)), False, 1.6e-2, 5e-2, scale=0.03,
    ),
    Workload(
        "decoder layer of one token, bfloat16", _decoder_layer,
        (((1, 1, 1024), _bf16), ((3072, 1024), _bf16), ((1024, 1024), _bf16), ((2816, 1024), _bf16),
         ((2816, 1024), _bf16), ((1024, 2816), _bf16)), False, 1.6e-2, 5e-2, scale=0.03, waits=True,
    ),
)  # fmt: skip
