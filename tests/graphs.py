"""Graphs from text: executes what `print_graph` and `print_short` print, recording instead of computing.

The Before and After of each pass's docstring are written in that syntax, so the docstrings are tests.
"""

from __future__ import annotations
import __future__

import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from dsjit.ir.dtypes import SHORT_NAMES
from dsjit.ir.graph import Graph, Node, Source, TensorType, Value, Write
from dsjit.ir.print_graph import print_short
from dsjit.ops.cross_entropy import linear_cross_entropy
from dsjit.ops.direct_convolution import direct_convolution
from dsjit.ops.embedding_gradient import add_embedding_gradient
from dsjit.ops.masks import draw_mask, pack_mask, unpack_mask
from dsjit.ops.wide_product import wide_product

DTYPES = {name: dtype for dtype, name in SHORT_NAMES.items()}
FUNCTIONS = (
    add_embedding_gradient, direct_convolution, draw_mask, linear_cross_entropy, pack_mask, unpack_mask, wide_product,
)  # fmt: skip
"""Ops that are plain functions; printed Graphs call them by name."""

SOURCE = Source("model.py", 12, "forward", "")


CPU = torch.device("cpu")


def tensor_type(
    shape: Sequence[int],
    dtype: torch.dtype = torch.float32,
    strides: Sequence[int] | None = None,
    device: torch.device = CPU,
) -> TensorType:
    meta = torch.empty(tuple(shape), dtype=dtype, device="meta")
    return TensorType(tuple(shape), dtype, tuple(strides or meta.stride()), device)


def parse_type(text: str) -> TensorType:
    """`f32[2, 3]`, `f32[2, 3] strides=(1, 2)`, or `f32[2, 3] @cuda:0`."""
    match = re.fullmatch(r"(\w+)\[(.*?)\](?: strides=\((.*)\))?(?: @(\S+))?", text.strip("'\""))
    assert match is not None, text
    name, shape, strides, device = match.groups()

    def numbers(listed: str | None) -> list[int]:
        return [int(number) for number in re.findall(r"\d+", listed or "")]

    return tensor_type(numbers(shape), DTYPES[name], numbers(strides) or None, torch.device(device or "cpu"))


class GraphRecorder:
    """Builds a Graph by calling ops on Values: `recorder.aten.add.Tensor(x, y)`."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.inputs: list[Value] = []
        self.constants: dict[Value, torch.Tensor] = {}
        self.writes: list[Write] = []
        self.count = 0
        self.source = SOURCE

    @property
    def aten(self) -> Any:
        return _Namespace(self, torch.ops.aten)

    def value(self, type_: TensorType) -> Value:
        self.count += 1
        return Value(self.count - 1, type_)

    def input(
        self,
        shape: Sequence[int],
        dtype: torch.dtype = torch.float32,
        strides: Sequence[int] | None = None,
        device: torch.device = CPU,
    ) -> Value:
        self.inputs.append(self.value(tensor_type(shape, dtype, strides, device)))
        return self.inputs[-1]

    def constant(self, tensor: torch.Tensor) -> Value:
        value = self.value(tensor_type(tensor.shape, tensor.dtype, tensor.stride()))
        self.constants[value] = tensor
        return value

    def call(self, op: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Append a node; the types of its results are what the op computes on meta tensors."""

        def meta(arg: Any) -> Any:
            if isinstance(arg, Value):
                return torch.empty_strided(arg.type.shape, arg.type.strides, dtype=arg.type.dtype, device="meta")
            if isinstance(arg, (tuple, list)):
                return [meta(item) for item in arg]
            return arg

        placed = {"device": "meta"} if is_factory(op) or "device" in kwargs else {}
        read = [value.type.device for value in Node(op, _frozen(args), kwargs, (), self.source).inputs()]
        device = kwargs.get("device") or next((each for each in read if each != CPU), CPU)
        returned = op(*[meta(a) for a in args], **{k: meta(a) for k, a in kwargs.items()} | placed)
        results = [returned] if isinstance(returned, torch.Tensor) else list(returned)
        undefined = TensorType((), torch.float32, (), torch.device("meta"))
        outputs = tuple(
            self.value(undefined if t is None else tensor_type(t.shape, t.dtype, t.stride(), device)) for t in results
        )
        arguments, keywords = _frozen(args), {k: _frozen(a) for k, a in kwargs.items()}
        random = torch.Tag.nondeterministic_seeded in getattr(op, "tags", ())
        self.nodes.append(Node(op, arguments, keywords, outputs, self.source, effect=random))
        return outputs[0] if isinstance(returned, torch.Tensor) else outputs

    def graph(self, *outputs: Value, **fields: Any) -> Graph:
        fields.setdefault("writes", tuple(self.writes))
        return Graph(tuple(self.inputs), tuple(self.nodes), outputs, constants=self.constants, **fields)


