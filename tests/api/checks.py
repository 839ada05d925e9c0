"""Holds a jitted callable against eager, and shows from the counters that it ran compiled."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_flatten

import dsjit
from dsjit.api.entry import jitted_of
from dsjit.api.stats import Counters
from dsjit.errors import DsjitWarning


def counters_of(function: Any) -> Counters:
    jitted = jitted_of(function)
    assert jitted is not None
    return jitted.counters


def call_compiled(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Call a jitted `function`, which must be answered by a compiled program and by nothing else."""
    counters = counters_of(function)
    before = (counters.calls_compiled, counters.traces, counters.calls_eager)
    result = function(*args, **kwargs)
    after = (counters.calls_compiled, counters.traces, counters.calls_eager)
    assert after == (before[0] + 1, before[1], before[2]), f"not compiled: {counters}"
    return result


def assert_same(found: Any, expected: Any, exact: bool = False) -> None:
    """Equal structure, types, dtypes, shapes, strides and values; within torch's own tolerance unless `exact`."""
    leaves, tree = tree_flatten(found)
    wanted, wanted_tree = tree_flatten(expected)
    assert tree == wanted_tree
    for a, b in zip(leaves, wanted, strict=True):
        assert type(a) is type(b)
        if dataclasses.is_dataclass(b):
            assert_same(vars(a), vars(b), exact)
            continue
        if not isinstance(b, torch.Tensor):
            assert a == b
            continue
        strides_matter = b.numel() > 1
        tolerance = {"rtol": 0.0, "atol": 0.0} if exact else {}
        torch.testing.assert_close(a, b, equal_nan=True, check_stride=strides_matter, **tolerance)


def check(function: Callable[..., Any], *args: Any, exact: bool = False, calls: int = 2, **kwargs: Any) -> Any:
    """`function` jitted equals eager at the traced call and at `calls` compiled ones: results, arguments after the
    call, and the state of the random generator. Returns the jitted function."""
    jitted = dsjit.jit(function)
    for number in range(calls + 1):
        mine, theirs = copy.deepcopy((args, kwargs)), copy.deepcopy((args, kwargs))
        torch.manual_seed(number)
        expected = function(*theirs[0], **theirs[1])
        state = torch.get_rng_state()
        torch.manual_seed(number)
        with warnings.catch_warnings():
            warnings.simplefilter("error", DsjitWarning)
            found = call_compiled(jitted, *mine[0], **mine[1]) if number else jitted(*mine[0], **mine[1])
        assert torch.equal(torch.get_rng_state(), state)
        assert_same(found, expected, exact)
        assert_same(mine, theirs, exact)
    return jitted
