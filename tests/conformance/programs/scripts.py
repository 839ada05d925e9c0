"""What scripts around models do with numbers: metrics, early stopping, schedules, logs, counters, searches."""

from __future__ import annotations

import heapq
import logging
import math
from typing import Any

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program()
def accuracy_is_counted_and_divided(play: Play) -> None:
    class Accuracy:
        def __init__(self) -> None:
            self.right = 0
            self.total = 0

        def update(self, scores: torch.Tensor, labels: torch.Tensor) -> float:
            hits = int((scores.argmax(-1) == labels).sum())
            self.right += hits
            self.total += labels.numel()
            return hits / labels.numel()

    accuracy = Accuracy()
    update = play.jit(accuracy.update)
    play.watch(accuracy=accuracy)
    for start in range(6):
        play(update, whole(4, 3, start=start) % 5, torch.tensor([0, 1, 2, start % 3]))


@program()
def precision_and_recall_of_a_batch(play: Play) -> None:
    def scores(found: torch.Tensor, wanted: torch.Tensor) -> dict[str, float]:
        both = (found & wanted).sum().item()
        precision = both / (found.sum().item() + 1)
        recall = both / (wanted.sum().item() + 1)
        return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / (precision + recall + 0.5)}

    f = play.jit(scores)
    for start in range(6):
        play(f, whole(8, start=start) % 3 > 0, whole(8, start=2 * start) % 2 > 0)


