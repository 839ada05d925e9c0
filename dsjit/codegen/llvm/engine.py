"""Textual LLVM IR to machine code in this process."""

from __future__ import annotations

import itertools
import re
import threading
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import llvmlite.binding as llvm

from dsjit.codegen.llvm.emitter import emit_module
from dsjit.codegen.llvm.schedule import Schedule
from dsjit.codegen.llvm.symbols import native_symbol
from dsjit.codegen.llvm.target import Target, host_target
from dsjit.codegen.llvm.templates.emit import Template, emit_template
from dsjit.codegen.structure import kernel_structure
from dsjit.codegen.work import KernelWork
from dsjit.errors import BackendError
from dsjit.ir.kernel import Kernel
from dsjit.once import once

__all__ = ["CompiledKernel", "CompiledModule", "KernelCache", "Lookup", "assembly", "compile_module"]

_OPTIMISATION: Final = 2
_NO_OPTIMISATION: Final = 0
_DEFINITION: Final = re.compile(r"^define (?!internal )[^@]*@([\w.$]+)\(", re.MULTILINE)
_DECLARATION: Final = re.compile(r"^declare [^@]*@([\w.$]+)\(", re.MULTILINE)

_LIBRARY_CALLS: Final[tuple[str, ...]] = tuple(
    f"{name}{suffix}"
    for name in ("ceil", "floor", "fma", "fmod", "rint", "round", "roundeven", "trunc")
    for suffix in ("", "f")
) + ("__extendhfsf2", "__truncsfhf2", "__truncdfhf2", "memcpy", "memset", "memmove")
"""Functions that LLVM may call for instructions that a target lacks."""


@dataclass(frozen=True, slots=True)
class CompiledModule:
    """Machine code, alive as long as this object is."""

    tracker: Any
    addresses: dict[str, int]

    def address(self, name: str) -> int:
        """The address of a function that the module defines; KeyError when it defines none of that name."""
        return self.addresses[name]


class _Jit:
    """One LLVM JIT; compiles one module at a time, in the calling thread."""

    def __init__(self, target: Target, optimisation: int) -> None:
        self.jit = llvm.create_lljit_compiler(_target_machine(target, optimisation, jit=True), suppress_errors=True)
        self.lock = threading.Lock()
        self.serial: Iterator[int] = itertools.count()


_LAST_KNOWN_LLVM: Final = 22


@once
def _initialise() -> None:
    # Loop strength reduction takes a quarter of the code generator's time and gains nothing on these loops, whose
    # addresses are printed in their final form. LLVM has no other switch for it than this one, which is process-wide,
    # and it ends the process when it meets an option that it does not know.
    if llvm.llvm_version_info[0] <= _LAST_KNOWN_LLVM:
        llvm.set_option("dsjit", "-disable-lsr")
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    llvm.initialize_native_asmparser()


@once
def _jit(target: Target, optimisation: int) -> _Jit:
    return _Jit(target, optimisation)


def _target_machine(target: Target, optimisation: int, jit: bool) -> Any:
    _initialise()
    try:
        backend = llvm.Target.from_triple(target.triple)
    except RuntimeError as error:
        raise BackendError(f"this LLVM cannot emit code for {target.triple}: {error}") from error
    return backend.create_target_machine(
        cpu=target.cpu, features=target.features, opt=optimisation, reloc="pic", codemodel="small", jit=jit
    )


def compile_module(ir_text: str, target: Target, optimise: bool = True) -> CompiledModule:
    """Machine code of a module, for `target`, which must be this machine.

    optimise: False for code that is called seldom: it is compiled in a quarter of the time.
    External functions are looked up in the libraries that torch has loaded. Raises BackendError, with LLVM's message,
    when LLVM rejects the text, or when a function is not to be found.
    """
    jit = _jit(target, _OPTIMISATION if optimise else _NO_OPTIMISATION)
    names = _DEFINITION.findall(ir_text)
    builder = llvm.JITLibraryBuilder().add_ir(ir_text)
    for name in names:
        builder.export_symbol(name)
    for name in {*_LIBRARY_CALLS, *_DECLARATION.findall(ir_text)}:
        if name.startswith("llvm."):
            continue
        address = native_symbol(name)
        if address is not None:
            builder.import_symbol(name, address)
        elif name not in _LIBRARY_CALLS:
            raise BackendError(f"generated code calls {name}, which no loaded library exports")
    with jit.lock:
        try:
            tracker = builder.link(jit.jit, f"kernels{next(jit.serial)}")
        except RuntimeError as error:
            raise BackendError(f"LLVM: {error}") from error
    return CompiledModule(tracker, {name: tracker[name] for name in names})


