"""`assert_equivalent`: an assertion for pytest, or any other test runner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dsjit.errors import NotEquivalentError
from dsjit.verification.report import Verification
from dsjit.verification.sides import Arguments
from dsjit.verification.verify import verify, verify_calls

__all__ = ["assert_equivalent"]


def assert_equivalent(
    function: Callable[..., Any],
    *example_inputs: Any,
    also: Sequence[Sequence[Any]] = (),
    must_compile: bool = True,
    **keywords: Any,
) -> Verification:
    """Assert that `dsjit.jit(function)` does on `example_inputs` all that `function` does: see `dsjit.verify`.

    also: more lists of arguments, with which the same compiled function is called in between (each of them twice), so
        that what changes from call to call is put to the test, too. must_compile: fail when the call runs eagerly, as
        equality then proves nothing (a call that raises may). keywords: of `function`.
    Returns the report. Raises NotEquivalentError, an AssertionError with the report and a reproducer, otherwise.
    """
    __tracebackhide__ = True
    if also:
        lists: list[Sequence[Any]] = [example_inputs, *also, example_inputs]
        calls: list[Arguments] = [(tuple(each), keywords) for each in lists for _ in range(2)]
        found = verify_calls(function, calls)
    else:
        found = verify(function, *example_inputs, **keywords)
    if not found.ok:
        raise NotEquivalentError(f"\n{found}")
    if must_compile and not found.compiled and not found.raises:
        raise NotEquivalentError(f"{found.name} was not compiled ({found.calls[-1]}): pass must_compile=False")
    return found
