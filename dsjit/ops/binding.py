"""Schema-bound arguments of a Node: every argument by name, defaults filled in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch

from dsjit.ir.graph import Arg, Node

__all__ = ["bind", "bind_arguments"]


def bind(node: Node) -> dict[str, Arg]:
    """The arguments of `node` by schema name; an argument that the call left out has the schema's default."""
    return bind_arguments(node.op, node.args, node.kwargs)


def bind_arguments(op: Callable[..., Any], args: tuple[Arg, ...], kwargs: Mapping[str, Arg]) -> dict[str, Arg]:
    """As `bind`, for a call that is not a Node yet. `op` is an `OpOverload`."""
    names, defaults = _parameters(op)
    bound = defaults.copy()
    bound.update(zip(names, args, strict=False))
    bound.update(kwargs)
    return bound


@cache
def _parameters(op: torch._ops.OpOverload) -> tuple[tuple[str, ...], dict[str, Arg]]:
    arguments = op._schema.arguments
    names = tuple(argument.name for argument in arguments)
    defaults = {
        argument.name: _frozen(argument.default_value) if argument.has_default_value() else None
        for argument in arguments
    }
    return names, defaults


def _frozen(value: Any) -> Arg:
    return tuple(value) if isinstance(value, list) else value