@program()
def a_loss_is_averaged_over_examples(play: Play) -> None:
    meter = {"sum": 0.0, "count": 0}

    def f(loss: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        count = mask.sum().item()
        meter["sum"] += float(loss) * count
        meter["count"] += count
        return loss * 2

    jitted = play.jit(f)
    play.watch(meter=meter)
    for start in range(6):
        play(jitted, torch.tensor(start / 4), whole(4, start=start) > 2)


@program(traces=3)
def training_stops_early(play: Play) -> None:
    def fit(weight: torch.Tensor, limit: int) -> tuple[torch.Tensor, int]:
        for step in range(limit):  # noqa: B007
            weight = weight * 0.5
            if weight.abs().max() < 1:
                break
        return weight, step

    f = play.jit(fit)
    for scale in (2.0, 64.0, 1024.0, 32.0, 8.0, 256.0, 4.0, 512.0, 16.0, 128.0):
        play(f, torch.tensor([scale, -scale / 2]), 40)


@program(traces=4)
def rounds_are_bounded_by_a_counter(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, int]:
        rounds = 0
        while x.sum() > 8:
            x = x / 2
            rounds += 1
            if rounds >= 6:
                break
        return x, rounds

    jitted = play.jit(f)
    for scale in (1.0, 16.0, 256.0, 4.0, 64.0, 4096.0, 8.0, 1024.0, 32.0, 65536.0, 128.0):
        play(jitted, torch.tensor([scale, scale]))


@program(traces=5)
def a_line_search_halves_its_step(play: Play) -> None:
    def search(x: torch.Tensor, direction: torch.Tensor) -> tuple[torch.Tensor, float]:
        rate = 1.0
        start = (x * x).sum()
        while ((x + direction * rate) ** 2).sum() > start and rate > 1e-6:
            rate /= 2
        return x + direction * rate, rate

    f = play.jit(search)
    for scale in (1.0, 4.0, 64.0, 16.0, 256.0, 8.0, 1024.0, 32.0, 2.0, 128.0):
        play(f, torch.tensor([4.0, 2.0]), torch.tensor([-scale, -scale]))


@program(traces=3)
def gradients_are_clipped_by_their_norm(play: Play) -> None:
    def clip(gradients: list[torch.Tensor], most: float) -> float:
        total = sum(float(g.abs().sum()) for g in gradients)
        factor = most / (total + 1)
        if factor < 1:
            for gradient in gradients:
                gradient.mul_(factor)
        return total

    f = play.jit(clip)
    for start in (0, 1, 5, 0, 9, 2):
        play(f, [whole(2, start=start), whole(3, start=start)], 15.0)


@program()
def an_average_follows_a_number(play: Play) -> None:
    class Average:
        value = 0.0

        def __init__(self) -> None:
            self.value = 0.0

        def update(self, x: torch.Tensor) -> torch.Tensor:
            self.value += 0.25 * float(x.max())
            return x - 1

    average = Average()
    f = play.jit(average.update)
    play.watch(average=average)
    for start in range(5):
        play(f, whole(3, start=start))


@program()
def a_record_is_logged_with_counts(play: Play) -> None:
    logger = logging.getLogger("conformance.scripts")

    def f(x: torch.Tensor) -> torch.Tensor:
        count = (x > 2).sum().item()
        logger.info("%d of %d, mean %.3f", count, x.numel(), x.sum().item() / x.numel())
        print("found", count, "share", count / x.numel())
        return x * count

    jitted = play.jit(f)
    for start in range(5):
        play(jitted, whole(4, start=start))


@program()
def a_history_of_numbers_grows(play: Play) -> None:
    history: list[Any] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        history.append(int(x.sum()))
        history.append((x.min().item(), x.max().item()))
        return x + 1

    jitted = play.jit(f)
    play.watch(history=history)
    for start in range(5):
        play(jitted, whole(3, start=start))


@program(traces=3)
def the_best_so_far_is_kept_in_a_local(play: Play) -> None:
    def f(rows: torch.Tensor) -> tuple[float, torch.Tensor]:
        best, at = float("-inf"), rows[0]
        for row in rows[:2]:
            score = row.sum().item()
            if score > best:
                best, at = score, row
        return best, at * 2

    jitted = play.jit(f)
    for values in ((1, 2), (2, 1), (5, 6), (7, 3), (1, 1)):
        play(jitted, torch.tensor(values, dtype=torch.float32)[:, None].expand(2, 3))


@program(traces=None)
def beams_are_kept_in_a_heap(play: Play) -> None:
    def search(scores: torch.Tensor) -> list[tuple[float, int]]:
        heap: list[tuple[float, int]] = []
        for token in range(scores.shape[0]):
            heapq.heappush(heap, (scores[token].item(), token))
            if len(heap) > 2:
                heapq.heappop(heap)
        return sorted(heap)

    f = play.jit(search)
    for values in ((1, 2, 3, 4), (4, 3, 2, 1), (1, 2, 3, 4), (4, 3, 2, 1)):
        play(f, torch.tensor(values, dtype=torch.float32))


@program(traces=None)
def tokens_are_chosen_greedily(play: Play) -> None:
    table = whole(5, 5) % 7

    def decode(token: torch.Tensor) -> tuple[list[int], float]:
        tokens, total = [], 0.0
        for _ in range(3):
            row = table[token]
            token = row.argmax()
            total += row.max().item()
            tokens.append(token.item())
        return tokens, total

    f = play.jit(decode)
    for start in (0, 1, 2, 3, 4, 0):
        play(f, torch.tensor(start))


@program(traces=2)
def a_loss_that_is_not_finite_is_skipped(play: Play) -> None:
    def f(loss: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        value = loss.item()
        if math.isnan(value) or math.isinf(value):
            return weight
        return weight - value / 4

    jitted = play.jit(f)
    for value in (1.0, 2.0, float("nan"), 3.0, float("nan"), -1.0):
        play(jitted, torch.tensor(value), whole(2))


@program(traces=4)
def a_loss_scale_adapts(play: Play) -> None:
    def f(x: torch.Tensor) -> tuple[torch.Tensor, float]:
        scale = 1024.0
        while (x * scale).max() > 4096:
            scale = scale / 2
        return x * scale, scale

    jitted = play.jit(f)
    for value in (1.0, 8.0, 64.0, 16.0, 512.0, 2.0, 32.0, 256.0, 128.0):
        play(jitted, torch.tensor([value, 0.5]))


@program()
def lengths_are_summed_and_averaged(play: Play) -> None:
    def f(mask: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, float, int]:
        lengths = [int(row.sum()) for row in mask]
        longest = lengths[0] * lengths[1]
        return x / (sum(lengths) + 1), sum(lengths) / len(lengths), longest

    jitted = play.jit(f)
    for start in range(5):
        play(jitted, whole(2, 4, start=start) % 3 > 0, whole(3))


@program(exact=False)
def temperature_comes_from_a_tensor(play: Play) -> None:
    class Sampler(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.tensor(2.0))

        def forward(self, logits: torch.Tensor) -> torch.Tensor:
            return torch.softmax(logits / float(self.temperature), -1) * int(self.temperature + 1)

    sampler = Sampler()
    f = play.jit(sampler)
    for value in (2.0, 2.0, 0.5, 4.0):
        sampler.temperature.fill_(value)
        play(f, whole(5))
