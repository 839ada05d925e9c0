"""Which library's op computes attention: the fastest one, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import torch
from torch.backends.cuda import SDPAParams

from dsjit.codegen.templates.attention_backends import (
    AttentionBackend,
    AttentionCall,
    attention_calls,
    enabled_backends,
)
from dsjit.codegen.triton.tuning import Meter, Run, Tuner
from dsjit.errors import BackendError
from dsjit.ir.graph import UNDEFINED, Arg, Graph, Node, TensorType, Value, map_values
from dsjit.ir.print_graph import op_name
from dsjit.ops.binding import bind
from dsjit.ops.strided import fresh_copy

__all__ = ["choose_attention"]

_ALIKE: Final = 2.0**-4
"""Of the largest element: how far results may be apart. Roundings differ by far less, another mask or scale by more."""


def choose_attention(
    graph: Graph,
    tuner: Tuner,
    backends: Sequence[AttentionBackend],
    may: Callable[[Node, AttentionBackend], bool],
) -> Graph:
    """`graph` with each attention computed by the fastest of the backends that can, together with its gradients. Where
    none is faster than what was recorded, or the one that was cannot be run any more, that stays. may: is asked before
    a node is replaced."""
    replaced: dict[Node, Node] = {}
    known: dict[tuple[str, ...], tuple[AttentionBackend, tuple[TensorType, ...]] | None] = {}
    next_id = graph.next_id()
    enabled = enabled_backends(backends)
    for call in attention_calls(graph, backends):
        others = [each for each in enabled if each is not call.backend and call.fits(each)]
        what = _described(call, others)
        if others and what not in known:
            known[what] = _fastest(call, others, what, tuner)
        found = known.get(what)
        if found is not None and may(call.forward, found[0]):
            backend, types = found
            replaced.update(call.nodes_by(backend, types, next_id))
            next_id += len(types) + len(call.backwards)
    if not replaced:
        return graph
    return replace(graph, nodes=tuple([replaced.get(node, node) for node in graph.nodes]))


def _described(call: AttentionCall, others: Sequence[AttentionBackend]) -> tuple[str, ...]:
    """All that tells one choice from another."""
    nodes = (call.forward, *call.backwards)
    names = [op_name(call.forward.op), *[op_name(each.forward) for each in others]]
    told = [
        f"{name}={arg.type if isinstance(arg, Value) else arg}" for node in nodes for name, arg in bind(node).items()
    ]
    return ("attention", *names, *told, *[str(value.type) for node in nodes for value in node.outputs])


def _fastest(
    call: AttentionCall, others: Sequence[AttentionBackend], what: tuple[str, ...], tuner: Tuner
) -> tuple[AttentionBackend, tuple[TensorType, ...]] | None:
    """One of `others`, and the types of its results; None for what was recorded."""
    trials = _Trials(call, tuner.meter)
    best = tuner.best(what, [trials.recorded, *[partial(trials.run_by, each) for each in others]])
    if not best:
        return None
    chosen = others[best - 1]
    try:
        return chosen, trials.types_by(chosen)
    except (BackendError, torch.OutOfMemoryError):  # it was remembered, and what it ran on has changed
        return None


@dataclass(slots=True, eq=False)
class _Trials:
    """Runs a call by one backend and another, on the same random numbers. tensors: of what the call reads.
    types: of the results of a backend's forward, which it tells when it runs. expected: what was recorded gives."""

    call: AttentionCall
    meter: Meter
    tensors: dict[Value, torch.Tensor] = field(default_factory=dict)
    types: dict[str, tuple[TensorType, ...]] = field(default_factory=dict)
    expected: list[torch.Tensor] = field(default_factory=list)

    def types_by(self, backend: AttentionBackend) -> tuple[TensorType, ...]:
        """Raises BackendError where it cannot be run."""
        if backend.name not in self.types:
            bound = bind(self.call.forward)
            query, key, value, bias = (self._filled(bound.get(n)) for n in ("query", "key", "value", "attn_bias"))
            shared = query.shape[1] != key.shape[1]
            if not backend.is_usable(SDPAParams(query, key, value, bias, 0.0, bound["is_causal"], shared)):
                raise BackendError(f"{backend.name} attention does not take these operands")
            args, kwargs = self.call.forward_by(backend)
            results = _asked(lambda: backend.forward(*map(self._filled, args), **_each(kwargs, self._filled)))
            self.types[backend.name] = tuple([_type_of(result) for result in results])
        return self.types[backend.name]

    def run_by(self, backend: AttentionBackend) -> Run:
        """Raises BackendError where it cannot be run, or computes something else than what was recorded."""
        if not self.expected:
            raise BackendError("there is nothing to compare with")
        run = self._runner(self.call.nodes_by(backend, self.types_by(backend), 0))
        if not all(map(_alike, _asked(run), self.expected)):
            raise BackendError(f"{backend.name} attention computes something else here")
        return run

    def recorded(self) -> Run:
        """What was recorded, which others are compared with. Raises BackendError."""
        run = self._runner({node: node for node in (self.call.forward, *self.call.backwards)})
        self.expected = _asked(run)
        return run

    def _runner(self, nodes: dict[Node, Node]) -> Callable[[], list[torch.Tensor]]:
        """Runs what stands for the nodes of the call. Its results are those that the call gives others, with the
        strides that are wanted: what copies cost is part of the time."""
        inner = set(self.call.forward.outputs)
        operands = {value: self._filled(value) for node in nodes for value in node.inputs() if value not in inner}

        def run() -> list[torch.Tensor]:
            known: dict[Value, Any] = dict(operands)
            results: list[torch.Tensor] = []
            for old, node in nodes.items():
                args = [map_values(arg, known.__getitem__) for arg in node.args]
                given = _each(node.kwargs, lambda arg: map_values(arg, known.__getitem__))
                made = list(node.op(*args, **given))
                shown = 1 if old is self.call.forward else 3
                for number, value in enumerate(node.outputs[:shown]):
                    if isinstance(made[number], torch.Tensor) and made[number].stride() != value.type.strides:
                        made[number] = fresh_copy(made[number], value.type.strides)
                known.update(zip(node.outputs, made, strict=True))
                results += [each for each in made[:shown] if isinstance(each, torch.Tensor)]
            return results

        return run

    def _filled(self, arg: Arg) -> Any:
        return map_values(arg, self._tensor)

    def _tensor(self, value: Value) -> torch.Tensor:
        if value not in self.tensors:
            tensor = self.tensors[value] = self.meter.allocate(value.type)
            if tensor.is_floating_point():
                # Every element of its memory once, as several may lie at one place. The user's generator is left alone.
                reach = 1 + sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True))
                generator = torch.Generator(tensor.device).manual_seed(len(self.tensors))
                tensor.as_strided((reach if tensor.numel() else 0,), (1,)).normal_(generator=generator)
        return self.tensors[value]


def _asked(run: Callable[[], Iterable[Any]]) -> list[Any]:
    """What it returns; that a library refuses is a BackendError."""
    try:
        return list(run())
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise BackendError(f"attention cannot be run: {error}") from error


def _alike(found: torch.Tensor, expected: torch.Tensor) -> bool:
    apart = (found.float() - expected.float()).abs().amax()
    return bool(apart <= _ALIKE * expected.float().abs().amax())


def _type_of(result: Any) -> TensorType:
    if not isinstance(result, torch.Tensor):
        return UNDEFINED
    return TensorType(tuple(result.shape), result.dtype, tuple(result.stride()), result.device)


def _each(kwargs: Any, function: Callable[[Arg], Any]) -> dict[str, Any]:
    return {name: function(arg) for name, arg in kwargs.items()}
