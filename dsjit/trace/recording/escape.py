"""Notices when the content of a tensor reaches Python by a way that no ATen call tells, or not precisely enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode

from dsjit.trace.looks.outcome import OutcomeKind

__all__ = ["LOOKS", "SET_DATA", "EscapeWatch"]


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
        "retain_grad": "its gradient is to be kept",
        "requires_grad_": "its requires_grad is changed",
    }
    table: dict[Any, str] = {getattr(tensor, name): reason for name, reason in named.items() if hasattr(tensor, name)}
    table[tensor.requires_grad.__set__] = "its requires_grad is changed"  # type: ignore[attr-defined]
    return table


ESCAPES: Final[dict[Any, str]] = _escapes()


LOOKS: Final[dict[Any, OutcomeKind]] = {
    torch.Tensor.__bool__: OutcomeKind.TRUTH,
    torch.Tensor.is_nonzero: OutcomeKind.TRUTH,
    torch.is_nonzero: OutcomeKind.TRUTH,
    torch.Tensor.__index__: OutcomeKind.INTEGER,
    torch.Tensor.tolist: OutcomeKind.CONTENT,
}
"""Functions that see less of a tensor than its value, or more than one value; the other ways are ATen calls."""


_CONVERSIONS: Final[dict[Any, type[float]]] = {torch.Tensor.__int__: int, torch.Tensor.__float__: float}


_REQUIRES_GRAD: Final = torch.Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_REQUIRE: Final = (torch.Tensor.requires_grad_, torch.Tensor.requires_grad.__set__)  # type: ignore[attr-defined]
SET_DATA: Final = torch.Tensor.data.__set__  # type: ignore[attr-defined]
_GRAD: Final = tuple([getattr(torch.Tensor.grad, name) for name in ("__get__", "__set__")])


def _is_of_transform(tensor: torch.Tensor) -> bool:
    """Whether it stands for a tensor inside a transform (`torch.func.grad`), which has made it for that."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


class EscapeWatch(TorchFunctionMode):
    """Calls `on_escape(reason)` when memory leaves the tensor world, and `on_look(kind, tensor)` before Python sees
    something of a tensor; while it sees it, `looking` is true.

    on_item: called with a tensor and its `item`, in place of that. on_convert: the same for `int(tensor)` and
        `float(tensor)`, with the type.
    on_gradient_read: called before Python reads whether a tensor requires a gradient.
    on_grad: called with a tensor before Python reads or writes its `.grad`.
    on_data: called with a tensor and what its `.data` is about to be, and again when it is: `False`, then `True`.
    is_made: whether a tensor was made in the call.
    on_call: when set, called with any other function, its arguments, and the call itself, in place of that.
    """

    def __init__(
        self,
        on_escape: Callable[[str], None],
        on_look: Callable[[OutcomeKind, torch.Tensor], None],
        on_item: Callable[[torch.Tensor, Callable[[], Any]], Any] = lambda tensor, item: item(),
        on_convert: Callable[[torch.Tensor, type[float], Callable[[], Any]], Any] = lambda tensor, kind, call: call(),
    ) -> None:
        super().__init__()
        self.on_escape = on_escape
        self.on_look = on_look
        self.on_item = on_item
        self.on_convert = on_convert
        self.on_call: Callable[[Any, tuple[Any, ...], Callable[[], Any]], Any] | None = None
        self.looking = False
        self.on_gradient_read: Callable[[], None] = lambda: None
        self.on_grad: Callable[[torch.Tensor], None] = lambda tensor: None
        self.on_data: Callable[[torch.Tensor, torch.Tensor, bool], None] = lambda tensor, data, done: None
        self.is_made: Callable[[torch.Tensor], bool] = lambda tensor: False

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        reason = ESCAPES.get(function)
        if function in _REQUIRE and len(args) == 2 and args[0].requires_grad is args[1]:
            reason = None  # it is as it was
            self.on_gradient_read()
        elif function in _REQUIRE and (self.is_made(args[0]) or _is_of_transform(args[0])):
            reason = None  # nobody else has it
        if reason is not None:
            self.on_escape(reason)
            return function(*args, **(kwargs or {}))
        kind = LOOKS.get(function)
        if kind is None:
            if function == _REQUIRES_GRAD:
                self.on_gradient_read()
            elif function in _GRAD:
                self.on_grad(args[0])
            elif function == SET_DATA:
                self.on_data(args[0], args[1], False)
                function(*args)
                self.on_data(args[0], args[1], True)
                return None
            elif function is torch.Tensor.item:
                return self.on_item(args[0], lambda: function(*args, **(kwargs or {})))
            elif function is torch.Tensor.__format__ and args[0].dim() == 0 and type(args[0]) is torch.Tensor:
                return self.on_item(args[0].detach(), args[0].item).__format__(*args[1:])
            elif function in _CONVERSIONS and args[0].numel() == 1:
                return self.on_convert(args[0], _CONVERSIONS[function], lambda: function(*args, **(kwargs or {})))
            if self.on_call is None:
                return function(*args, **(kwargs or {}))
            return self.on_call(function, (args, kwargs), lambda: function(*args, **(kwargs or {})))
        tensor: torch.Tensor = args[0] if args else (kwargs or {})["input"]
        if kind is not OutcomeKind.CONTENT and tensor.numel() != 1:
            return function(*args, **(kwargs or {}))  # raises
        self.on_look(kind, tensor)
        self.looking = True
        try:
            return function(*args, **(kwargs or {}))
        finally:
            self.looking = False
