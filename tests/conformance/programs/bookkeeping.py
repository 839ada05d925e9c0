"""What training and inference scripts keep beside the computation: counters, schedules, progress, histories."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=None, grad=True)
def a_loss_is_scaled_by_a_number_from_a_tensor(play: Play) -> None:
    weight = whole(3).requires_grad_()

    def step(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        weight.grad = None
        loss = (weight * x * scale.item()).sum()
        loss.backward()
        return loss.detach()

    jitted = play.jit(step)
    for scale in (2.0, 3.0, 4.0, 3.0):
        play(jitted, whole(3), torch.tensor(scale))
        play.note("gradient", weight.grad)


@program(traces=3)
def every_hundredth_step_is_logged(play: Play) -> None:
    class Trainer:
        def __init__(self) -> None:
            self.step = 98
            self.running = torch.zeros(())

        def train_step(self, x: torch.Tensor) -> torch.Tensor:
            self.step += 1
            loss = (x * 2).sum()
            self.running = self.running + loss
            if self.step % 100 == 0:
                print(f"step {self.step}: loss {loss:.4f}")
            return loss

    f = play.jit(Trainer().train_step)
    for start in range(4):
        play(f, whole(3, start=start))


@program(traces=3)
def the_rate_is_warmed_up_by_the_step(play: Play) -> None:
    def f(x: torch.Tensor, step: int, warmup: int = 4) -> torch.Tensor:
        rate = step / warmup if step < warmup else 1.0
        return x * rate

    jitted = play.jit(f)
    for step in range(1, 9):
        play(jitted, whole(4), step)


@program(traces=2)
def the_rate_decays_as_a_cosine(play: Play) -> None:
    def f(x: torch.Tensor, step: int, total: int) -> torch.Tensor:
        rate = 0.5 * (1.0 + math.cos(math.pi * step / total))
        return x * rate

    jitted = play.jit(f)
    for step in (1, 2, 3, 10, 100):
        play(jitted, whole(4), step, 100)


@program(traces=2)
def a_temperature_is_lowered_between_calls(play: Play) -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = 4.0

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return logits / self.temperature

    net = Sampler()
    f = play.jit(net)
    for temperature in (4.0, 2.0, 1.0, 0.5, 0.25):
        net.temperature = temperature
        play(f, whole(4))


@program(traces=2)
def a_moving_average_is_corrected_by_the_count(play: Play) -> None:
    state = {"count": 0, "mean": torch.zeros(2)}

    def update(x: torch.Tensor) -> torch.Tensor:
        state["count"] += 1
        state["mean"] = state["mean"] + (x - state["mean"]) / state["count"]
        return state["mean"] * 1

    f = play.jit(update)
    for start in (1, 3, 5, 7, 9):
        play(f, whole(2, start=start))
    play.note("state", state)


@program(traces=2)
def tokens_and_batches_are_counted_in_a_namespace(play: Play) -> None:
    seen = SimpleNamespace(batches=0, tokens=0)

    def f(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        seen.batches += 1
        seen.tokens += x.numel()
        return x + 1, seen.tokens / seen.batches

    jitted = play.jit(f)
    for start in range(5):
        play(jitted, whole(2, 3, start=start))
    play.note("seen", (seen.batches, seen.tokens))


@program(traces=2)
def instances_of_all_kinds_share_a_counter(play: Play) -> None:
    class Layer:
        calls = 0

        def run(self, x: torch.Tensor) -> torch.Tensor:
            Layer.calls += 1
            return x * Layer.calls

    f = play.jit(Layer().run)
    for _ in range(5):
        play(f, whole(2))
        play.note("calls", Layer.calls)


@program(traces=2)
def words_are_counted_in_tables_of_all_kinds(play: Play) -> None:
    plain: dict[str, int] = {"a": 0}
    counter: Counter[str] = Counter(a=0)
    default: defaultdict[str, int] = defaultdict(int, a=0)
    ordered: OrderedDict[str, int] = OrderedDict(a=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        plain["a"] = plain.get("a", 0) + 1
        counter["a"] = counter["a"] + 2
        default["a"] = max(default["a"], 0) + 3
        ordered["a"] = ordered["a"] + plain["a"]
        return x * (plain["a"] + counter["a"] + default["a"] + ordered["a"])

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(2))
    play.note("tables", (plain, counter, default, ordered))


@program(traces=5)
def patience_runs_out(play: Play) -> None:
    class Stopper:
        def __init__(self) -> None:
            self.best = math.inf
            self.bad = 0
            self.stopped = False

        def update(self, loss: torch.Tensor) -> bool:
            value = loss.item()
            if value < self.best:
                self.best, self.bad = value, 0
            else:
                self.bad += 1
            return self.bad >= 2

    stopper = Stopper()
    f = play.jit(stopper.update)
    for loss in (5.0, 4.0, 4.5, 4.6, 3.0, 3.5, 3.6, 3.7):
        play(f, torch.tensor(loss))
        play.note("best", (stopper.best, stopper.bad))


@program()
def progress_is_written_over_the_same_line(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        sys.stdout.write(f"\rmean {y.mean().item():6.2f}")
        sys.stdout.flush()
        return y

    jitted = play.jit(f)
    for start in (1, 5, -30):
        play(jitted, whole(2, start=start))


@program()
def a_message_is_made_first_and_printed_later(play: Play) -> None:
    def show(message: str, prefix: str = "train") -> None:
        if message:
            print(prefix, message, sep=" | ")

    def f(x: torch.Tensor) -> torch.Tensor:
        loss = x.sum()
        message = "loss {:.2f}, largest {}".format(loss.item(), x.max().item())  # noqa: UP032
        y = x + 1
        print(message)
        show(f"again {loss.item():+.1f}", prefix="eval")
        return y

    jitted = play.jit(f)
    for start in (1, 5, -30):
        play(jitted, whole(2, start=start))


@program()
def text_is_joined_of_pieces_and_logged(play: Play) -> None:
    logger = logging.getLogger("conformance.bookkeeping")

    def f(x: torch.Tensor) -> torch.Tensor:
        logger.warning("sum " + str(x.sum().item()) + ", first " + repr(x[0].item()))
        logger.warning(f"{x.mean():.3f} %% of %s", "all")
        logger.debug(f"never shown {x.sum().item()}")
        logger.warning("%s and %d", f"<{x[1]:.0f}>", x[1].item())
        return x + 1

    jitted = play.jit(f)
    for start in (1, 5, -30):
        play(jitted, whole(2, start=start))


@program(traces=None)
def text_that_is_looked_at_is_no_mere_text(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, str, int]:
        name = f"n{x.sum().item():.0f}"
        print(name.upper(), f"{x[0].item()!s:>8}|", f"{x[1].item()}" * 2, f"{x[1].item():5.1f}"[:4])
        return x + len(name), name, {name: 1}[name]

    jitted = play.jit(f)
    for start in (1, 50, 1, 50):
        play(jitted, whole(2, start=start))


@program(traces=2)
def a_step_is_named_in_text_and_in_the_result(play: Play) -> None:
    def f(x: torch.Tensor, step: int) -> dict[str, Any]:
        print(f"[{step:>5d}] {x.sum():8.3f}")
        return {"step": step, "loss": x.sum(), "next": step + 1}

    jitted = play.jit(f)
    for step in (7, 8, 9, 10000):
        play(jitted, whole(3, start=step), step)


@program(traces=2)
def a_budget_is_spent(play: Play) -> None:
    @dataclass
    class Budget:
        left: float

    budget = Budget(10.0)

    def spend(x: torch.Tensor, share: float) -> torch.Tensor:
        budget.left = budget.left - share
        return x * budget.left

    f = play.jit(spend)
    for share in (1.0, 0.5, 0.25, 2.0):
        play(f, whole(2), share)
    play.note("left", budget.left)


@program(traces=5)
def a_learning_rate_is_halved_on_a_plateau(play: Play) -> None:
    class Plateau:
        def __init__(self) -> None:
            self.rate, self.best = 1.0, 100.0

        def apply(self, weight: torch.Tensor, gradient: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
            if loss.item() > self.best:
                self.rate *= 0.5
            else:
                self.best = loss.item()
            return weight - gradient * self.rate

    plateau = Plateau()
    f = play.jit(plateau.apply)
    for loss in (50.0, 40.0, 45.0, 30.0, 60.0, 61.0):
        play(f, whole(3), torch.ones(3), torch.tensor(loss))
        play.note("rate", (plateau.rate, plateau.best))


@program(traces=2)
def closures_count_their_calls(play: Play) -> None:
    calls, total = 0, 0.0

    def f(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls, total
        calls += 1
        total = total + calls * 0.5
        return x * total

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(2))
    play.note("calls", (calls, total))


@program(traces=3)
def a_global_step_is_compared(play: Play) -> None:
    global STEP
    STEP = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        global STEP
        STEP = STEP + 1
        return x * 10 if STEP % 2 == 0 else x

    jitted = play.jit(f)
    for _ in range(7):
        play(jitted, whole(2))


@program(traces=None)
def a_counter_is_used_as_a_length(play: Play) -> None:
    state = SimpleNamespace(length=1)

    def f(x: torch.Tensor) -> torch.Tensor:
        state.length = state.length % 3 + 1
        return x[: state.length] * 2

    jitted = play.jit(f)
    for _ in range(7):
        play(jitted, whole(4))


@program(traces=None)
def a_number_and_a_size_change_together(play: Play) -> None:
    def f(x: torch.Tensor, n: int) -> torch.Tensor:
        return x * n + x.shape[0]

    jitted = play.jit(f)
    for width, n in ((2, 1), (2, 2), (3, 2), (3, 3), (4, 2), (2, 3)):
        play(jitted, whole(width), n)


@program(traces=2)
def a_number_is_handed_to_a_keyword(play: Play) -> None:
    def f(x: torch.Tensor, *numbers: float, scale: float = 1.0, **more: float) -> torch.Tensor:
        return x * scale + sum(numbers) - more["shift"]

    jitted = play.jit(f)
    for n in (1, 2, 3, 4):
        play(jitted, whole(3), 2.0 * n, 3.0 * n, scale=0.5 * n, shift=n)


@program(traces=None)
def a_count_raises_when_it_is_too_high(play: Play) -> None:
    state = SimpleNamespace(count=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        state.count += 1
        if state.count > 3:
            raise RuntimeError(f"called {state.count} times")
        return x * state.count

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(2))
    state.count = 1
    play(jitted, whole(2))


@program(traces=3)
def numbers_of_python_are_exact(play: Play) -> None:
    def f(x: torch.Tensor, n: int, a: float) -> tuple[Any, ...]:
        return x + 0, n // 3, n % 7, -n // 3, n * n, a / 3, a % 1.0, round(a), int(a * 10), n < a, abs(-a)

    jitted = play.jit(f)
    for n, a in ((10, 2.5), (-11, 3.5), (1 << 30, 0.1), (7, -2.5)):
        play(jitted, whole(2), n, a)


@program(traces=2)
def a_sampler_takes_its_settings_as_arguments(play: Play) -> None:
    def sample(logits: torch.Tensor, temperature: float, penalty: float) -> torch.Tensor:
        scaled = logits / temperature
        scaled = torch.where(scaled < 0, scaled * penalty, scaled / penalty)
        return scaled.masked_fill(scaled < -penalty, -penalty)

    f = play.jit(sample)
    for temperature, penalty in ((1.0, 1.0), (0.5, 2.0), (2.0, 4.0), (0.25, 0.5)):
        play(f, whole(5, start=-2), temperature, penalty)


@program()
def a_tuple_of_constants_is_returned_twice(play: Play) -> None:
    def f(x: torch.Tensor) -> dict[str, Any]:
        sizes = (1, 2)
        print("first")
        logging.getLogger("conformance.bookkeeping").warning("second")
        logging.getLogger("conformance.bookkeeping").warning("third")
        return {"x": x + 1, "a": sizes, "b": sizes, "nested": [sizes, ()]}

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(2))
