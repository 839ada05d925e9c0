"""Options and environment variables: what is accepted, and what the errors say."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from dsjit.config import DEBUG_LEVELS, OPTION_ROWS, VARIABLE_ROWS, Environment, Options, defaults, parse_bytes
from dsjit.errors import OptionError


def test_the_documented_defaults() -> None:
    assert defaults(Options) == {
        "dynamic": None,
        "fullgraph": False,
        "numerics": "eager",
        "backend": "auto",
        "autotune": "off",
        "cuda_graphs": False,
        "disable": False,
        "recompile_limit": None,
        "at_recompile_limit": None,
        "memory_budget": None,
        "offload_dir": None,
        "offload_to_host": False,
    }
    assert defaults(Environment) == {
        "debug": 0,
        "dump": None,
        "check": 0,
        "disable": False,
        "stance": "default",
        "recompile_limit": 8,
        "at_recompile_limit": "eager",
        "fuel": None,
    }


def test_every_option_and_every_variable_is_documented_once() -> None:
    assert [row.name for row in OPTION_ROWS] == [field.name for field in fields(Options)]
    assert [row.field for row in VARIABLE_ROWS] == [field.name for field in fields(Environment)]
    assert all(row.meaning and row.accepted for row in (*OPTION_ROWS, *VARIABLE_ROWS))


def test_options_are_immutable_and_hashable() -> None:
    options = Options()
    with pytest.raises(FrozenInstanceError):
        options.disable = True  # type: ignore[misc]
    assert hash(options) == hash(Options())


@pytest.mark.parametrize(
    "keywords",
    [
        {},
        {"dynamic": True},
        {"dynamic": None, "fullgraph": True},
        {"numerics": "fast"},
        {"backend": "interpreter"},
        {"backend": "eager", "disable": True},
        {"recompile_limit": 1},
        {"recompile_limit": None, "at_recompile_limit": "raise"},
        {"memory_budget": "6GiB"},
        {"memory_budget": 10**9},
    ],
)
def test_accepted_keywords_become_options(keywords: dict[str, object]) -> None:
    options = Options.from_keywords(keywords)
    assert {name: getattr(options, name) for name in keywords} == keywords


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dynamic", 1),
        ("dynamic", "yes"),
        ("fullgraph", None),
        ("fullgraph", 0),
        ("numerics", "Eager"),
        ("numerics", None),
        ("backend", "cuda"),
        ("backend", ["llvm"]),
        ("disable", "1"),
        ("at_recompile_limit", "fail"),
        ("recompile_limit", 0),
        ("recompile_limit", True),
        ("recompile_limit", 2.0),
        ("memory_budget", 0),
        ("memory_budget", True),
        ("memory_budget", 1.5),
        ("memory_budget", "6"),
        ("memory_budget", "six GiB"),
        ("memory_budget", "-1 GiB"),
    ],
)
def test_a_value_that_is_not_accepted_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(OptionError) as error:
        Options.from_keywords({name: value})
    row = next(row for row in OPTION_ROWS if row.name == name)
    assert f"{name}={value!r}" in str(error.value)
    assert row.accepted in str(error.value)


@pytest.mark.parametrize(
    ("amount", "expected"),
    [(512, 512), ("512B", 512), ("6GiB", 6 * 2**30), ("1.5 GB", 1_500_000_000), (" 800 MiB ", 800 * 2**20)],
)
def test_bytes_are_numbers_or_text(amount: int | str, expected: int) -> None:
    assert parse_bytes(amount) == expected


def test_a_misspelt_option_is_refused_with_the_closest_name() -> None:
    with pytest.raises(OptionError, match="no option 'full_graph'; did you mean 'fullgraph'"):
        Options.from_keywords({"full_graph": True})


def test_an_unrelated_option_is_refused_with_the_list_of_names() -> None:
    with pytest.raises(OptionError, match="no option 'zzz'; there are dynamic, fullgraph, numerics"):
        Options.from_keywords({"zzz": True})


def test_an_option_error_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="recompile_limit"):
        Options(recompile_limit=-1)


def test_an_empty_environment_means_the_defaults() -> None:
    assert Environment.from_environ({}) == Environment()


def test_every_variable_is_parsed_to_its_type() -> None:
    environ = {
        "DSJIT_DEBUG": "3",
        "DSJIT_DUMP": "/tmp/somewhere-new",
        "DSJIT_CHECK": "1",
        "DSJIT_DISABLE": "0",
        "DSJIT_STANCE": "fail_on_eager",
        "DSJIT_RECOMPILE_LIMIT": "3",
        "DSJIT_AT_RECOMPILE_LIMIT": "raise",
        "DSJIT_FUEL": "17",
        "PATH": "/usr/bin",
    }
    expected = Environment(3, Path("/tmp/somewhere-new"), 1, False, "fail_on_eager", 3, "raise", 17)
    assert Environment.from_environ(environ) == expected


@pytest.mark.parametrize("row", VARIABLE_ROWS, ids=lambda row: row.name)
def test_an_empty_value_counts_as_unset(row: object) -> None:
    assert Environment.from_environ({row.name: ""}) == Environment()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DSJIT_DEBUG", "5"),
        ("DSJIT_DEBUG", "-1"),
        ("DSJIT_DEBUG", "loud"),
        ("DSJIT_DUMP", __file__),
        ("DSJIT_CHECK", "yes"),
        ("DSJIT_CHECK", "3"),
        ("DSJIT_FUEL", "-1"),
        ("DSJIT_DISABLE", "2"),
        ("DSJIT_STANCE", "force_eager"),
        ("DSJIT_RECOMPILE_LIMIT", "0"),
        ("DSJIT_AT_RECOMPILE_LIMIT", "fail"),
    ],
)
def test_text_that_is_not_accepted_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(OptionError) as error:
        Environment.from_environ({name: text})
    row = next(row for row in VARIABLE_ROWS if row.name == name)
    assert f"{name}={text!r}" in str(error.value)
    assert row.accepted in str(error.value)


def test_a_misspelt_variable_is_refused_with_the_closest_name() -> None:
    with pytest.raises(OptionError, match="DSJIT_DEBG; did you mean 'DSJIT_DEBUG'"):
        Environment.from_environ({"DSJIT_DEBG": "1"})


@pytest.mark.parametrize("level", range(len(DEBUG_LEVELS)))
def test_every_debug_level_is_accepted(level: int) -> None:
    assert Environment.from_environ({"DSJIT_DEBUG": str(level)}).debug == level
