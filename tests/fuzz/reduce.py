"""Makes a program that differs from eager smaller: lines, and groups of lines, are left out while it still differs."""

from __future__ import annotations

from dataclasses import replace

from tests.fuzz.play import play_program
from tests.fuzz.program import FuzzProgram

__all__ = ["reduced"]


def reduced(program: FuzzProgram) -> FuzzProgram:
    """The smallest program found that differs in the same places. Delta debugging (Zeller and Hildebrandt, 2002), by
    lines: groups of half of them first, then ever smaller ones."""
    wanted = _kinds(program)
    lines = list(program.body)
    size = max(len(lines) // 2, 1)
    while size:
        start = 0
        while start < len(lines):
            fewer = replace(program, body=(*lines[:start], *lines[start + size :]))
            if _kinds(fewer) & wanted:
                lines = list(fewer.body)
            else:
                start += size
        size //= 2
    return replace(program, body=tuple(lines))


def _kinds(program: FuzzProgram) -> set[str]:
    """What differs: `error`, `result`, `args`; nothing where the text is no program, or eager itself raises."""
    try:
        played = play_program(program)
    except Exception:
        return set()
    return {line.split(": ")[1].split("[")[0].split(".")[0] for line in played.differences}
