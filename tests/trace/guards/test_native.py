"""What the native loop relies on: CPython's version tags, and the layout of torch's tensors."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dsjit.trace.guards.native_loop import native_loop
from dsjit.trace.guards.table import RowKind, TableBuilder
from dsjit.trace.guards.tensor_layout import TensorLayout, find_tensor_layout
from dsjit.trace.guards.version_tags import dict_version, dict_versions_work, type_version, type_versions_work


@pytest.fixture
def layout() -> TensorLayout:
    found = find_tensor_layout()
    assert found is not None
    return found


def test_this_interpreter_has_what_the_loop_needs() -> None:
    assert native_loop() is not None
    assert type_versions_work()


def test_the_function_keeps_its_machine_code_alive() -> None:
    loop = native_loop()
    assert loop is not None
    definition, engine = loop.verify.__self__
    assert ctypes.addressof(definition) == ctypes.c_size_t.from_address(id(loop.verify) + 16).value
    assert definition.ml_meth == engine.get_function_address("verify")


def test_version_tags_change_with_what_they_tag() -> None:
    class Base:
        pass

    class Derived(Base):
        pass

    before = type_version(Derived)
    assert type_version(Derived) == before
    Base.new = 1  # type: ignore[attr-defined]
    assert type_version(Derived) != before
    if dict_versions_work():
        entries = {"a": 1}
        version = dict_version(entries)
        assert dict_version(entries) == version
        entries["a"] = 2
        assert dict_version(entries) != version


METADATA_CHANGES: dict[str, Callable[[torch.Tensor], Any]] = {
    "transposed": lambda t: t.t_(),
    "resized": lambda t: t.resize_(3, 4),
    "more dimensions": lambda t: t.resize_(1, 2, 1, 2, 1, 3),
    "other strides": lambda t: t.as_strided_((4, 3), (1, 4)),
    "other offset": lambda t: t.as_strided_((2, 3), (3, 1), 3),
    "other storage": lambda t: t.set_(torch.zeros(12).untyped_storage(), 0, (4, 3), (3, 1)),
    "other data": lambda t: setattr(t, "data", torch.zeros(4, 3)),
    "other dtype": lambda t: setattr(t, "data", torch.zeros(4, 3, dtype=torch.int32)),
    "swapped": lambda t: torch.utils.swap_tensors(t, torch.zeros(4, 3)),
}


@pytest.mark.parametrize("parameter", [False, True], ids=["tensor", "parameter"])
@pytest.mark.parametrize("change", METADATA_CHANGES.values(), ids=list(METADATA_CHANGES))
def test_a_table_notices_every_change_of_a_tensors_metadata(
    change: Callable[[torch.Tensor], Any], parameter: bool, layout: TensorLayout
) -> None:
    loop = native_loop()
    assert loop is not None
    tensor = torch.zeros(4, 3)
    if parameter:
        tensor = nn.Parameter(tensor, requires_grad=False)
    builder = TableBuilder()
    builder.tensor(layout, tensor)
    table = builder.pack(1, [], [(0, id(tensor))])
    with torch.no_grad():
        tensor.add_(1)
        assert loop.verify(table) == (tensor,)
        change(tensor)
        assert loop.verify(table) == 0


def test_the_loop_names_the_row_that_failed() -> None:
    loop = native_loop()
    assert loop is not None
    items = [1.5, 2.5]
    builder = TableBuilder()
    builder.row(RowKind.OBJECT, id(items), id(list))
    builder.row(RowKind.LENGTH, id(items), 2)
    builder.row(RowKind.LIST_ITEM, id(items), 1, id(items[1]))
    table = builder.pack(0, [], [])
    assert loop.verify(table) == ()
    items.append(3.5)
    assert loop.verify(table) == 1
    items[:] = [1.5, 4.5]
    assert loop.verify(table) == 2


def test_a_dictionary_that_changed_elsewhere_is_looked_at_entry_by_entry_once() -> None:
    loop = native_loop()
    assert loop is not None
    entries: dict[str, Any] = {"read": 1.5}
    key, value = "read", entries["read"]
    builder = TableBuilder()
    builder.dictionary(entries, [(id(key), id(value))], None)
    table = builder.pack(0, [], [])
    unchanged = bytes(table)
    entries["other"] = 2
    assert loop.verify(table) == ()
    if dict_versions_work():
        assert bytes(table) != unchanged
    entries["read"] = 2.5
    assert loop.verify(table) != ()


def test_a_table_returns_each_tensor_with_a_reference_of_its_own() -> None:
    loop = native_loop()
    assert loop is not None
    bound, argument = torch.ones(1), torch.zeros(1)
    builder = TableBuilder()
    table = builder.pack(2, [1], [(0, id(bound))])
    counts = [ctypes.c_ssize_t.from_address(id(tensor)).value for tensor in (bound, argument)]
    kept = [loop.verify(table, argument) for _ in range(5)]
    assert all(found[0] is bound and found[1] is argument for found in kept)
    del kept
    assert [ctypes.c_ssize_t.from_address(id(tensor)).value for tensor in (bound, argument)] == counts
