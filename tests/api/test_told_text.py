"""Text that numbers of the call are in: made again by each call where it is only told, an outcome anywhere else."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch

import dsjit
from tests.api.checks import counters_of

LOGGER = logging.getLogger("dsjit.tests.told_text")
OUTPUT = io.StringIO()


class Owner:
    logger = LOGGER

    def __str__(self) -> str:
        return "owner"


def show(text: str, times: int = 1) -> None:
    for _ in range(times):
        print(text)


def keep(text: str) -> str:
    return text + "!"


def by_variable(t: torch.Tensor) -> None:
    n = t.item()
    text = f"{n:.2f}"
    if text:
        print(text)
    print("again", text)


def by_attribute(t: torch.Tensor, owner: Owner | None = None) -> None:
    LOGGER.info(f"{t.item()}")
    logging.info("%s", f"{t.item()}")


def reassigned(t: torch.Tensor) -> str:
    text = f"{t.item():.1f}"
    print(text)
    text = text[0]
    return text + "."


TOLD: dict[str, Callable[[torch.Tensor], Any]] = {
    "f-string": lambda t: print(f"loss {t.item():.3f} of {t.shape}", "more"),
    "tensor": lambda t: print(f"{t:>10.2f}|{t}"),
    "conversion": lambda t: print(f"{t.item()!r} {t.item()!s}"),
    "str": lambda t: print("n=" + str(t.item()) + ", " + repr(t.item()) + ";"),
    "format": lambda t: print("{:.2f} {}".format(t.item(), "x"), format(t.item(), "+.1e")),
    "computed": lambda t: print(f"{t.item() * 2 + 1:8.3f}"),
    "stream": lambda t: sys.stdout.write(f"{t.item():5.1f}\n") and None,
    "function": lambda t: show(f"{t.item()}", times=2),
    "variable": by_variable,
    "logger": by_attribute,
}

SEEN: dict[str, Callable[[torch.Tensor], Any]] = {
    "returned": lambda t: f"{t.item():.1f}",
    "formatted again": lambda t: print(f"{f'{t.item():.1f}':>8}|"),
    "converted and padded": lambda t: print(f"{t.item()!s:>8}|"),
    "padded by format": lambda t: print("{!s:>8}|".format(t.item())),  # noqa: UP032
    "repeated": lambda t: print(f"{t.item():.1f}" * 2),
    "cut": lambda t: print(f"{t.item():.1f}"[:2]),
    "measured": lambda t: print(len(str(t.item()))),
    "compared": lambda t: print(f"{t.item():.1f}" == "1.0"),
    "a key": lambda t: print({f"{t.item():.1f}": 1}),
    "joined": lambda t: print(", ".join([f"{t.item():.1f}", "x"])),
    "a keyword": lambda t: print("x", end=f"{t.item():.1f}\n"),
    "of another function": lambda t: print(keep(f"{t.item():.1f}")),
    "stored": reassigned,
    "percent": lambda t: print("%.1f" % t.item()),  # noqa: UP031
    "added to an object's text": lambda t: print(str(Owner()) + f"{t.item():.1f}".upper()),
}


def runs(function: Callable[[torch.Tensor], Any], caplog: pytest.LogCaptureFixture) -> list[Any]:
    """What the calls returned, printed and logged."""
    found = []
    with redirect_stdout(OUTPUT):
        for value in (1.0, 2.5, -30.25):
            caplog.clear()
            OUTPUT.seek(0)
            OUTPUT.truncate()
            result = function(torch.tensor(value))
            found.append((result, OUTPUT.getvalue(), [record.getMessage() for record in caplog.records]))
    return found


@pytest.mark.parametrize("name", TOLD)
def test_text_that_is_only_told_is_made_again(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jitted = dsjit.jit(TOLD[name])
    assert runs(jitted, caplog) == runs(TOLD[name], caplog)
    assert counters_of(jitted).traces == 1
    assert counters_of(jitted).calls_compiled == 2


@pytest.mark.parametrize("name", SEEN)
def test_text_that_goes_elsewhere_is_an_outcome(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    jitted = dsjit.jit(SEEN[name])
    assert runs(jitted, caplog) == runs(SEEN[name], caplog)
    assert runs(jitted, caplog) == runs(SEEN[name], caplog)
    assert counters_of(jitted).calls_compiled == 3


def test_text_is_told_of_the_moment_in_which_it_was_made() -> None:
    def f(t: torch.Tensor) -> torch.Tensor:
        text = f"before {t.item():.1f}"
        t.mul_(2)
        print(text, f"after {t.item():.1f}")
        return t

    jitted = dsjit.jit(f)
    for value in (1.0, 2.0, 3.0):
        with redirect_stdout(io.StringIO()) as printed:
            jitted(torch.tensor(value))
        assert printed.getvalue() == f"before {value:.1f} after {2 * value:.1f}\n"
    assert counters_of(jitted).traces == 1


def test_a_print_of_the_users_own_sees_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setitem(globals(), "print", lambda *values: seen.append(" ".join(map(str, values))))
    function = TOLD["f-string"]
    jitted = dsjit.jit(function)
    for value in (1.0, 2.0):
        jitted(torch.tensor(value))
        function(torch.tensor(value))
        assert seen[-1] == seen[-2]
