"""torch's global state: what decides how eager would run a call, and is no argument of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch._C._dynamo.guards import GlobalStateGuard

__all__ = ["TorchState", "foreign_modes"]

_GPU_PROBES: Final[tuple[tuple[str, Callable[[], Any]], ...]] = (
    ("autocast dtype on GPUs", functools.partial(torch.get_autocast_dtype, "cuda")),
    ("memory-efficient attention enabled", torch._C._get_mem_efficient_sdp_enabled),
    ("cuDNN's attention enabled", torch._C._get_cudnn_sdp_enabled),
    ("cuDNN enabled", torch._C._get_cudnn_enabled),
)
"""What decides nothing without a GPU."""

_PROBES: Final[tuple[tuple[str, Callable[[], Any]], ...]] = (
    ("inference mode", torch.is_inference_mode_enabled),
    ("active TorchDispatchModes", torch._C._len_torch_dispatch_stack),
    ("active TorchFunctionModes", torch._C._len_torch_function_stack),
    ("functorch level", torch._C._functorch.maybe_current_level),
    ("flash attention enabled", torch._C._get_flash_sdp_enabled),
    ("autocast dtype on CPUs", functools.partial(torch.get_autocast_dtype, "cpu")),
    ("highest float32 matmul precision", lambda: torch.get_float32_matmul_precision() == "highest"),
    ("MKL-DNN enabled", torch._C._get_mkldnn_enabled),
    ("math attention enabled", torch._C._get_math_sdp_enabled),
    *(() if torch.version.cuda is None and torch.version.hip is None else _GPU_PROBES),
)


@dataclass(frozen=True, slots=True)
class TorchState:
    """The state at one moment.

    guard: `GlobalStateGuard` covers grad mode, autocast, default dtype, deterministic algorithms, thread count,
        reduced-precision switches, and whether `__torch_function__` is on.
    values: of `_PROBES`, in order.
    """

    guard: Any
    values: tuple[Any, ...]
    grad_mode: bool

    @classmethod
    def current(cls) -> TorchState:
        return cls(GlobalStateGuard(), tuple(probe() for _, probe in _PROBES), torch.is_grad_enabled())

    def check(self) -> bool:
        """Whether the state is what it was."""
        return bool(self.guard.check()) and all(
            probe() == value for (_, probe), value in zip(_PROBES, self.values, strict=True)
        )

    def why_not(self) -> str | None:
        """Which part of the state differs, or None."""
        if not self.guard.check():
            return f"torch's global state changed: {self.guard.reason() or 'unknown part'}"
        for (name, probe), value in zip(_PROBES, self.values, strict=True):
            if probe() != value:
                return f"{name}: was {value}, now {probe()}"
        return None

    def probes(self) -> tuple[tuple[Callable[[], Any], Any], ...]:
        """`check()` as functions without arguments, each with the object that it has to return.

        The answers are True, False, None, dtypes or numbers below 257, of which there is one object each.
        """
        probes = ((probe, value) for (_, probe), value in zip(_PROBES, self.values, strict=True))
        return ((self.guard.check, True), *probes)


def foreign_modes() -> str | None:
    """Why no trace may start in this state: another mode already interprets every call. None when it may."""
    if torch._C._len_torch_dispatch_stack():
        return "a TorchDispatchMode is active"
    if torch._C._len_torch_function_stack():
        return "a TorchFunctionMode is active (torch.set_default_device counts as one)"
    if torch._C._functorch.maybe_current_level() is not None:
        return "a functorch transform is active"
    return None
