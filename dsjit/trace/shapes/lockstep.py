"""Runs each torch call of a traced function several times, in step: on the caller's tensors, and on tensors of other
sizes.

Python sees the first run, the *lead*. The other runs, the *legs*, start from copies of the inputs that are cut or
repeated to other sizes, and follow call by call. A size that differs between the runs reaches Python as a
`torch.SymInt`: Python computes with it as with an integer, what it computes is known for each run, and each comparison
is noted as a condition on the sizes. Where Python insists on a number, the run is abandoned.

What tensors hold is the business of the lead alone. Where an op decides a size by that (`nonzero`), a leg goes on with
zeros in a size of its own; where Python looks at it, all runs see what the lead saw.
"""

from __future__ import annotations

import builtins
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _pop_mode_temporarily

from dsjit.ir.graph import Node, Value
from dsjit.ir.polynomial import PolynomialFit, Quotient
from dsjit.ops.properties import is_dynamic
from dsjit.trace.effects.stand_in import Shown, StandIn
from dsjit.trace.looks.segments import Look
from dsjit.trace.numbers.taken import value_to_hand_out
from dsjit.trace.recording.escape import LOOKS, SET_DATA
from dsjit.trace.recording.memory import CannotTrace
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.shapes.data_sizes import DataSizes, DynamicResult
from dsjit.trace.shapes.open_sizes import dense_strides
from dsjit.trace.shapes.size_node import SizeNode

__all__ = ["Abandoned", "Lockstep"]


aten = torch.ops.aten


LARGEST_DIVISOR: Final = 64
"""Sizes that are divided by more are not made larger for it: their quotient is taken as it is."""


