"""Environment variables that decide how calls run."""

from __future__ import annotations

import pytest
import torch

import dsjit
from dsjit.api.jitted import Jitted
from dsjit.api.session import Session
from dsjit.config import Environment, Options

X = torch.ones(3)


def jitted(variables: dict[str, str], **options: object) -> Jitted:
    session = Session(Environment.from_environ(variables))
    return Jitted(lambda x, n: x.repeat(n), Options.from_keywords(options), session, "scaled")


def test_the_stance_of_the_process_comes_from_the_environment() -> None:
    f = jitted({"DSJIT_STANCE": "eager"})
    f(X, 1)
    assert (f.counters.traces, f.counters.calls_eager) == (0, 1)


def test_the_limit_comes_from_the_environment_unless_the_object_sets_it() -> None:
    for options, limit in (({}, 2), ({"recompile_limit": 3}, 3)):
        f = jitted({"DSJIT_RECOMPILE_LIMIT": "2", "DSJIT_AT_RECOMPILE_LIMIT": "raise"}, **options)
        for n in range(limit):
            f(X, n)
        with pytest.raises(dsjit.RecompileError, match=f"the limit of {limit} programs"):
            f(X, limit)


def test_what_happens_at_the_limit_is_the_objects_choice_first() -> None:
    f = jitted({"DSJIT_AT_RECOMPILE_LIMIT": "raise"}, recompile_limit=1, at_recompile_limit="eager")
    f(X, 1)
    with pytest.warns(dsjit.DsjitWarning, match="the limit of 1 programs"):
        assert torch.equal(f(X, 2), X.repeat(2))
