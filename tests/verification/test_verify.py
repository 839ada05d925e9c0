"""`dsjit.verify`: what it compares, what it leaves alone, what it says."""

from __future__ import annotations

import json
import random

import pytest
import torch
from torch import nn

import dsjit
from dsjit.codegen import placement
from dsjit.config import Options
from dsjit.errors import UnsupportedCallableError
from tests.miscompiles.cases import MISCOMPILES


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def chain(x, y):
    return torch.softmax(x * y, -1).bfloat16(), (x + y).argmax(-1)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.calls = 0
        self.seen = []

    def forward(self, x):
        self.calls += 1
        self.seen.append(x.dim())
        return self.norm(x)


def broken(name):
    return next(each for each in MISCOMPILES if each.name == name)


def test_a_right_program_is_ok_and_its_errors_are_stated_beside_eagers() -> None:
    report = dsjit.verify(chain, torch.randn(4, 33), torch.randn(4, 33))
    assert report.ok and report.compiled and report.blame is None
    soft, place = [each for each in report.comparisons if each.path.startswith("result[")]
    assert soft.values is not None and soft.values.our_error is not None and soft.values.eager_error is not None
    assert soft.values.our_error < 1e-2 and not soft.exact
    assert place.values is not None and place.values.differing == 0


def test_arithmetic_has_to_be_exact_and_transcendentals_have_not() -> None:
    report = dsjit.verify(lambda x: (x * 2 + 1, x.exp()), torch.randn(40))
    assert [each.exact for each in report.comparisons] == [True, False]


def test_arguments_state_and_random_numbers_stay_as_they_are() -> None:
    module, x = Counting(), torch.randn(3, 6)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    torch.manual_seed(3)
    random.seed(3)
    states = torch.get_rng_state(), random.getstate()
    kept = x.clone()
    report = dsjit.verify(module, x)
    assert report.ok and report.compiled
    assert module.calls == 0 and module.seen == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.equal(x, kept)
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert module._compiled_call_impl is None


def test_closures_and_globals_are_copied_too() -> None:
    log = []

    def logged(x):
        log.append(1)
        COUNTS["calls"] += 1
        return x * 2

    assert dsjit.verify(logged, torch.ones(3)).ok
    assert log == [] and COUNTS == {"calls": 0}


COUNTS = {"calls": 0}


def test_buffers_that_the_call_writes_are_listed() -> None:
    report = dsjit.verify(Counting(), torch.randn(3, 6))
    assert {"result", "function.norm.running_mean"} <= {each.path for each in report.comparisons}


def test_written_arguments_are_listed() -> None:
    def write(x):
        x.mul_(2)

    assert "args[0]" in {each.path for each in dsjit.verify(write, torch.ones(3)).comparisons}


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_arguments_that_share_memory_still_do_in_the_copies() -> None:
    memory = torch.randn(8)
    assert dsjit.verify(lambda a, b: a.add_(1) + b, memory[:4], memory[:4]).ok


def test_functions_that_raise_must_raise_the_same() -> None:
    report = dsjit.verify(lambda x: x @ x, torch.randn(2, 3))
    assert report.ok and not report.compiled and report.raises.startswith("RuntimeError")


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_calls_that_run_eagerly_are_no_proof() -> None:
    report = dsjit.verify(lambda x: x * random.random(), torch.ones(3))
    assert report.ok and not report.compiled
    assert report.calls[-1].startswith("eager: draws from Python's random")
    assert "nothing of the compiler was put to the test" in str(report)


def test_dropout_draws_the_same_in_every_layout() -> None:
    x = torch.randn(6, 40).t()
    assert dsjit.verify(lambda x: torch.dropout(x.relu(), 0.5, True), x).ok


def test_control_flow_is_followed() -> None:
    def halve(x):
        while x.abs().max() > 1:
            x = x / 2
        return x

    report = dsjit.verify(halve, torch.full((3,), 20.0))
    assert report.ok and report.compiled


def test_jitted_functions_keep_their_options() -> None:
    report = dsjit.verify(dsjit.jit(chain, backend="interpreter"), torch.randn(2, 5), torch.randn(2, 5))
    assert report.ok and report.compiled


