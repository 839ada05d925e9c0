"""The shape of the package: which folder may import which, by the syntax tree of every file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "dsjit").rglob("*.py"))

MAY_IMPORT = {
    "errors": set(),
    "once": set(),
    "config": {"errors"},
    "ir": {"errors"},
    "ops": {"errors", "ir"},
    "trace": {"errors", "once", "config", "ir", "ops"},
    "passes": {"errors", "config", "ir", "ops"},
    "fusion": {"errors", "config", "ir", "ops", "passes"},
    "codegen": {"errors", "once", "config", "ir", "ops", "passes", "fusion"},
    "oracle": {"errors", "config", "ir", "ops", "passes", "fusion", "codegen"},
    "profiler": {"errors", "config", "ir", "ops", "passes", "fusion", "codegen"},
}
"""Imports go one way: ir -> ops -> trace, passes -> fusion -> codegen -> everything else (the API).

A folder may import itself, and what its row lists. The profiler watches programs and knows nothing of the trace, and
the oracle judges Graphs one by one.
"""

MOST_LINES = 500


def part(module: str) -> str:
    """`ir` for `dsjit.ir.graph`, `` for `dsjit` itself."""
    return module.split(".")[1] if "." in module else ""


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> list[tuple[int, str]]:
    """Every module that the file imports from this package, with the line."""
    found: list[tuple[int, str]] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "dsjit":
            found += [(node.lineno, f"dsjit.{alias.name}") for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.append((node.lineno, node.module))
    return [(line, name) for line, name in found if name.split(".")[0] == "dsjit"]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", FILES, ids=relative)
def test_file_keeps_to_its_place(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    problems: list[str] = []
    own = part(module_of(path))
    allowed = MAY_IMPORT.get(own)
    for line, name in imports(tree):
        other = part(name)
        if allowed is not None and other != own and other not in allowed:
            problems.append(f"line {line}: {own} must not import {name}")
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    problems.append(f"line {node.lineno}: import inside a function")
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            problems.append(f"line {node.lineno}: relative import")
    count = text.count("\n")
    if count > MOST_LINES:
        problems.append(f"{count} lines: at most {MOST_LINES}")
    assert not problems, "\n".join(problems)


def test_every_folder_has_a_row():
    folders = {path.name for path in (ROOT / "dsjit").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert folders - set(MAY_IMPORT) <= {"api", "verification", "testing"}
