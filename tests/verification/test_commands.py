"""`python -m dsjit verify` and `python -m dsjit bisect`: arguments, output, exit status."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import dsjit
from dsjit.__main__ import main
from tests.miscompiles.cases import MISCOMPILES

MODULE = """
import torch

def scaled(x, *, factor=1.0):
    return (x * factor).softmax(-1)

def example_inputs():
    return torch.randn(4, 9),

def with_keywords():
    return (torch.randn(4, 9),), {"factor": 3.0}

def constant():
    return torch.ones(3) * 2

class Layer(torch.nn.Linear):
    def __init__(self):
        super().__init__(9, 9)

class Needy(torch.nn.Module):
    def __init__(self, size):
        super().__init__()

made = Layer()
number = 3

def timed(x):
    import time
    return x * (time.time() > 0)

def difference(x):
    return x - 2 * x
"""

SCRIPT = """
import sys
import torch
import dsjit
import dsjit.api.compile as compiler
from dataclasses import replace
from dsjit.passes.pipeline import PASSES, Pass
from dsjit.passes.simplify import simplify

def wrong(graph):
    after = simplify(graph)
    return after if after is graph else replace(after, outputs=after.outputs[-1:] * 2)

run_passes = compiler.run_passes
passes = tuple(Pass("simplify", wrong) if each.name == "simplify" else each for each in PASSES)
compiler.run_passes = lambda graph, **keywords: run_passes(graph, **{**keywords, "passes": passes})
f = dsjit.jit(lambda x: (x.clone() + 1, x * 1 * 2))
x = torch.full((3,), 5.0)
f(x)
sys.exit(0 if torch.equal(f(x)[0], x + 1) else 1)
"""


@pytest.fixture
def module(tmp_path: Path) -> str:
    path = tmp_path / "verified_module.py"
    path.write_text(MODULE)
    return str(path)


def run(*arguments: str) -> int:
    return main(["verify", *arguments])


@pytest.mark.parametrize("name", ["scaled", "constant --args nothing", "Layer", "made", "made.forward"])
def test_what_is_the_same_exits_with_0(module: str, name: str, tmp_path: Path, capsys) -> None:
    target, *more = name.split()
    if more:
        Path(module).write_text(MODULE + "\ndef nothing():\n    return ()\n")
    assert run(f"{module}:{target}", *more) == 0
    assert "the same as eager" in capsys.readouterr().out


def test_a_factory_may_give_keywords_and_the_report_may_be_json(module: str, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    assert run(f"{module}:scaled", "--args", "with_keywords", "--json", str(target)) == 0
    assert json.loads(target.read_text())["ok"] is True


def test_a_difference_exits_with_1_and_writes_the_reproducer(module: str, tmp_path: Path, capsys) -> None:
    target = tmp_path / "reproducer.py"
    with next(each for each in MISCOMPILES if each.name == "sub_swapped").breaks():
        assert run(f"{module}:difference", "--reproducer", str(target)) == 1
    assert "aten.sub.Tensor at" in capsys.readouterr().out
    assert "@dsjit.jit" in target.read_text()


@pytest.mark.filterwarnings("ignore::dsjit.DsjitWarning")
def test_a_call_that_runs_eagerly_exits_with_1_if_it_must_be_compiled(module: str) -> None:
    assert run(f"{module}:timed") == 0
    assert run(f"{module}:timed", "--require-compiled") == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("{module}:absent", "has no absent"),
        ("{module}:number", "is not callable"),
        ("{module}:Needy", "needs arguments"),
        ("no_such_module_here:f", "cannot be imported"),
        ("scaled", "is not module:name"),
        ("{module}:scaled --args absent", "has no absent"),
    ],
)
def test_wrong_names_exit_with_2_and_say_why(module: str, target: str, message: str, capsys) -> None:
    assert run(*target.format(module=module).split()) == 2
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("command", ["verify", "bisect"])
def test_help_states_conventions_and_exit_status(command: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    assert "Exit status: 0" in capsys.readouterr().out


def test_bisect_names_the_rewrite_that_makes_a_command_fail(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(dsjit.__file__).parents[1]))
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    assert main(["bisect", sys.executable, str(script)]) == 0
    assert ": pass simplify" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "message"), [("pass", "does not fail"), ("raise SystemExit(1)", "without any rewrite")]
)
def test_bisect_says_when_there_is_nothing_to_find(code: str, message: str, capsys) -> None:
    assert main(["bisect", sys.executable, "-c", code]) == 1
    assert message in " ".join(capsys.readouterr().out.split())


def test_bisect_without_a_command_exits_with_2() -> None:
    assert main(["bisect"]) == 2