class Abandoned(BaseException):
    """The function cannot be followed for these sizes: no `Exception`, so that the function does not catch it.

    condition: a condition on the sizes that some point does not meet. divisors: what sizes are divided by, by their
    numbers, where the points give too few quotients. Without both, other points would not help.
    """

    def __init__(
        self, reason: str, condition: str | None = None, divisors: Mapping[int, int] = MappingProxyType({})
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.condition = condition
        self.divisors = divisors


_UNSIZED: Final = frozenset({torch.Tensor.data_ptr, torch.Tensor.__hash__})
"""Functions whose integers are no sizes; what they mean for a trace is noted elsewhere."""


class _Len(StandIn):
    """In place of `builtins.len`, which makes a number of every size."""

    def __call__(self, container: Any) -> Any:
        length: Callable[[Any], Any] = torch.Tensor.__len__
        return length(container) if isinstance(container, torch.Tensor) else self.original(container)


def _divmod(size: Any, divisor: Any) -> Any:
    return size // divisor, size % divisor


_SYMBOL: Final[Any] = torch.SymInt
"""The class, which lacks `__divmod__`."""


_SEEING: Final = frozenset({*LOOKS, torch.Tensor.item})
"""Functions by which Python looks at what a tensor holds."""

_LEN: Final = Shown(vars(builtins), ("len",), _Len)


class Lockstep(TorchFunctionMode):
    """points: the sizes of each run, of the lead first. lead, legs: a Recorder for each run.

    resized: by id of an input of the lead, the tensors that the legs take in its place.
    data_sizes: what ops decide by data in the lead, the first of them being the size of number `first`.
    divisors: what the points were chosen for, as `Abandoned` has them.
    conditions: what Python asked about sizes, as expressions that were true, and how many looks came before.
    """

    def __init__(
        self,
        points: Sequence[tuple[int, ...]],
        lead: Recorder,
        legs: Sequence[Recorder],
        resized: Mapping[int, tuple[torch.Tensor, ...]],
        data_sizes: DataSizes,
        first: int,
        divisors: Mapping[int, int] = MappingProxyType({}),
    ) -> None:
        super().__init__()
        self.points = points
        self.fit = PolynomialFit(tuple(points), rounds=True)
        self.lead = lead
        self.legs = legs
        self.resized = resized
        self.conditions: dict[str, int] = {}
        self._first = first
        self._divisors = divisors
        for number, leg in enumerate(legs, start=1):
            leg.call = _LegCalls(data_sizes, points[number][first:]).run
        self.failed: Abandoned | None = None
        self._followers: dict[int, tuple[weakref.ref[torch.Tensor], tuple[torch.Tensor, ...]]] = {}

    def __enter__(self) -> Lockstep:
        _LEN.enter()
        _SYMBOL.__divmod__ = _divmod
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        if "__divmod__" in vars(_SYMBOL):  # another thread may have ended, too
            del _SYMBOL.__divmod__
        _LEN.leave()

    # -- what Python asks of sizes -------------------------------------------------------------------------------

    def abandon(
        self, reason: str, condition: str | None = None, divisors: Mapping[int, int] = MappingProxyType({})
    ) -> Abandoned:
        """The exception to raise; it is kept, in case that somebody catches it."""
        self.failed = self.failed or Abandoned(reason, condition, divisors)
        return self.failed

    def require_number(self, node: SizeNode) -> Any:
        if len(set(node.values)) > 1:
            raise self.abandon(f"the size {node.text} is used as a number")
        return node.values[0]

    def decide(self, node: SizeNode) -> bool:
        """The truth of a condition, as the lead sees it; the legs have to agree."""
        truth = bool(node.values[0])
        condition = node.text if truth else f"(not {node.text})"
        if any(bool(value) is not truth for value in node.values):
            raise self.abandon(f"Python asks whether {node.text}", condition)
        self.conditions.setdefault(condition, len(self.lead.looks))
        return truth

    def divided(self, dividend: SizeNode, divisor: SizeNode, result: SizeNode) -> SizeNode:
        """`result`, a quotient of sizes that is rounded down, or its remainder, which are no polynomials in general."""
        by = divisor.values[0]
        rule = self.fit.find(dividend.values)
        if any(value != by for value in divisor.values) or by <= 0 or rule is None:
            return self.bounded(result)
        if rule.divided_by(by):
            return result
        remainders = {value % by for value in dividend.values}
        remainder = min(remainders) if len(remainders) == 1 else None
        if remainder is not None:
            self.conditions.setdefault(f"({dividend.text} % {by}) == {remainder}", len(self.lead.looks))
        quotient = Quotient(rule, by, remainder)
        found = {quotient.at(point) for point in self.points}
        asked = all(self._divisors.get(number) == by for number in rule.variables if number < self._first)
        if self.fit.is_telling(quotient) and (asked or not self.fit.lacks_remainders(quotient)):
            self.fit.admit(quotient)
        elif by <= LARGEST_DIVISOR and any(number < self._first for number in rule.variables):
            divisors = {number: by for number in rule.variables if number < self._first}
            raise self.abandon(f"{dividend.text} is divided by {by}", divisors=divisors)
        elif len(found) == 1:
            condition = f"({dividend.text} // {by}) == {min(found)}"
            self.conditions.setdefault(condition, len(self.lead.looks))
        else:
            raise self.abandon(f"{dividend.text} is divided by {by}")
        return result

    def bounded(self, result: SizeNode) -> SizeNode:
        """`result`, which is a polynomial for some sizes, if at all: for these."""
        rule = self.fit.find(result.values)
        if rule is None:
            raise self.abandon(f"{result.text} follows no simple rule")
        self.conditions.setdefault(f"{result.text} == {rule}", len(self.lead.looks))
        return result

    def size_of(self, size: torch.SymInt, number: int) -> int:
        """What a size is in run number `number`."""
        node = size.node
        if not isinstance(node, SizeNode):
            raise self.abandon("the call hands out a symbol of another tracer")
        return int(node.values[number])

    # -- calls ---------------------------------------------------------------------------------------------------

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _INDEXING:
            self._note_whole_slices(*args[:2])
        lead_args, lead_kwargs = self.in_run(args, 0), self.in_run(kwargs, 0)
        try:
            result = function(*lead_args, **lead_kwargs)
        except Exception as error:
            # The function may go on without what failed, and for which sizes it fails is not known.
            self.abandon(f"{_name_of(function)} fails for these sizes ({error})")
            raise
        if self.failed is not None or function in _UNSIZED:
            return result
        if function in _SEEING:
            if self.lead.numbers.is_traced(result):
                self._take_in_legs(args[0], result)
            else:
                self._read_in_legs(args[0])
            return result
        results = [result]
        for number, recorder in enumerate(self.legs, start=1):
            leg_args, leg_kwargs = self.in_run(args, number), self.in_run(kwargs, number)
            try:
                with _pop_mode_temporarily(), torch._C.DisableTorchFunction(), recorder:
                    results.append(function(*leg_args, **leg_kwargs))
                if function == SET_DATA:
                    recorder.memory.give_data(*leg_args)
            except Exception as error:
                reason = f"{_name_of(function)} fails for the sizes {self.points[number]} ({error})"
                raise self.abandon(reason) from None
        return self._unite(results)

    def _note_whole_slices(self, tensor: torch.Tensor, index: Any) -> None:
        """`x[:, :12]` is no op where x has no more columns: that it has not is a condition then."""
        runs = range(len(self.points))
        shapes = [self.in_run(tensor, number).shape for number in runs]
        for dim, start, stop in _bounds_of_slices(tensor.dim(), index):
            starts, stops = [[self.in_run(bound, number) for number in runs] for bound in (start, stop)]
            sizes = [shape[dim] for shape in shapes]
            if not any(first == 0 and size <= end for first, size, end in zip(starts, sizes, stops, strict=True)):
                continue
            if len({*starts}) > 1:
                bool(start == 0)
            if len({*sizes}) > 1 or len({*stops}) > 1:
                size = _SYMBOL(self._size(tuple(sizes))) if len({*sizes}) > 1 else sizes[0]
                bool(size <= stop)

    def _read_in_legs(self, tensor: torch.Tensor) -> None:
        """The lead looked at `tensor`: the legs record that it was read."""
        for number, recorder in enumerate(self.legs, start=1):
            try:
                with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
                    recorder.memory.read(self.follower(tensor, number))
            except CannotTrace as stop:
                raise self.abandon(stop.reason) from None

    def _take_in_legs(self, tensor: torch.Tensor, number: float) -> None:
        """The lead took a traced `number` out of `tensor`, and so do the legs; to Python it is the lead's."""
        for run, recorder in enumerate(self.legs, start=1):
            try:
                with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
                    value = value_to_hand_out(recorder, self.follower(tensor, run))
            except CannotTrace as stop:
                raise self.abandon(stop.reason) from None
            if value is None:
                raise self.abandon("a number is taken out of a tensor for some sizes only")
            recorder.numbers.adopt(number, value)

    def in_run(self, arg: Any, number: int) -> Any:
        """The argument as run number `number` has it."""
        if isinstance(arg, torch.Tensor):
            return arg if number == 0 else self.follower(arg, number)
        if isinstance(arg, torch.SymInt | torch.SymBool):
            return arg.node.values[number]
        kind = type(arg)
        if kind is slice:
            return slice(*[self.in_run(part, number) for part in (arg.start, arg.stop, arg.step)])
        if kind is torch.Size or kind is tuple or kind is list:
            return kind([self.in_run(item, number) for item in arg])
        if kind is dict:
            return {key: self.in_run(item, number) for key, item in arg.items()}
        return arg

    def follower(self, tensor: torch.Tensor, number: int) -> torch.Tensor:
        """The tensor that run number `number` has in place of one of the lead's."""
        known = self._followers.get(id(tensor))
        if known is not None and known[0]() is tensor:
            return known[1][number - 1]
        resized = self.resized.get(id(tensor))
        return tensor if resized is None else resized[number - 1]

    def _unite(self, results: list[Any]) -> Any:
        """What Python gets: the lead's result, with symbols where sizes differ."""
        lead = results[0]
        if isinstance(lead, torch.Tensor):
            if not all(isinstance(other, torch.Tensor) for other in results):
                raise self.abandon("a call returns a tensor for some sizes only")
            if any(other is not lead for other in results[1:]):
                self.follow(lead, tuple(results[1:]))
            return lead
        if isinstance(lead, tuple | list):
            if any(type(other) is not type(lead) or len(other) != len(lead) for other in results):
                raise self.abandon("a call returns more or fewer things for other sizes")
            parts = [self._unite(list(parts)) for parts in zip(*results, strict=True)]
            if all(new is old for new, old in zip(parts, lead, strict=True)):
                return lead
            kind: Any = type(lead)
            return kind(parts)
        if type(lead) is int:
            if all(other == lead for other in results):
                return lead
            return torch.SymInt(self._size(tuple(results)))  # type: ignore[no-untyped-call]
        if type(lead) in (bool, float, complex, str) and any(other != lead for other in results):
            raise self.abandon(f"a call returns {lead!r} for some sizes and {results[-1]!r} for others")
        return lead

    def _size(self, values: tuple[int, ...]) -> SizeNode:
        polynomial = self.fit.find(values)
        if polynomial is None:
            raise self.abandon(f"a size is {values[0]}, and by no simple rule something else for other sizes")
        text = str(polynomial)
        return SizeNode(self, values, f"({text})" if " " in text else text)

    def follow(self, lead: torch.Tensor, followers: tuple[torch.Tensor, ...]) -> None:
        """In place of `lead`, the legs take these from now on."""
        key = id(lead)
        followers_of = self._followers

        def forget(reference: weakref.ref[torch.Tensor]) -> None:
            known = followers_of.get(key)
            if known is not None and known[0] is reference:
                del followers_of[key]

        followers_of[key] = (weakref.ref(lead, forget), followers)

    def followers(self, tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The tensors of the legs for one of the lead."""
        return tuple([self.follower(tensor, number) for number in range(1, len(self.points))])

    def share_looks(self) -> None:
        """After the run: the legs looked where the lead did, and saw the same."""
        nodes = self.lead.memory.nodes
        for recorder in self.legs:
            if _made(recorder.memory.nodes) != _made(nodes):
                raise self.abandon("other ops run for other sizes")
            values = {value.id: value for node in recorder.memory.nodes for value in node.outputs}
            values |= {value.id: value for value, _ in recorder.memory.inputs}
            values |= {value.id: value for value in recorder.constants}
            try:
                recorder.looks = [_in_terms_of(look, values) for look in self.lead.looks]
            except KeyError:
                raise self.abandon("Python looks at other tensors for other sizes") from None


_INDEXING: Final = frozenset({torch.Tensor.__getitem__, torch.Tensor.__setitem__})


def _bounds_of_slices(count: int, index: Any) -> Iterator[tuple[int, Any, Any]]:
    """The dimensions of which an index takes what lies between two numbers, and these. count: of dimensions."""
    items = index if type(index) is tuple else (index,)
    taken = [_dimensions_taken(item) for item in items]
    dim = 0
    for item, own in zip(items, taken, strict=True):
        if type(item) is slice and (item.step is None or (type(item.step) is int and item.step == 1)):
            start = 0 if item.start is None else item.start
            if all(type(bound) in (int, torch.SymInt) for bound in (start, item.stop)):
                yield dim, start, item.stop
        dim += count - sum(taken) if item is Ellipsis else own


def _dimensions_taken(item: Any) -> int:
    if item is None or item is Ellipsis or type(item) is bool:
        return 0
    masks = isinstance(item, torch.Tensor) and item.dtype in (torch.bool, torch.uint8)
    return item.dim() if masks else 1


def _name_of(function: Any) -> str:
    return str(getattr(function, "__name__", function))


def _made(nodes: Sequence[Node]) -> list[int]:
    return [value.id for node in nodes for value in node.outputs]


def _in_terms_of(look: Look, values: Mapping[int, Value]) -> Look:
    """A look of the lead, at the Values of another run, by their ids."""
    return replace(
        look,
        values=tuple([values[value.id] for value in look.values]),
        live=tuple([values[value.id] for value in look.live]),
        states=tuple(
            [
                replace(state, values=tuple([values[value.id] for value in state.values]))
                for state in look.states
                if all(value.id in values for value in state.values)
            ]
        ),
    )


_IN_PLACE: Final = frozenset({aten.index_put_.default, aten._index_put_impl_.default, aten.masked_scatter_.default})

_FITTING: Final = _IN_PLACE | {aten.index_put.default, aten.masked_scatter.default}
"""Ops that write so many values as a mask tells, of which a leg may have more or fewer."""


def _indices(node: Node) -> list[Value]:
    """The masks and indices of an op of `_FITTING`."""
    given = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    return [value for value in given if value is not None]


class _LegCalls:
    """Runs the ops of a leg. The results of those that decide sizes by data get the leg's sizes: `sizes`, by number."""

    def __init__(self, data_sizes: DataSizes, sizes: Sequence[int]) -> None:
        self._looks = iter(data_sizes.looks)
        self._sizes = sizes

    def run(self, node: Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op in _FITTING and any(value.type.dtype in (torch.bool, torch.uint8) for value in _indices(node)):
            return args[0] if node.op in _IN_PLACE else args[0].clone()
        result = node.op(*args, **kwargs)
        if not is_dynamic(node):
            return result
        planned = next(self._looks, ())
        if isinstance(result, torch.Tensor):
            return self._resized(planned[0], result) if planned else result
        return tuple([self._resized(plan, tensor) for plan, tensor in zip(planned, result, strict=False)] or result)

    def _resized(self, plan: DynamicResult, tensor: torch.Tensor) -> torch.Tensor:
        """Zeros, which are good indices, too."""
        shape = list(tensor.shape)
        for dim, number in plan.dims.items():
            shape[dim] = self._sizes[number]
        for dim, size in plan.fixed.items():
            shape[dim] = size
        same = tuple(shape) == plan.type.shape
        strides = plan.type.strides if same else dense_strides(shape, plan.order)
        return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device).zero_()
