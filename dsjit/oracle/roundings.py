"""Roundings inside ops, as noise: what every step of a computation in some dtype may do to its result.

An op of ATen may be several steps whose errors do not vanish with its result: `1 + erf(x)` leaves an absolute error
where the result is next to nothing. `STEPS` spells such ops out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.oracle.exactness import chooses

__all__ = ["STEPS", "Roundings", "rounded_at_random"]

aten = torch.ops.aten

_KAPPA: Final = 0.044715
_BETA: Final = math.sqrt(2 / math.pi)


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate == "tanh":
        return 0.5 * x * (1 + torch.tanh(_BETA * (x + _KAPPA * x * x * x)))
    return 0.5 * x * (1 + torch.erf(x * math.sqrt(0.5)))


def _gelu_backward(grad: torch.Tensor, x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    if approximate == "tanh":
        inner = torch.tanh(_BETA * (x + _KAPPA * x * x * x))
        slope = _BETA * (1 + 3 * _KAPPA * x * x)
        return grad * (0.5 * (1 + inner) + 0.5 * x * (1 - inner * inner) * slope)
    density = torch.exp(-0.5 * x * x) * (_BETA / 2)
    return grad * (0.5 * (1 + torch.erf(x * math.sqrt(0.5))) + x * density)


def _layer_norm(
    x: torch.Tensor, shape: Sequence[int], weight: torch.Tensor | None, bias: torch.Tensor | None, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ATen subtracts the mean after it has scaled: of a row of one element, a rounding is left."""
    dims = tuple(range(x.dim() - len(shape), x.dim()))
    mean = x.mean(dims, keepdim=True)
    scale = (x.var(dims, correction=0, keepdim=True) + eps).rsqrt()
    result = x * scale - mean * scale
    result = result if weight is None else result * weight
    return result if bias is None else result + bias, mean, scale


def _variance(
    x: torch.Tensor,
    dim: Sequence[int] | None = None,
    *,
    correction: float | None = None,
    keepdim: bool = False,
) -> torch.Tensor:
    """Of equal elements, the rounding of their mean is left."""
    dims = tuple(dim) if dim else tuple(range(x.dim()))
    centred = x - x.mean(dims, keepdim=True)
    count = math.prod([x.shape[each] for each in dims]) if x.dim() else 1  # a scalar may be reduced over dimension 0
    divisor = max(0.0, count - (1 if correction is None else correction))
    return (centred * centred).sum(dims, keepdim=keepdim) / divisor


def _deviation(x: torch.Tensor, dim: Sequence[int] | None = None, **how: Any) -> torch.Tensor:
    return _variance(x, dim, **how).sqrt()


STEPS: Final[dict[Any, Callable[..., Any]]] = {
    aten.gelu.default: _gelu,
    aten.gelu_backward.default: _gelu_backward,
    aten.native_layer_norm.default: _layer_norm,
    aten.var.correction: _variance,
    aten.std.correction: _deviation,
}
"""Ops by the formulas of ATen."""


def rounded_at_random(
    exact: torch.Tensor, dtype: torch.dtype, generator: torch.Generator, shape: Sequence[int] | None = None
) -> torch.Tensor:
    """`exact`, in float64, as roundings to `dtype` may leave it: off by up to a unit of roundoff of itself, or by a
    denormal, and never beyond zero. (The standard model of arithmetic with gradual underflow: Demmel, SIAM J. Sci.
    Stat. Comput. 5, 1984; Higham, Accuracy and Stability of Numerical Algorithms, 2002, chapter 2.)

    shape: of the noise, which is broadcast; that of `exact` when None.
    """
    limits = torch.finfo(dtype)
    noise = torch.rand(exact.shape if shape is None else shape, generator=generator).double().mul_(2).sub_(1)
    if dtype is torch.float64:
        noise = noise.sign()  # less than a unit would mostly be rounded away, and nothing moved
    size = exact.abs()
    if int((size < limits.smallest_normal).sum()) > exact.numel() - int(exact.count_nonzero()):
        relative = size.reciprocal_().mul_(limits.smallest_normal * limits.eps).clamp_(limits.eps, 1.0)
        return relative.mul_(noise).add_(1).mul_(exact)
    return noise.mul_(limits.eps).add_(1) * exact


class Roundings(TorchDispatchMode):
    """Moves what each op, and each step of those in `STEPS`, computes in float64, as roundings to `dtype` may.

    What an op chooses stays: a backward looks for the very element. Without `dtype`, nothing is moved.
    """

    def __init__(self, dtype: torch.dtype | None, generator: torch.Generator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype = dtype
        self.generator = generator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in STEPS and self.dtype is not None:
            with self:
                return STEPS[func](*args, **kwargs)
        result = func(*args, **kwargs)
        schema = func._schema
        if self.dtype is None or schema.is_mutable or chooses(func):
            return result
        if any(each.alias_info is not None for each in schema.returns):
            return result
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.dtype is torch.float64:
                tensor.copy_(rounded_at_random(tensor, self.dtype, self.generator))
        return result
