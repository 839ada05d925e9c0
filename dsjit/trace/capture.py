"""One traced call: the user's function runs for real, and becomes segments, a guard and a recipe for its result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch

from dsjit.errors import CaptureError
from dsjit.ir.graph import Graph, Value
from dsjit.ops.strided import strided_view
from dsjit.trace.guards import Guard
from dsjit.trace.memory import CannotTrace
from dsjit.trace.observe import Observer
from dsjit.trace.outputs import ResultBuilder, TemplateError, make_template
from dsjit.trace.paths import Path, Root
from dsjit.trace.recorder import Recorder, Untraceable
from dsjit.trace.segments import Segment, cut
from dsjit.trace.source import SourceFinder
from dsjit.trace.warned import Warned, WarningWatch

__all__ = ["Capture", "Found", "Returned", "capture"]


@dataclass(frozen=True, slots=True)
class Returned:
    """How one tensor of the result is obtained: from input or output number `number` of the last segment's Graph,
    whole or as a strided view."""

    from_input: bool
    number: int
    view: tuple[tuple[int, ...], tuple[int, ...], int] | None

    def fetch(self, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        tensor = (inputs if self.from_input else outputs)[self.number]
        return tensor if self.view is None else strided_view(tensor, *self.view)


@dataclass(frozen=True, slots=True)
class Found:
    """How an object of the result that existed before the call is obtained: by `path` from the arguments of the
    call, or, when the guard holds it fast, as `value`."""

    path: Path | None
    value: Any

    def fetch(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        return self.value if self.path is None else _walk(self.path, args, kwargs)


def _walk(path: Path, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    if path.parent is None:
        return args if str(path.step) == "args" else kwargs
    assert not isinstance(path.step, Root)
    return path.step.get(_walk(path.parent, args, kwargs))


@dataclass(frozen=True, slots=True)
class Capture:
    """What one traced call gave.

    result: what the function returned. problems: why there are no segments; empty when there are some.
    guard: when the segments (or, without them, the verdict) hold again; None when that cannot be told.
    inputs: ids of the Values that the guard's tensors are, in its order.
    """

    result: Any
    problems: tuple[Untraceable, ...]
    guard: Guard | None
    inputs: tuple[int, ...] = ()
    segments: tuple[Segment, ...] = ()
    builder: ResultBuilder | None = None
    returned: tuple[Returned, ...] = ()
    found: tuple[Found, ...] = ()
    warned: tuple[Warned, ...] = ()


def capture(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
) -> Capture:
    """Call `function(*args, **kwargs)` once, for real, and record it. Whatever it raises is raised."""
    observer = Observer(function, args, kwargs)
    recorder = Recorder(lambda tensor: observer.path_of(tensor) is not None, SourceFinder(), observer.pauses())
    warned = WarningWatch()
    with ExitStack() as watches:
        try:
            for watch in (observer, recorder.generator, warned, recorder.escapes, recorder):
                watches.enter_context(watch)
        except CaptureError as error:
            watches.close()
            problem = Untraceable(str(error), recorder.sources.current(), passing=True)
            return Capture(function(*args, **kwargs), (problem,), None)
        result = function(*args, **kwargs)
    problems = [*recorder.problems, *(Untraceable(p.reason, p.source, p.passing) for p in observer.problems)]
    if not problems:
        try:
            return _finish(result, observer, recorder, tuple(warned.warned), name)
        except TemplateError as error:
            problems.append(Untraceable(str(error), recorder.sources.current()))
        except CannotTrace as stop:
            problems.append(Untraceable(stop.reason, recorder.sources.current()))
    return Capture(result, tuple(problems), observer.build_guard((), frozenset()))


def _finish(
    result: Any, observer: Observer, recorder: Recorder, warned: tuple[Warned, ...], name: str
) -> Capture:
    builder = make_template(result, lambda obj: observer.path_of_object(obj) is not None)
    roots = [recorder.memory.locate(tensor) for tensor in builder.tensors]
    inputs = recorder.memory.inputs
    value_of = {id(tensor): value for value, tensor in inputs}
    wanted = [root.root if root.input is None else value_of[id(root.input)] for root in roots]
    fresh = dict.fromkeys(value for value, root in zip(wanted, roots, strict=True) if root.input is None)
    handed = [value for value, root in zip(wanted, roots, strict=True) if root.input is not None]
    writes = recorder.memory.writes()
    segments = cut(recorder.recording(name), fresh, handed, writes)
    last = segments[-1].graph
    returned = [_returned(value, root.view, last) for value, root in zip(wanted, roots, strict=True)]
    written = {write.target for write in writes}
    paths = [observer.path_of(tensor) for _, tensor in inputs]
    positions = frozenset(number for number, (value, _) in enumerate(inputs) if value in written)
    assert all(path is not None for path in paths)
    guard = observer.build_guard([path for path in paths if path is not None], positions)
    found = tuple(_find(obj, observer) for obj in builder.existing)
    ids = tuple(value.id for value, _ in inputs)
    return Capture(result, (), guard, ids, segments, builder, tuple(returned), found, warned)


def _returned(value: Value, view: tuple[tuple[int, ...], tuple[int, ...], int] | None, graph: Graph) -> Returned:
    from_input = value in graph.inputs and value not in graph.outputs
    return Returned(from_input, (graph.inputs if from_input else graph.outputs).index(value), view)


def _find(obj: Any, observer: Observer) -> Found:
    path = observer.path_of_object(obj)
    return Found(path if path is not None and str(path.root) in ("args", "kwargs") else None, obj)

