"""The backward of an `autograd.Function` of the user's, as a part of the record.

Eager runs it when the gradients come, a compiled call never does: what it computes is recorded once, in the walk. So it
may do nothing but to compute with its gradients, with what the forward saved, and with torch: no names but those of
torch's and `math`'s, no attributes written, nothing kept on `ctx` but tensors and plain values. Its code tells.
"""

from __future__ import annotations

import builtins
import dis
import inspect
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch

from dsjit.trace.recording.memory import CannotTrace

__all__ = ["run_function_backward"]

_BUILTINS: Final = frozenset(
    {
        "None",
        "bool",
        "dict",
        "enumerate",
        "float",
        "int",
        "isinstance",
        "len",
        "list",
        "max",
        "min",
        "range",
        "reversed",
    }
    | {"sorted", "sum", "tuple", "zip"}
)
_MODULES: Final = ("torch", "math")

_FORBIDDEN: Final = frozenset({"STORE_GLOBAL", "DELETE_GLOBAL", "STORE_ATTR", "DELETE_ATTR", "IMPORT_NAME"})
_ATTRIBUTES: Final = frozenset(
    {"manual_seed", "seed", "set_rng_state", "get_rng_state", "save", "load", "numpy", "data_ptr", "register_hook"}
    | {"backward", "grad_fn", "mark_dirty", "save_for_backward", "storage", "untyped_storage"}
)
"""What leaves the record, or is state."""

_PLAIN: Final = (type(None), bool, int, float, complex, str, torch.Size, torch.dtype, torch.device, torch.Tensor)
"""Types of what may be kept on `ctx`."""


def run_function_backward(
    node: Any, gradients: Sequence[torch.Tensor | None], alone: bool
) -> list[torch.Tensor | None]:
    """The gradients for each of `node.next_functions`, given those of the outputs. alone: only one result of the call
    is differentiated, so that none of these will ever be missing. Raises CannotTrace."""
    name = node._forward_cls.__name__
    reason = _why_not(node)
    if reason is not None:
        raise CannotTrace(f"gradients flow through a custom autograd.Function, {name}, {reason}")
    if any(gradient is None for gradient in gradients):
        raise CannotTrace(f"not all results of a custom autograd.Function, {name}, are differentiated")
    found = node.apply(*gradients)
    returned = found if isinstance(found, tuple) else (found,)
    wanted = iter([gradient for gradient, needed in zip(returned, node.needs_input_grad, strict=False) if needed])
    made = [None if following is None else next(wanted, None) for following, _ in node.next_functions]
    with torch._C._DisableTorchDispatch():
        changes_zeros = not alone and any(bool((each != 0).any()) for each in made if each is not None)
    if changes_zeros:
        raise CannotTrace(f"gradients flow through a custom autograd.Function, {name}, which makes others of zeros")
    return made


def _why_not(node: Any) -> str | None:
    """What keeps the backward of `node` from being recorded, in words."""
    function = inspect.unwrap(node._forward_cls.backward)
    if not isinstance(function, types.FunctionType):
        return "whose backward is no function"
    for key, value in vars(node).items():
        if not _is_plain(value):
            return f"which keeps a {type(value).__name__} ({key})"
    if function.__closure__:
        return f"whose backward reads {function.__code__.co_freevars[0]}"
    for code in _codes(function.__code__):
        for step in dis.get_instructions(code):
            if step.opname in _FORBIDDEN or (step.opname.startswith("LOAD_") and step.argval in _ATTRIBUTES):
                return f"whose backward does more than to compute ({step.argval})"
            if step.opname in ("LOAD_GLOBAL", "LOAD_NAME") and not _is_known(function.__globals__, step.argval):
                return f"whose backward reads {step.argval}"
    return None


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """The code, and what is nested in it (comprehensions)."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_known(scope: dict[str, Any], name: str) -> bool:
    if name not in scope:
        return name in _BUILTINS and hasattr(builtins, name)
    value = scope[name]
    module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
    return isinstance(module, str) and module.partition(".")[0] in _MODULES and not isinstance(value, type)


def _is_plain(value: Any) -> bool:
    if type(value) in (tuple, list):
        return all(map(_is_plain, value))
    return type(value) in _PLAIN or type(value) is torch.nn.Parameter
