"""Random programs over tensors: a list of steps, each of which applies one op to earlier results."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from hypothesis import strategies as st

from dsjit.testing.strategies import shapes, tensors

EXACT: Final[dict[str, Callable[..., Any]]] = {
    "add": torch.add, "sub": lambda a, b: a * 1 - b * 1, "mul": torch.mul, "div": torch.div,
    "maximum": torch.maximum, "minimum": torch.minimum, "lt": torch.lt, "ge": torch.ge, "eq": torch.eq,
    "ne": torch.ne, "where": lambda a, b: torch.where(a > 0, a, b), "masked": lambda a, b: a.masked_fill(b > 0, 1),
    "and": lambda a, b: (a > 0) & (b > 0), "cat": lambda a, b: torch.cat(torch.broadcast_tensors(a, b), -1),
    "stack": lambda a, b: torch.stack(torch.broadcast_tensors(a, b)),
}  # fmt: skip
"""Of two operands that broadcast; every result bit is eager's."""

UNARY: Final[dict[str, Callable[..., Any]]] = {
    "neg": lambda a: -(a * 1), "abs": lambda a: (a * 1).abs(), "relu": lambda a: (a * 1).relu(),
    "floor": lambda a: a.double().floor(), "clamp": lambda a: (a * 1).clamp(-1, 2), "sign": torch.sign,
    "isnan": torch.isnan, "square": lambda a: a * a, "reciprocal": torch.reciprocal, "not": torch.logical_not,
    "float": lambda a: a.float(), "double": lambda a: a.double(), "bfloat16": lambda a: a.bfloat16(),
    "half": lambda a: a.half(), "any": lambda a: a.any(-1, keepdim=True), "amax": lambda a: a.sum(()) if not a.numel()
    else (a * 1).amax(-1, keepdim=True), "clone": torch.clone,
}  # fmt: skip
"""Of one operand; every result bit is eager's."""

VIEWS: Final[dict[str, Callable[..., Any]]] = {
    "t": lambda a: a.transpose(0, -1), "flatten": lambda a: a.reshape(-1), "flip": lambda a: a.flip(-1),
    "unsqueeze": lambda a: a.unsqueeze(0), "head": lambda a: a[..., :1], "tail": lambda a: a[..., 1:],
    "every other": lambda a: a[..., ::2], "expand": lambda a: a.expand(2, *a.shape), "select": lambda a: a[..., -1:],
    "pad": lambda a: torch.nn.functional.pad(a, (1, 2)), "roll": lambda a: torch.cat((a[..., 1:], a[..., :1]), -1),
}  # fmt: skip


def real(a: torch.Tensor) -> torch.Tensor:
    return a if a.is_floating_point() else a.float()


def bounded(a: torch.Tensor) -> torch.Tensor:
    return a.float().clamp(-9, 9)


ROUNDED: Final[dict[str, Callable[..., Any]]] = {
    "exp": lambda a: real(a).clamp(max=9).exp(), "sigmoid": torch.sigmoid, "tanh": torch.tanh,
    "sin": lambda a: bounded(a).sin(), "log": lambda a: real(a).abs().log(), "sqrt": lambda a: real(a).abs().sqrt(),
    "rsqrt": lambda a: real(a).abs().rsqrt(), "gelu": lambda a: torch.nn.functional.gelu(real(a)),
    "softmax": lambda a: a.float().softmax(-1), "sum": lambda a: bounded(a).sum(-1, keepdim=True),
    "mean": lambda a: bounded(a).mean(0), "variance": lambda a: torch.var(bounded(a), -1, correction=0),
}  # fmt: skip
"""Of one operand; within a tolerance of eager."""


@dataclass(frozen=True)
class Program:
    """steps: (op, position of the first operand, of the second). returned: positions of the results.
    A position counts inputs and results of earlier steps, modulo their number. Steps on shapes that do not
    broadcast, or with a result of more than 4096 elements, hand their operand on."""

    steps: tuple[tuple[str, int, int], ...]
    returned: tuple[int, ...]

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = list(inputs)
        for name, first, second in self.steps:
            values.append(apply(name, values[first % len(values)], values[second % len(values)]))
        return tuple(values[position % len(values)] for position in self.returned)


def apply(name: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    if name in EXACT:
        if not broadcastable(a.shape, b.shape) or (a.dim() == 0 and b.dim() == 0):
            return a
        result: torch.Tensor = EXACT[name](a, b)
        return result
    function = UNARY.get(name) or VIEWS.get(name) or ROUNDED[name]
    if a.dim() == 0:
        a = a.reshape(1)
    result = function(a)
    return result if result.numel() <= 4096 else a


SMOOTH: Final = tuple(
    name for name in (*EXACT, *UNARY, *VIEWS) if name in ("add", "mul", "where", "cat", "double", "abs", "clamp")
)
"""Such that small errors of the operands stay small ones."""


def broadcastable(a: torch.Size, b: torch.Size) -> bool:
    return all(m == n or 1 in (m, n) for m, n in zip(reversed(a), reversed(b), strict=False))


def programs(names: list[str]) -> st.SearchStrategy[Program]:
    position = st.integers(0, 30)
    steps = st.lists(st.tuples(st.sampled_from(names), position, position), min_size=1, max_size=9)
    return st.builds(Program, steps.map(tuple), st.lists(position, min_size=1, max_size=3).map(tuple))


@st.composite
def inputs(draw: st.DrawFn) -> list[torch.Tensor]:
    """Tensors that broadcast with each other."""
    shape = draw(shapes())
    return [draw(tensors(shape, broadcast=True)) for _ in range(draw(st.integers(1, 3)))]
