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
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from typing import Any

import torch

from dsjit.errors import OffloadError
from dsjit.ir.graph import TensorType

__all__ = ["OffloadFile", "StoredTensor", "TensorInMemory", "open_files", "read_in_order", "span_bytes"]


def span_bytes(shape: Sequence[int], strides: Sequence[int], itemsize: int) -> int:
    """Bytes from the first to the last element."""
    if 0 in shape:
        return 0
    return (1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))) * itemsize


def open_files(
    stored: Sequence[TensorType], fetched: Sequence[int], directory: str
) -> tuple[list[str], dict[str, Any]]:
    """What opens the file of one call and begins to read others, as lines of a Program, and the names in them.

    stored: what will be put into the file. fetched: numbers of the inputs that are in files, in the order of their use.
    """
    lines, names = list[str](), dict[str, Any]()
    if stored:
        total = sum(span_bytes(type_.shape, type_.strides, type_.dtype.itemsize) for type_ in stored)
        names["open_file"] = partial(OffloadFile, directory, total)
        lines.append("file = open_file()")
    if fetched:
        names["read_in_order"] = read_in_order
        lines.append(f"read_in_order(({''.join(f'a{number}, ' for number in fetched)}))")
    return lines, names


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
        """Write a tensor of the CPU. Raises OffloadError."""
        nbytes = span_bytes(tensor.shape, tensor.stride(), tensor.itemsize)
        content = _bytes_of(tensor, nbytes)
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

    def read(self, start: int, checksum: int, into: memoryview) -> None:
        """Raises OffloadError when the file holds something else."""
        done = 0
        while done < len(into):
            count = os.preadv(self._number, [into[done:]], start + done)
            if count == 0:
                break
            done += count
        if done < len(into) or zlib.crc32(into) != checksum:
            raise OffloadError(f"what was kept for a backward in {self._directory!r} was changed on the disk")

    def submit(self, *args: Any) -> Future[None]:
        """`read`, in a thread."""
        if self._reader is None:
            self._reader = ThreadPoolExecutor(1, thread_name_prefix="dsjit-offload")
        return self._reader.submit(self.read, *args)


class StoredTensor:
    """A tensor in a file. following: which one will be wanted after it."""

    def __init__(self, file: OffloadFile, start: int, nbytes: int, checksum: int, tensor: torch.Tensor) -> None:
        self._file, self._start, self.nbytes, self._checksum = file, start, nbytes, checksum
        self._shape, self._strides, self._dtype = tensor.shape, tensor.stride(), tensor.dtype
        self._ahead: tuple[torch.Tensor, Future[None]] | None = None
        self.following: StoredTensor | TensorInMemory | None = None

    def read_ahead(self) -> None:
        """Begin to read, in a thread."""
        if self._ahead is None:
            tensor = torch.empty_strided(self._shape, self._strides, dtype=self._dtype)
            content = _bytes_of(tensor, self.nbytes)
            self._ahead = tensor, self._file.submit(self._start, self._checksum, content)

    def fetch(self) -> torch.Tensor:
        """The tensor, in memory that is the caller's. Raises OffloadError when it is not what was put."""
        self.read_ahead()
        assert self._ahead is not None
        (tensor, reading), self._ahead = self._ahead, None
        reading.result()
        if self.following is not None:
            self.following.read_ahead()
        return tensor


@dataclass(slots=True)
class TensorInMemory:
    """What stands for a tensor that is wanted as a StoredTensor, and is in memory all the same."""

    tensor: torch.Tensor
    following: StoredTensor | TensorInMemory | None = None

    def read_ahead(self) -> None:
        """It is there."""

    def fetch(self) -> torch.Tensor:
        """The tensor."""
        if self.following is not None:
            self.following.read_ahead()
        return self.tensor


def read_in_order(stored: Sequence[StoredTensor | TensorInMemory]) -> None:
    """Begin with the first; each that is fetched has the next one read meanwhile."""
    for one, following in zip_longest(stored, stored[1:]):
        one.following = following  # of another backward, one may have followed before
    if stored:
        stored[0].read_ahead()


def _bytes_of(tensor: torch.Tensor, nbytes: int) -> memoryview:
    """The memory of the tensor, which has to outlive it."""
    return memoryview((ctypes.c_char * nbytes).from_address(tensor.data_ptr())).cast("B")
