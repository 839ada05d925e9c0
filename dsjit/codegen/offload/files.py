"""What a forward keeps in a file, rather than in memory, until its backward reads it.

A call has one file, which has no name: it is gone with the last that holds it, whatever ends the process. Its bytes are
reserved before the first step, so that a disk that is full raises before anything is computed. A thread reads the next
tensor while the backward computes with the present one. What is read is checked by CRC-32 (ITU-T V.42).
"""

from __future__ import annotations

import ctypes
import os
import tempfile
import weakref
import zlib
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from dsjit.codegen.offload.tensors import KeptTensor
from dsjit.errors import OffloadError
from dsjit.ops.strided import span

__all__ = ["OffloadFile", "StoredTensor"]


class OffloadFile:
    """The file of one call. directory: where it is. nbytes: of all that will be put.

    Raises OffloadError when there is no such directory, or too little room in it.
    """

    def __init__(self, directory: str, nbytes: int) -> None:
        self._directory = directory
        self._end = 0
        self._reader: ThreadPoolExecutor | None = None
        try:
            file = tempfile.TemporaryFile(prefix="dsjit-", dir=directory, buffering=0)  # noqa: SIM115
            weakref.finalize(self, file.close)
            self._number = file.fileno()
            if hasattr(os, "posix_fallocate") and nbytes:
                os.posix_fallocate(self._number, 0, nbytes)
        except OSError as error:
            raise OffloadError(
                f"offload_dir={directory!r} cannot take the {nbytes} bytes that a call keeps for its backward: "
                f"{error}; free some room, name another directory, or call without offload_dir"
            ) from error

    def put(self, tensor: torch.Tensor) -> StoredTensor:
        """Write a tensor. Raises OffloadError."""
        nbytes = span(tensor.shape, tensor.stride()) * tensor.itemsize
        on_host = tensor.as_strided((nbytes // tensor.itemsize,), (1,)).cpu()
        content = _bytes_of(on_host)
        try:
            done = 0
            while done < nbytes:
                done += os.pwrite(self._number, content[done:], self._end + done)
        except OSError as error:
            raise OffloadError(
                f"a tensor of {nbytes} bytes cannot be written in {self._directory!r}: {error}"
            ) from error
        stored = StoredTensor(self, self._end, nbytes, zlib.crc32(content), tensor)
        self._end += nbytes
        return stored

    def read(self, start: int, checksum: int, into: torch.Tensor) -> None:
        """Fill a tensor of one dimension. Raises OffloadError when the file holds something else."""
        content, done = _bytes_of(into), 0
        while done < len(content):
            count = os.preadv(self._number, [content[done:]], start + done)
            if count == 0:
                break
            done += count
        if done < len(content) or zlib.crc32(content) != checksum:
            raise OffloadError(f"what was kept for a backward in {self._directory!r} was changed on the disk")

    def submit(self, start: int, checksum: int, into: torch.Tensor) -> Future[None]:
        """`read`, in a thread, which holds the tensor: a backward may end, or fail, before it has asked for this."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="dsjit-offload")
        return self._reader.submit(self.read, start, checksum, into)


class StoredTensor(KeptTensor):
    """A tensor in a file. `fetch` raises OffloadError when it is not what was put."""

    def __init__(self, file: OffloadFile, start: int, nbytes: int, checksum: int, tensor: torch.Tensor) -> None:
        self._file, self._start, self.nbytes, self._checksum = file, start, nbytes, checksum
        self._shape, self._strides = tensor.shape, tensor.stride()
        self._dtype, self._device = tensor.dtype, tensor.device
        self._ahead: tuple[torch.Tensor, Future[None]] | None = None

    def read_ahead(self) -> None:
        if self._ahead is None:
            content = torch.empty(self.nbytes // self._dtype.itemsize, dtype=self._dtype)
            self._ahead = content, self._file.submit(self._start, self._checksum, content)

    def fetch(self) -> torch.Tensor:
        self.read_ahead()
        assert self._ahead is not None
        (content, reading), self._ahead = self._ahead, None
        reading.result()
        if self.following is not None:
            self.following.read_ahead()
        return content.to(self._device).as_strided(self._shape, self._strides)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor, which has to outlive it."""
    return memoryview((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
