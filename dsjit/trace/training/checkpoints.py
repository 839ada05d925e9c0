"""`torch.utils.checkpoint` (without reentrance) in a call whose backward comes after it.

Under a checkpoint, autograd keeps nothing, and runs the function once more when the backward wants what it would have
kept. The traced call does just that; but what autograd hands to the checkpoint is remembered until the trace ends, so
that the walk through the backward finds it and runs nothing of the user's. The nodes recorded under a checkpoint are
marked by their `Source`: the compiled backward computes them again from what enters them
(`passes.partition`).

A function that does more than to compute (it counts, prints, or writes to tensors that existed before) would do so
twice in eager, and makes the call eager.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import torch
import torch.utils.checkpoint

from dsjit.ops.generator import generator_state
from dsjit.ops.properties import draws
from dsjit.trace.effects.stand_in import Shown, StandIn
from dsjit.trace.recording.recorder import Recorder

__all__ = ["CheckpointWatch"]

_NODES_BETWEEN: Final = 4
"""Between where a checkpoint saves the generator's state and where its function begins, at most."""


class CheckpointWatch:
    """While entered, checkpoints of this thread are marked and remembered.

    recorders: of the run, or of the runs in lockstep with the first of them.
    done: equal at two moments when the call did nothing between them that anybody could see.
    """

    def __init__(self, recorders: Sequence[Recorder], done: Callable[[], Hashable]) -> None:
        self._recorders = recorders
        self._done = done
        self._memory = _Remembered()
        self._count = 0
        for recorder in recorders:
            recorder.recalling = self._recalling
            recorder.is_harmless_hook = self._memory.packs.__contains__

    def __enter__(self) -> CheckpointWatch:
        _SHOWN.enter()
        self._before, _CURRENT.watch = _CURRENT.watch, self
        return self

    def __exit__(self, *error: object) -> None:
        _CURRENT.watch = self._before
        _SHOWN.leave()

    def forget(self) -> None:
        """The trace has ended."""
        self._memory.tensors.clear()
        self._memory.packs.clear()

    @contextmanager
    def _recalling(self) -> Iterator[None]:
        """While it lasts, what is under a checkpoint is remembered, and not computed again."""
        self._memory.recalling = True
        try:
            yield
        finally:
            self._memory.recalling = False

    @contextmanager
    def around(self, hook: Any) -> Iterator[None]:
        """`hook`, which makes a checkpoint of what runs within it, entered."""
        recorder = self._recorders[0]
        self._memory.attach(hook)
        self._count += 1
        outer = recorder.region
        for each in self._recorders:
            each.region = self._count
        start, before = len(recorder.memory.nodes), self._seen()
        try:
            with hook:
                yield
        finally:
            for each in self._recorders:
                each.region = outer
            if recorder.is_recording():
                if self._seen() != before:
                    recorder.give_up("a function under torch.utils.checkpoint does something that eager does twice")
                elif self._draws_anew(start):
                    recorder.give_up("random numbers are drawn under torch.utils.checkpoint, which does not save them")

    def _seen(self) -> Hashable:
        self._recorders[0].pause()
        try:
            with torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                return self._done()
        finally:
            self._recorders[0].resume()

    def _draws_anew(self, start: int) -> bool:
        """Whether the function drew random numbers, and draws others in the backward."""
        nodes = self._recorders[0].memory.nodes
        saved = any(node.op is generator_state for node in nodes[max(start - _NODES_BETWEEN, 0) : start])
        return not saved and any(map(draws, nodes[start:]))


@dataclass(slots=True, eq=False)
class _Remembered:
    """What checkpoints were handed, by the id of what they made of it. Outlives the trace, as hooks refer to it."""

    tensors: dict[int, torch.Tensor] = field(default_factory=dict)
    packs: set[Any] = field(default_factory=set)
    recalling: bool = False

    def attach(self, hook: Any) -> None:
        """Have a `saved_tensors_hooks` remember what it packs."""
        original_pack, original_unpack = hook.pack_hook, hook.unpack_hook

        def pack(tensor: torch.Tensor) -> Any:
            packed = original_pack(tensor)
            self.tensors[id(packed)] = tensor
            return packed

        def unpack(packed: Any) -> Any:
            known = self.tensors.get(id(packed)) if self.recalling else None
            return original_unpack(packed) if known is None else known

        hook.pack_hook, hook.unpack_hook = pack, unpack
        self.packs.add(pack)


class _Current(threading.local):
    """The watch of each thread."""

    watch: CheckpointWatch | None = None


_CURRENT: Final = _Current()


class _Hook(StandIn):
    """In place of what makes the hooks of a checkpoint."""

    def __call__(self, frame: Any) -> Any:
        hook, watch = self.original(frame), _CURRENT.watch
        return hook if watch is None else watch.around(hook)


_SHOWN: Final = Shown(vars(torch.utils.checkpoint), ("_checkpoint_hook",), _Hook)
