"""Graph: the tensor-level IR.

A `Graph` is a straight line of `Node`s in SSA form. One node is one ATen overload; the arguments of a node are
`Value`s, Python constants, or (nested) tuples of these. Everything is frozen: a pass builds a new Graph.

    Graph  ::= inputs: Value*  nodes: Node*  outputs: Value*  writes: Write*  constants: {Value: Tensor}
    Node   ::= outputs: Value* = op(args: Arg*, kwargs: {str: Arg})      @ source
    Arg    ::= Value | None | bool | int | float | complex | str | dtype | device | layout | ... | tuple[Arg, ...]
    Value  ::= %id : TensorType

The Graph is functional: no node writes to its arguments. In-place ops of the user's become functional nodes at
trace time, and what they did to the caller's tensors is listed in `writes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeAlias

import torch

__all__ = [
    "UNDEFINED",
    "Arg",
    "Graph",
    "Node",
    "Source",
    "TensorType",
    "Value",
    "Write",
    "contiguous_strides",
    "is_dense",
    "map_values",
    "values_in",
]

Arg: TypeAlias = Any
"""A `Value`, a Python constant, or a tuple of `Arg`s."""


@dataclass(frozen=True, slots=True)
class Source:
    """A line of the user's code.

    scope: the path of the module whose forward was running, when one was (`encoder.layer.3.attention`). It is for
        profiles, and does not tell lines apart: equal layers are one program.
    region: the number of the `torch.utils.checkpoint` that the line ran under; 0 without one.
    """

    file: str
    line: int
    function: str
    scope: str = field(default="", compare=False)
    region: int = field(default=0, compare=False)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


UNKNOWN_SOURCE = Source("<unknown>", 0, "")


@dataclass(frozen=True, slots=True)
class TensorType:
    """Shape (elements), strides (elements), dtype and device of a tensor value."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    strides: tuple[int, ...]
    device: torch.device

    @property
    def numel(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def nbytes(self) -> int:
        """Bytes that the elements occupy, holes between strides not counted."""
        return self.numel * self.dtype.itemsize

    @property
    def is_contiguous(self) -> bool:
        """Row-major and dense, as `torch.Tensor.is_contiguous` has it."""
        return self.numel == 0 or all(
            size == 1 or stride == expected
            for size, stride, expected in zip(self.shape, self.strides, contiguous_strides(self.shape), strict=True)
        )

    @property
    def may_overlap(self) -> bool:
        """Whether two elements may lie at one place: False when each dimension steps over all that are smaller."""
        reached = 0
        for stride, size in sorted((stride, size) for size, stride in zip(self.shape, self.strides, strict=True)):
            if size == 0:
                return False
            if size > 1:
                if stride <= reached:
                    return True
                reached += (size - 1) * stride
        return False


UNDEFINED: Final = TensorType((), torch.float32, (), torch.device("meta"))
"""Of a result that an op leaves out, or that is a number; nothing reads it."""


def contiguous_strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Row-major strides in elements, with torch's convention that a size of 0 counts as 1."""
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))


def is_dense(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Whether the elements fill a stretch of memory without holes or overlaps."""
    if 0 in shape:
        return True
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size == 1:
            continue
        if stride != expected:
            return False
        expected *= size
    return True


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An SSA value; compared by identity. `id` is unique within a Graph and is only for printing."""

    id: int
    type: TensorType

    def __repr__(self) -> str:
        return f"%{self.id}"


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """One operation: `outputs = op(*args, **kwargs)`.

    op: an `OpOverload`, always functional (never writes to an argument).
    mutates: positions of the arguments that the *library* op writes to, for ops without a functional form.
        The Program clones these arguments, runs the op on the clones, and the clones are the last outputs.
    effect: the node must run exactly once, in order (it draws random numbers).
    """

    op: Callable[..., Any]
    args: tuple[Arg, ...]
    kwargs: Mapping[str, Arg]
    outputs: tuple[Value, ...]
    source: Source = UNKNOWN_SOURCE
    mutates: tuple[int, ...] = ()
    effect: bool = False

    @property
    def output(self) -> Value:
        """The only output; raises ValueError when there are several or none."""
        (value,) = self.outputs
        return value

    def inputs(self) -> Iterator[Value]:
        """The Values among the arguments, in order, repeats included."""
        yield from values_in(self.args)
        if self.kwargs:
            yield from values_in(tuple(self.kwargs.values()))

    def with_args(self, args: tuple[Arg, ...], kwargs: Mapping[str, Arg]) -> Node:
        return replace(self, args=args, kwargs=kwargs)


@dataclass(frozen=True, slots=True)
class Write:
    """At the end of the run, `target` (a Graph input) is overwritten in place with `value` (same shape and dtype).

    counted: autograd counts the write, and refuses a backward that was to read what was there before. It does not count
        what batch norm does to its running statistics, and writes to `tensor.data`.
    """

    target: Value
    value: Value
    source: Source = UNKNOWN_SOURCE
    counted: bool = True

    def opened(self, target: torch.Tensor) -> torch.Tensor:
        """What to copy to, for `target` to be written, and the write to be counted or not."""
        return target if self.counted else target.data


@dataclass(frozen=True, slots=True)
class Graph:
    """A functional, straight-line tensor program. See the module docstring for its grammar.

    donated: inputs that nobody wants after the run, each the only one in its memory, which may be written.
    """

    inputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]
    writes: tuple[Write, ...] = ()
    constants: Mapping[Value, torch.Tensor] = field(default_factory=dict)
    name: str = "graph"
    donated: frozenset[Value] = frozenset()

    def results(self) -> Iterator[Value]:
        """Every Value that must exist when the run ends: outputs and written values."""
        yield from self.outputs
        for write in self.writes:
            yield write.value

    def producers(self) -> dict[Value, Node]:
        """The node that defines each Value (inputs and constants have none)."""
        return {value: node for node in self.nodes for value in node.outputs}

    def users(self) -> dict[Value, list[Node]]:
        """The nodes that use each Value, in order, one entry a node."""
        table: dict[Value, list[Node]] = {}
        for node in self.nodes:
            for value in dict.fromkeys(node.inputs()):
                table.setdefault(value, []).append(node)
        return table

    def next_id(self) -> int:
        """An id above every id in use."""
        used = [value.id for value in self.inputs]
        used += [value.id for value in self.constants]
        used += [value.id for node in self.nodes for value in node.outputs]
        return max(used, default=-1) + 1


def values_in(arg: Arg) -> Iterator[Value]:
    """The Values inside an argument, depth first."""
    if isinstance(arg, Value):
        yield arg
    elif isinstance(arg, tuple):
        for item in arg:
            yield from values_in(item)


def map_values(arg: Arg, function: Callable[[Value], Arg]) -> Arg:
    """`arg` with each Value replaced by `function(value)`."""
    if isinstance(arg, Value):
        return function(arg)
    if isinstance(arg, tuple):
        return tuple(map_values(item, function) for item in arg)
    return arg
