"""The canonical list: small functions whose kernels are of every form that fusion makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
import torch.nn.functional as F


def bias_gelu(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.gelu(x + b)


def softmax(x: torch.Tensor) -> torch.Tensor:
    return x.softmax(-1)


def long_softmax(x: torch.Tensor) -> torch.Tensor:
    return (x * 2).softmax(-1)


def layer_norm(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(x, (x.shape[-1],), w, b)


def rms_norm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6).to(x.dtype) * w


def rotary(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    return F.silu(gate) * up


def cross_entropy(x: torch.Tensor) -> torch.Tensor:
    return -x.log_softmax(-1)[:, 0].mean()


def transposed_add(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x.t() + y


def column_mean(x: torch.Tensor) -> torch.Tensor:
    return x.mean(0)


def argmax(x: torch.Tensor) -> torch.Tensor:
    return x.argmax(-1)


def adam(p: torch.Tensor, g: torch.Tensor, m: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, ...]:
    m = m * 0.9 + g * 0.1
    v = v * 0.999 + g * g * 0.001
    return p - 1e-3 * m / (v.sqrt() + 1e-8), m, v


def special_functions(x: torch.Tensor) -> torch.Tensor:
    return torch.lgamma(x.abs() + 1) + torch.erfc(x) + torch.atan2(x, x + 1) + torch.sin(x) * torch.tan(x)


def embedding(table: torch.Tensor, numbers: torch.Tensor, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return F.layer_norm(F.embedding(numbers, table) + x, (x.shape[-1],), w)


def picked_rows(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return x[numbers]


def picked_along_rows(x: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
    return x.gather(1, numbers) * 2


def numbers(end: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, end, shape, generator=torch.Generator().manual_seed(end))


def random(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


bf16 = torch.bfloat16

CANONICAL: Final[dict[str, tuple[Callable[..., Any], tuple[torch.Tensor, ...]]]] = {
    "bias and gelu": (bias_gelu, (random(512, 3072), random(3072))),
    "bias and gelu, bfloat16": (bias_gelu, (random(512, 3072, dtype=bf16), random(3072, dtype=bf16))),
    "softmax": (softmax, (random(2048, 1000),)),
    "softmax of long rows": (long_softmax, (random(128, 50257),)),
    "layer norm": (layer_norm, (random(512, 768), random(768), random(768))),
    "layer norm of 4096": (layer_norm, (random(128, 4096), random(4096), random(4096))),
    "rms norm, bfloat16": (rms_norm, (random(512, 4096, dtype=bf16), random(4096, dtype=bf16))),
    "rotary embedding": (rotary, (random(4, 8, 128, 64), random(128, 64), random(128, 64))),
    "swiglu, float16": (swiglu, (random(256, 11008, dtype=torch.float16), random(256, 11008, dtype=torch.float16))),
    "cross entropy": (cross_entropy, (random(256, 32000),)),
    "transposed add": (transposed_add, (random(1024, 768), random(768, 1024))),
    "column mean": (column_mean, (random(4096, 512),)),
    "argmax": (argmax, (random(256, 32000),)),
    "adam": (adam, (random(1 << 18), random(1 << 18), random(1 << 18), random(1 << 18).abs())),
    "embedding and layer norm": (
        embedding,
        (random(30522, 768), numbers(30522, 2, 128), random(128, 768), random(768)),
    ),
    "rows by number": (picked_rows, (random(8192, 768), numbers(8192, 4096))),
    "elements of rows by number": (picked_along_rows, (random(512, 1000), numbers(1000, 512, 100))),
    "special functions, float64": (special_functions, (random(65536, dtype=torch.float64),)),
}
"""By name: the function, and its arguments."""
