"""Compiles the few native functions of tracing: LLVM IR that calls CPython's public C API."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

from llvmlite import binding as llvm

__all__ = ["compile_native"]


def compile_native(definitions: str, api: Mapping[str, str]) -> Any:
    """An execution engine with the functions that `definitions` (LLVM IR) defines; they live as long as it does.

    api: the functions that they call, with LLVM types (`"PyDict_Size": "i64 (ptr)"`): CPython's and LLVM's own.
    """
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    declarations = []
    for name, kind in api.items():
        declarations.append(f"declare {kind.replace('(', f'@{name}(', 1)}")
        if not name.startswith("llvm."):
            llvm.add_symbol(name, ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value)
    module = llvm.parse_assembly("\n".join([*declarations, definitions]))
    module.verify()
    machine = llvm.Target.from_default_triple().create_target_machine(opt=2)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
