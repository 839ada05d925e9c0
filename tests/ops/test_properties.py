"""What is known of an op beyond its row, and that it holds when the op runs."""

from __future__ import annotations

import pytest
import torch

from dsjit.ir.graph import Node
from dsjit.ops.properties import is_dynamic, is_pure, is_reproducible, shares_memory
from dsjit.ops.strided import strided_view
from tests.graphs import SOURCE, GraphRecorder

aten = torch.ops.aten


def shares(result, x):
    return result.untyped_storage().data_ptr() == x.untyped_storage().data_ptr()


def node_of(op, *args, effect=False, mutates=(), **kwargs):
    """A node with no outputs: properties are of the op and of what it is called with."""
    return Node(op, args, kwargs, (), SOURCE, mutates, effect)


VIEWS = {
    "view": (aten.view.default, ([3, 2],)),
    "_unsafe_view": (aten._unsafe_view.default, ([3, 2],)),
    "expand": (aten.expand.default, ([4, 2, 3],)),
    "permute": (aten.permute.default, ([1, 0],)),
    "t": (aten.t.default, ()),
    "select": (aten.select.int, (0, 1)),
    "slice": (aten.slice.Tensor, (0, 1)),
    "split": (aten.split.Tensor, (1,)),
    "unbind": (aten.unbind.int, ()),
    "detach": (aten.detach.default, ()),
    "as_strided": (aten.as_strided.default, ([2], [1])),
    "strided_view": (strided_view, ((2,), (1,), 0)),
}
FRESH = {
    "add": (aten.add.Tensor, (1,)),
    "clone": (aten.clone.default, ()),
    "flip": (aten.flip.default, ([0],)),
    "sort": (aten.sort.default, ()),
    "sum": (aten.sum.default, ()),
    "index": (aten.index.Tensor, ([torch.tensor([0])],)),
}


@pytest.mark.parametrize(("op", "args"), VIEWS.values(), ids=list(VIEWS))
def test_results_of_views_are_memory_of_the_argument(op, args):
    x = torch.zeros(2, 3)
    returned = op(x, *args)
    assert shares(returned if isinstance(returned, torch.Tensor) else returned[0], x)
    assert shares_memory(op)


@pytest.mark.parametrize(("op", "args"), FRESH.values(), ids=list(FRESH))
def test_results_of_other_ops_are_fresh(op, args):
    x = torch.zeros(2, 3)
    returned = op(x, *args)
    assert not shares(returned if isinstance(returned, torch.Tensor) else returned[0], x)
    assert not shares_memory(op)


@pytest.mark.parametrize("op", [aten.add_.Tensor, aten.copy_.default, aten.index_put_.default, aten.add.out])
def test_the_argument_that_an_op_writes_to_and_returns_is_no_view(op):
    assert not shares_memory(op)


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.view.default, aten.empty_like.default, aten.sort.default, print])
def test_an_op_that_only_computes_may_be_removed_or_merged(op):
    assert is_pure(node_of(op))


@pytest.mark.parametrize(
    "node",
    [
        node_of(aten.rand.default, [2]),
        node_of(aten.bernoulli.default),
        node_of(aten.native_dropout.default),
        node_of(aten.randn_like.default),
        node_of(aten.add.Tensor, effect=True),
        node_of(aten.sort.default, mutates=(0,)),
    ],
    ids=lambda node: str(node.op),
)
def test_draws_effects_and_writes_stay_where_they_are(node):
    assert not is_pure(node)
    assert not is_reproducible(node)


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.zeros.default, torch.ops.prims.convert_element_type.default])
def test_torchs_own_ops_give_the_same_each_time(op):
    assert is_reproducible(node_of(op))


@pytest.mark.parametrize(
    "op", [aten.empty.memory_format, aten.empty_like.default, aten.new_empty.default, aten.empty_strided.default]
)
def test_what_is_not_defined_is_not_computed_ahead(op):
    assert is_pure(node_of(op))
    assert not is_reproducible(node_of(op))


def test_ops_from_elsewhere_are_not_trusted_to_give_the_same_each_time():
    with torch.library._scoped_library("dsjit_test", "FRAGMENT") as library:
        library.define("clock(Tensor x) -> Tensor")
        node = node_of(torch.ops.dsjit_test.clock.default)
        assert is_pure(node)
        assert not is_reproducible(node)
    assert not is_reproducible(node_of(strided_view))


@pytest.mark.parametrize("op", [aten.nonzero.default, aten.masked_select.default, aten._unique2.default])
def test_shapes_that_depend_on_content(op):
    assert is_dynamic(node_of(op))


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.index_select.default, aten.topk.default, strided_view])
def test_shapes_that_do_not(op):
    assert not is_dynamic(node_of(op))


@pytest.mark.parametrize(
    ("dtypes", "dynamic"),
    [
        ([torch.bool], True),
        ([torch.uint8], True),
        ([torch.int64], False),
        ([None, torch.int32], False),
        ([torch.int64, torch.bool], True),
    ],
    ids=str,
)
def test_indexing_by_masks_depends_on_content_and_by_integers_does_not(dtypes, dynamic):
    r = GraphRecorder()
    indices = tuple(None if dtype is None else r.input([3], dtype) for dtype in dtypes)
    assert is_dynamic(node_of(aten.index.Tensor, r.input([3, 3]), indices)) is dynamic
