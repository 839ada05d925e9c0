"""dsjit behind torch.compile: `torch.compile(model, backend="dsjit")`, or `backend=dsjit.torch_backend`.

Dynamo reads the bytecode and hands over an fx graph. That is a function like any other: its first call is traced, for
real, and compiled as what `dsjit.jit` is given. So there is one way from ATen calls to kernels, gradients included.
Dynamo's own conventions are made dsjit's first: sizes that it takes as numbers are read from the tensors that have
them, and each op runs in a frame that has the user's line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import CodeType, FunctionType
from typing import Any, Final

import torch
from torch import fx

from dsjit.api.entry import session
from dsjit.api.jitted import Jitted
from dsjit.config import Options
from dsjit.errors import OptionError
from dsjit.ir.graph import Source
from dsjit.trace.recording.source import SourceFinder

__all__ = ["torch_backend"]

_FRAME: Final = re.compile(r'^  File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.MULTILINE)

_CALL: Final[CodeType] = (lambda *args, called=None, **kwargs: called(*args, **kwargs)).__code__


def torch_backend(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """The backend "dsjit" of `torch.compile`: what runs `graph_module`, compiled at its first call.

    The sizes that Dynamo holds to be dynamic are open in the first program. options: as for `dsjit.jit`.

    Raises OptionError for an option that there is not, and for a mode: modes are Inductor's.
    """
    if mode is not None:
        raise OptionError(f"dsjit has no mode {mode!r}: say what you want in `options`, which are those of dsjit.jit")
    chosen = Options.from_keywords(options or {})
    module = fx.GraphModule(graph_module, _copied(graph_module.graph))
    examples = [
        node.meta.get("example_value", given)  # a fake one, which has symbols for sizes
        for node, given in zip(module.graph.find_nodes(op="placeholder"), example_inputs, strict=True)
    ]
    kept = _read_sizes_from_tensors(module.graph, examples)
    _locate(module.graph)
    module.recompile()
    dynamic = tuple([(place, _open_dims(examples[number])) for place, number in enumerate(kept)])
    name = next(
        (s.function for n in graph_module.graph.nodes if (s := _source(n, SourceFinder())) is not None), "torch_compile"
    )
    jitted = Jitted(module.forward, chosen, session(), name)
    return _Compiled(jitted, kept, tuple([(place, dims) for place, dims in dynamic if dims]))


@dataclass(slots=True, eq=False)
class _Compiled:
    """jitted: takes the inputs that are `kept`, by number. dynamic: of these, by number, the dimensions that are open
    from the first call on."""

    jitted: Jitted
    kept: tuple[int, ...]
    dynamic: tuple[tuple[int, tuple[int, ...]], ...]

    def __call__(self, *args: Any) -> Any:
        given = [args[number] for number in self.kept]
        if self.dynamic:
            for place, dims in self.dynamic:
                session().marks.mark(given[place], dims, True)
            self.dynamic = ()
        return self.jitted(*given)


def _copied(graph: fx.Graph) -> fx.Graph:
    copy = fx.Graph()
    output = copy.graph_copy(graph, {}, return_output_node=True)
    assert isinstance(output, tuple)
    copy.output(output[0])
    return copy


def _open_dims(example: Any) -> tuple[int, ...]:
    if not isinstance(example, torch.Tensor):
        return ()
    return tuple([dim for dim, size in enumerate(example.shape) if isinstance(size, torch.SymInt)])


def _read_sizes_from_tensors(graph: fx.Graph, examples: Sequence[Any]) -> tuple[int, ...]:
    """Replace inputs that are the size of another input; returns the numbers of those that stay.

    Any other number (a Python argument, say) stays an input, and each value of it is a program of its own.
    """
    inputs = graph.find_nodes(op="placeholder")
    found: dict[str, tuple[fx.Node, int]] = {}
    for node, example in zip(inputs, examples, strict=True):
        for dim in _open_dims(example):
            found.setdefault(str(example.shape[dim]), (node, dim))
    kept: list[int] = []
    for number, (node, example) in enumerate(zip(inputs, examples, strict=True)):
        place = found.get(str(example)) if isinstance(example, torch.SymInt) else None
        if place is None:
            kept.append(number)
            continue
        with graph.inserting_after(inputs[-1]):
            node.replace_all_uses_with(graph.call_method("size", place))
        graph.erase_node(node)
    return tuple(kept)


def _locate(graph: fx.Graph) -> None:
    """Give each op a frame with the user's line: where the innermost function of theirs called it."""
    finder = SourceFinder()
    for node in graph.nodes:
        source = _source(node, finder)
        if source is None or node.op not in ("call_function", "call_method"):
            continue
        called = partial(_call_method, node.target) if node.op == "call_method" else node.target
        with graph.inserting_before(node):
            located = graph.call_function(_frame(source, called), node.args, node.kwargs)
        node.replace_all_uses_with(located)
        graph.erase_node(node)


def _call_method(name: str, receiver: Any, *args: Any, **kwargs: Any) -> Any:
    return getattr(receiver, name)(*args, **kwargs)


def _frame(source: Source, called: Callable[..., Any]) -> Callable[..., Any]:
    """Calls a function, on the line `source`."""
    code = _CALL.replace(co_filename=source.file, co_firstlineno=source.line, co_name=source.function)
    function = FunctionType(code, {"__name__": __name__}, "call")
    function.__kwdefaults__ = {"called": called}
    return function


def _source(node: fx.Node, finder: SourceFinder) -> Source | None:
    """The innermost line of the user's that Dynamo noted for a node."""
    for found in reversed(list(_FRAME.finditer(node.stack_trace or ""))):
        if finder.is_users_file(found["file"]):
            return Source(found["file"], int(found["line"]), found["function"])
    return None