def assembly(ir_text: str, target: Target) -> str:
    """The assembly text of a module for any target that this LLVM knows. Raises BackendError with LLVM's message."""
    machine = _target_machine(target, _OPTIMISATION, jit=False)
    try:
        module = llvm.parse_assembly(ir_text, llvm.create_context())
        module.verify()
        text: str = machine.emit_assembly(module)
    except RuntimeError as error:
        raise BackendError(f"LLVM: {error}") from error
    return text


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """A Kernel as machine code.

    name: of the function. address: of `void(const int64_t* args, int64_t begin, int64_t end)`.
    work: how much there is to do. sizes: names of the sizes that it takes as args, after its buffers.
    module: what keeps the code alive.
    """

    name: str
    address: int
    work: KernelWork
    sizes: tuple[str, ...]
    module: CompiledModule

    @property
    def work_items(self) -> int:
        """How many independent pieces of work there are, for a kernel without sizes."""
        return self.work.item_count({})


@dataclass(frozen=True, slots=True)
class Lookup:
    """What `KernelCache.compile_kernels` did. kernels: in the order asked for. ir_text: of what was generated now."""

    kernels: tuple[CompiledKernel, ...]
    generated: int
    reused: int
    ir_text: str


class KernelCache:
    """Compiled kernels by structure and numerics: equal kernels are compiled once, whatever they are called.

    Thread-safe.
    generated, reused: how many kernels were compiled, and how many requests an existing one served, since creation.
    """

    def __init__(self, target: Target | None = None) -> None:
        """target: this machine, when not given."""
        self._target = target
        self._lock = threading.Lock()
        self._known: dict[Hashable, CompiledKernel] = {}
        self.generated = 0
        self.reused = 0

    @property
    def target(self) -> Target:
        return self._target or host_target()

    def compile_kernels(self, kernels: Sequence[Kernel | Template], fast: bool = False) -> Lookup:
        """The machine code of `kernels` and templates; what is new is compiled. Raises BackendError.

        fast: see `emit_module`.
        """
        keys = [(fast, kernel_structure(each) if isinstance(each, Kernel) else each) for each in kernels]
        with self._lock:
            missing: dict[Hashable, tuple[str, Kernel | Template]] = {}
            for key, kernel in zip(keys, kernels, strict=True):
                if key not in self._known and key not in missing:
                    name = f"{_identifier(kernel.name)}_{len(self._known) + len(missing)}"
                    missing[key] = name, kernel
            text = self._compile(missing, fast) if missing else ""
            self.generated += len(missing)
            self.reused += len(kernels) - len(missing)
            found = tuple(self._known[key] for key in keys)
        return Lookup(found, len(missing), len(kernels) - len(missing), text)

    def _compile(self, missing: Mapping[Hashable, tuple[str, Kernel | Template]], fast: bool) -> str:
        """Kernels in one module, and each template in one of its own."""
        target = self.target
        kernels = {k: replace(each, name=name) for k, (name, each) in missing.items() if isinstance(each, Kernel)}
        texts: list[str] = []
        if kernels:
            texts.append(emit_module(tuple(kernels.values()), target, fast))
            module = compile_module(texts[-1], target)
            for key, kernel in kernels.items():
                work = Schedule.of(kernel, target).work(target.lanes)
                sizes = tuple([size.name for size in kernel.sizes])
                self._known[key] = CompiledKernel(kernel.name, module.address(kernel.name), work, sizes, module)
        for key, (name, template) in missing.items():
            if not isinstance(template, Kernel):
                emitted = emit_template(template, name, target)
                texts.append(emitted.text)
                module = compile_module(emitted.text, target)
                self._known[key] = CompiledKernel(name, module.address(name), emitted.work, emitted.sizes, module)
        return "\n".join(texts)


def _identifier(name: str) -> str:
    return re.sub(r"\W", "_", name)
