"""The command line: `python -m dsjit demo`, `profile`, `verify`, `bisect`, `env`, and `python -m dsjit --version`."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from dsjit import demo
from dsjit.api.profile_command import add_parser, profile_command
from dsjit.config import OPTION_ROWS, VARIABLE_ROWS, Environment, Options, defaults
from dsjit.errors import OptionError
from dsjit.verification.commands import add_parsers, bisect_command, verify_command

__all__ = ["main"]


def main(arguments: Sequence[str]) -> int:
    """Run a command. Returns the exit status: 0, or 1 if the command failed; wrong arguments exit with 2."""
    options = _parser().parse_args(arguments)
    console = Console()
    if options.command == "env":
        return _env(console)
    if options.command == "verify":
        return verify_command(options, console)
    if options.command == "profile":
        return profile_command(options, console)
    if options.command == "bisect":
        return bisect_command(options, console)
    with_torch_compile = options.torch_compile and demo.cpp_compiler() is not None
    if options.torch_compile and not with_torch_compile:
        console.print("No C++ compiler found: torch.compile is left out.", style="yellow")
    return demo.run(options.layers, options.tokens, with_torch_compile, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m dsjit", description="A just-in-time compiler for eager PyTorch.")
    parser.add_argument("--version", action="version", version=f"dsjit {_version()}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo_parser = commands.add_parser("demo", help="run a transformer eagerly, with dsjit and with torch.compile")
    demo_parser.add_argument("--layers", type=_positive, default=4, help="layers of the model (default 4)")
    demo_parser.add_argument("--tokens", type=_positive, default=128, help="tokens of each sequence (default 128)")
    demo_parser.add_argument(
        "--no-torch-compile", dest="torch_compile", action="store_false", help="leave torch.compile out"
    )
    add_parser(commands)
    add_parsers(commands)
    commands.add_parser("env", help="list the options and the environment variables, with their values now")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def _version() -> str:
    try:
        return importlib.metadata.version("dsjit")
    except importlib.metadata.PackageNotFoundError:
        return "(a source tree, not installed)"


def _env(console: Console) -> int:
    variables = _table("Environment variables", "variable", "accepts", "now", "meaning")
    for variable in VARIABLE_ROWS:
        variables.add_row(variable.name, variable.accepted, os.environ.get(variable.name, ""), variable.meaning)
    console.print(variables)
    keywords = _table("Options of dsjit.jit", "option", "accepts", "default", "meaning")
    for option in OPTION_ROWS:
        keywords.add_row(option.name, option.accepted, repr(defaults(Options)[option.name]), option.meaning)
    console.print(keywords)
    try:
        Environment.from_environ(os.environ)
    except OptionError as error:
        console.print(str(error), style="bold red", markup=False, soft_wrap=True)
        return 1
    return 0


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in columns:
        table.add_column(column, no_wrap=column == columns[0])  # a name that is cut short cannot be typed
    return table


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
