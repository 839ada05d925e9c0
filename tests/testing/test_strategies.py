"""The strategies: what they draw, how it shrinks, and that it can be made again."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import find, given, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from dsjit.testing.strategies import LAYOUTS, TensorSpec, aliased_tensors, shapes, tensors, variations

QUICK = settings(max_examples=400, database=None, derandomize=True)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3,), (2, 5), (0, 4), (3, 0, 2), (2, 3, 4)])
def test_every_layout_has_the_shape_asked_for(layout, shape) -> None:
    if shape or layout == "contiguous":
        tensor = TensorSpec(shape, layout=layout).make()
        assert tensor.shape == shape


def test_a_spec_makes_the_same_tensor_again_and_draws_nothing_from_torch() -> None:
    state = torch.get_rng_state()
    spec = TensorSpec((4, 5), torch.bfloat16, "strided", "special", seed=7)
    first, second = spec.make(), eval(repr(spec)).make()
    assert torch.equal(first.nan_to_num(), second.nan_to_num()) and first.stride() == second.stride()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "condition",
    [
        lambda t: not t.is_contiguous(),
        lambda t: t.is_floating_point() and bool(t.isnan().any()),
        lambda t: t.dtype is torch.bool,
        lambda t: t.numel() == 0,
        lambda t: t.storage_offset() > 0,
        lambda t: 0 in t.stride() and t.numel() > 1,
    ],
)
def test_everything_that_is_told_apart_is_drawn(condition) -> None:
    find(tensors(), condition, settings=QUICK)


def test_failures_shrink_to_the_plainest_tensor() -> None:
    found = find(tensors(), lambda t: t.dim() > 0, settings=QUICK)
    assert found.shape == (1,) and found.dtype is torch.float32 and found.is_contiguous()
    assert find(tensors(), lambda t: t.numel() > 1, settings=QUICK).shape == (2,)


@given(tensors(shape=(4, 3), dtypes=(torch.float16,), layouts=("transposed",)))
def test_choices_can_be_narrowed(tensor: torch.Tensor) -> None:
    assert tensor.shape == (4, 3) and tensor.dtype is torch.float16 and tensor.stride() == (1, 4)


@given(st.data(), shapes())
def test_broadcasting_tensors_broadcast(data: st.DataObject, shape: tuple[int, ...]) -> None:
    assert torch.broadcast_shapes(data.draw(tensors(shape, broadcast=True)).shape, shape) == shape


def test_aliased_tensors_share_memory_in_every_way() -> None:
    for condition in (lambda p: p[0] is p[1], lambda p: p[0].data_ptr() != p[1].data_ptr()):
        a, b = find(aliased_tensors((3,)), condition, settings=QUICK)
        assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.shape == b.shape == (3,)


EXAMPLES = (torch.randn(3, 4), torch.randn(3, 4), torch.arange(3), "text")


@given(variations(*EXAMPLES))
def test_variations_keep_shapes_dtypes_and_what_is_no_float(inputs: list[object]) -> None:
    for example, each in zip(EXAMPLES, inputs, strict=True):
        if isinstance(example, torch.Tensor):
            assert isinstance(each, torch.Tensor)
            assert each.shape == example.shape and each.dtype is example.dtype
            assert example.is_floating_point() or torch.equal(each, example)
        else:
            assert each == example


def test_variations_alias_inputs_and_change_layouts() -> None:
    assert find(variations(*EXAMPLES), lambda inputs: inputs[0] is inputs[1], settings=QUICK)
    assert find(variations(*EXAMPLES), lambda inputs: not inputs[0].is_contiguous(), settings=QUICK)
    assert torch.equal(find(variations(*EXAMPLES), lambda inputs: True, settings=QUICK)[0], EXAMPLES[0])
    with pytest.raises(NoSuchExample):
        find(variations(*EXAMPLES), lambda inputs: bool(inputs[0].isnan().any()), settings=QUICK)


def test_without_hypothesis_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['hypothesis'] = None\nimport dsjit.testing\nimport dsjit.testing.strategies"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode != 0
    assert "MissingPackageError: dsjit.testing.strategies needs hypothesis: pip install 'dsjit[test]'" in ran.stderr
