"""The workloads are the programs that they are said to be."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from benchmarks.workloads import attention, experts, language, residual
from benchmarks.workloads.catalog import WORKLOADS, find
from benchmarks.workloads.workload import Arguments, Workload

SMALL = ("linear_relu", "pointwise_chain", "norm_softmax", "sliding_window", "gated_attention", "expert_gate")


def tensor_leaves(arguments: Arguments) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_every_workload_has_three_shapes_and_the_tolerances_of_its_dtypes(workload: Workload) -> None:
    assert len(set(workload.shapes)) >= 3
    assert set(workload.tolerances) == {torch.float32} | ({torch.bfloat16} if not workload.varied else set())


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_inputs_differ_in_shape_and_are_the_same_on_every_call(workload: Workload) -> None:
    def sizes(index: int) -> list[torch.Size]:
        return [leaf.shape for leaf in tensor_leaves(workload.arguments(torch.float32, index))]

    every = [sizes(index) for index in range(len(workload.shapes))]
    assert len({tuple(each) for each in every}) == len(every)
    one, two = workload.arguments(torch.bfloat16, 1), workload.arguments(torch.bfloat16, 1)
    assert all(torch.equal(a, b) for a, b in zip(tensor_leaves(one), tensor_leaves(two), strict=True))
    assert all(a.dtype in (torch.bfloat16, torch.int64) for a in tensor_leaves(one))


@pytest.mark.parametrize("name", SMALL)
def test_building_leaves_the_random_stream_alone(name: str) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    find(name).build(torch.float32, 2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("model", "parameters"),
    [
        (language.bert(12), 109_482_240),
        (language.gpt2(12), 124_439_808),
        (residual.ResNet, 25_557_032),
        (lambda: residual.ResNet(152), 60_192_808),
    ],
    ids=["bert-base", "gpt2-small", "resnet-50", "resnet-152"],
)
def test_models_have_the_published_number_of_parameters(model: Callable[[], nn.Module], parameters: int) -> None:
    with torch.device("meta"):
        built = model()
    assert sum(parameter.numel() for parameter in built.parameters()) == parameters


def test_llama_has_the_published_layer_size() -> None:
    with torch.device("meta"):
        layer = language.llama(1)().model.layers[0]
    assert sum(parameter.numel() for parameter in layer.parameters()) == 60_821_504


def test_resnet_halves_the_image_five_times() -> None:
    with torch.device("meta"):
        model = residual.ResNet().eval()
        features = model.stages(model.pool(model.stem(torch.empty(2, 3, 224, 224))))
    assert features.shape == (2, 2048, 7, 7)


def test_the_sliding_window_is_banded_attention() -> None:
    case = find("sliding_window").build(torch.float32, 1)
    model, (x,) = case.program, case.arguments
    assert isinstance(model, attention.SlidingWindowAttention)
    with torch.no_grad():
        scores = model.query(x) @ model.key(x).transpose(1, 2) / math.sqrt(model.embed)
        position = torch.arange(x.shape[1])
        outside = (position[:, None] - position[None, :]).abs() > model.window // 2
        expected = scores.masked_fill(outside, float("-inf")).softmax(-1) @ model.value(x)
        torch.testing.assert_close(case(), expected)


def test_an_open_gate_passes_local_attention_and_a_shut_one_global() -> None:
    model = attention.GatedLocalGlobalAttention(embed=16, heads=2, window=1).eval()
    x = torch.randn(1, 9, 16)
    results = []
    with torch.no_grad():
        for bias in (-1e4, 1e4):
            last = model.gate[2]
            assert isinstance(last, nn.Linear)
            last.bias.fill_(bias)
            changed = x.clone()
            changed[0, 8] += 1.0
            results.append((model(changed) - model(x)).abs().amax(-1)[0])
    global_change, local_change = results
    assert bool((global_change > 0).all())
    assert local_change[:7].max() == 0
    assert bool((local_change[7:] > 0).all())


def test_expert_weights_sum_to_one_and_a_balanced_gate_has_a_loss_of_one() -> None:
    model = experts.ExpertGate(embed=8, experts=4, chosen=2)
    weights, indices, _ = model(torch.randn(10, 8))
    torch.testing.assert_close(weights.sum(-1), torch.ones(10))
    assert bool((indices[:, 0] != indices[:, 1]).all())
    with torch.no_grad():
        model.router.weight.zero_()
        *_, loss = model(torch.randn(10, 8))
    torch.testing.assert_close(loss, torch.tensor(1.0))


def test_an_unknown_workload_is_refused_with_the_list_of_names() -> None:
    with pytest.raises(KeyError, match="no workload 'brt'; there are bert, gpt2"):
        find("brt")
