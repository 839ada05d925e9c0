"""Numbered files, one for each stage of a compilation: what `DSJIT_DUMP` asks for.

<directory>/graph-000/000-trace.py
                      010-dce.py
                      ...
                      kernel-003.txt
                      module.ll
"""

from __future__ import annotations

import os
import re
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dsjit.ir.graph import Graph
from dsjit.ir.print_graph import print_graph

__all__ = ["Dump", "open_dump"]

_STEP = 10
"""Between the numbers of stages: leaves room for files that someone adds by hand while comparing."""


@dataclass(slots=True)
class Dump:
    """The folder of one compilation. Each file appears whole or not at all, also when several processes write."""

    directory: Path
    stages: int = 0
    kernels: int = 0

    def write(self, name: str, text: str) -> Path:
        """Write `text` to the file `name` of the folder, replacing it if it exists. Raises OSError."""
        path = self.directory / name
        handle, temporary = tempfile.mkstemp(prefix=f".{name}.", dir=self.directory)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
        return path

    def write_stage(self, name: str, graph: Graph) -> Path:
        """Write a Graph as the next numbered stage: `000-trace.py`, `010-dce.py`, ..."""
        path = self.write(f"{self.stages * _STEP:03d}-{name}.py", print_graph(graph))
        self.stages += 1
        return path

    def write_kernel(self, text: str) -> Path:
        """Write a printed Kernel as the next `kernel-000.txt`."""
        path = self.write(f"kernel-{self.kernels:03d}.txt", text)
        self.kernels += 1
        return path


def open_dump(directory: str | os.PathLike[str], name: str) -> Dump:
    """A new folder `<name>-000`, `<name>-001`, ... in `directory`, which is made if it is missing. Raises OSError."""
    parent = Path(directory)
    parent.mkdir(parents=True, exist_ok=True)
    stem = re.sub(r"[^\w.-]+", "_", name) or "graph"
    for number in count():
        path = parent / f"{stem}-{number:03d}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return Dump(path)
    raise AssertionError("count() ends")
