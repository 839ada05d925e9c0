"""Whether values that differ from eager's in their last bits are right: against double precision.

A call that is not differentiated is captured once more and run in double precision, as `dsjit.verify` does: what comes
from `+ - * /`, square roots, comparison, selection, casts and movement of data must have eager's bits; the rest may be
as far off as `dsjit.oracle.reference.agrees` says.

For gradients, the whole script runs in double precision, and once more with the result of each op moved at random by up
to a unit of roundoff of the dtype that it has in truth.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from types import CodeType
from typing import Final

import torch

from dsjit.api.entry import session
from dsjit.oracle.roundings import Roundings
from dsjit.testing.strategies import TensorSpec
from dsjit.verification.precise import Precise, capture_precisely
from tests.conformance.state import Leaf, StateReader, TensorRecord
from tests.fuzz.call import call
from tests.fuzz.program import compiled_script

__all__ = ["Reference"]

ROUNDED: Final = torch.float32
"""What programs that are differentiated compute in."""


class Reference:
    """A judge for `tests.conformance.state.differences`, of call `number` of a script.

    wanted: eager's records after the call. judged: how many tensors were found right.
    """

    def __init__(self, code: CodeType, gradients: bool, number: int, wanted: Mapping[str, Leaf]) -> None:
        self.code, self.gradients, self.number = code, gradients, number
        self.judged = 0
        self._wanted = wanted
        self._known: dict[str, Precise] | None = None

    def __call__(self, path: str, wanted: torch.Tensor, found: torch.Tensor) -> bool:
        if not wanted.is_floating_point():
            return False
        if self._known is None:
            self._known = self._in_double() if self.gradients else self._captured()
        precise = self._known.get(self._same_object(path, self._known))
        right = precise is not None and not precise.exact and precise.precise.shape == wanted.shape
        if precise is not None and right:
            right = precise.accepts(found, wanted)
        self.judged += right
        return right

    def _same_object(self, path: str, known: Iterable[str]) -> str:
        """A path with a reference to the same tensor: a result may have been stored, too."""
        if path in known:
            return path
        number = self._object(path)
        return next((other for other in known if self._object(other) == number), path)

    def _object(self, path: str) -> object:
        record = self._wanted.get(path)
        return record.facts["object"] if isinstance(record, TensorRecord) else None

    def _captured(self) -> dict[str, Precise]:
        script = compiled_script(self.code)
        turns = script(lambda function: function)
        for number in range(self.number):
            function, args = next(turns)
            call(function, args, number, False)
        function, args = next(turns)
        reader = StateReader(getattr(script, "__globals__", {}))
        reader.read({f"args[{n}]": value for n, value in enumerate(args)} | {"function": function})
        target = function._call_impl if isinstance(function, torch.nn.Module) else function
        torch.default_generator.manual_seed(self.number)
        with session().tracing():
            return capture_precisely(target, args, {}, dict(reader.tensors), "fuzzed").tensors

    def _in_double(self) -> dict[str, Precise]:
        precise, moved = self._play_in_double(None), self._play_in_double(ROUNDED)

        @functools.cache
        def again(seed: int) -> dict[str, torch.Tensor]:
            return self._play_in_double(ROUNDED, seed)

        def sample(path: str, seed: int) -> torch.Tensor:
            return again(seed)[path]

        return {
            path: Precise(precise[path], moved[path], False, functools.partial(sample, path))
            for path in precise
            if path in moved
        }

    def _play_in_double(self, rounded: torch.dtype | None, seed: int = 0) -> dict[str, torch.Tensor]:
        script = compiled_script(self.code, _Wide)
        turns = script(lambda function: function)
        generator = torch.Generator().manual_seed(seed)
        for number in range(self.number + 1):
            function, args = next(turns)
            with Roundings(rounded, generator):
                result, _ = call(function, args, number, True)
        reader = StateReader(getattr(script, "__globals__", {}))
        roots = {f"args[{n}]": value for n, value in enumerate(args)} | {"function": function, "result": result}
        records = reader.read(roots)
        return {path: _widened(record.values) for path, record in records.items() if isinstance(record, TensorRecord)}


def _widened(values: torch.Tensor) -> torch.Tensor:
    """Casts of the program's own make narrow floats again."""
    return values.double() if values.is_floating_point() else values


class _Wide(TensorSpec):
    """Tensors with the same values, in double precision."""

    def _filled(self, shape: tuple[int, ...]) -> torch.Tensor:
        filled = super()._filled(shape)
        return filled.double() if filled.is_floating_point() else filled
