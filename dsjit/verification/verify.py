"""`dsjit.verify`: a function eager, compiled and in double precision, side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, Final

import torch

from dsjit.api.entry import jitted_of
from dsjit.config import Environment, Options
from dsjit.ir.graph import UNKNOWN_SOURCE
from dsjit.oracle.measure import measure, same_values
from dsjit.verification.blame import find_blame
from dsjit.verification.precise import Precise, PreciseCall
from dsjit.verification.records import Record, TensorRecord
from dsjit.verification.report import THE_CALL, Blame, Comparison, Verification
from dsjit.verification.sides import (
    Arguments,
    Seen,
    name_of,
    play_compiled,
    play_eagerly,
    play_precisely,
    random_states_kept,
)

__all__ = ["verify", "verify_calls"]

CALLS: Final = 2
"""The first call is eager's own, under the tracer; the second runs compiled."""

MOST_CALLS: Final = 4
"""Calls after which nothing is left to wait for: the function runs eagerly, or is compiled anew each time."""


def verify(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Verification:
    """Whether `function(*args, **kwargs)` gives the same compiled as it does eagerly, in everything that can be seen.

    function: anything that `dsjit.jit` takes, jitted or not. It is called several times, on copies of its arguments and
    of its own state (`verification.twin.Twin` says what is copied): yours stay as they are, and so do random numbers.
    Each tensor of the result, of the arguments and of the state is compared in values, dtype, shape, strides and
    aliasing, every other object by type and value; errors are measured against a run in double precision.

    Values are equal when they have eager's bits, where these are certain (`oracle.exactness`), and elsewhere when they
    are no further from double precision than eager is or rounding may lead (`oracle.reference`). When something
    differs, `blame` in the result names the op and line and holds a program that shows it.

    Raises UnsupportedCallableError when function or arguments cannot be copied, and what `dsjit.jit` raises.
    """
    found = verify_calls(function, [(args, kwargs)] * CALLS)
    calls = CALLS
    while found.ok and not found.compiled and calls < MOST_CALLS and "traced" in found.calls[-1]:
        calls += 1
        found = verify_calls(function, [(args, kwargs)] * calls)
    return found


def verify_calls(
    function: Callable[..., Any], calls: Sequence[Arguments], *, seed: int = 0, options: Options | None = None
) -> Verification:
    """The same for a sequence of calls of one jitted function, each with its own arguments (args, kwargs).

    State goes on from call to call, on each side; call number n begins with torch seeded by `seed + n`. options: for
    dsjit.jit, by default those of `function`, if it is jitted; sizes are always exact. Raises ValueError without calls.
    """
    if not calls:
        raise ValueError("verify_calls needs one call at least")
    jitted = jitted_of(function)
    options = options or (jitted.options if jitted is not None else Options())
    environment = Environment.from_environ(os.environ)
    with random_states_kept():
        eager = play_eagerly(function, calls, seed)
        compiled = play_compiled(function, calls, seed, options, environment)
        precise = PreciseCall({}, None, "the call raises") if eager[-1].error else play_precisely(function, calls, seed)
        comparisons = _compare_all(eager, compiled.seen, precise)
        blame = None
        first = next((each for each in comparisons if not each.ok), None)
        if first is not None:
            if first.call < len(calls) - 1 and not eager[first.call].error:
                precise = play_precisely(function, calls[: first.call + 1], seed)
            wanted = eager[first.call].records.get(first.path)
            if compiled.seen[first.call].way.startswith("eager") and not compiled.seen[first.call].failure:
                text = "both sides are plain Python, which gives another answer each time"
                blame = Blame("eager", "call", THE_CALL, UNKNOWN_SOURCE.file, 0, text)
            else:
                blame = find_blame(function, calls, seed, options, environment, first, wanted, compiled.jitted, precise)
    ways = tuple([seen.way for seen in compiled.seen])
    return Verification(name_of(function), seed, ways, tuple(comparisons), precise.reason, eager[-1].error, blame)


def _compare_all(eager: Sequence[Seen], compiled: Sequence[Seen], precise: PreciseCall) -> list[Comparison]:
    found: list[Comparison] = []
    for number, (wanted, seen) in enumerate(zip(eager, compiled, strict=True)):
        last = number == len(eager) - 1
        if wanted.error != seen.error:
            problem = f"raises {seen.error or 'nothing'}; eager raises {wanted.error or 'nothing'}"
            found.append(Comparison(THE_CALL, number, "exception", True, None, (problem,)))
            continue
        if seen.failure:
            problem = f"the compiled program raises {seen.failure}, and the call went on eagerly"
            found.append(Comparison(THE_CALL, number, "exception", True, None, (problem,)))
        paths = dict.fromkeys([*wanted.records, *seen.records])
        for path in sorted(paths, key=lambda path: not path.startswith("result")):
            each = _compare(
                path, number, wanted.records.get(path), seen.records.get(path),
                precise.tensors.get(path) if last else None, seen.way == "traced",
            )  # fmt: skip
            if not each.ok or (last and each.values is not None and _is_interesting(each, precise)):
                found.append(each)
    return found


def _is_interesting(each: Comparison, precise: PreciseCall) -> bool:
    """Whether a report should list it though it is equal: results, and what was written."""
    return each.path.startswith("result") or each.path in precise.tensors


def _compare(
    path: str, call: int, wanted: Record | None, found: Record | None, precise: Precise | None, traced: bool
) -> Comparison:
    if wanted is None or found is None:
        problem = "eager has nothing there" if wanted is None else "there is nothing; eager has something"
        return Comparison(path, call, "", True, None, (problem,))
    if isinstance(wanted, str) or isinstance(found, str):
        same = isinstance(wanted, str) and isinstance(found, str) and wanted == found
        problem = f"{_show(found)}; eager has {_show(wanted)}"
        return Comparison(path, call, "object", True, None, () if same else (problem,))
    problems = [
        f"{name} is {found.facts.get(name)}; eager's is {wanted.facts[name]}"
        for name in wanted.facts
        if wanted.facts[name] != found.facts.get(name)
    ]
    kind = f"{str(wanted.facts['dtype']).removeprefix('torch.')} {list(wanted.values.shape)}"
    if wanted.values.shape != found.values.shape or wanted.values.dtype is not found.values.dtype:
        return Comparison(path, call, kind, True, None, tuple(problems))
    exact = traced or precise is None or precise.exact or not wanted.values.is_floating_point()
    reference = None if precise is None else precise.precise
    values = measure(found.values, wanted.values, reference)
    if exact and precise is None and not traced:
        exact = False
        right = same_values(found.values, wanted.values) or _is_close(found.values, wanted.values)
    elif exact or precise is None:
        right = same_values(found.values, wanted.values)
    else:
        right = precise.accepts(found.values, wanted.values)
    if not right:
        problems.append(
            f"{values.differing} of {wanted.values.numel()} elements differ, by up to {values.max_ulp:.0f} ulp "
            f"({values.max_abs:.3g}), most at {list(values.worst or ())}"
        )
    return Comparison(path, call, kind, exact, values, tuple(problems))


def _is_close(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Without a reference: within the tolerance that torch's own tests have for the dtype."""
    try:
        torch.testing.assert_close(found, wanted, equal_nan=True, check_stride=False)
    except AssertionError:
        return False
    return True


def _show(record: Record) -> str:
    if isinstance(record, TensorRecord):
        return f"a tensor {record.facts['dtype']} {record.facts['shape']}"
    return record
