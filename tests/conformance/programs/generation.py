"""What people write around text: caches of keys and values, samplers, padded and packed sequences."""

from __future__ import annotations

import torch
from torch import nn

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=2)
def a_cache_of_fixed_size_is_filled(play: Play) -> None:
    class Cache(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("keys", torch.zeros(1, 8, 2))
            self.register_buffer("end", torch.tensor(0))

        def forward(self, key: torch.Tensor) -> torch.Tensor:
            self.keys.index_copy_(1, self.end + torch.arange(key.shape[1]), key)
            self.end += key.shape[1]
            return self.keys * (torch.arange(8)[None, :, None] < self.end)

    f = play.jit(Cache())
    for start in range(5):
        play(f, whole(1, 1, 2, start=start))


@program(traces=4)
def a_cache_in_a_list_of_pairs_grows(play: Play) -> None:
    class Layer:
        def __init__(self) -> None:
            self.past: tuple[torch.Tensor, torch.Tensor] | None = None

        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            keys, values = x + 1, x * 2
            if self.past is not None:
                keys, values = torch.cat([self.past[0], keys], 1), torch.cat([self.past[1], values], 1)
            self.past = keys, values
            return (keys * values).sum(1)

    layers = [Layer(), Layer()]

    def run(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            x = layer(x)[:, None]
        return x

    f = play.jit(run)
    play.watch(layers=layers)
    for start in range(7):
        play(f, whole(2, 1, 3, start=start) % 3)


@program()
def a_window_of_the_last_keys_slides(play: Play) -> None:
    window = torch.zeros(1, 4, 2)

    def push(key: torch.Tensor) -> torch.Tensor:
        window.copy_(torch.cat([window[:, 1:], key], 1))
        return window.sum(1)

    f = play.jit(push)
    play.watch(window=window)
    for start in range(5):
        play(f, whole(1, 1, 2, start=start))


@program(exact=False)
def tokens_are_drawn_from_the_best_ones(play: Play) -> None:
    def sample(logits: torch.Tensor, temperature: float, k: int) -> torch.Tensor:
        values, indices = (logits / temperature).topk(k)
        return indices.gather(-1, torch.multinomial(values.softmax(-1), 1))

    f = play.jit(sample)
    for start in range(4):
        play(f, whole(2, 9, start=start), 0.5, 3)


@program(exact=False)
def tokens_are_drawn_from_the_nucleus(play: Play) -> None:
    def sample(logits: torch.Tensor, p: float, generator: torch.Generator) -> torch.Tensor:
        ordered, indices = logits.sort(descending=True)
        chances = ordered.softmax(-1)
        ordered[chances.cumsum(-1) - chances > p] = -torch.inf
        return indices.gather(-1, torch.multinomial(ordered.softmax(-1), 1, generator=generator))

    f, generator = play.jit(sample), torch.Generator().manual_seed(3)
    play.watch(generator=generator)
    for start in range(4):
        play(f, whole(2, 9, start=start) / 4, 0.75, generator)


@program(traces=2)
def repeated_tokens_are_made_less_likely(play: Play) -> None:
    def penalize(logits: torch.Tensor, seen: torch.Tensor, penalty: float) -> torch.Tensor:
        scores = logits.gather(1, seen)
        return logits.scatter(1, seen, torch.where(scores < 0, scores * penalty, scores / penalty))

    f = play.jit(penalize)
    for width in (3, 4, 5, 6):
        play(f, whole(2, 8, start=-6), torch.arange(2 * width).view(2, width) % 8, 2.0)


@program(traces=3)
def generation_stops_when_every_row_has_ended(play: Play) -> None:
    def advance(tokens: torch.Tensor, ended: torch.Tensor, end: int) -> tuple[torch.Tensor, bool]:
        ended |= tokens == end
        return tokens.masked_fill(ended, end), bool(ended.all())

    f, ended = play.jit(advance), torch.zeros(3, dtype=torch.bool)
    for tokens in ((1, 2, 3), (0, 2, 3), (1, 0, 2), (1, 2, 0), (1, 1, 1)):
        play(f, torch.tensor(tokens), ended, 0)


@program(traces=2, exact=False)
def padded_batches_are_pooled(play: Play) -> None:
    def pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        weights = mask.unsqueeze(-1).to(states.dtype)
        return (states * weights).sum(1) / weights.sum(1).clamp(min=1)

    f = play.jit(pool)
    for length in (3, 5, 7, 4):
        play(f, whole(2, length, 4), torch.arange(length)[None] < torch.tensor([[2], [3]]))


@program(traces=3)
def sequences_of_several_lengths_are_packed(play: Play) -> None:
    def pack(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        batch = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
        return batch, torch.tensor([len(row) for row in rows])

    f = play.jit(pack)
    for lengths in ((2, 3), (2, 3), (4, 2), (2, 3)):
        play(f, [whole(length) for length in lengths])
