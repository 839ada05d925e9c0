"""What the machine attains is measured once, kept in a file, and read by how much a step moves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dsjit.profiler import machine
from dsjit.profiler.machine import Machine, cache_file, this_machine


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Measurements take no time, and are counted."""
    taken: list[int] = []

    def measured(processor: str, threads: int, version: str) -> Machine:
        taken.append(threads)
        return Machine(processor, threads, version, ((100, 8.0), (10000, 2.0)), {"float32": 5.0, "float64": 2.5})

    monkeypatch.setattr(machine, "measure", measured)
    return taken


def test_it_is_measured_once(quick: list[int], tmp_path: Path) -> None:
    first = this_machine(tmp_path / "folder" / "machine.json")
    assert this_machine(tmp_path / "folder" / "machine.json") == first
    assert len(quick) == 1


def test_it_is_measured_again_for_another_number_of_threads(quick: list[int], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1, 2):
            torch.set_num_threads(threads)
            assert this_machine(tmp_path / "machine.json").threads == threads
    finally:
        torch.set_num_threads(before)
    assert quick == [1, 2]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"a processor": {}}'])
def test_a_file_that_is_broken_is_written_anew(quick: list[int], tmp_path: Path, content: str) -> None:
    path = tmp_path / "machine.json"
    path.write_text(content, encoding="utf-8")
    found = this_machine(path)
    assert json.loads(path.read_text(encoding="utf-8"))
    assert this_machine(path) == found and len(quick) == 1


def test_a_folder_that_cannot_be_written_is_no_error(quick: list[int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert this_machine(tmp_path / "file" / "machine.json").flops["float32"] == 5.0


def test_the_file_is_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file() == tmp_path / "dsjit" / "machine.json"


@pytest.mark.parametrize(("nbytes", "rate"), [(1, 8.0), (100, 8.0), (1000, 4.0), (10000, 2.0), (10**9, 2.0)])
def test_bandwidth_goes_by_what_is_moved(nbytes: int, rate: float) -> None:
    found = Machine("", 1, "", ((100, 8.0), (10000, 2.0)), {"float32": 1.0})
    assert found.attainable_bandwidth(nbytes) == pytest.approx(rate)


def test_a_dtype_that_was_not_measured_has_float32s_rate() -> None:
    found = Machine("", 1, "", ((100, 8.0),), {"float32": 5.0, "float64": 2.5})
    assert (found.attainable_flops("float64"), found.attainable_flops("int64")) == (2.5, 5.0)


def test_a_measurement_has_all_figures() -> None:
    found = machine.measure("p", torch.get_num_threads(), "v")
    rates = [rate for _, rate in found.bandwidth]
    assert rates == sorted(rates, reverse=True) and rates[-1] > 0
    assert set(found.flops) == {"float32", "float64", "bfloat16"}
