"""Notices when the content of a tensor reaches Python by a way that is not an ATen call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["EscapeWatch"]


def _escapes() -> dict[Any, str]:
    tensor = torch.Tensor
    named = {
        "numpy": "its memory is shared with numpy",
        "__array__": "its memory is shared with numpy",
        "data_ptr": "its address is taken",
        "untyped_storage": "its storage is taken",
        "storage": "its storage is taken",
        "_typed_storage": "its storage is taken",
        "__dlpack__": "its memory is shared through DLPack",
        "share_memory_": "its memory is moved to shared memory",
        "__reduce_ex__": "it is pickled",
        "__deepcopy__": "it is deep-copied",
        "register_hook": "a gradient hook is registered on it",
        "requires_grad_": "its requires_grad is changed",
        "backward": "gradients are computed",
    }
    table: dict[Any, str] = {getattr(tensor, name): reason for name, reason in named.items() if hasattr(tensor, name)}
    for prop, reason in (
        ("data", "its .data is replaced"),
        ("grad", "its .grad is replaced"),
        ("requires_grad", "its requires_grad is changed"),
    ):
        table[getattr(tensor, prop).__set__] = reason
    return table


ESCAPES: Final[dict[Any, str]] = _escapes()


class EscapeWatch(TorchFunctionMode):
    """Calls `on_escape(reason)` when memory leaves the tensor world, `on_list(tensor)` before `tolist`."""

    def __init__(self, on_escape: Callable[[str], None], on_list: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.on_escape = on_escape
        self.on_list = on_list

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reason = ESCAPES.get(function)
        if reason is not None:
            self.on_escape(reason)
        elif function is torch.Tensor.tolist:
            self.on_list(args[0])
        return function(*args, **(kwargs or {}))
