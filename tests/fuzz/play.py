"""Plays a program eagerly and jitted, call by call side by side, and compares everything that can be seen.

After each call the records of both sides (`tests.conformance.state`) must be equal: results, arguments, state,
exceptions, dtypes, strides, aliasing, the state of the random generator. Values must be equal bit for bit, or be right
by `tests.fuzz.reference`. What differs and is right is then made equal on both sides, so that no call begins with other
values than eager's.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import torch

import dsjit
from dsjit.api.entry import jitted_of
from tests.conformance.state import Leaf, StateReader, TensorRecord, differences
from tests.fuzz.call import call
from tests.fuzz.program import FuzzProgram, Script, Turn, compiled_script
from tests.fuzz.reference import Reference

__all__ = ["Played", "play", "play_program"]


@dataclass(frozen=True, slots=True)
class Played:
    """differences: from eager; a line each. ways: how the calls ran (compiled, traced, eager). judged: tensors whose
    bits differ and that are right."""

    differences: tuple[str, ...]
    ways: Counter[str] = field(default_factory=Counter)
    judged: int = 0


def play_program(program: FuzzProgram, **options: Any) -> Played:
    """options: for `dsjit.jit`."""
    code = compile(program.text, "<fuzzed program>", "exec")
    return play(compiled_script(code), gradients=program.gradients, code=code, **options)


def play(script: Script, *, gradients: bool = False, code: CodeType | None = None, **options: Any) -> Played:
    """Play `script(jit)`, a generator function that yields (function, arguments) for each call.

    gradients: differentiate the results of each call, and compare the gradients. code: of a module that defines the
    script, to make others of it; without it, tensors that are not bit for bit equal are wrong.
    """

    def jit(function: Any) -> Any:
        return dsjit.jit(function, **options)

    with _quiet(), torch.set_grad_enabled(gradients):
        return _play(_Side(script, _not_jitted, gradients), _Side(script, jit, gradients), code, gradients)


def _play(eager: _Side, jitted: _Side, code: CodeType | None, gradients: bool) -> Played:
    ways: Counter[str] = Counter()
    judged = 0
    for number, turn in enumerate(eager.turns):
        twin = next(jitted.turns)
        wanted, found = eager.step(turn, number), jitted.step(twin, number)
        ways = _ways(twin[0])
        if not differences(wanted, found, exact=True):
            continue
        judge = Reference(code, gradients, number, wanted) if code is not None else None
        lines = differences(wanted, found, True, judge)
        if lines:
            return Played(tuple([f"call {number}: {line}" for line in lines]), ways, judged)
        judged += judge.judged if judge is not None else 0
        _make_equal(eager.reader.tensors, jitted.reader.tensors)
    return Played((), ways, judged)


def _ways(function: Any) -> Counter[str]:
    jitted = jitted_of(function)
    assert jitted is not None
    counters = jitted.counters
    return Counter(compiled=counters.calls_compiled, traced=counters.calls_traced, eager=counters.calls_eager)


def _not_jitted(function: Any) -> Any:
    return function


class _Side:
    """One of the two performances."""

    def __init__(self, script: Script, jit: Callable[[Any], Any], gradients: bool) -> None:
        self.turns: Iterator[Turn] = script(jit)
        self.reader = StateReader(getattr(script, "__globals__", {}))
        self.gradients = gradients
        self._storages: dict[object, int] = {}

    def step(self, turn: Turn, number: int) -> dict[str, Leaf]:
        """One call, and what can be seen after it."""
        function, args = turn
        result, error = call(function, args, number, self.gradients)
        random = str(hash(torch.get_rng_state().numpy().tobytes()))
        roots = {f"args[{n}]": value for n, value in enumerate(args)} | {"function": function, "result": result}
        found = self.reader.read(roots)
        sharing = Counter([leaf.facts["storage"] for leaf in found.values() if isinstance(leaf, TensorRecord)])
        records = {path: self._comparable(path, leaf, sharing) for path, leaf in found.items()}
        return records | {"random state": random, "error": error}

    def _comparable(self, path: str, leaf: Leaf, sharing: Counter[object]) -> Leaf:
        """Without what is nobody's promise: strides that address nothing (of tensors without elements, and of gradients
        along dimensions of one element), whether gradients that do not overlap lie in one storage, and where in its
        memory a differentiated result lies that has it alone. sharing: how many tensors there are on each storage."""
        if not isinstance(leaf, TensorRecord):
            return leaf
        facts = dict(leaf.facts)
        strides: Any = facts["strides"]
        if not leaf.values.numel():
            facts["strides"] = ()
        if path.endswith(".grad"):
            sizes = zip(leaf.values.shape, strides, strict=True)
            facts["strides"] = tuple([0 if size == 1 else stride for size, stride in sizes])
            del facts["storage"], facts["storage offset"]
            facts["memory of"] = self._overlapping(path)
        else:
            if self.gradients and sharing[facts["storage"]] == 1:
                del facts["storage offset"]
            facts["storage"] = self._storages.setdefault(facts["storage"], len(self._storages))
        return TensorRecord(facts, leaf.values)

    def _overlapping(self, path: str) -> tuple[str, ...]:
        """The other tensors whose memory overlaps."""
        start, end = _extent(self.reader.tensors[path])
        others = {other: _extent(tensor) for other, tensor in self.reader.tensors.items() if other != path}
        return tuple([other for other, (first, last) in others.items() if first < end and start < last])


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """From its first byte to behind its last one; the same twice for no elements."""
    start = tensor.data_ptr()
    if not tensor.numel():
        return start, start
    steps = [(size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return start, start + (sum(steps) + 1) * tensor.element_size()


def _make_equal(model: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor]) -> None:
    """Give tensors that stay (arguments, state) the very bits of eager's."""
    for path, tensor in model.items():
        if path.startswith("result"):
            continue
        own = others[path].detach()
        wanted = tensor.detach()
        if torch._debug_has_internal_overlap(own) == 1:  # expanded: some other tensor has its memory, or none wrote it
            continue
        with torch.no_grad():
            own.copy_(wanted)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        yield
