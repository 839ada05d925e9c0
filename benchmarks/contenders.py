"""The ways to run a program that are compared: eager, dsjit, torch.compile and torch.compile with freezing."""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.workloads.workload import Program

__all__ = ["CONTENDERS", "DSJIT", "EAGER", "FREEZING", "INDUCTOR", "Contender", "cpp_compiler", "find"]


@dataclass(frozen=True, slots=True)
class Contender:
    """`compile` wraps a program without running it; what is compiled is compiled at the first call.

    `start_up` does, once a process, what does not depend on the program: imports and a trivial compile. `keeps_files`
    says that the compiler keeps files, and needs an empty folder to be measured cold; `trains`, that gradients flow
    through what it compiles; `draws_as_eager`, that its random numbers are those of eager from the same seed.
    """

    name: str
    title: str
    compile: Callable[[Program], Program]
    keeps_files: bool = False
    trains: bool = True
    draws_as_eager: bool = True

    def start_up(self) -> None:
        """Import the compiler and compile a trivial program with it."""
        self.compile(_trivial)(torch.ones(4))


def _trivial(x: Tensor) -> Tensor:
    return x + 1


def _compile_with_dsjit(program: Program) -> Program:
    jit: Callable[[Any], Any] = importlib.import_module("dsjit").jit
    compiled: Program = jit(program)
    return compiled


def _compile_with_freezing(program: Program) -> Program:
    return torch.compile(program, options={"freezing": True})


EAGER: Final = Contender("eager", "eager", lambda program: program)
DSJIT: Final = Contender("dsjit", "dsjit", _compile_with_dsjit)
INDUCTOR: Final = Contender("inductor", "torch.compile", torch.compile, keeps_files=True, draws_as_eager=False)
FREEZING: Final = Contender(
    "freezing", "torch.compile, freezing", _compile_with_freezing, keeps_files=True, trains=False, draws_as_eager=False
)

CONTENDERS: Final[tuple[Contender, ...]] = (EAGER, DSJIT, INDUCTOR, FREEZING)


def find(name: str) -> Contender:
    """The contender called `name`. Raises `KeyError` naming those there are."""
    for contender in CONTENDERS:
        if contender.name == name:
            return contender
    raise KeyError(f"no contender {name!r}; there are {', '.join(contender.name for contender in CONTENDERS)}")


def cpp_compiler() -> str | None:
    """The path of the C++ compiler that torch.compile needs on a CPU, or None."""
    return shutil.which("g++") or shutil.which("clang++")
