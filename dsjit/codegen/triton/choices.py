"""Which candidate was the fastest, kept in a file from process to process."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Choices", "choices_file"]


def choices_file() -> Path:
    """`dsjit/choices.json` in the user's cache folder (XDG_CACHE_HOME, or ~/.cache)."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dsjit" / "choices.json"


@dataclass(slots=True)
class Choices:
    """Numbers by key, in the file at `path`; in memory alone where that cannot be read or written. Thread-safe."""

    path: Path
    _known: dict[str, int] | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, key: str) -> int | None:
        with self._lock:
            if self._known is None:
                self._known = self._read()
            return self._known.get(key)

    def put(self, key: str, choice: int) -> None:
        """Adds to what the file holds by now: other processes write there, too. It is replaced whole."""
        with self._lock:
            self._known = {**(self._known or {}), **self._read(), key: choice}
            whole = self.path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                whole.write_text(json.dumps(self._known, indent=1), encoding="utf-8")
                whole.replace(self.path)
            except OSError:
                pass

    def _read(self) -> dict[str, int]:
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(k): v for k, v in found.items() if type(v) is int} if isinstance(found, dict) else {}
