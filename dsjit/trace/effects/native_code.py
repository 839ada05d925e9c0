"""C functions of other packages that may reach into tensors, where nobody sees what they do.

An extension that is linked against torch takes tensors as they are: it may write to their memory, or queue a kernel
that does, without a call that is dispatched. What it computes would be a constant of the program, and what it writes
would be lost. Ops that it registers (`torch.ops`) are calls like others, and no concern here.
"""

from __future__ import annotations

import functools
import sys
import types
from pathlib import Path
from typing import Any, Final

__all__ = ["foreign_native_module"]

_KNOWN: Final = sys.stdlib_module_names | {"torch", "functorch", "numpy", "dsjit"}
_LIBRARIES: Final = (b"libtorch", b"libc10", b"torch_python.dll", b"torch_cpu.dll", b"c10.dll")
"""What names of torch's libraries contain, in the table of what an extension is linked against."""

_SUFFIXES: Final = (".so", ".pyd", ".dylib")


def foreign_native_module(function: Any) -> str | None:
    """The extension module that the C function `function` belongs to, if it is linked against torch and is not torch's
    own; None otherwise."""
    module = getattr(function, "__module__", None)
    if not isinstance(module, str):
        module = _module_of_method(function)
    return module if module is not None and _may_reach_tensors(module) else None


def _module_of_method(function: Any) -> str | None:
    owner = getattr(function, "__objclass__", None) or getattr(function, "__self__", None)
    if owner is None or isinstance(owner, types.ModuleType):
        return None if owner is None else owner.__name__
    cls = owner if isinstance(owner, type) else type(owner)
    module = cls.__module__
    if isinstance(module, str) and _may_reach_tensors(module):  # or it is a class of the user's, derived from another
        module = next((each for each in cls.__mro__ if function.__name__ in vars(each)), cls).__module__
    # A function without a module or a class is one of torch's own dispatcher, for example.
    return module if isinstance(module, str) and not module.startswith("pybind11") else None


@functools.cache
def _may_reach_tensors(module: str) -> bool:
    return module.partition(".")[0] not in _KNOWN and _is_linked_to_torch(module)


def _is_linked_to_torch(module: str) -> bool:
    """Whether the file of the module names torch's libraries, or a file of its package when it has none of its own."""
    root = module.partition(".")[0]
    if root not in sys.modules:
        return True  # it was loaded by hand, as `torch.utils.cpp_extension.load` does
    names = [module] if _file_of(module) else [each for each in list(sys.modules) if each.partition(".")[0] == root]
    return any(_names_torch(file) for name in names if (file := _file_of(name)) is not None)


def _file_of(module: str) -> Path | None:
    """The machine code of a module."""
    file = getattr(sys.modules.get(module), "__file__", None)
    return Path(file) if isinstance(file, str) and file.endswith(_SUFFIXES) else None


@functools.cache
def _names_torch(file: Path) -> bool:
    try:
        content = file.read_bytes()
    except OSError:
        return True  # it cannot be known
    return any(name in content for name in _LIBRARIES)
