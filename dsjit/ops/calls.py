"""Calls that ATen makes through arguments or modes which a Graph cannot hold, as functions of tensors alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch

__all__ = ["ASK_FOR_GRAD_MODE", "draw", "fill", "in_grad_mode"]

ASK_FOR_GRAD_MODE: Final[frozenset[Any]] = frozenset({torch.ops.aten.mkldnn_rnn_layer.default})
"""Ops whose results depend on the grad mode: without it they leave out what their backward reads."""


def draw(op: Callable[..., Any], state: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    """`op(*args, generator=..., **kwargs)` with a generator of the CPU in `state`: its results, then the state after
    it; the state alone for an op that only writes to its arguments.

    state: uint8, from `torch.Generator.get_state`; it is not changed. Raises NotImplementedError for one without data.
    """
    if state.is_meta:
        raise NotImplementedError("a generator needs a state")
    generator = torch.Generator()
    generator.set_state(state)
    results = op(*args, generator=generator, **kwargs)
    own = () if results is None else (results,) if isinstance(results, torch.Tensor) else tuple(results)
    written = [result for result in own if not any(result is arg for arg in args)]
    return (*written, generator.get_state()) if written else generator.get_state()


def fill(op: Callable[..., Any], out: torch.Tensor, *args: Any, **kwargs: Any) -> None:
    """`op(*args, out=out, **kwargs)` for what it writes, which is in the dtype of `out`."""
    op(*args, out=out, **kwargs)


def in_grad_mode(op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """`op(*args, **kwargs)` as it computes in grad mode, unseen by autograd."""
    with torch.enable_grad(), torch._C._AutoDispatchBelowAutograd():
        return op(*args, **kwargs)
