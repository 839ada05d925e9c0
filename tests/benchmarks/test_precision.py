"""Outputs are compared with eager's and with float64."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from benchmarks.precision import compare, in_float64, tensors
from benchmarks.workloads.workload import Case, Tolerance

TOLERANCE = Tolerance(1e-6, 1e-6)


def test_a_cast_to_float32_in_the_program_stays_in_float64() -> None:
    def norm(x: Tensor) -> Tensor:
        wide = x.to(torch.float32)
        return torch.softmax(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True)), -1, dtype=torch.float32).to(
            x.dtype
        )

    x = torch.randn(4, 100)
    wide = x.double()
    expected = torch.softmax(wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True)), -1)
    result = in_float64(Case(norm, (x,)))
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-14, atol=0)


def test_the_reference_leaves_the_module_and_its_arguments_alone() -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(5, 3)
    with torch.no_grad():
        assert in_float64(Case(model, (x,))).dtype == torch.float64
    assert model.weight.dtype == x.dtype == torch.float32


def test_tensors_are_found_in_containers_and_in_objects() -> None:
    @dataclass
    class Layer:
        keys: Tensor

    class Cache:
        def __init__(self) -> None:
            self.layers = [Layer(torch.ones(1)), Layer(torch.ones(2))]
            self.kind = "dynamic"

    found = tensors({"logits": torch.zeros(3), "cache": Cache(), "nothing": None})
    assert [(path, t.numel()) for path, t in found] == [
        (".logits", 3),
        (".cache.layers[0].keys", 1),
        (".cache.layers[1].keys", 2),
    ]


def test_identical_results_are_equal_bit_by_bit() -> None:
    x = torch.tensor([1.0, float("nan"), float("inf"), -0.0])
    comparison = compare((x, torch.arange(3)), (x.clone(), torch.arange(3)), (x.double(), torch.arange(3)), TOLERANCE)
    assert comparison.equal
    assert comparison.bitwise
    assert comparison.outputs == 2
    assert comparison.worst == comparison.error == comparison.eager_error == 0


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (torch.ones(3), torch.ones(2)),
        (torch.ones(3), torch.ones(3).double()),
        ((torch.ones(3),), torch.ones(3)),
        (torch.tensor([1.0, 2.0]), torch.tensor([1.0, float("nan")])),
        (torch.tensor([1.0, float("nan")]), torch.tensor([1.0, 2.0])),
        (torch.tensor([float("inf")]), torch.tensor([-float("inf")])),
        (torch.tensor([1, 2]), torch.tensor([1, 3])),
        (torch.tensor([1.0, 1.0 + 1e-5]), torch.tensor([1.0, 1.0])),
    ],
    ids=["shape", "dtype", "structure", "lost NaN", "new NaN", "sign of infinity", "integer", "beyond the tolerance"],
)
def test_a_difference_is_seen(actual: object, expected: object) -> None:
    assert not compare(actual, expected, expected, TOLERANCE).equal


def test_the_sign_of_zero_is_no_difference_but_not_bitwise() -> None:
    comparison = compare(torch.tensor([-0.0]), torch.tensor([0.0]), torch.tensor([0.0]), TOLERANCE)
    assert comparison.equal
    assert not comparison.bitwise


def test_precision_is_judged_by_the_distance_from_the_reference() -> None:
    reference = torch.ones(100).double()
    near, far = torch.full((100,), 1 + 2**-20), torch.full((100,), 1 + 2**-18)
    assert compare(near, far, reference, TOLERANCE).as_precise_as_eager
    assert not compare(far, near, reference, TOLERANCE).as_precise_as_eager
    assert compare(far, near, reference, TOLERANCE).error == pytest.approx(2**-18)