def trace(function: Callable[..., Any], *tensors: torch.Tensor) -> Graph:
    """The Graph of the (functional) ATen ops that `function` runs on `tensors`; other tensors become constants."""
    recorder = GraphRecorder()
    values: dict[int, Value] = {}
    alive: list[torch.Tensor] = []

    def known(tensor: torch.Tensor) -> Value:
        if id(tensor) not in values:
            alive.append(tensor)
            values[id(tensor)] = recorder.constant(tensor.detach())
        return values[id(tensor)]

    def arguments(arg: Any) -> Any:
        if isinstance(arg, torch.Tensor):
            return known(arg)
        return tuple(map(arguments, arg)) if isinstance(arg, (tuple, list)) else arg

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            assert not op._schema.is_mutable, op
            frozen = arguments(tuple(args)), {name: arguments(arg) for name, arg in (kwargs or {}).items()}
            returned = op(*args, **(kwargs or {}))
            results = [returned] if isinstance(returned, torch.Tensor) else list(returned)
            outputs = tuple(recorder.value(tensor_type(t.shape, t.dtype, t.stride())) for t in results)
            recorder.nodes.append(Node(op, *frozen, outputs, recorder.source))
            alive.extend(results)
            values.update(zip(map(id, results), outputs, strict=True))
            return returned

    for tensor in tensors:
        values[id(tensor)] = recorder.input(tensor.shape, tensor.dtype, tensor.stride())
    with torch.no_grad(), Mode():
        returned = function(*tensors)
    results = returned if isinstance(returned, (tuple, list)) else (returned,)
    return recorder.graph(*(known(tensor) for tensor in results))


def is_factory(op: Callable[..., Any]) -> bool:
    if not isinstance(op, torch._ops.OpOverload):
        return False
    arguments = op._schema.arguments
    return any(a.name == "device" for a in arguments) and not any("Tensor" in str(a.type) for a in arguments)


def _frozen(arg: Any) -> Any:
    return tuple(_frozen(item) for item in arg) if isinstance(arg, (tuple, list)) else arg


class _Namespace:
    """`aten.<packet>.<overload>(...)` records a node."""

    def __init__(self, recorder: GraphRecorder, target: Any) -> None:
        self._recorder, self._target = recorder, target

    def __getattr__(self, name: str) -> _Namespace:
        return _Namespace(self._recorder, getattr(self._target, name))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._recorder.call(self._target, *args, **kwargs)


def graph_from_text(text: str, constants: Mapping[str, torch.Tensor] | None = None) -> Graph:
    """The Graph of a printed function; `constants` by name (zeros for those not given)."""
    recorder = GraphRecorder()
    scope: dict[str, Any] = {"torch": torch, "aten": recorder.aten}
    scope |= {op.__name__: partial(recorder.call, op) for op in FUNCTIONS}
    code = compile(textwrap.dedent(text), "<graph>", "exec", flags=__future__.annotations.compiler_flag)
    exec(code, scope)
    function = scope["graph"]
    values: dict[str, Value] = {}
    for name, annotation in function.__annotations__.items():
        type_ = parse_type(annotation)
        if re.fullmatch(r"c\d+", name):
            given = (constants or {}).get(name)
            values[name] = recorder.constant(torch.zeros(type_.shape, dtype=type_.dtype) if given is None else given)
        else:
            values[name] = recorder.input(type_.shape, type_.dtype, type_.strides, type_.device)
    returned = function(**values)
    return recorder.graph(*(returned if isinstance(returned, tuple) else (returned,)))


def example(docstring: str | None) -> tuple[str, str]:
    """The Before and the After of a docstring."""
    assert docstring is not None
    before, after = docstring.split("\nBefore:\n")[1].split("\nAfter:\n")
    lines = after.splitlines()
    end = next((n for n, line in enumerate(lines) if line and not line.startswith("    ")), len(lines))
    return textwrap.dedent(before), textwrap.dedent("\n".join(lines[:end]))


def printed(graph: Graph) -> str:
    return print_short(graph).strip()


def assert_rewrites(passed: Callable[[Graph], Graph], docstring: str | None) -> None:
    """The pass turns the docstring's Before into its After."""
    before, after = example(docstring)
    assert printed(passed(graph_from_text(before))) == after.strip()


__all__ = [
    "SOURCE",
    "GraphRecorder",
    "assert_rewrites",
    "example",
    "graph_from_text",
    "parse_type",
    "printed",
    "tensor_type",
    "trace",
]
