"""Sizes and strides of views are those of torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjit.ops.binding import bind
from dsjit.ops.row import View
from dsjit.ops.table import OP_TABLE, rule_of
from dsjit.ops.views import ROWS, view_strides
from tests.ops.samples import overload
from tests.ops.torch_scalars import node_of, type_of

SOURCES = [
    torch.empty(2, 3, 4),
    torch.empty(4, 3, 2).permute(2, 1, 0),
    torch.empty(2, 6, 4)[:, ::2],
    torch.empty(1, 3, 1).expand(2, 3, 4),
    torch.empty(1, 3, 4)[:, :, :1],
    torch.empty(0, 3, 4),
]

CALLS: dict[str, list[tuple[Any, ...]]] = {
    "view.default": [([-1, 4],), ([1, 2, 3, 1, 4],), ([24],)],
    "_unsafe_view.default": [([6, -1],)],
    "_reshape_alias.default": [([2, 12], [12, 1])],
    "alias.default": [()],
    "detach.default": [()],
    "lift_fresh.default": [()],
    "permute.default": [([2, 0, 1],), ([-1, 1, 0],)],
    "transpose.int": [(0, 1), (-1, 0)],
    "t.default": [()],
    "expand.default": [([5, -1, -1, -1],), ([1, 2, 3, 4],), ([2, 3, 4],)],
    "unsqueeze.default": [(0,), (1,), (3,), (-1,), (-2,)],
    "squeeze.default": [()],
    "squeeze.dim": [(0,), (-1,)],
    "squeeze.dims": [([0, 2],)],
    "select.int": [(0, 0), (1, -1), (-1, 0)],
    "slice.Tensor": [(), (1, 1), (1, None, 2), (2, -3, 9, 2), (0, 5, 9), (1, 2, 1)],
    "split.Tensor": [(1,), (2, 1), (2, -1)],
    "split_with_sizes.default": [([1, 2], 1)],
    "unbind.int": [(), (1,), (-1,)],
    "diagonal.default": [(), (1,), (-1, 1, 2), (9,)],
    "unfold.default": [(1, 2, 1), (-1, 1, 3)],
    "as_strided.default": [([2, 2], [1, 2]), ([3], [2], 1)],
    "flip.default": [([0],), ([0, 2],)],
}


def check(name: str, source: torch.Tensor, arguments: tuple[Any, ...]) -> bool:
    op = overload(name)
    try:
        result = op(source, *arguments)
    except (RuntimeError, IndexError):
        return False
    node, _ = node_of(op, (source, *arguments), {}, result)
    rule = rule_of(node)
    assert isinstance(rule, View)
    assert rule.types(bind(node)) == tuple(value.type for value in node.outputs), (source.shape, arguments)
    return True


@pytest.mark.parametrize("name", ROWS)
def test_types_are_those_of_torch(name: str) -> None:
    sources = [*SOURCES, *(s[0] for s in SOURCES[:5]), torch.empty(3), torch.empty(())]
    calls = [(s, arguments) for s in sources for arguments in CALLS[name.removeprefix("aten.")]]
    if name == "aten.flip.default":  # a copy: its strides follow the source, its row promises only dense ones
        calls = [(s.contiguous(), arguments) for s, arguments in calls]
    assert sum(check(name, source, arguments) for source, arguments in calls) > 0


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_view_strides_match_torch(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, 4]), min_size=0, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    source = torch.empty(sizes).permute(order)
    if source.dim():
        source = source[:: data.draw(st.sampled_from([1, 2]))]
    factors = [f for size in source.shape for f in {4: (2, 2)}.get(size, (size,))]
    shape: list[int] = []
    for factor in factors:
        if shape and data.draw(st.booleans()):
            shape[-1] *= factor
        else:
            shape.append(factor)
    try:
        expected: tuple[int, ...] | None = source.view(shape).stride()
    except RuntimeError:
        expected = None
    assert view_strides(type_of(source), tuple(shape)) == expected


def test_a_view_that_needs_a_copy_is_refused() -> None:
    source = type_of(torch.empty(3, 4).t())
    assert view_strides(source, (12,)) is None
    with pytest.raises(ValueError, match="no view of shape"):
        ROWS["aten.view.default"].rule.types({"self": type("V", (), {"type": source}), "size": (12,)})


def test_only_flip_copies() -> None:
    views = {name: row.rule for name, row in OP_TABLE.items() if isinstance(row.rule, View)}
    assert [name for name, rule in views.items() if not rule.aliases] == ["aten.flip.default"]
