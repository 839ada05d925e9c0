"""Attention by the op of another library: which ops compute the same, and what takes the place of what.

scaled_dot_product_attention is one of several ops, by rules that know nothing of the sizes at hand. The others take the
same operands, and what a forward keeps is for the backward of its own library alone: both are replaced, or none.

Before:
    t3, t4, ... = aten._scaled_dot_product_flash_attention.default(x0, x1, x2, 0.0, True)
    t9, t10, t11 = aten._scaled_dot_product_flash_attention_backward.default(x8, x0, x1, x2, t3, t4, ..., 0.0, True)
After:
    t3, t12, ... = aten._scaled_dot_product_cudnn_attention.default(x0, x1, x2, None, True, 0.0, True, False)
    t9, t10, t11 = aten._scaled_dot_product_cudnn_attention_backward.default(x8, x0, x1, x2, t3, t12, ..., 0.0, True)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.backends import cuda

from dsjit.ir.graph import UNDEFINED, Arg, Graph, Node, TensorType, Value
from dsjit.ops.binding import bind

__all__ = ["BACKENDS", "AttentionBackend", "AttentionCall", "attention_calls", "enabled_backends"]

aten = torch.ops.aten

_OPERANDS: Final = ("query", "key", "value", "attn_bias")

_KEPT: Final = ("out", "logsumexp", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "philox_seed", "philox_offset")

_SIZES: Final = ("max_q", "max_k")
"""Results that are numbers: the lengths of queries and keys."""


@dataclass(frozen=True, slots=True)
class AttentionBackend:
    """forward, backward: its ops, without dropout. results: those of the forward, in order, by the names under which
    the backward takes them; it takes none of what follows.

    is_enabled: whether the user wants it. is_usable: whether it takes such operands. takes_bias: a mask that is added,
    when it stands for another one.
    """

    name: str
    forward: torch._ops.OpOverload
    backward: torch._ops.OpOverload
    results: tuple[str, ...]
    is_enabled: Callable[[], bool]
    is_usable: Callable[[cuda.SDPAParams], bool]
    takes_bias: bool = False


BACKENDS: Final = (
    AttentionBackend(
        "flash",
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_backward.default,
        _KEPT,
        cuda.flash_sdp_enabled,
        cuda.can_use_flash_attention,
    ),
    AttentionBackend(
        "cuDNN",
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_cudnn_attention_backward.default,
        _KEPT,
        cuda.cudnn_sdp_enabled,
        cuda.can_use_cudnn_attention,
        # A mask that torch has made for others holds infinities, of which cuDNN may make NaN.
        takes_bias=False,
    ),
    AttentionBackend(
        "efficient",
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_efficient_attention_backward.default,
        ("out", "logsumexp", "philox_seed", "philox_offset"),
        cuda.mem_efficient_sdp_enabled,
        cuda.can_use_efficient_attention,
        takes_bias=True,
    ),
)
"""What CUDA has (aten/src/ATen/native/transformers/cuda)."""


def enabled_backends(backends: Sequence[AttentionBackend] = BACKENDS) -> tuple[AttentionBackend, ...]:
    """Those that the user has not switched off."""
    return tuple([backend for backend in backends if backend.is_enabled()])


@dataclass(frozen=True, slots=True, eq=False)
class AttentionCall:
    """Attention of a Graph that another op may compute. backwards: the gradients of it that the Graph has."""

    backend: AttentionBackend
    forward: Node
    backwards: tuple[Node, ...]

    def fits(self, backend: AttentionBackend) -> bool:
        """Whether it takes the operands as they are: of a mask, it may read what there is for every score."""
        bound = bind(self.forward)
        bias, queries, keys = bound.get("attn_bias"), bound["query"].type.shape, bound["key"].type.shape
        return bias is None or (backend.takes_bias and bias.type.shape == (*queries[:3], keys[2]))

    def forward_by(self, backend: AttentionBackend) -> tuple[tuple[Arg, ...], dict[str, Arg]]:
        """What its forward is called with."""
        bound = bind(self.forward)
        given: dict[str, Arg] = {name: bound.get(name) for name in (*_OPERANDS, "is_causal", "scale")}
        wanted = bool(self.backwards) or bool(bound.get("compute_log_sumexp"))
        given.update(compute_log_sumexp=wanted, dropout_p=0.0, return_debug_mask=False)
        return _arguments(backend.forward, given)

    def nodes_by(self, backend: AttentionBackend, types: Sequence[TensorType], next_id: int) -> dict[Node, Node]:
        """What takes the place of each node. types: of all results of the forward of `backend`. Results that the Graph
        knows stay the Values that they are, whose strides are those that are wanted. next_id: above the ids of all
        Values; at most `len(types)` more are taken, and one for each backward."""
        args, kwargs = self.forward_by(backend)
        outputs = (self.forward.outputs[0], *[Value(next_id + n, type_) for n, type_ in enumerate(types[1:])])
        made = {self.forward: _node(backend.forward, args, kwargs, outputs, self.forward)}
        kept = dict(zip(backend.results, outputs, strict=False))
        for number, node in enumerate(self.backwards):
            bound = bind(node)
            gradient = bound[next(iter(bound))]
            given: dict[str, Arg] = {name: bound.get(name) for name in (*_OPERANDS, "is_causal", "scale")}
            given |= {"grad_out": gradient, "grad_out_": gradient, "dropout_p": 0.0}
            given["grad_input_mask"] = (True, True, True, False)
            given.update((name, None if _is_undefined(value) else value) for name, value in kept.items())
            lengths = [bound[name].type.shape[2] for name in ("query", "key")]
            given.update((name, length) for name, length in zip(_SIZES, lengths, strict=True))
            more = len(backend.backward._schema.returns) - 3
            extra = [Value(next_id + len(types) + number, UNDEFINED)] if more else []
            args, kwargs = _arguments(backend.backward, given)
            made[node] = _node(backend.backward, args, kwargs, (*node.outputs[:3], *extra), node)
        return made


def attention_calls(graph: Graph, backends: Sequence[AttentionBackend] = BACKENDS) -> Iterator[AttentionCall]:
    """The calls in `graph`, of one of `backends`, that may be computed by another one: nothing is dropped, and what the
    forward gives besides its result is read by its gradients alone."""
    by_op: dict[Callable[..., Any], AttentionBackend] = {backend.forward: backend for backend in backends}
    users = graph.users()
    results = set(graph.results())
    for node in graph.nodes:
        backend = by_op.get(node.op)
        if backend is None or bind(node)["dropout_p"] != 0 or not results.isdisjoint(node.outputs[1:]):
            continue
        readers = dict.fromkeys([user for value in node.outputs[1:] for user in users.get(value, ())])
        if all(_is_gradient(each, node, backend, users, results) for each in readers):
            yield AttentionCall(backend, node, tuple(readers))


def _is_gradient(
    node: Node, forward: Node, backend: AttentionBackend, users: Mapping[Value, Sequence[Node]], results: set[Value]
) -> bool:
    """Whether it is the backward of this call, for three gradients at most."""
    if node.op is not backend.backward or bind(node)["dropout_p"] != 0:
        return False
    kept = dict(zip(backend.results, forward.outputs, strict=False))
    bound, called = bind(node), bind(forward)
    same = all(bound[name] is value for name, value in kept.items() if not _is_undefined(value))
    same = same and all(bound.get(name) == called.get(name) for name in (*_OPERANDS, "is_causal", "scale"))
    return same and not any(value in users or value in results for value in node.outputs[3:])


def _is_undefined(value: Value) -> bool:
    return value.type == UNDEFINED


def _arguments(op: torch._ops.OpOverload, given: Mapping[str, Arg]) -> tuple[tuple[Arg, ...], dict[str, Arg]]:
    """By the schema of `op`; what is not given is None."""
    wanted = op._schema.arguments
    positional = tuple([given.get(each.name) for each in wanted if not each.kwarg_only])
    return positional, {each.name: given.get(each.name) for each in wanted if each.kwarg_only}


def _node(
    op: torch._ops.OpOverload, args: tuple[Arg, ...], kwargs: Mapping[str, Arg], outputs: tuple[Value, ...], old: Node
) -> Node:
    return Node(op, args, kwargs, outputs, old.source, effect=torch.Tag.nondeterministic_seeded in op.tags)
