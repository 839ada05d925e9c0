"""What people write around models: training helpers, metrics, schedules, registries, adapters."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


def filled(module: nn.Module) -> nn.Module:
    """`module` with small whole numbers as its parameters."""
    for number, parameter in enumerate(module.parameters()):
        parameter.data = whole(*parameter.shape, start=number) % 5 - 2
    return module.eval()


@program()
def weights_are_averaged_over_the_steps(play: Play) -> None:
    model, average = filled(nn.Linear(3, 2)), filled(nn.Linear(3, 2))

    def update(decay: float) -> None:
        for slow, fast in zip(average.parameters(), model.parameters(), strict=True):
            slow.mul_(decay).add_(fast, alpha=1 - decay)

    f = play.jit(update)
    play.watch(average=average)
    for _ in range(4):
        model.weight.data += 1
        play(f, 0.5)


@program()
def buffers_are_averaged_through_dictionaries_of_state(play: Play) -> None:
    model = filled(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1)))
    shadow = {name: parameter.clone() for name, parameter in model.named_parameters()}

    def update() -> None:
        for name, parameter in model.named_parameters():
            shadow[name].lerp_(parameter, 0.5)

    f = play.jit(update)
    play.watch(shadow=shadow)
    for _ in range(3):
        play(f)


@program(exact=False)
def gradients_are_clipped_by_their_norm(play: Play) -> None:
    def clip(gradients: list[torch.Tensor], limit: float) -> torch.Tensor:
        norm = torch.stack([g.norm() for g in gradients]).norm()
        scale = (limit / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
        return norm

    f = play.jit(clip)
    for start in (1, 5, 9):
        play(f, [whole(3, start=start), whole(2, 2)], 2.0)


@program(exact=False)
def an_optimizer_of_ones_own_takes_steps(play: Play) -> None:
    state: dict[str, torch.Tensor] = {"m": torch.zeros(3), "v": torch.zeros(3), "step": torch.tensor(0.0)}

    def step(weight: torch.Tensor, gradient: torch.Tensor, lr: float = 0.5) -> None:
        state["step"] += 1
        state["m"].lerp_(gradient, 0.1)
        state["v"].mul_(0.99).addcmul_(gradient, gradient, value=0.01)
        count = state["step"].item()
        size = lr * math.sqrt(1 - 0.99**count) / (1 - 0.9**count)
        weight.addcdiv_(state["m"], state["v"].sqrt().add_(1e-8), value=-size)

    f, weight = play.jit(step), whole(3)
    play.watch(state=state)
    for start in range(5):
        play(f, weight, whole(3, start=start))


@program()
def lists_of_parameters_are_updated_at_once(play: Play) -> None:
    weights, momenta = [whole(2), whole(3)], [torch.zeros(2), torch.zeros(3)]

    def step(gradients: list[torch.Tensor]) -> None:
        torch._foreach_mul_(momenta, 0.5)
        torch._foreach_add_(momenta, gradients)
        torch._foreach_sub_(weights, momenta, alpha=2)

    f = play.jit(step)
    play.watch(weights=weights, momenta=momenta)
    for start in range(3):
        play(f, [whole(2, start=start), whole(3)])


@program(traces=2)
def an_adapter_is_merged_and_unmerged(play: Play) -> None:
    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.base = filled(nn.Linear(3, 3, bias=False))
            self.down, self.up = nn.Parameter(whole(1, 3)), nn.Parameter(whole(3, 1))
            self.merged = False

        def merge(self) -> None:
            self.base.weight.data += self.up @ self.down
            self.merged = True

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.base(x)
            return y if self.merged else y + x @ self.down.T @ self.up.T

    model = play.jit(Adapted())
    play(model, whole(2, 3))
    play(model, whole(2, 3))
    model.merge()
    play(model, whole(2, 3))
    play(model, whole(2, 3))


@program()
def a_metric_adds_up_tensors(play: Play) -> None:
    class Accuracy:
        def __init__(self) -> None:
            self.right, self.seen = torch.tensor(0), 0

        def update(self, scores: torch.Tensor, labels: torch.Tensor) -> None:
            self.right += (scores.argmax(-1) == labels).sum()
            self.seen += labels.numel()

    metric = Accuracy()
    f = play.jit(metric.update)
    play.watch(metric=metric)
    for start in range(4):
        play(f, whole(3, 4, start=start) % 7, torch.tensor([0, 1, start % 4]))


@program()
def a_loss_is_added_up_as_a_number(play: Play) -> None:
    class Meter:
        def __init__(self) -> None:
            self.total, self.count = 0.0, 0

        def update(self, loss: torch.Tensor, size: int) -> None:
            self.total += loss.item() * size
            self.count += size

    meter = Meter()
    f = play.jit(lambda x: meter.update(x.sum(), 4))
    play.watch(meter=meter)
    for start in range(5):
        play(f, whole(3, start=start))


@program()
def losses_are_added_up_by_name(play: Play) -> None:
    sums: dict[str, float] = {"first": 0.0, "second": 0.0}

    def log(x: torch.Tensor) -> torch.Tensor:
        sums["first"] += x[0].item()
        sums["second"] += x.sum().item()
        return x * 2

    f = play.jit(log)
    play.watch(sums=sums)
    for start in range(5):
        play(f, whole(3, start=start))


@program()
def right_answers_are_counted_as_a_number(play: Play) -> None:
    class Counter:
        right = 0

    counter = Counter()
    counter.right = 0

    def count(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        counter.right += (scores.argmax(-1) == labels).sum().item()
        return scores + 1

    f = play.jit(count)
    play.watch(counter=counter)
    for start in range(5):
        play(f, whole(3, 4, start=start) % 7, torch.tensor([0, 1, start % 4]))


@program(traces=2)
def calls_are_counted_by_name(play: Play) -> None:
    counts: dict[str, int] = {}
    groups: defaultdict[str, int] = defaultdict(int)

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        counts[name] = counts.get(name, 0) + 1
        groups[name] += 1
        return x + 1

    counts["a"], groups["a"] = 0, 0
    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(2), "a")


@program(traces=4)
def a_schedule_is_read_from_a_tensor(play: Play) -> None:
    rates = torch.tensor([8.0, 4.0, 2.0, 1.0])

    def step(weight: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
        rate = rates[number.clamp(max=3)]
        return weight - rate if number < 2 else weight - rate / 2

    f = play.jit(step)
    for number in range(5):
        play(f, whole(3), torch.tensor(number))


@dataclasses.dataclass
class Config:
    width: int = 3
    scale: float = 2.0
    names: list[str] = dataclasses.field(default_factory=lambda: ["relu", "double"])
    gate: bool = True

    @property
    def doubled(self) -> float:
        return self.scale * 2


REGISTRY: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": torch.relu,
    "double": lambda x: x * 2,
    "shift": lambda x: x + 1,
}


@program(traces=4)
def layers_are_chosen_by_a_configuration(play: Play) -> None:
    config = Config()

    def run(x: torch.Tensor) -> torch.Tensor:
        for name in config.names:
            x = REGISTRY[name](x)
        return x * config.doubled if config.gate else x

    f = play.jit(run)
    play(f, whole(3, start=-1))
    play(f, whole(3, start=-1))
    config.scale = 3.0
    play(f, whole(3))
    config.names.append("shift")
    play(f, whole(3))
    config.gate = False
    play(f, whole(3))
    play(f, whole(3))


@program(traces=3)
def a_frozen_configuration_is_replaced(play: Play) -> None:
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        scale: float
        shift: tuple[int, int]

    def run(x: torch.Tensor, config: Frozen) -> torch.Tensor:
        return x * config.scale + config.shift[1]

    f, config = play.jit(run), Frozen(2.0, (1, 2))
    play(f, whole(3), config)
    play(f, whole(3), dataclasses.replace(config))
    play(f, whole(3), dataclasses.replace(config, scale=4.0))
    play(f, whole(3), dataclasses.replace(config, shift=(1, 5)))
    play(f, whole(3), config)


@program(traces=3)
def hooks_come_and_go(play: Play) -> None:
    seen: list[torch.Tensor] = []
    model = play.jit(filled(nn.Sequential(nn.Linear(3, 3), nn.ReLU())))
    play.watch(seen=seen)
    play(model, whole(2, 3))
    handle = model[0].register_forward_hook(lambda module, args, output: seen.append(output) or output * 2)
    play(model, whole(2, 3))
    play(model, whole(2, 3))
    handle.remove()
    play(model, whole(2, 3))
    play(model, whole(2, 3))


@program(traces=2)
def a_module_is_built_at_its_first_call(play: Play) -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table: torch.Tensor | None = None

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.table is None or self.table.shape[0] < x.shape[1]:
                self.table = torch.arange(x.shape[1]) * 2.0
            return x + self.table[: x.shape[1]]

    f = play.jit(Lazy())
    for start in range(4):
        play(f, whole(2, 3, start=start))


@program(traces=2)
def a_property_is_computed_from_state(play: Play) -> None:
    class Scaler:
        def __init__(self) -> None:
            self._log_scale = 1.0

        @property
        def scale(self) -> float:
            return 2.0**self._log_scale

        @scale.setter
        def scale(self, value: float) -> None:
            self._log_scale = math.log2(value)

        @functools.cached_property
        def offset(self) -> torch.Tensor:
            return torch.ones(3) * 5

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale + self.offset

    scaler = Scaler()
    _ = scaler.offset
    f = play.jit(scaler)
    play(f, whole(3))
    play(f, whole(3))
    scaler.scale = 8.0
    play(f, whole(3))
    play(f, whole(3))


@program()
def numbers_of_numpy_and_python_are_mixed(play: Play) -> None:
    scale, steps, table = np.float32(1.5), np.int64(3), np.arange(3.0)

    def run(x: torch.Tensor) -> torch.Tensor:
        return x * float(scale) + int(steps) + float(table[1])

    f = play.jit(run)
    for _ in range(3):
        play(f, whole(3))


@program(traces=2)
def parameters_are_swapped_for_a_call(play: Play) -> None:
    model = filled(nn.Linear(3, 2))

    def run(parameters: dict[str, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, parameters, (x,))

    f = play.jit(run)
    for start in (0, 2, 4):
        play(f, {"weight": whole(2, 3, start=start), "bias": whole(2)}, whole(2, 3))
    play.watch(model=model)
    play(f, {"weight": whole(2, 3)}, whole(2, 3))


@program(exact=False)
def a_weight_is_parametrized(play: Play) -> None:
    class Symmetric(nn.Module):
        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            return weight.triu() + weight.triu(1).T

    model = filled(nn.Linear(3, 3))
    parametrize.register_parametrization(model, "weight", Symmetric())
    f = play.jit(model)
    for start in range(3):
        play(f, whole(2, 3, start=start))


@program(exact=False)
def weights_are_normalized(play: Play) -> None:
    model = play.jit(parametrizations.weight_norm(filled(nn.Linear(3, 3))))
    for start in range(3):
        play(model, whole(2, 3, start=start))


@program(traces=None)
def states_are_mapped_over_a_batch(play: Play) -> None:
    f = play.jit(lambda x, w: (x[:, None] * w).sum(-1) + torch.stack([row * 2 for row in x.unbind(0)]).sum())
    for start in range(3):
        play(f, whole(3, 2, start=start), whole(4, 2))


@contextlib.contextmanager
def scaled(holder: dict[str, float], factor: float) -> Iterator[float]:
    before = holder["scale"]
    holder["scale"] = before * factor
    try:
        yield holder["scale"]
    finally:
        holder["scale"] = before


@program()
def a_setting_is_changed_for_a_while(play: Play) -> None:
    holder = {"scale": 2.0}

    def run(x: torch.Tensor) -> torch.Tensor:
        with scaled(holder, 3.0) as scale:
            y = x * scale + holder["scale"]
        return y + holder["scale"]

    f = play.jit(run)
    play.watch(holder=holder)
    for start in range(3):
        play(f, whole(3, start=start))


@program()
def batches_are_made_by_a_generator(play: Play) -> None:
    def chunks(x: torch.Tensor, size: int) -> Iterator[torch.Tensor]:
        for start in range(0, x.shape[0], size):
            yield x[start : start + size]

    f = play.jit(lambda x: torch.stack([chunk.sum() for chunk in chunks(x, 2)]))
    for start in range(3):
        play(f, whole(6, start=start))


class Output(NamedTuple):
    loss: torch.Tensor
    states: tuple[torch.Tensor, ...]


@program()
def outputs_of_several_kinds_are_nested(play: Play) -> None:
    def run(x: torch.Tensor) -> dict[str, Any]:
        states = tuple(x * n for n in range(3))
        return {"out": Output(states[1].sum(), states), "config": Config(scale=x.shape[0] * 1.0), "x": x}

    f = play.jit(run)
    for start in range(3):
        play(f, whole(3, start=start))


@program(traces=2)
def the_best_state_is_kept(play: Play) -> None:
    class Keeper:
        def __init__(self) -> None:
            self.best = torch.tensor(math.inf)
            self.state = torch.zeros(2)

        def __call__(self, loss: torch.Tensor, weight: torch.Tensor) -> bool:
            if loss < self.best:
                self.best = loss.clone()
                self.state = weight.clone()
                return True
            return False

    f = play.jit(Keeper())
    for loss in (5.0, 3.0, 4.0, 2.0, 2.0, 1.0):
        play(f, torch.tensor(loss), whole(2, start=int(loss)))


@program(traces=2)
def a_bad_loss_is_skipped(play: Play) -> None:
    weight = whole(3)

    def step(loss: torch.Tensor, gradient: torch.Tensor) -> str:
        if not math.isfinite(loss.item()):
            return "skipped"
        weight.sub_(gradient)
        return "done"

    f = play.jit(step)
    play.watch(weight=weight)
    for loss in (1.0, math.nan, 2.0, math.inf, 3.0, -math.inf):
        play(f, torch.tensor(loss), whole(3))
