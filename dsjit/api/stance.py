"""Which stance holds where: how calls of all jitted objects go, whatever the options of each."""

from __future__ import annotations

import threading
import weakref

from dsjit.config import Stance
from dsjit.errors import DsjitError

__all__ = ["Holder", "Stances"]


class Holder:
    """Who asked for a stance: one `dsjit.set_stance(...)`."""

    __slots__ = ("__weakref__", "stance")

    def __init__(self, stance: Stance) -> None:
        self.stance = stance


class _Blocks(threading.local):
    """The `with` blocks that a thread is in, the innermost last."""

    def __init__(self) -> None:
        self.holders: list[Holder] = []


class Stances:
    """The stances of a process. A thread takes that of its innermost `with` block, and without one that of the
    process, which is the one set last of those that were not taken back.

    eager: how many of them, anywhere, are "eager". While it is 0, calls need not ask further.
    """

    __slots__ = ("_blocks", "_lock", "_set", "eager")

    def __init__(self, initial: Stance) -> None:
        self._lock = threading.Lock()
        self._blocks = _Blocks()
        self._set: list[tuple[Stance, weakref.ref[Holder] | None]] = [(initial, None)]
        self.eager = int(initial == "eager")

    def current(self) -> Stance:
        """The stance of this thread."""
        blocks = self._blocks.holders
        return blocks[-1].stance if blocks else self._set[-1][0]

    def set(self, holder: Holder) -> None:
        """Set the stance of the process, until `holder` takes it back (if it still can: nobody else will)."""
        with self._lock:
            # What a dead holder has set stays for good, and hides what was set before.
            final = max(n for n, (_, ref) in enumerate(self._set) if ref is None or ref() is None)
            self._replace([*self._set[final:], (holder.stance, weakref.ref(holder))])

    def take_back(self, holder: Holder) -> None:
        """Undo `set`, whatever was set by others meanwhile. Nothing happens the second time."""
        with self._lock:
            self._replace([entry for entry in self._set if entry[1] is None or entry[1]() is not holder])

    def enter(self, holder: Holder) -> None:
        """A block begins on this thread."""
        self._blocks.holders = [*self._blocks.holders, holder]
        with self._lock:
            self.eager += holder.stance == "eager"

    def leave(self, holder: Holder) -> None:
        """The innermost block of `holder` on this thread ends. Raises DsjitError when there is none."""
        blocks = self._blocks.holders
        for position in reversed(range(len(blocks))):
            if blocks[position] is holder:
                self._blocks.holders = [*blocks[:position], *blocks[position + 1 :]]
                with self._lock:
                    self.eager -= holder.stance == "eager"
                return
        raise DsjitError("a block of dsjit.set_stance ends on another thread than it began on")

    def _replace(self, entries: list[tuple[Stance, weakref.ref[Holder] | None]]) -> None:
        was = sum(stance == "eager" for stance, _ in self._set)
        self._set = entries
        self.eager += sum(stance == "eager" for stance, _ in entries) - was
