"""What a program can change outside its own objects: random states, torch's modes, hooks of the interpreter."""

from __future__ import annotations

import builtins
import gc
import hashlib
import locale
import os
import random
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch.utils.hooks import RemovableHandle

__all__ = ["fresh_surroundings", "surroundings"]

# torch sets these when its own compiler is imported, which anything may do at any time.
_OF_TORCH: Final = "TORCHINDUCTOR_"
_ORIGINALS: Final[dict[str, Any]] = {"warnings.warn": warnings.warn, "builtins.print": builtins.print}


def surroundings() -> dict[str, str]:
    """Everything that is compared after each step beside the program's own objects, by name."""
    numpy_state: Any = np.random.get_state(legacy=False)
    found: dict[str, object] = {
        "torch random state": _digest(torch.get_rng_state().numpy().tobytes()),
        "python random state": _digest(repr(random.getstate()).encode()),
        "numpy random state": f"{_digest(numpy_state['state']['key'].tobytes())} {numpy_state['state']['pos']}",
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast dtype": torch.get_autocast_dtype("cpu"),
        "autocast cache": torch.is_autocast_cache_enabled(),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "anomaly mode": torch.is_anomaly_enabled(),
        "threads": torch.get_num_threads(),
        "dispatch modes": torch._C._len_torch_dispatch_stack(),
        "function modes": torch._C._len_torch_function_stack(),
        "profile hook": sys.getprofile(),
        "trace hook": sys.gettrace(),
        "collection": gc.isenabled(),
        "recursion limit": sys.getrecursionlimit(),
        "working directory": os.getcwd(),
        "environment": _digest(repr(sorted(e for e in os.environ.items() if not e[0].startswith(_OF_TORCH))).encode()),
        "numpy errors": sorted(np.geterr().items()),
        "locale": locale.setlocale(locale.LC_NUMERIC),
        "warnings.warn": warnings.warn is _ORIGINALS["warnings.warn"],
        "builtins.print": builtins.print is _ORIGINALS["builtins.print"],
        "tensor methods": torch.Tensor.item is _TENSOR_ITEM and torch.Tensor.__bool__ is _TENSOR_BOOL,
    }
    return {name: repr(value) for name, value in found.items()}


_TENSOR_ITEM: Final = torch.Tensor.item
_TENSOR_BOOL: Final = torch.Tensor.__bool__


@contextmanager
def fresh_surroundings(handle_id: int) -> Iterator[None]:
    """Known seeds and torch's default modes inside; everything as it was afterwards.

    handle_id: what the next hook handle is numbered: it is a key in the dictionaries of hooks.
    """
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    deterministic, precision = torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()
    next_id = RemovableHandle.next_id
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)
    RemovableHandle.next_id = handle_id
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_float32_matmul_precision(precision)
        RemovableHandle.next_id = max(next_id, RemovableHandle.next_id)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
