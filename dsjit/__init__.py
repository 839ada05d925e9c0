"""dsjit: a just-in-time compiler for eager PyTorch.

import dsjit

@dsjit.jit
def f(x, y):
    return (x.sigmoid() * y).softmax(-1)

dsjit.explain(f)(x, y)      # what was fused, and why the rest was not
dsjit.profile(f)(x, y)      # where the time goes, by line
dsjit.stats()               # what ran compiled
"""

from dsjit.api.cross_compile import CrossCompilation, compile_for
from dsjit.api.entry import disable, jit, mark_dynamic, mark_static, reset_stats, set_stance, stats
from dsjit.api.explain import Explanation, explain
from dsjit.api.profiling import Profile, profile
from dsjit.api.torch_backend import torch_backend
from dsjit.errors import (
    BackendError,
    CaptureError,
    DsjitError,
    DsjitWarning,
    GradientError,
    MemoryBudgetError,
    NotEquivalentError,
    OffloadError,
    OptionError,
    ProfileError,
    RecompileError,
    UnsupportedCallableError,
    VerificationError,
)
from dsjit.profiler.compare import Comparison, compare_profiles
from dsjit.verification.report import Verification
from dsjit.verification.verify import verify, verify_calls

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CaptureError",
    "Comparison",
    "CrossCompilation",
    "DsjitError",
    "DsjitWarning",
    "Explanation",
    "GradientError",
    "MemoryBudgetError",
    "NotEquivalentError",
    "OffloadError",
    "OptionError",
    "Profile",
    "ProfileError",
    "RecompileError",
    "UnsupportedCallableError",
    "Verification",
    "VerificationError",
    "compare_profiles",
    "compile_for",
    "disable",
    "explain",
    "jit",
    "mark_dynamic",
    "mark_static",
    "profile",
    "reset_stats",
    "set_stance",
    "stats",
    "torch_backend",
    "verify",
    "verify_calls",
]
