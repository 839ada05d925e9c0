"""`python -m dsjit profile`: a script, profiled from its first line to its last."""

from __future__ import annotations

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from dsjit.api.profiling import Profile
from dsjit.errors import ProfileError
from dsjit.profiler.compare import compare_profiles

__all__ = ["add_parser", "profile_command"]

_DESCRIPTION: Final = """\
Run a script, as python does, and profile the compiled calls in it. What is jitted is what the script jits.

Prints a summary; --html writes the report, --json the data, --trace the timeline for ui.perfetto.dev. With --compare,
the report has this profile beside one that was written with --json before.

Exit status: that of the script; 2 wrong arguments."""


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers of `python -m dsjit`."""
    parser = commands.add_parser(
        "profile",
        help="run a script and tell where the time goes, by line",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the data")
    parser.add_argument("--trace", type=Path, metavar="FILE", help="write the timeline in Chrome's trace format")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="the data of an earlier profile")
    parser.add_argument("script", type=Path, metavar="SCRIPT")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...", help="of the script")


def profile_command(options: argparse.Namespace, console: Console) -> int:
    """Runs `python -m dsjit profile`; returns the exit status."""
    if not options.script.is_file():
        console.print(f"there is no file {options.script}", style="bold red", markup=False, soft_wrap=True)
        return 2
    found = Profile(options.script.name)
    status = _run(options.script, options.arguments, found)
    found.print(console)
    if options.json is not None:
        found.save_json(options.json)
    if options.trace is not None:
        found.save_chrome_trace(options.trace)
    try:
        comparison = compare_profiles(options.compare, found) if options.compare is not None else None
    except (OSError, ProfileError) as error:
        console.print(str(error), style="bold red", markup=False, soft_wrap=True)
        return 2
    if comparison is not None:
        comparison.print(console)
    if options.html is not None:
        (comparison or found).save_html(options.html)
    for path in filter(None, (options.html, options.json, options.trace)):
        console.print(f"written: {path}", markup=False, soft_wrap=True)
    return status


def _run(script: Path, arguments: list[str], found: Profile) -> int:
    """The exit status of the script. An exception of its own goes through."""
    before = sys.argv, sys.path[0]
    sys.argv, sys.path[0] = [str(script), *arguments], str(script.resolve().parent)
    try:
        with found:
            runpy.run_path(str(script), run_name="__main__")
    except SystemExit as stop:
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        print(stop.code, file=sys.stderr)
        return 1
    finally:
        sys.argv, sys.path[0] = before
    return 0
