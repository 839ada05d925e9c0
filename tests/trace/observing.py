"""What tests of the Observer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from dsjit.trace.observe import Observer

ONES = torch.ones(2, 3)


class Box:
    count = 0

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def observe(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Observer:
    observer = Observer(function, args, kwargs)
    with observer:
        function(*args, **kwargs)
    return observer
