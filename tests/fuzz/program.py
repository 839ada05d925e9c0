"""A random program: Python text that a machine drew, and a person can run."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CodeType
from typing import Any, Final, TypeAlias

import torch

from dsjit.testing.strategies import TensorSpec

__all__ = ["FuzzProgram", "Script", "Turn", "compiled_script"]

Turn: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...]]
Script: TypeAlias = Callable[[Callable[..., Any]], Iterator[Turn]]
"""Takes `dsjit.jit`, or what stands for it, and yields each call that it makes: a function and its arguments."""

_HEADER: Final = """\
import torch

from dsjit.testing.strategies import TensorSpec
"""

_FOOTER: Final = """\
if __name__ == "__main__":
    from tests.fuzz.play import play

    print("\\n".join(play(script, gradients={gradients}).differences) or "no difference")
"""


@dataclass(frozen=True, slots=True)
class FuzzProgram:
    """body: the lines of `script(jit)`, a generator function. gradients: whether the results that require gradients
    are differentiated after each call, and the gradients compared."""

    body: tuple[str, ...]
    gradients: bool = False

    @property
    def text(self) -> str:
        """The function `script`."""
        return "def script(jit):\n" + textwrap.indent("\n".join(self.body), "    ") + "\n"

    @property
    def source(self) -> str:
        """A file that plays the program and prints the differences from eager."""
        return "\n\n".join([_HEADER, self.text, _FOOTER.format(gradients=self.gradients)])

    def __repr__(self) -> str:
        return self.source


def compiled_script(code: CodeType, make: type[TensorSpec] = TensorSpec) -> Script:
    """The function `script` in a namespace of its own. make: what `TensorSpec` means there."""
    namespace: dict[str, Any] = {"torch": torch, "TensorSpec": make, "__name__": "tests.fuzz.drawn"}
    exec(code, namespace)
    script: Script = namespace["script"]
    return script