def test_fast_numerics_may_not_be_exact() -> None:
    def f(x):
        return x.bfloat16() * 3 + 1

    calls = [((torch.randn(64, 64),), {})] * 2
    assert not dsjit.verify_calls(f, calls, options=Options(numerics="fast")).ok


def test_a_difference_names_op_line_and_rewrite() -> None:
    miscompile = broken("sub_swapped")
    with miscompile.breaks():
        report = dsjit.verify(miscompile.program, *miscompile.calls()[0])
    assert not report.ok
    assert report.blame is not None
    assert report.blame.op == "aten.sub.Tensor" and report.blame.file.endswith("programs.py")
    text = str(report)
    for part in ("differences from eager", "aten.sub.Tensor at ", "first bad rewrite", "a program that shows it"):
        assert part in text


def test_the_report_is_data() -> None:
    report = dsjit.verify(chain, torch.randn(4, 33), torch.randn(4, 33))
    data = json.loads(json.dumps(report.to_dict()))
    assert data["ok"] is True and data["compiled"] is True and data["name"] == "chain"
    assert data["comparisons"][0]["values"]["max_ulp"] >= 0


def test_what_cannot_be_copied_is_refused() -> None:
    with pytest.raises(UnsupportedCallableError, match="arguments cannot be copied"):
        dsjit.verify(lambda x: x, (n for n in range(3)))


def test_no_calls_are_refused() -> None:
    with pytest.raises(ValueError, match="one call at least"):
        dsjit.verify_calls(chain, [])


def test_calls_with_other_values_are_compared_one_by_one() -> None:
    def scaled(x, factor):
        return x * factor

    x = torch.randn(3)
    report = dsjit.verify_calls(scaled, [((x, 2.0), {}), ((x, 2.0), {}), ((x,), {"factor": 3.0}), ((x, 2.0), {})])
    assert report.ok and report.calls[1] == report.calls[-1] == "compiled"


def gates(x, y):
    one = (x @ y).tanh()
    return one * (y @ x).sigmoid(), one[0], x


def test_gradients_of_what_is_returned_are_compared_and_grad_is_left_alone() -> None:
    with torch.enable_grad():
        x, y = torch.randn(2, 5, 5).unbind(0)
        x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
        report = dsjit.verify(gates, x, y)
    assert report.ok and report.compiled, report
    values = {each.path: each.values for each in report.comparisons}
    for path in ("gradient of args[0]", "gradient of args[1]"):
        found = values[path]
        assert found is not None and found.our_error is not None and found.our_error < 1e-5
    assert x.grad is None and y.grad is None


def test_a_backward_that_draws_again_what_the_forward_drew_is_right() -> None:
    layer = nn.Sequential(nn.Linear(5, 7), nn.Dropout(0.3), nn.LayerNorm(7))
    with torch.enable_grad():
        report = dsjit.verify(layer, torch.randn(4, 5))
    assert report.ok and report.compiled, report
    assert "gradient of function.0.weight" in {each.path for each in report.comparisons}


@pytest.mark.parametrize("check", ["1", "2"])
def test_gradients_through_looks_are_followed(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DSJIT_CHECK", check)

    def step(x, w):
        if x.sum() > 0:
            return (x * w).sin().sum()
        return (x - w).sum(0)

    with torch.enable_grad():
        for sign in (1, -1):
            report = dsjit.verify(step, sign * torch.rand(3, 4), torch.randn(4, requires_grad=True))
            assert report.ok and report.compiled, report


def test_a_program_that_raises_where_eager_does_not_is_a_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call goes on eagerly, with eager's result."""

    def sums(x):
        a = x.sort(0).values
        b = a.cumsum(1).exp()
        c = b.cumsum(0)
        return c + a

    def forgotten_early(graph, steps, *how):
        return {**last_reads(graph, steps, *how), steps[0].writes[0]: 1}

    last_reads = placement.last_reads
    monkeypatch.setattr(placement, "last_reads", forgotten_early)
    with pytest.warns(dsjit.DsjitWarning, match="raised where eager does not"):
        report = dsjit.verify(sums, torch.randn(4, 4))
    assert not report.ok
    (difference,) = report.differences
    assert "the compiled program raises UnboundLocalError" in difference.problems[0]
    assert report.blame is not None and report.blame.file == __file__
    assert "raises UnboundLocalError" in report.blame.text
