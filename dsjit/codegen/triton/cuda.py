"""CUDA's driver API, by way of ctypes: from a cubin to a launch. torch has made the context."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from dsjit.codegen.triton.code import GpuCode
from dsjit.codegen.triton.launch import ALIGNMENT, Batch, Launch, Specialization
from dsjit.codegen.triton.native_launch import NativeBatch
from dsjit.codegen.triton.target import TritonTarget
from dsjit.errors import BackendError

__all__ = ["CudaDriver", "cuda_target"]

_LIBRARY: Final = "libcuda.so.1"

# From cuda.h.
_MAX_DYNAMIC_SHARED_SIZE_BYTES: Final = 8
_PREFER_SHARED: Final = 1

_INVALID_CONTEXT: Final = 201
"""Of a call in a thread that has no context yet."""

_STATIC_SHARED_BYTES: Final = 48 * 1024
"""More shared memory than this must be asked for."""


def cuda_target(device: torch.device) -> TritonTarget:
    """What kernels on this device are compiled for."""
    properties = torch.cuda.get_device_properties(device)
    arch = 10 * properties.major + properties.minor
    return TritonTarget("cuda", arch, 32, properties.multi_processor_count)


@dataclass(slots=True, eq=False)
class CudaDriver:
    """Of one device, which must be the current one whenever a method is called.

    current_stream: the handle of torch's current stream on it. library: the driver's functions. device: its number.
    modules: what is loaded, by its binary: handles of module and function.
    """

    current_stream: Callable[[], int]
    library: Any = field(default_factory=lambda: _library())
    device: int = 0
    modules: dict[bytes, tuple[Any, int]] = field(default_factory=dict)

    def version(self) -> int:
        """Of the driver: 13000 for 13.0."""
        found = ctypes.c_int()
        self.library.cuDriverGetVersion(ctypes.byref(found))
        return found.value

    def load(self, code: GpuCode) -> int:
        """The function's handle. Raises BackendError with what the driver says."""
        known = self.modules.get(code.binary)
        if known is not None:
            return known[1]
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        status = self.library.cuModuleLoadData(ctypes.byref(module), code.binary)
        if status == _INVALID_CONTEXT:
            self._enter_context(code)
            status = self.library.cuModuleLoadData(ctypes.byref(module), code.binary)
        self._check(status, code)
        self._check(self.library.cuModuleGetFunction(ctypes.byref(function), module, code.name.encode()), code)
        if code.shared > _STATIC_SHARED_BYTES:
            # Shared memory and the L1 cache are one; as much as several programs take is a preference, too.
            self._check(self.library.cuFuncSetCacheConfig(function, _PREFER_SHARED), code)
            attribute = _MAX_DYNAMIC_SHARED_SIZE_BYTES
            self._check(self.library.cuFuncSetAttribute(function, attribute, ctypes.c_int(code.shared)), code)
        handle = function.value or 0
        self.modules[code.binary] = module, handle
        return handle

    def batch(self, launches: Sequence[Launch]) -> Batch:
        """Queues them on torch's current stream with one native call. Raises BackendError with what the driver says.

        None is queued before there is code for all of them, as the buffers are aligned: what writes over the caller's
        tensors must not be followed by a failure.
        """
        function = ctypes.cast(self.library.cuLaunchKernel, ctypes.c_void_p).value or 0
        aligned, current_stream = NativeBatch(launches, function), self.current_stream
        others: dict[tuple[Specialization, ...], NativeBatch] = {}

        def run(table: int) -> None:
            stop = aligned.run(table, current_stream())
            if stop is None:
                return
            batch, relied = aligned, ALIGNMENT
            if stop.status is None:
                own = [launch.realigned(table) for launch in launches]
                key = tuple([launch.specialization for launch in own])
                batch, relied = others.setdefault(key, NativeBatch(own, function)), 1
                stop = batch.run(table, current_stream(), aligned=relied)
            while stop is not None:
                code = launches[stop.number].variant.code
                if stop.status == _INVALID_CONTEXT:
                    self._enter_context(code)
                else:
                    self._check(stop.status or 0, code)
                stop = batch.run(table, current_stream(), stop.number, relied)

        return run

    def _enter_context(self, code: GpuCode) -> None:
        """Makes the context that torch uses that of this thread. The runtime does so when it first needs one; a thread
        that got its memory from torch's cache, on the device that is the current one, has called nothing yet that
        does."""
        context = ctypes.c_void_p()
        self._check(self.library.cuDevicePrimaryCtxRetain(ctypes.byref(context), ctypes.c_int(self.device)), code)
        self._check(self.library.cuCtxSetCurrent(context), code)

    def _check(self, status: int, code: GpuCode) -> None:
        if status:
            text = ctypes.c_char_p()
            self.library.cuGetErrorString(status, ctypes.byref(text))
            said = text.value.decode() if text.value else f"error {status}"
            raise BackendError(f"CUDA cannot run the kernel {code.name}: {said}")


def _library() -> Any:
    try:
        library = ctypes.CDLL(_LIBRARY)
    except OSError as error:
        raise BackendError(f"there is no CUDA driver on this machine: {error}") from error
    return library
