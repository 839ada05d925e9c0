"""Opens what a call keeps its tensors in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch

from dsjit.codegen.offload.files import OffloadFile
from dsjit.codegen.offload.host import CudaCopies, HostMemory
from dsjit.codegen.offload.tensors import read_in_order
from dsjit.ir.graph import TensorType
from dsjit.ops.strided import span

__all__ = ["HOST_MEMORY", "OffloadTier", "file_in", "open_stores"]


@dataclass(frozen=True, slots=True)
class OffloadTier:
    """Where tensors are kept: in a file of `directory`, or in the memory of a GPU's host.

    name: in what is told. bytes_per_second: to it, or from it.
    """

    name: str
    bytes_per_second: float
    directory: str | None = None


HOST_MEMORY: Final = OffloadTier("host memory", 2.0e10)
"""16 lanes of PCIe 4.0 carry 3.2e10 bytes a second; not measured."""

FILE_BYTES_PER_SECOND: Final = 0.8e9
"""Checksum included: what the page cache of the kernel takes."""


def file_in(directory: str) -> OffloadTier:
    """Files in a directory."""
    return OffloadTier("file", FILE_BYTES_PER_SECOND, directory)


def open_stores(
    stored: Sequence[TensorType], fetched: Sequence[int], tier: OffloadTier | None
) -> tuple[list[str], dict[str, Any]]:
    """What opens the store of one call and begins to read others, as lines of a Program, and the names in them.

    stored: what will be put into it; without a tier, nothing. fetched: numbers of the inputs that are in stores, in the
        order of their use.
    """
    lines, names = list[str](), dict[str, Any]()
    if stored:
        assert tier is not None
        if tier.directory is None:
            names["open_store"] = partial(_open_host_memory, stored[0].device)
        else:
            total = sum(span(type_.shape, type_.strides) * type_.dtype.itemsize for type_ in stored)
            names["open_store"] = partial(OffloadFile, tier.directory, total)
        lines.append("store = open_store()")
    if fetched:
        names["read_in_order"] = read_in_order
        lines.append(f"read_in_order(({''.join(f'a{number}, ' for number in fetched)}))")
    return lines, names


def _open_host_memory(device: torch.device) -> HostMemory:
    return HostMemory(CudaCopies(device))
