"""Dropout in training mode of a transformer layer drew other masks than eager: the functional form of a random in-place
op fills contiguous memory, whatever the layout of the tensor that eager fills in the order of its memory."""

from __future__ import annotations

import pytest
import torch

from dsjit.testing import assert_equivalent


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("op", ["bernoulli_", "normal_", "uniform_", "exponential_", "random_"])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "permuted"])
def test_random_in_place_ops_draw_in_the_order_of_memory(op: str, layout: str) -> None:
    x = {
        "contiguous": torch.randn(6, 40),
        "transposed": torch.randn(40, 6).t(),
        "permuted": torch.randn(16, 2, 64).transpose(0, 1),
    }[layout]
    assert_equivalent(lambda t: getattr(t, op)() * 2, x)


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
@pytest.mark.parametrize("op", ["bernoulli_", "normal_"])
def test_random_in_place_ops_on_memory_with_gaps_run_eagerly(op: str) -> None:
    report = assert_equivalent(lambda t: getattr(t[:, 1:], op)() * 2, torch.randn(6, 40), must_compile=False)
    assert report.calls[-1].endswith("fills memory with gaps")


def test_a_transformer_layer_in_training_mode_drops_what_eager_drops() -> None:
    assert_equivalent(torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), torch.randn(2, 5, 16))
