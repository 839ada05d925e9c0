"""One real run becomes a functional Graph: what is an input, a write, a check; and where each node comes from."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from dsjit.ir.graph import Graph
from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.reference import run_reference
from dsjit.trace.capture import Capture, capture
from dsjit.trace.looks.outcome import OutcomeKind, read_outcome


def captured(function: Any, *args: Any) -> Capture:
    found = capture(function, args, {}, "f")
    for segment in found.segments:
        verify_graph(segment.graph)
    return found


def whole(function: Any, *args: Any) -> Graph:
    """The Graph of a function that looks at nothing."""
    [segment] = captured(function, *args).segments
    return segment.graph


def test_the_traced_run_is_the_real_run() -> None:
    x, seen = torch.ones(3), []
    found = captured(lambda t: seen.append(1) or t.add_(1), x)  # type: ignore[func-returns-value]
    assert found.result is x and seen == [1]
    assert torch.equal(x, torch.full((3,), 2.0))


def test_writes_become_values_and_are_done_at_the_end() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        x[0] = 7
        return x + 1

    x = torch.arange(3.0)
    graph = whole(f, x.clone())
    assert len(graph.inputs) == len(graph.writes) == 1
    assert not any(node.mutates for node in graph.nodes)
    mine, theirs = x.clone(), x.clone()
    (out,) = run_reference(graph, [mine])
    assert torch.equal(out, f(theirs)) and torch.equal(mine, theirs)


@pytest.mark.parametrize("split", [torch.chunk, torch.unsafe_chunk])
def test_a_write_through_one_part_of_a_split_leaves_the_others_views(split: Any) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        first, second, third = split(x * 2, 3, 1)
        first.sigmoid_()
        second += first
        return first * second + third

    x = torch.arange(12.0).view(2, 6)
    graph = whole(f, x)
    (out,) = run_reference(graph, [x])
    assert torch.equal(out, f(x))
    splits = [node for node in graph.nodes if node.op is torch.ops.aten.split.Tensor]
    assert len(splits) > 1 and all(len(node.outputs) == 3 for node in splits)


def test_a_write_through_a_view_reaches_the_other_views() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        whole, row = y.view(-1), y[1]
        whole[4] = 9
        row += 1
        return y.t() * whole.sum()

    x = torch.arange(6.0).view(2, 3)
    graph = whole(f, x)
    assert not graph.writes
    assert torch.equal(run_reference(graph, [x])[0], f(x))


def test_every_node_names_the_users_line() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.gelu(x)
        return y.softmax(-1)

    graph = whole(f, torch.ones(2, 2))
    first = f.__code__.co_firstlineno
    assert [node.source.line for node in graph.nodes] == [first + 1, first + 2]
    assert {node.source.file for node in graph.nodes} == {__file__}


def test_a_run_is_cut_where_python_looks_at_data() -> None:
    before, after = captured(lambda x: x * x.sum().tolist(), torch.ones(3)).segments
    assert before.look is not None and before.look.kind is OutcomeKind.CONTENT
    assert [str(node.op) for node in before.graph.nodes] == ["aten.sum.default"]
    assert [str(node.op) for node in after.graph.nodes] == ["aten.mul.Tensor"]
    assert before.look.outcome == read_outcome(OutcomeKind.CONTENT, run_reference(before.graph, [torch.ones(3)]))


def test_tensors_made_of_numbers_are_constants() -> None:
    graph = whole(lambda x: x + torch.tensor([1.0, 2.0]), torch.ones(2))
    assert [c.tolist() for c in graph.constants.values()] == [[1.0, 2.0]]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.numpy(), "numpy"),
        (lambda x: x.data_ptr(), "address"),
        (lambda x: x.untyped_storage(), "storage"),
        (lambda x: x.to_sparse(), "sparse"),
        (lambda x: torch.randn(2, generator=torch.Generator()), "torch.Generator"),
        (lambda x: x.requires_grad_(), "requires_grad"),
    ],
)
def test_what_leaves_the_world_of_tensors_is_a_problem_with_its_reason(function: Any, reason: str) -> None:
    found = captured(function, torch.ones(2))
    assert not found.segments
    assert reason in found.problems[0].reason
    assert found.problems[0].source.file == __file__
