"""What a call prints, logs and warns is told again by each compiled call: in order, with its own values."""

from __future__ import annotations

import io
import logging
import sys
import warnings

import pytest
import torch

import dsjit
from tests.api.checks import counters_of

LOGGER = logging.getLogger("dsjit.test.effects")


def inputs(number: int) -> torch.Tensor:
    return torch.arange(3.0) + number


def chatty(x: torch.Tensor) -> torch.Tensor:
    print("start", tuple(x.shape), end="; ")
    y = x * 2
    print(y, [y.sum(), {"x": x}], sep=" | ")
    y += 1
    sys.stdout.write("half way\n")
    print("after", y, file=sys.stderr)
    return y


def test_text_is_printed_in_order_with_the_content_of_the_moment(capsys: pytest.CaptureFixture[str]) -> None:
    jitted = dsjit.jit(chatty)
    for number in range(4):
        chatty(inputs(number))
        expected = capsys.readouterr()
        jitted(inputs(number))
        assert capsys.readouterr() == expected
    assert counters_of(jitted).calls_compiled == 3


def test_printed_objects_keep_the_text_that_they_had(capsys: pytest.CaptureFixture[str]) -> None:
    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

        def __repr__(self) -> str:
            return f"<{self.name}>"

    named = Named("a")

    def f(x: torch.Tensor) -> torch.Tensor:
        print(named, [named])
        return x

    jitted = dsjit.jit(f)
    for name in ("a", "a", "b", "b"):
        named.name = name
        jitted(torch.ones(1))
        assert capsys.readouterr().out == f"<{name}> [<{name}>]\n"
    assert counters_of(jitted).calls_compiled == 2


def test_records_are_logged_anew(caplog: pytest.LogCaptureFixture) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        LOGGER.warning("sum %s of %d", x.sum(), len(x), extra={"kind": "sum"})
        LOGGER.debug("shape %s", x.shape)
        return x + 1

    jitted = dsjit.jit(f)
    for number in range(3):
        f(inputs(number))
        jitted(inputs(number))
    told = [(r.getMessage(), r.lineno, r.funcName, r.kind) for r in caplog.records]  # type: ignore[attr-defined]
    assert told[::2] == told[1::2]
    assert len(told) == 6
    caplog.set_level(logging.DEBUG, LOGGER.name)
    caplog.clear()
    jitted(inputs(0))
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]
    assert (counters_of(jitted).traces, counters_of(jitted).calls_compiled) == (2, 2)


def test_warnings_are_given_again_and_raised_where_filters_say_so() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("careful", RuntimeWarning, stacklevel=1)
        return x.add_(1)

    jitted = dsjit.jit(f)
    x = torch.zeros(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            jitted(x)
    assert [str(each.message) for each in caught] == ["careful"] * 3
    with warnings.catch_warnings(), pytest.raises(RuntimeWarning, match="careful"):
        warnings.simplefilter("error")
        jitted(x)
    assert x.item() == 3.0  # the op behind the warning did not run


def test_what_is_redirected_later_goes_there() -> None:
    jitted = dsjit.jit(lambda x: print("hello") or x + 1)
    for _ in range(2):
        jitted(torch.ones(1))
    stream, sys.stdout = sys.stdout, io.StringIO()
    try:
        jitted(torch.ones(1))
        assert sys.stdout.getvalue() == "hello\n"
    finally:
        sys.stdout = stream
    assert counters_of(jitted).calls_compiled == 2


def test_print_is_itself_again_after_the_trace() -> None:
    before = (print, sys.stdout, sys.stderr, warnings.warn, logging.Logger.handle)
    dsjit.jit(chatty)(torch.ones(2))
    assert (print, sys.stdout, sys.stderr, warnings.warn, logging.Logger.handle) == before


def test_warnings_blame_the_line_that_calls() -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("inside", stacklevel=1)
        warnings.warn("the caller", stacklevel=2)
        return x + 1

    jitted = dsjit.jit(f)
    lines: list[list[int]] = []
    for function in (f, jitted, jitted):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            function(torch.ones(1))
            function(torch.ones(1))
        lines.append([each.lineno for each in caught])
        assert {each.filename for each in caught} == {__file__}
    assert lines[0] == lines[1] == lines[2]
    assert counters_of(jitted).calls_compiled == 3
