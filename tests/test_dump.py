"""Dumps: numbered, complete files."""

from __future__ import annotations

import torch

from dsjit.dump import open_dump
from dsjit.passes.pipeline import PASSES, run_passes
from tests.graphs import trace


def test_stages_are_numbered_and_runnable(tmp_path):
    graph = trace(lambda x: torch.softmax(x, -1), torch.randn(2, 3))
    dump = open_dump(tmp_path / "made", "forward")
    dump.write_stage("trace", graph)
    run_passes(graph, on_stage=dump.write_stage)
    names = sorted(path.name for path in dump.directory.iterdir())
    assert names == [f"{10 * n:03d}-{name}.py" for n, name in enumerate(["trace", *(step.name for step in PASSES)])]
    for name in names:
        scope: dict = {}
        exec(compile((dump.directory / name).read_text(), name, "exec"), scope)
        torch.testing.assert_close(scope["graph"](torch.ones(2, 3)), torch.full((2, 3), 1 / 3))


def test_kernels_and_modules_have_their_own_names(tmp_path):
    dump = open_dump(tmp_path, "forward")
    dump.write_kernel("first")
    dump.write_kernel("second")
    dump.write("module.ll", "define")
    assert {path.name: path.read_text() for path in dump.directory.iterdir()} == {
        "kernel-000.txt": "first",
        "kernel-001.txt": "second",
        "module.ll": "define",
    }


def test_each_compilation_has_a_folder_of_its_own(tmp_path):
    names = [open_dump(tmp_path, name).directory.name for name in ("f", "f", "<lambda>")]
    assert names == ["f-000", "f-001", "_lambda_-000"]


def test_a_file_is_replaced_whole(tmp_path):
    dump = open_dump(tmp_path, "f")
    dump.write("module.ll", "old and long")
    dump.write("module.ll", "new")
    assert [path.read_text() for path in dump.directory.iterdir()] == ["new"]
