"""Two profiles, by what a call costs in each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import dsjit
from dsjit.errors import ProfileError
from tests.profiler.programs import MACHINE


def profiled(title: str, calls: int) -> dsjit.Profile:
    jitted = dsjit.jit(lambda x: torch.softmax(x + 1, -1))
    jitted(torch.ones(3, 4))
    found = dsjit.Profile(title, machine=MACHINE)
    with found:
        for _ in range(calls):
            jitted(torch.ones(3, 4))
    return found


def scaled(data: dict[str, Any], factor: float) -> dict[str, Any]:
    """A profile in which everything takes `factor` times as long."""
    parts = [{**part, "ns": part["ns"] * factor} for part in data["parts"]]
    lines = [{**line, "ns": line["ns"] * factor} for line in data["lines"]]
    steps = [{**step, "total_ns": step["total_ns"] * factor} for step in data["steps"]]
    return {**data, "title": "scaled", "parts": parts, "lines": lines, "steps": steps}


def test_costs_are_those_of_a_call() -> None:
    data = profiled("four", 4).to_dict()
    found = dsjit.compare_profiles(data, {**data, "calls": [{**call, "count": 8} for call in data["calls"]]})
    assert found.call.before_ns == pytest.approx(sum(part["ns"] for part in data["parts"]) / 4)
    assert found.call.after_ns == pytest.approx(found.call.before_ns / 2)


@pytest.mark.parametrize(("factor", "told"), [(0.5, "2.00 times as fast"), (3.0, "200 % more"), (1.0, "the same")])
def test_the_difference_is_told_in_words(factor: float, told: str) -> None:
    data = profiled("one", 4).to_dict()
    assert told in dsjit.compare_profiles(data, scaled(data, factor)).words[0]


def test_largest_differences_come_first() -> None:
    data = profiled("one", 4).to_dict()
    found = dsjit.compare_profiles(data, scaled(data, 2))
    sizes = [abs(each.after_ns - each.before_ns) for each in found.parts]
    assert sizes == sorted(sizes, reverse=True)
    assert [line.name.split(" ")[0] for line in found.lines] == [f"test_compare.py:{data['lines'][0]['line']}"]


def test_what_is_in_one_of_them_costs_nothing_in_the_other() -> None:
    data = profiled("one", 4).to_dict()
    found = dsjit.compare_profiles(data, {**data, "lines": []})
    assert [line.after_ns for line in found.lines] == [0.0]
    assert all(line.before_ns > 0 for line in found.lines)


def test_profiles_dictionaries_and_files_are_taken(tmp_path: Path) -> None:
    found = profiled("one", 2)
    found.save_json(tmp_path / "profile.json")
    whole = [dsjit.compare_profiles(found, other) for other in (found, found.to_dict(), tmp_path / "profile.json")]
    assert whole[0] == whole[1] == whole[2]
    json.dumps(whole[0].to_dict(), allow_nan=False)
    assert "parts" in str(whole[0])
    whole[0].save_html(tmp_path / "comparison.html")
    assert "profile-data" in (tmp_path / "comparison.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"schema": "dsjit-profile-0"}'])
def test_what_is_no_profile_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content, encoding="utf-8")
    with pytest.raises(ProfileError):
        dsjit.compare_profiles(tmp_path / "other.json", tmp_path / "other.json")
