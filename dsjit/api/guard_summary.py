"""Guards and effects for reading: by the object that they are about, those of equal parts (layers, elements) once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

from dsjit.ir.graph import UNKNOWN_SOURCE, Source
from dsjit.trace.guards.guard import GuardLine
from dsjit.trace.reads.facts import Missing
from dsjit.trace.recording.source import SourceFinder

__all__ = ["merge_alike", "reader_of", "summarize_guards"]

_INDEX: Final = re.compile(r"\[\d+\]")

_ALIKE: Final = 3
"""Texts that differ in indices alone are told once from this number on."""


def summarize_guards(lines: Sequence[GuardLine]) -> Iterator[str]:
    """A line for each object, followed by one, indented, for each thing that must hold of it, and by the line of the
    traced call that read it. What torch's own code reads for itself is only counted, at the end, and so are the places
    where nothing is (an attribute is looked for in several)."""
    finder = SourceFinder()
    users = [line for line in lines if line.source is UNKNOWN_SOURCE or finder.is_users_file(line.source.file)]
    own = [line for line in users if line.condition != str(Missing())]
    alike = Counter(map(_general, own))
    groups: dict[str, dict[str, None]] = {}
    for line in own:
        general = _general(line)
        count = alike[general]
        owner, text = (_INDEX.sub("[*]", part) if count >= _ALIKE else part for part in (line.owner, _text(line)))
        times = f" ({count} alike)" if count >= _ALIKE else ""
        reader = f"  # {_short(line.source)}" if line.source.line else ""
        groups.setdefault(owner, {})[f"  {text}{times}{reader}"] = None
    for owner, entries in groups.items():
        yield owner or "in all"
        yield from entries
    if len(own) < len(lines):
        yield (
            f"and {len(users) - len(own)} that nothing is where something was looked for, "
            f"{len(lines) - len(users)} on what torch's own code reads "
            f"or a computed name may"
        )


def merge_alike(texts: Sequence[str]) -> list[str]:
    """The texts; those that differ in indices alone once, with their number."""
    alike = Counter([_INDEX.sub("[*]", text) for text in texts])
    found: dict[str, None] = {}
    for text in texts:
        general = _INDEX.sub("[*]", text)
        count = alike[general]
        found[f"{general}, {count} alike" if count >= _ALIKE else text] = None
    return list(found)


def reader_of(path: str, lines: Sequence[GuardLine]) -> Source:
    """The line that read what is at `path`, as far as the guards tell."""
    return next((line.source for line in lines if line.path == path), UNKNOWN_SOURCE)


def _text(line: GuardLine) -> str:
    rest = line.path.removeprefix(line.owner) if line.owner else ""
    return f"{rest or line.path} {line.condition}"


def _general(line: GuardLine) -> tuple[str, str, Source]:
    return _INDEX.sub("[*]", line.owner), _INDEX.sub("[*]", _text(line)), line.source


def _short(source: Source) -> str:
    return f"{os.path.basename(source.file)}:{source.line}"
