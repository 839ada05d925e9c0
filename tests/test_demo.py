"""The command line and the demo."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from rich.console import Console

from dsjit import demo
from dsjit.__main__ import main
from dsjit.config import OPTION_ROWS, VARIABLE_ROWS


def test_the_demo_proves_equality_and_tells_what_it_measured(capsys: pytest.CaptureFixture[str]) -> None:
    status = demo.run(layers=1, tokens=16, with_torch_compile=False, console=Console(width=150))
    printed = capsys.readouterr().out
    assert "BERT, 1 layers, 2x16 tokens" in printed
    for heading in ("compile", "call", "speed", "difference", "generated kernels", "library calls", "memory traffic"):
        assert heading in printed
    assert "Outputs equal eager's" in printed
    assert status == 0


def test_a_torch_compile_that_fails_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(function: object) -> None:
        raise RuntimeError("no Python.h\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    status = demo.run(layers=1, tokens=8, with_torch_compile=True, console=Console(width=150))
    printed = capsys.readouterr().out
    assert "torch.compile failed and is left out: no Python.h" in printed
    assert "Outputs equal eager's" in printed
    assert status == 0


def test_outputs_that_differ_are_measured_by_the_largest_distance() -> None:
    one = {"last": torch.tensor([1.0, 2.0]), "pooled": torch.tensor([4.0])}
    other = {"last": torch.tensor([1.0, 2.5]), "pooled": torch.tensor([4.0])}
    assert demo.compare(one, one) == 0
    assert demo.compare(other, one) == pytest.approx(0.25)


@pytest.mark.parametrize(
    "changed",
    [
        {"last": torch.ones(2)},
        {"last": torch.ones(3), "pooled": torch.ones(1)},
        {"last": torch.ones(2).double(), "pooled": torch.ones(1)},
    ],
    ids=["field", "shape", "dtype"],
)
def test_outputs_of_another_structure_are_never_equal(changed: dict[str, torch.Tensor]) -> None:
    assert demo.compare(changed, {"last": torch.ones(2), "pooled": torch.ones(1)}) == float("inf")


def test_without_transformers_the_demo_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "transformers" else find_spec(name, *rest)
    )
    assert main(["demo", "--no-torch-compile"]) == 1
    assert "pip install 'dsjit[demo]'" in capsys.readouterr().out


def test_without_a_cpp_compiler_torch_compile_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo, "cpp_compiler", lambda: None)
    monkeypatch.setattr(demo, "run", lambda *arguments: asked.append(arguments) or 0)
    assert main(["demo", "--layers", "2", "--tokens", "32"]) == 0
    assert asked[0][:3] == (2, 32, False)
    assert "No C++ compiler found" in capsys.readouterr().out


def test_env_lists_every_variable_and_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSJIT_DEBUG", "2")
    assert main(["env"]) == 0
    printed = capsys.readouterr().out
    assert all(row.name in printed for row in (*OPTION_ROWS, *VARIABLE_ROWS))


def test_env_says_what_is_wrong_with_a_variable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSJIT_CHECK", "maybe")
    assert main(["env"]) == 1
    assert "DSJIT_CHECK='maybe' is not accepted; use 0 to 2" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["dance"], ["demo", "--layers", "0"], ["demo", "--tokens", "many"]])
def test_wrong_arguments_exit_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    assert "usage: python -m dsjit" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_are_printed(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([flag])
    assert exit_.value.code == 0
    assert "dsjit" in capsys.readouterr().out
