"""When a jitted function gets a program for many sizes, and for which sizes.

The first program is one for exact sizes. A call that differs from an earlier one in sizes alone gets a program in which
these are open; so does a first call with sizes that the user says are dynamic.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.ir.graph import Graph
from dsjit.ir.structure_graph import graph_structure
from dsjit.ir.template import Mismatch
from dsjit.trace.capture import Capture
from dsjit.trace.effects.rewind import can_rewind
from dsjit.trace.effects.writes import SetGenerator
from dsjit.trace.looks.outcome import SMALLEST
from dsjit.trace.looks.segments import Recording
from dsjit.trace.reads.paths import Path
from dsjit.trace.shapes.data_sizes import DataSizes, find_data_sizes
from dsjit.trace.shapes.lockstep import Abandoned
from dsjit.trace.shapes.open_sizes import NO_SIZES, Met, OpenSizes, changed_sizes, chosen_sizes
from dsjit.trace.shapes.rehearsal import Rehearsal, rehearse
from dsjit.trace.shapes.unread_inputs import without_unread_inputs

__all__ = ["OpenCalls", "SizeMarks"]

CALLS_REMEMBERED: Final = 8
FAILURES: Final = 8
"""Rehearsals that led to nothing, after which no more are made: each costs several runs of the function."""


class SizeMarks:
    """What the user says of the sizes of a tensor, as long as the tensor lives."""

    def __init__(self) -> None:
        self._marks: dict[int, tuple[weakref.ref[torch.Tensor], dict[int, bool]]] = {}

    def mark(self, tensor: torch.Tensor, dims: tuple[int, ...], dynamic: bool) -> None:
        """Say that these dimensions (from 0 on) are dynamic, or that they are not."""
        key = id(tensor)
        known = self._marks.get(key)
        if known is None or known[0]() is not tensor:
            marks = self._marks
            known = marks[key] = (weakref.ref(tensor, lambda _: marks.pop(key, None)), {})
        known[1].update(dict.fromkeys(dims, dynamic))

    def of(self, tensor: torch.Tensor) -> Mapping[int, bool]:
        """For each dimension that the user spoke of, whether it is dynamic."""
        known = self._marks.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else {}


@dataclass(frozen=True, slots=True)
class _Seen:
    """graph: None when the call looked at what tensors hold."""

    met: Met
    graph: Graph | None


@dataclass(slots=True)
class OpenCalls:
    """dynamic: the option. marks: of the session. reasons: why calls stayed calls for exact sizes."""

    dynamic: bool | None
    marks: SizeMarks
    reasons: list[str] = field(default_factory=list)
    _seen: list[_Seen] = field(default_factory=list)

    def open(
        self, captured: Capture, function: Callable[..., Any], args: Any, kwargs: Any, name: str
    ) -> Rehearsal | None:
        """The call for many sizes, if it is one; `captured` is how it ran. Later calls are compared with it."""
        recipe = captured.recipe
        observer, recording = captured.observer, captured.recording
        if recipe is None or observer is None or recording is None or self.dynamic is False:
            return None
        if recipe.events or (captured.joint is not None and len(captured.segments) > 1):
            return None
        draws = any(isinstance(write, SetGenerator) for write, _, _ in recipe.writes)
        if draws or not can_rewind(observer.effects, observer.before):
            return None
        met = {path: metadata for path, _, metadata in captured.tensors}
        found = None
        every_data_sizes = _choices_of_data_sizes(recording)
        choices = list(self._choices(captured, met))
        for data_sizes in every_data_sizes:
            for sizes, before in [*choices, (NO_SIZES, None)] if data_sizes.typical else choices:
                if len(self.reasons) >= FAILURES:
                    break
                found = self._rehearse(captured, sizes, data_sizes, before, function, args, kwargs, name)
                if found is not None:
                    break
            if found is not None:
                break
        self.note(captured)
        return found

    def note(self, captured: Capture) -> None:
        """Later calls are compared with this one."""
        joint = captured.joint
        graph = captured.segments[0].graph if joint is None else joint.graph
        single = graph if len(captured.segments) == 1 else None
        met = {path: metadata for path, _, metadata in captured.tensors}
        self._seen = [_Seen(met, single), *self._seen[: CALLS_REMEMBERED - 1]]

    def _rehearse(
        self,
        captured: Capture,
        sizes: OpenSizes,
        data_sizes: DataSizes,
        before: Graph | None,
        function: Callable[..., Any],
        args: Any,
        kwargs: Any,
        name: str,
    ) -> Rehearsal | None:
        try:
            found = rehearse(function, args, kwargs, name, captured, sizes, data_sizes)
        except (Abandoned, Mismatch) as stop:
            self.reasons.append(str(stop))
            return None
        except Exception as error:  # the call itself has run: nothing that goes wrong here may reach the user
            self.reasons.append(f"{type(error).__name__}: {error}")
            return None
        # Symbols may lead Python another way than integers do: the earlier run with integers has to agree, too.
        shapes = found.segments[0].sizes
        if len(found.segments) > 1 or shapes is None or before is None or sizes.before is None:
            return found
        served = shapes.broken_condition(sizes.before) is None
        template = shapes.template if found.joint is None else found.joint.template
        if served and _structure(template.at(sizes.before)) != _structure(before):
            self.reasons.append(f"for the sizes {sizes.before} the program would be another one")
            return None
        return found

    def _choices(self, captured: Capture, met: Met) -> Iterator[tuple[OpenSizes, Graph | None]]:
        """What may be open, most first, and the Graph of the earlier call that tells so."""
        marks = {path: self.marks.of(tensor) for path, tensor, _ in captured.tensors}
        fixed = {(path, dim) for path, known in marks.items() for dim, dynamic in known.items() if not dynamic}
        dims = {path: [dim for dim, dynamic in known.items() if dynamic] for path, known in marks.items()}
        if self.dynamic:
            dims = {path: list(range(len(met[path].shape))) for path in met if _is_argument(path)}
        dims = {path: [dim for dim in known if (path, dim) not in fixed] for path, known in dims.items()}
        chosen = chosen_sizes(met, dims)
        choices: list[tuple[OpenSizes, Graph | None]] = []
        if chosen is not None:
            choices.append((chosen, None))
        for seen in self._seen:
            for coupled in (False, True):
                sizes = changed_sizes(seen.met, met, coupled)
                if sizes is None or fixed.intersection(sizes.places()):
                    continue
                if not any(sizes.inputs == other.inputs for other, _ in choices):
                    choices.append((sizes, seen.graph))
        choices.sort(key=lambda choice: -len(choice[0].typical))
        yield from choices
        for sizes, _ in choices:
            if len(sizes.typical) > 1:
                for number in range(len(sizes.typical)):
                    yield sizes.only(number), None


def _structure(graph: Graph) -> Hashable:
    return graph_structure(without_unread_inputs(graph))


def _choices_of_data_sizes(recording: Recording) -> list[DataSizes]:
    """The sizes that data decided, most first: from 1 on or from 2 on; those that must be equal are one, or those that
    happen to be."""
    every = find_data_sizes(recording)
    choices = [every]
    if every.typical:
        choices.append(find_data_sizes(recording, smallest=SMALLEST))
    coupled = find_data_sizes(recording, smallest=SMALLEST, coupled=True)
    if len(coupled.typical) < len(choices[-1].typical):
        choices.append(coupled)
    return choices


def _is_argument(path: Path) -> bool:
    return str(path.root) in ("args", "kwargs")
