"""Every pass does to the Before of its docstring what its After says."""

from __future__ import annotations

import sys

import pytest

from dsjit.ir.verify_graph import verify_graph
from dsjit.passes.pipeline import GPU_PASSES, JOINT_PASSES, PASSES
from tests.graphs import assert_rewrites, example, graph_from_text

RUNS = {step.name: step.run for step in (*GPU_PASSES, *PASSES, *JOINT_PASSES)}


@pytest.mark.parametrize("name", RUNS)
def test_example_of_the_docstring(name):
    run = RUNS[name]
    docstring = sys.modules[run.__module__].__doc__
    assert_rewrites(run, docstring)
    for text in example(docstring):
        verify_graph(graph_from_text(text), run_ops=True)
