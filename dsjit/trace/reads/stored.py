"""Notes of what an object stores under the name of an attribute: a module has three tables besides its own."""

from __future__ import annotations

import types
from typing import Final

import torch

from dsjit.trace.effects.before import MODULE_TABLES
from dsjit.trace.reads.notes import Node, Notes
from dsjit.trace.reads.paths import ABSENT, Attribute, Item, Slot, instance_dict, static_lookup

__all__ = ["MODULE_WRITERS", "note_module_entry", "note_places", "note_stored", "stored_step"]

MODULE_WRITERS: Final = frozenset(
    getattr(torch.nn.Module, name).__code__
    for name in ("__setattr__", "__delattr__", "register_buffer", "register_parameter", "add_module")
)
"""What they look up in a module's `__dict__` is noted by `Observer.on_write`, or as single reads."""


def note_module_entry(notes: Notes, node: Node, name: str) -> None:
    """What `nn.Module.__getattr__` finds under a name, in the tables of the module at `node`."""
    entries = instance_dict(node.obj) or {}
    for table in MODULE_TABLES:
        if table not in entries:
            notes.note(node, Attribute(table), ABSENT)
            continue
        owner = notes.table_node(node, table, entries[table])
        value = entries[table].get(name, ABSENT)
        notes.note(owner, Item(name), value)
        if value is not ABSENT:
            return


def note_places(notes: Notes, node: Node, name: str) -> None:
    """Which of a module's tables a name is in decides where it is stored."""
    entries = instance_dict(node.obj) or {}
    notes.note_presence(node, Attribute(name), entries.get(name, ABSENT))
    for table in MODULE_TABLES:
        if table in entries:
            owner = notes.table_node(node, table, entries[table])
            notes.note_presence(owner, Item(name), entries[table].get(name, ABSENT))


def note_stored(notes: Notes, node: Node, name: str) -> None:
    """A write left what was there: then the call depends on it having been there."""
    entries = instance_dict(node.obj) or {}
    if name in entries:
        notes.note(node, Attribute(name), entries[name])
    elif isinstance(node.obj, torch.nn.Module):
        note_module_entry(notes, node, name)
    else:
        notes.note(node, Slot(name), Slot(name).get(node.obj))


def stored_step(obj: object, name: str) -> Attribute | Slot | None:
    """How an attribute that the instance itself stores is read; None when it stores none of that name."""
    if type(static_lookup(type(obj), name)) is types.MemberDescriptorType:
        return Slot(name)
    return Attribute(name) if name in (instance_dict(obj) or ()) else None
