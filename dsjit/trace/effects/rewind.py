"""Puts Python state back to what it was before a traced call, for a while: so that the call can be made once more."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch

from dsjit.trace.effects.before import Before, own_iter
from dsjit.trace.effects.effects import Effect
from dsjit.trace.reads.paths import ABSENT, static_lookup

__all__ = ["can_rewind", "rewound", "undo"]

_COPIED: Final = frozenset({"attribute", "item", "contents"})
"""Kinds of effects on what `Before` has copies of."""


def can_rewind(effects: Iterable[Effect], before: Before) -> bool:
    """Whether everything that the call changed can be put back."""
    for effect in effects:
        if effect.kind == "attribute" and effect.name == "grad" and isinstance(effect.owner, torch.Tensor):
            continue
        if effect.kind not in _COPIED or effect.write is None or isinstance(effect.owner, torch.Tensor):
            return False
        if id(effect.owner) not in before.copies and id(effect.owner) not in before.instances:
            return False
    return True


@contextmanager
def rewound(before: Before) -> Iterator[None]:
    """Inside, everything that `before` has copies of is as it was then, and so is each `.grad` that was met; afterwards
    it is as it is now."""
    now: list[tuple[Any, Any]] = []
    for copy in before.copies.values():
        if not copy.same():
            live = copy.live
            content = dict(_items(live)) if isinstance(live, dict) else list(own_iter(live))
            now.append((live, content))
    slots: list[tuple[Any, dict[str, Any]]] = []
    for key, values in before.slots.items():
        obj = before.instances[key][0]
        slots.append((obj, {name: _slot(obj, name) for name in values}))
    gradients = [(tensor, tensor.grad) for tensor, _ in before.gradients()]
    undo(before)
    try:
        yield
    finally:
        for tensor, gradient in gradients:
            tensor.grad = gradient
        for live, content in now:
            _put(live, content)
        for obj, held in slots:
            _put_slots(obj, held)


def undo(before: Before) -> None:
    """Everything that `before` has copies of becomes what it was then, and each `.grad` that was met."""
    for copy in before.copies.values():
        if not copy.same():
            _put(copy.live, copy.content)
    for key, values in before.slots.items():
        _put_slots(before.instances[key][0], values)
    for tensor, gradient in before.gradients():
        if tensor.grad is not gradient:
            tensor.grad = gradient


def _items(entries: dict[Any, Any]) -> Iterator[tuple[Any, Any]]:
    for key in own_iter(entries):
        yield key, dict.__getitem__(entries, key)


def _put(live: Any, content: Any) -> None:
    """Give a container its content, by means that run no code of its class's own."""
    if isinstance(live, OrderedDict):
        OrderedDict.clear(live)
        for key, value in content.items():
            OrderedDict.__setitem__(live, key, value)
    elif isinstance(live, dict):
        dict.clear(live)
        dict.update(live, content)
    elif isinstance(live, list):
        list.__setitem__(live, slice(None), content)
    elif isinstance(live, deque):
        deque.clear(live)
        deque.extend(live, content)
    elif isinstance(live, set):
        set.clear(live)
        set.update(live, content)


def _slot(obj: Any, name: str) -> Any:
    try:
        return static_lookup(type(obj), name).__get__(obj)
    except AttributeError:
        return ABSENT


def _put_slots(obj: Any, values: dict[str, Any]) -> None:
    for name, value in values.items():
        if _slot(obj, name) is value:
            continue
        member = static_lookup(type(obj), name)
        if value is ABSENT:
            member.__delete__(obj)
        else:
            member.__set__(obj, value)
