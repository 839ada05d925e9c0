"""`python -m dsjit profile SCRIPT`"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from dsjit.__main__ import main
from tests.profiler.programs import MACHINE

SCRIPT = """\
import sys
import torch
import dsjit

@dsjit.jit
def shifted(x):
    return x.exp() + 1

for _ in range(int(sys.argv[1])):
    shifted(torch.ones(8))
assert __name__ == "__main__"
"""


@pytest.fixture(autouse=True)
def _known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dsjit.api.profiling.this_machine", lambda: MACHINE)


def script(folder: Path, text: str = SCRIPT) -> str:
    path = folder / "script.py"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_a_script_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.argv, list(sys.path)
    files = [tmp_path / name for name in ("report.html", "data.json", "trace.json")]
    options = [part for pair in zip(("--html", "--json", "--trace"), map(str, files), strict=True) for part in pair]
    assert main(["profile", *options, script(tmp_path), "5"]) == 0
    assert (sys.argv, sys.path) == before
    out = capsys.readouterr().out
    assert "script.py:7" in out
    assert all(path.exists() for path in files)
    (step,) = json.loads(files[1].read_text(encoding="utf-8"))["steps"]
    assert step["count"] == 4
    assert main(["profile", "--compare", str(files[1]), script(tmp_path), "3"]) == 0
    assert "A call of script.py takes" in capsys.readouterr().out


@pytest.mark.parametrize(("code", "status"), [("3", 3), ("", 0), ("'failed'", 1)])
def test_the_exit_status_is_the_scripts(tmp_path: Path, code: str, status: int) -> None:
    assert main(["profile", script(tmp_path, f"import sys\nsys.exit({code})\n")]) == status


def test_wrong_arguments_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", str(tmp_path / "missing.py")]) == 2
    assert "there is no file" in capsys.readouterr().out
    assert main(["profile", "--compare", str(tmp_path / "missing.json"), script(tmp_path), "1"]) == 2
