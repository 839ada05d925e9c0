"""Keeps the backward of a traced call on the thread that is traced."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["OneThread"]


class OneThread:
    """While it is entered, autograd's engine runs nodes of GPUs on the calling thread, as it does those of CPUs.

    It has a thread for each GPU, on which no frame of the user's is running and nobody listens to reads and writes.
    """

    def __enter__(self) -> OneThread:
        self._before = torch._C._is_multithreading_enabled()
        torch._C._set_multithreading_enabled(False)
        return self

    def __exit__(self, *exception: Any) -> None:
        torch._C._set_multithreading_enabled(self._before)
