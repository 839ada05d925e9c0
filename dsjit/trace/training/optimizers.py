"""Updates by torch's optimizers, recorded as what they compute rather than as how their Python computes it.

`Adam` takes its step count out of a tensor and computes with Python floats from there on; a learning rate is a float in
a dictionary. As Python numbers, they would be other outcomes, and another guard, at each step. So the functions behind
the optimizers (`torch.optim.adam.adam`, `torch.optim.sgd.sgd`) run as they are, unrecorded, and then the arithmetic of
`_single_tensor_adam` and `_single_tensor_sgd` (which the `foreach` variants do alike) is written down for each
parameter: with the step count as a tensor, and the learning rate as an input of the program. Kinds of updates that are
not known here are recorded call by call. (The kernel of `fused=True` computes the same; where a tensor's length is no
multiple of its vectors, the compiler has contracted what is left over, and last bits differ.)

Where parameters are on a GPU, their step counts are in the host's memory, as a rule. What depends on these is computed
there for all parameters at once, and goes to the GPU as one tensor.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, Protocol

import torch
from torch.amp.grad_scaler import GradScaler
from torch.optim.optimizer import _default_to_fused_or_foreach

from dsjit.ir.graph import TensorType, Value
from dsjit.trace.numbers.tables import SCALAR
from dsjit.trace.recording.memory import CannotTrace, tensor_type
from dsjit.trace.recording.recorder import Recorder
from dsjit.trace.training.update_writer import Number, UpdateWriter

__all__ = ["OptimizerWatch", "reads_only_updates"]

aten = torch.ops.aten


class GroupReader(Protocol):
    """What is asked of the Observer."""

    def number_in(self, container: dict[Any, Any], key: str) -> torch.Tensor | None:
        """The float under `key` as an input tensor (float64, of no dimension); None when it has to be a constant."""
        ...

    def undisturbed(self) -> AbstractContextManager[None]: ...


def _code_of(function: Any) -> types.CodeType:
    code: types.CodeType = inspect.unwrap(function).__code__
    return code


def reads_only_updates(code: types.CodeType) -> bool:
    """Whether `code`, which reads an optimizer's `param_groups`, lets floats in them reach nothing but the functions
    that are watched here. Those that read no floats count, too."""
    return code in _READERS


_READERS: Final = frozenset(
    map(
        _code_of,
        (
            torch.optim.Adam.step,
            torch.optim.SGD.step,
            torch.optim.Adagrad.step,
            torch.optim.Adamax.step,
            torch.optim.Optimizer.zero_grad,
            GradScaler._unscale_grads_,
        ),
    )
)


class OptimizerWatch:
    """While entered, what optimizers do on this thread is told to `recorder`. Whatever they raise is raised.

    followers: recorders of runs in lockstep, each with what tells the arguments of a call there.
    """

    def __init__(
        self,
        recorder: Recorder,
        reader: GroupReader,
        followers: Sequence[tuple[Recorder, Callable[[Any], Any]]] = (),
    ) -> None:
        self._recorder = recorder
        self._reader = reader
        self._followers = tuple(followers)

    def __enter__(self) -> OptimizerWatch:
        self._before = _REGISTER.enter(self)
        return self

    def __exit__(self, *error: object) -> None:
        _REGISTER.leave(self._before)

    def begin(
        self, names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any], caller: types.FrameType
    ) -> _Call | None:
        """The call of a function with these arguments, of which the first ones have `names`; None when it is to be
        recorded as other calls are."""
        try:
            if not self._recorder.is_recording() or len(args) != len(names):
                return None
            bound = {**dict(zip(names, args, strict=True)), **kwargs}
            buffers = list(bound.get("momentum_buffer_list") or ())
            if self._followers and any(each is None for each in buffers):
                return None  # they would get what the update makes
            call = _Call(bound, caller, bound.get("lr"), buffers)
            return call if call.is_known() else None
        except Exception as error:
            self._recorder.give_up(f"an update cannot be recorded ({type(error).__name__}: {error})")
            return None

    @contextmanager
    def unrecorded(self) -> Iterator[None]:
        """While it lasts, the update runs. What it raises, it may have done in part."""
        with self._reader.undisturbed(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
            try:
                yield
            except BaseException as error:
                self._recorder.give_up(f"an update raises {type(error).__name__}")
                raise

    def end(self, write: Callable[[UpdateWriter, _Call], None], call: _Call) -> None:
        """The update has run: `write` it down."""
        try:
            with self._reader.undisturbed(), torch._C.DisableTorchFunction(), torch._C._DisableTorchDispatch():
                rate = self._open_rate(call)
                for recorder, translate in ((self._recorder, _as_it_is), *self._followers):
                    told = replace(call, bound=translate(call.bound), buffers=translate(call.buffers))
                    if rate is not None:
                        told.rate = recorder.memory.read(rate)
                    write(UpdateWriter(recorder), told)
        except CannotTrace as error:
            self._recorder.give_up(error.reason)
        except Exception as error:
            self._recorder.give_up(f"an update cannot be recorded ({type(error).__name__}: {error})")

    def _open_rate(self, call: _Call) -> torch.Tensor | None:
        """The learning rate as a tensor, when it is an input."""
        group = call.caller.f_locals.get("group") if reads_only_updates(call.caller.f_code) else None
        if type(group) is dict and group.get("lr") is call.rate:
            return self._reader.number_in(group, "lr")
        return None


def _as_it_is(argument: Any) -> Any:
    return argument


@dataclass(slots=True)
class _Call:
    """The call of one of the functions.

    bound: its arguments, by name. caller: the frame that called. rate: of learning. buffers: of momentum, before it.
    """

    bound: Mapping[str, Any]
    caller: types.FrameType
    rate: Any
    buffers: Sequence[torch.Tensor | None] = ()

    def value(self, name: str) -> Any:
        return self.bound.get(name)

    def is_foreach(self) -> bool:
        """Whether lists are updated at once, as they are on GPUs by default."""
        chosen = self.value("foreach"), self.value("fused")
        if chosen != (None, None):
            return bool(chosen[0])
        return _default_to_fused_or_foreach(self.value("params"), differentiable=False)[1]

    def is_known(self) -> bool:
        """Whether it is written down here what the call computes."""
        unusual = ("capturable", "differentiable", "has_complex", "has_sparse_grad", "grad_scale", "found_inf")
        if any(self.value(name) not in (None, False) for name in unusual):
            return False
        if self.value("fused") and not _OTHERWISE_FUSED.isdisjoint(self.bound):
            return False
        numbers = ("lr", "beta1", "beta2", "weight_decay", "eps", "momentum", "dampening", "lr_decay")
        if not all(type(self.value(name)) in (float, int) for name in numbers if name in self.bound):
            return False
        tensors = [each for name in _LISTS for each in self.value(name) or () if each is not None]
        if not all(type(each) in (torch.Tensor, torch.nn.Parameter) and _is_plain(each) for each in tensors):
            return False
        devices = [each.device for each in self.value("params")]
        steps = [each.device for each in self.value("state_steps") or ()]
        return all(
            [each.device for each in self.value(name) or () if each is not None] in (devices, []) for name in _BESIDE
        ) and all(step in (device, SCALAR.device) for step, device in zip(steps, devices, strict=bool(steps)))


_BESIDE: Final = (
    *("grads", "d_p_list", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs"),
    *("momentum_buffer_list", "state_sums", "exp_infs"),
)
"""Arguments that hold, for each parameter, a tensor of its device."""

_LISTS: Final = ("params", "state_steps", *_BESIDE)

_OTHERWISE_FUSED: Final = frozenset({"state_sums", "exp_infs"})
"""Arguments of functions whose kernel is not written down."""


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.float32, torch.float64) and tensor.layout is torch.strided and not tensor.is_neg()


def _write_sgd(writer: UpdateWriter, call: _Call) -> None:
    """torch.optim.sgd._single_tensor_sgd."""
    momentum, decay = call.value("momentum"), call.value("weight_decay")
    # What is done to lists at once is done to the gradients themselves, unless there are others by then.
    writes_gradients = call.is_foreach() and not (call.value("maximize") or decay)
    after = call.value("momentum_buffer_list")
    for number, (param, grad) in enumerate(zip(call.value("params"), call.value("d_p_list"), strict=True)):
        value = writer.read(param)
        descent = _descent(writer, call, grad, value, decay)
        if momentum != 0:
            buffer = call.buffers[number]
            if buffer is None:
                average = writer.call(aten.clone.default, tensor_type(after[number]), descent)
                writer.recorder.memory.remember_root(after[number], average)
            else:
                kept = writer.call(aten.mul.Tensor, tensor_type(buffer), writer.read(buffer), momentum)
                average = writer.call(aten.add.Tensor, kept.type, kept, descent, alpha=1 - call.value("dampening"))
                writer.write(buffer, average)
            if call.value("nesterov"):
                descent = writer.call(aten.add.Tensor, descent.type, descent, average, alpha=momentum)
                if writes_gradients:
                    writer.write(grad, descent)
            else:
                descent = average
        rate = writer.operand(writer.negative(call.rate), value.type)
        if isinstance(rate, Value):  # the same sum, rounded once
            updated = writer.call(aten.addcmul.default, value.type, value, descent, rate)
        else:
            updated = writer.call(aten.add.Tensor, value.type, value, descent, alpha=rate)
        writer.write(param, updated)


def _write_adam(writer: UpdateWriter, call: _Call) -> None:
    """torch.optim.adam._single_tensor_adam."""
    decay, decoupled, amsgrad = call.value("weight_decay"), call.value("decoupled_weight_decay"), call.value("amsgrad")
    beta1, beta2 = call.value("beta1"), call.value("beta2")
    shrink = writer.one_minus(writer.times(call.rate, decay))

    def by_count(count: Value) -> list[Number]:
        size = writer.over(call.rate, _correction(writer, beta1, count))
        root = writer.call(aten.sqrt.default, count.type, _correction(writer, beta2, count))
        return [writer.negative(size), root]

    lists = zip(*(call.value(name) for name in _ADAM_LISTS), _for_each(writer, call, by_count), strict=True)
    for number, (param, grad, average, square, (size, root)) in enumerate(lists):
        value = writer.read(param)
        if decay != 0 and decoupled:
            value = writer.call(aten.mul.Tensor, value.type, value, writer.operand(shrink, value.type))
            decay_here = 0
        else:
            decay_here = decay
        descent = _descent(writer, call, grad, value, decay_here)
        mean = writer.call(aten.lerp.Scalar, tensor_type(average), writer.read(average), descent, 1 - beta1)
        writer.write(average, mean)
        kept = writer.call(aten.mul.Tensor, tensor_type(square), writer.read(square), beta2)
        variance = writer.call(aten.addcmul.default, kept.type, kept, descent, descent, value=1 - beta2)
        writer.write(square, variance)
        if amsgrad:
            largest = call.value("max_exp_avg_sqs")[number]
            variance = writer.call(aten.maximum.default, tensor_type(largest), writer.read(largest), variance)
            writer.write(largest, variance)
        deviation = writer.call(aten.sqrt.default, variance.type, variance)
        scaled = writer.call(aten.div.Tensor, variance.type, deviation, writer.operand(root, value.type))
        divisor = writer.call(aten.add.Tensor, variance.type, scaled, call.value("eps"))
        writer.write(param, _with_quotient(writer, value, mean, divisor, size))


def _write_adagrad(writer: UpdateWriter, call: _Call) -> None:
    """torch.optim.adagrad._single_tensor_adagrad."""
    slowing = call.value("lr_decay")

    def by_count(count: Value) -> list[Number]:
        rate = call.rate
        if slowing != 0:
            before = writer.times(writer.call(aten.sub.Tensor, count.type, count, 1.0), slowing)
            rate = writer.over(call.rate, writer.call(aten.add.Tensor, count.type, before, 1.0))
        return [writer.negative(rate)]

    lists = zip(*(call.value(name) for name in _ADAGRAD_LISTS), _for_each(writer, call, by_count), strict=True)
    for param, grad, total, (rate,) in lists:
        value = writer.read(param)
        descent = _descent(writer, call, grad, value, call.value("weight_decay"))
        squares = writer.call(aten.addcmul.default, tensor_type(total), writer.read(total), descent, descent, value=1)
        writer.write(total, squares)
        deviation = writer.call(aten.sqrt.default, squares.type, squares)
        divisor = writer.call(aten.add.Tensor, squares.type, deviation, call.value("eps"))
        writer.write(param, _with_quotient(writer, value, descent, divisor, rate))


_ADAGRAD_LISTS: Final = ("params", "grads", "state_sums")


def _write_adamax(writer: UpdateWriter, call: _Call) -> None:
    """torch.optim.adamax._single_tensor_adamax."""
    beta1, beta2 = call.value("beta1"), call.value("beta2")

    def by_count(count: Value) -> list[Number]:
        return [writer.negative(writer.over(call.rate, _correction(writer, beta1, count)))]

    lists = zip(*(call.value(name) for name in _ADAMAX_LISTS), _for_each(writer, call, by_count), strict=True)
    for param, grad, average, norm, (size,) in lists:
        value = writer.read(param)
        descent = _descent(writer, call, grad, value, call.value("weight_decay"))
        mean = writer.call(aten.lerp.Scalar, tensor_type(average), writer.read(average), descent, 1 - beta1)
        writer.write(average, mean)
        kept = writer.call(aten.mul.Tensor, tensor_type(norm), writer.read(norm), beta2)
        length = writer.call(aten.abs.default, descent.type, descent)
        length = writer.call(aten.add.Tensor, length.type, length, call.value("eps"))
        largest = writer.call(aten.maximum.default, kept.type, kept, length)
        writer.write(norm, largest)
        writer.write(param, _with_quotient(writer, value, mean, largest, size))


_ADAMAX_LISTS: Final = ("params", "grads", "exp_avgs", "exp_infs")


def _for_each(writer: UpdateWriter, call: _Call, by_count: Callable[[Value], list[Number]]) -> list[list[Number]]:
    """For each parameter, what depends on its step count, which becomes one higher.

    by_count: given a count in float64, or a row of counts.
    """
    params, steps = call.value("params"), call.value("state_steps")
    found: list[list[Number]] = [[] for _ in params]
    rows: dict[tuple[torch.device, torch.dtype, torch.dtype], list[int]] = {}
    for number, (param, step) in enumerate(zip(params, steps, strict=True)):
        if _is_elsewhere(step, param):
            rows.setdefault((param.device, param.dtype, step.dtype), []).append(number)
            continue
        count = writer.call(aten.add.Tensor, tensor_type(step), writer.read(step), 1)
        writer.write(step, count)
        found[number] = by_count(writer.at(count, torch.float64, step.device))
    for (device, dtype, kind), numbers in rows.items():
        row = TensorType((len(numbers),), kind, (1,), SCALAR.device)
        before = writer.call(aten.stack.default, row, tuple([writer.read(steps[number]) for number in numbers]))
        counts = writer.call(aten.add.Tensor, row, before, 1)
        for place, number in enumerate(numbers):
            writer.write(steps[number], writer.picked(counts, place))
        made = by_count(writer.at(counts, torch.float64, row.device))
        values = {place: value for place, value in enumerate(made) if isinstance(value, Value) and value.type.shape}
        packed = tuple(values.values())
        if packed:
            rank = TensorType((len(packed), *row.shape), torch.float64, (len(numbers), 1), row.device)
            moved = writer.at(writer.call(aten.stack.default, rank, packed), dtype, device)
        for place, number in enumerate(numbers):
            own = [writer.picked(writer.picked(moved, line), place) for line in range(len(packed))]
            rest = iter(own)
            found[number] = [next(rest) if each in values else value for each, value in enumerate(made)]
    return found


def _is_elsewhere(step: torch.Tensor, param: torch.Tensor) -> bool:
    """Whether a step count is not where its parameter is."""
    return step.device != param.device


def _with_quotient(writer: UpdateWriter, value: Value, dividend: Value, divisor: Value, factor: Number) -> Value:
    """As `addcdiv` has it: value + factor * dividend / divisor"""
    product = writer.call(aten.mul.Tensor, dividend.type, dividend, writer.operand(factor, value.type))
    change = writer.call(aten.div.Tensor, value.type, product, divisor)
    return writer.call(aten.add.Tensor, value.type, value, change)


_ADAM_LISTS: Final = ("params", "grads", "exp_avgs", "exp_avg_sqs")


def _descent(writer: UpdateWriter, call: _Call, grad: torch.Tensor, value: Value, decay: float) -> Value:
    """The gradient with its sign, and with what weight decay adds."""
    descent = writer.read(grad)
    if call.value("maximize"):
        descent = writer.call(aten.neg.default, descent.type, descent)
    return writer.call(aten.add.Tensor, descent.type, descent, value, alpha=decay) if decay != 0 else descent


def _correction(writer: UpdateWriter, beta: float, count: Value) -> Value:
    """1 - beta ** count"""
    power = writer.call(aten.pow.Scalar, count.type, float(beta), count)
    return writer.call(aten.rsub.Scalar, count.type, power, 1.0)


_WATCHED: Final = (
    (
        importlib.import_module("torch.optim.adam"),
        "adam",
        (*_ADAM_LISTS, "max_exp_avg_sqs", "state_steps"),
        _write_adam,
    ),
    (importlib.import_module("torch.optim.adagrad"), "adagrad", (*_ADAGRAD_LISTS, "state_steps"), _write_adagrad),
    (importlib.import_module("torch.optim.adamax"), "adamax", (*_ADAMAX_LISTS, "state_steps"), _write_adamax),
    (importlib.import_module("torch.optim.sgd"), "sgd", ("params", "d_p_list", "momentum_buffer_list"), _write_sgd),
)
"""Modules, functions in them, and what their first arguments are called."""


class _Current(threading.local):
    """The watch of each thread."""

    watch: OptimizerWatch | None = None


class _Register:
    """Puts the stand-ins up for the first watch of the process, and takes them away with the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        self._current = _Current()
        self._originals: list[tuple[types.ModuleType, str, Any, Any]] = []

    def enter(self, watch: OptimizerWatch) -> OptimizerWatch | None:
        """Returns which watch this thread had before."""
        with self._lock:
            if not self._count:
                for module, name, arguments, write in _WATCHED:
                    original = vars(module)[name]
                    stand_in = _stand_in(self._current, original, arguments, write)
                    self._originals.append((module, name, original, stand_in))
                    vars(module)[name] = stand_in
            self._count += 1
        before, self._current.watch = self._current.watch, watch
        return before

    def leave(self, before: OptimizerWatch | None) -> None:
        self._current.watch = before
        with self._lock:
            self._count -= 1
            if not self._count:
                for module, name, original, stand_in in self._originals:
                    if vars(module)[name] is stand_in:
                        vars(module)[name] = original
                self._originals.clear()


def _stand_in(
    current: _Current,
    original: Callable[..., None],
    names: Sequence[str],
    write: Callable[[UpdateWriter, _Call], None],
) -> Any:
    def update(*args: Any, **kwargs: Any) -> None:
        watch = current.watch
        call = None if watch is None else watch.begin(names, args, kwargs, sys._getframe(1))
        if watch is None or call is None:
            original(*args, **kwargs)
            return
        with watch.unrecorded():
            original(*args, **kwargs)
        watch.end(write, call)

    return update


_REGISTER: Final = _Register()
"""The names that are replaced are the process's, so their bookkeeping is too."""
