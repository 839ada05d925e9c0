"""One OpInfo sample under eager and under `dsjit.jit`."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_flatten, tree_map

import dsjit
from dsjit.api.entry import jitted_of

DTYPES = (torch.float32, torch.int64, torch.bool)

# Their result is whatever the memory held before.
UNINITIALISED = frozenset({"empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided"})


@dataclass(frozen=True)
class Verdict:
    """What came of one sample.

    outcome: "equal", "wrong" or "crash" (dsjit raised what eager does not raise, or not what eager raises).
    compiled: the last call ran a compiled program. in_kernels, in_library: ops of that program.
    """

    op: str
    dtype: torch.dtype
    sample: int
    outcome: str
    compiled: bool
    reason: str = ""
    in_kernels: int = 0
    in_library: int = 0


def all_ops() -> list[Any]:
    """Every OpInfo of the database, by name."""
    return sorted(op_db, key=lambda op: (op.name, op.variant_test_name))


def name_of(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def samples_of(op: Any, dtype: torch.dtype, count: int, gradients: bool = False) -> Iterator[Any]:
    """The first `count` samples of `op` for `dtype` on the CPU; none where the op does not take the dtype, or, where
    `gradients` are asked for, has none."""
    if dtype not in op.supported_dtypes("cpu"):
        return
    if gradients and dtype not in op.supported_backward_dtypes("cpu"):
        return
    torch.manual_seed(7)
    yield from islice(op.sample_inputs("cpu", dtype, requires_grad=gradients), count)


def check_op(op: Any, dtype: torch.dtype, count: int, gradients: bool = False) -> list[Verdict]:
    """The verdicts on the first `count` samples. gradients: in grad mode, with a backward of each call."""
    samples = samples_of(op, dtype, count, gradients)
    return [_check(op, dtype, number, sample, gradients) for number, sample in enumerate(samples)]


def _check(op: Any, dtype: torch.dtype, number: int, sample: Any, gradients: bool) -> Verdict:
    function = op.op

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    jitted = dsjit.jit(call)
    with warnings.catch_warnings(), torch.set_grad_enabled(gradients):
        warnings.simplefilter("ignore")
        expected = _outcome(call, sample)
        found = [_outcome(jitted, sample) for _ in range(3)]
    counters = jitted_of(jitted).counters
    compiled = counters.calls_compiled > 0
    reason = next(iter(counters.eager_reasons), "")
    outcome = "equal"
    for result in found:
        difference = _difference(expected, result, op.name in UNINITIALISED)
        if difference:
            outcome, reason = ("crash" if isinstance(result, Exception) else "wrong"), difference
            break
    if isinstance(expected, Exception):
        compiled = compiled or outcome == "equal"
    return Verdict(
        name_of(op), dtype, number, outcome, compiled, reason, counters.ops_in_kernels, counters.ops_in_library
    )


def _outcome(function: Any, sample: Any) -> Any:
    """The result on fresh copies of the sample's tensors, and the copies after the call; or what was raised."""
    torch.manual_seed(11)
    inputs, args, kwargs = tree_map(_copy, (sample.input, sample.args, sample.kwargs))
    try:
        result = function(inputs, *args, **kwargs)
        if torch.is_grad_enabled():
            result = result, _gradients(result, (inputs, args, kwargs))
    except Exception as error:
        return error
    return result, (inputs, args, kwargs), torch.get_rng_state()


def _gradients(result: Any, arguments: Any) -> list[torch.Tensor | None]:
    """Of all arguments, for gradients of the results that are drawn at random."""
    wanted = [leaf for leaf in tree_flatten(arguments)[0] if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    outputs = [leaf for leaf in tree_flatten(result)[0] if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
    if not outputs:
        return []
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(leaf.shape, dtype=leaf.dtype, generator=generator) for leaf in outputs]
    found = torch.autograd.grad(outputs, wanted, given, allow_unused=True)
    # Their strides follow from those of what flows in and from where they meet: `.grad` has its own (docs/limits.md).
    return [None if gradient is None else gradient.contiguous() for gradient in found]


def _copy(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return leaf
    if leaf.layout is not torch.strided or leaf.is_conj() or leaf.is_neg():
        return leaf.detach().clone().requires_grad_(leaf.requires_grad)
    base = torch.empty(0, dtype=leaf.dtype).set_(leaf.untyped_storage().clone())
    copied = base.as_strided(leaf.size(), leaf.stride(), leaf.storage_offset())
    return copied.requires_grad_(leaf.requires_grad)


def _difference(expected: Any, found: Any, shapes_only: bool) -> str:
    if isinstance(expected, Exception) or isinstance(found, Exception):
        if type(expected) is type(found):
            return ""
        return f"eager: {_brief(expected)}; dsjit: {_brief(found)}"
    a, tree_a = tree_flatten(expected[:2])
    b, tree_b = tree_flatten(found[:2])
    if tree_a != tree_b:
        return f"structure {tree_a} and {tree_b}"
    if not torch.equal(expected[2], found[2]):
        return "the random generator is in another state"
    for x, y in zip(a, b, strict=True):
        text = _leaf_difference(x, y, shapes_only)
        if text:
            return text
    return ""


def _leaf_difference(x: Any, y: Any, shapes_only: bool) -> str:
    if not isinstance(x, torch.Tensor):
        same = type(x) is type(y) and (x == y or x != x or x is y)
        return "" if same else f"{x!r} and {y!r}"
    if not isinstance(y, torch.Tensor) or x.dtype != y.dtype or x.shape != y.shape or x.layout != y.layout:
        return f"{_brief(x)} and {_brief(y)}"
    if x.layout is torch.strided and x.numel() > 1 and x.stride() != y.stride():
        return f"strides {x.stride()} and {y.stride()}"
    if shapes_only:
        return ""
    try:
        torch.testing.assert_close(y, x, equal_nan=True)
    except AssertionError as error:
        return " ".join(str(error).split())[:200]
    return ""


def _brief(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{value.dtype}{list(value.shape)}"
    return " ".join(repr(value).split())[:160]
