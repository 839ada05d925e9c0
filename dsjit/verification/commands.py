"""`python -m dsjit verify` and `python -m dsjit bisect`."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from rich.console import Console

from dsjit.errors import DsjitError, OptionError
from dsjit.verification.rewrites import search
from dsjit.verification.verify import verify

__all__ = ["add_parsers", "bisect_command", "verify_command"]

EXAMPLE_INPUTS: Final = "example_inputs"

_VERIFY: Final = """\
Call FUNCTION eagerly, compiled, and in double precision, and compare all that can be seen.

FUNCTION is module:name, or path/to/file.py:name; the name may be dotted, and mean a function, a module object, or a
class of nn.Module that takes no arguments. Its arguments come from a factory: a function without parameters in the same
module, "example_inputs" unless --args names another, that returns a tuple of arguments, or (arguments, keyword
arguments) as a tuple and a dict. Without a factory, FUNCTION is called without arguments. Gradients are off.

Exit status: 0 the same; 1 a difference, or --require-compiled and the call ran eagerly; 2 wrong arguments."""

_BISECT: Final = """\
Find the first rewrite that makes COMMAND fail: a pass, an op that goes into a kernel, or a fusion.

COMMAND is run again and again with DSJIT_FUEL=n, which lets the compiler do n rewrites and no more; it must exit with 0
when all is right, and with another status when not. Its output is not shown. Programs are compiled anew in each run.

Exit status: 0 found; 1 COMMAND does not fail, or fails without any rewrite; 2 wrong arguments."""


def add_parsers(commands: Any) -> None:
    """Add both commands to the subparsers of `python -m dsjit`."""
    formatter = argparse.RawDescriptionHelpFormatter
    verifier = commands.add_parser(
        "verify", help="compare a function compiled with eager", description=_VERIFY, formatter_class=formatter
    )
    verifier.add_argument("function", metavar="FUNCTION", help="module:name or path/to/file.py:name")
    verifier.add_argument("--args", metavar="NAME", help=f"the factory of arguments (default {EXAMPLE_INPUTS})")
    verifier.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    verifier.add_argument(
        "--reproducer", type=Path, metavar="FILE", help="on a difference, write the program that shows it"
    )
    verifier.add_argument("--require-compiled", action="store_true", help="fail when the call runs eagerly")
    bisector = commands.add_parser(
        "bisect", help="find the rewrite that makes a command fail", description=_BISECT, formatter_class=formatter
    )
    bisector.add_argument("command_line", nargs=argparse.REMAINDER, metavar="COMMAND", help="with its arguments")


# -- verify --------------------------------------------------------------------------------------------------------


def verify_command(options: argparse.Namespace, console: Console) -> int:
    """Runs `python -m dsjit verify`; returns the exit status."""
    try:
        function, args, kwargs = load_call(options.function, options.args)
    except OptionError as error:
        console.print(str(error), style="bold red", markup=False, soft_wrap=True)
        return 2
    try:
        with torch.no_grad():
            report = verify(function, *args, **kwargs)
    except DsjitError as error:
        console.print(f"{type(error).__name__}: {error}", style="bold red", markup=False, soft_wrap=True)
        return 2
    report.print(console)
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    if options.reproducer is not None and report.blame is not None and report.blame.reproducer:
        options.reproducer.write_text(report.blame.reproducer, encoding="utf-8")
        console.print(f"written: {options.reproducer}", markup=False)
    return 0 if report.ok and (report.compiled or not options.require_compiled) else 1


def load_call(target: str, factory: str | None) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """What `target` names, with the arguments that its module's factory gives. Raises OptionError."""
    place, _, name = target.rpartition(":")
    if not place or not name:
        raise OptionError(f"{target!r} is not module:name, nor path/to/file.py:name")
    module = _load(place)
    function = _member(module, name)
    if isinstance(function, type):
        if not issubclass(function, torch.nn.Module):
            raise OptionError(f"{target} is a class: name a function, a module object, or a class of nn.Module")
        try:
            function = function()
        except TypeError as error:
            raise OptionError(f"{target} needs arguments ({error}): name a function, or a module object") from error
    if not callable(function):
        raise OptionError(f"{target} is a {type(function).__name__}, which is not callable")
    if factory is None and not hasattr(module, EXAMPLE_INPUTS):
        return function, (), {}
    made = _member(module, factory or EXAMPLE_INPUTS)()
    if not isinstance(made, tuple | list):
        made = (made,)
    if len(made) == 2 and isinstance(made[0], tuple | list) and isinstance(made[1], dict):
        return function, tuple(made[0]), made[1]
    return function, tuple(made), {}


def _load(place: str) -> ModuleType:
    try:
        if not place.endswith(".py"):
            sys.path.insert(0, os.getcwd())
            return importlib.import_module(place)
        spec = importlib.util.spec_from_file_location(Path(place).stem, place)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault(module.__name__, module)
        spec.loader.exec_module(module)
        return module
    except (ImportError, OSError) as error:
        raise OptionError(f"{place} cannot be imported: {error}") from error


def _member(module: ModuleType, name: str) -> Any:
    found: Any = module
    for part in name.split("."):
        if not hasattr(found, part):
            raise OptionError(f"{module.__name__} has no {name}")
        found = getattr(found, part)
    return found


# -- bisect --------------------------------------------------------------------------------------------------------


def bisect_command(options: argparse.Namespace, console: Console) -> int:
    """Runs `python -m dsjit bisect`; returns the exit status."""
    command = [part for number, part in enumerate(options.command_line) if number or part != "--"]
    if not command:
        console.print("bisect needs a command to run: see python -m dsjit bisect --help", style="bold red")
        return 2
    with tempfile.TemporaryDirectory(prefix="dsjit-bisect-") as folder:
        if not _fails(command, {"DSJIT_DUMP": folder}):
            console.print("The command does not fail: there is nothing to find.")
            return 1
        rewrites = read_rewrites(Path(folder))
    if not rewrites or _fails(command, {"DSJIT_FUEL": "0"}):
        console.print("The command fails without any rewrite, too: capture, library calls or the command are to blame.")
        return 1

    def is_wrong(limit: int) -> bool:
        failed = _fails(command, {"DSJIT_FUEL": str(limit)})
        console.print(f"DSJIT_FUEL={limit}: {'fails' if failed else 'passes'}")
        return failed

    number = search(max(rewrites), is_wrong)
    console.print(f"first bad rewrite: {number} of {max(rewrites)}: {rewrites[number]}", markup=False, soft_wrap=True)
    return 0


def _fails(command: Sequence[str], variables: dict[str, str]) -> bool:
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, check=False).returncode != 0


def read_rewrites(folder: Path) -> dict[int, str]:
    """The numbered rewrites that the compiles of one process wrote below `folder` (DSJIT_DUMP)."""
    found: dict[int, str] = {}
    for path in folder.glob("*/rewrites.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            number, text = re.fullmatch(r"(\d+): (.*)", line).groups()  # type: ignore[union-attr]
            found[int(number)] = text
    return found
