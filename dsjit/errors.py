"""The exception tree.

Every error that dsjit raises on purpose derives from `DsjitError`, says what happened, at which line
of the user's code, and what to do about it. Errors that the user's own code raises under eager PyTorch
pass through untouched: they are never wrapped.
"""

from __future__ import annotations

__all__ = [
    "BackendError",
    "CaptureError",
    "DsjitError",
    "DsjitWarning",
    "GradientError",
    "MemoryBudgetError",
    "MissingPackageError",
    "NotEquivalentError",
    "OffloadError",
    "OptionError",
    "ProfileError",
    "RecompileError",
    "UnsupportedCallableError",
    "VerificationError",
]


class DsjitError(Exception):
    """Base of every error raised by dsjit itself."""


class OptionError(DsjitError, ValueError):
    """An option or environment variable has a wrong name, type or value."""


class UnsupportedCallableError(DsjitError, TypeError):
    """`dsjit.jit` was given something that it cannot compile (a class, an int, a built-in type)."""


class CaptureError(DsjitError, RuntimeError):
    """The call cannot be captured as one static graph, and `fullgraph=True` forbids running it eagerly."""


class RecompileError(DsjitError, RuntimeError):
    """No program fits the call, and the stance `fail_on_recompile` or the limit on programs forbids another one."""


class BackendError(DsjitError, RuntimeError):
    """Code generation failed: LLVM rejected a module, a symbol is missing, a target is not supported."""


class GradientError(DsjitError, RuntimeError):
    """Derivatives are wanted that the compiled function does not have (second ones)."""


class MemoryBudgetError(DsjitError, RuntimeError):
    """A call and its backward cannot keep to the option `memory_budget`; the message names the smallest that works."""


class OffloadError(DsjitError, OSError):
    """What a call keeps for its backward cannot be written to the directory of the option `offload_dir`, or was changed
    there."""


class VerificationError(DsjitError, AssertionError):
    """An IR breaks one of its own rules: a bug in dsjit, found by its checker rather than by a wrong answer."""


class MissingPackageError(DsjitError, ModuleNotFoundError):
    """A package is needed that dsjit does not depend on; the message names the extra that installs it."""


class NotEquivalentError(DsjitError, AssertionError):
    """A function does not do the same compiled as it does eagerly; the message is the report of `dsjit.verify`."""


class ProfileError(DsjitError, RuntimeError):
    """A profile is read before it has ended, or used twice; or a file holds no profile."""


class DsjitWarning(UserWarning):
    """Tells, once per cause, that a call runs eagerly, and why."""
