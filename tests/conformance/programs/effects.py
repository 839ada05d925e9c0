"""Effects on Python: attributes, containers, counters, caches, printed and logged text, in eager's order."""

from __future__ import annotations

import collections
import functools
import io
import itertools
import logging
import sys
import warnings
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache

from tests.conformance.harness import Play, program
from tests.conformance.tensors import whole


@program(traces=2)
def an_attribute_counts_calls(play: Play) -> None:
    class Net(nn.Module):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return x + 1

    net = play.jit(Net())
    for _ in range(5):
        play(net, whole(3))


@program(traces=3)
def a_counter_decides_what_is_computed(play: Play) -> None:
    state = SimpleNamespace(calls=0)

    def f(x: torch.Tensor) -> torch.Tensor:
        state.calls += 1
        return x * 2 if state.calls % 2 else x - 1

    jitted = play.jit(f)
    for _ in range(7):
        play(jitted, whole(3))


@program(traces=2)
def globals_and_cells_are_assigned(play: Play) -> None:
    global CALLS
    calls = CALLS = 0

    def f(x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        global CALLS
        calls, CALLS = calls + 1, CALLS + 10
        return x + 1

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(3))
    play.note("seen outside", (calls, CALLS))
    play(jitted, whole(3))


@program(traces=2)
def a_list_grows_by_every_result(play: Play) -> None:
    history: list[torch.Tensor] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        history.append(y)
        return y + 1

    jitted = play.jit(f)
    for start in range(5):
        play(jitted, whole(2, start=start))


@program(traces=4)
def dictionaries_sets_and_deques_are_updated(play: Play) -> None:
    totals: dict[str, Any] = {"n": 0}
    names: set[str] = set()
    recent: collections.deque[Any] = collections.deque(maxlen=2)
    groups: collections.defaultdict[str, list[int]] = collections.defaultdict(list)

    def f(x: torch.Tensor, name: str) -> torch.Tensor:
        totals[name] = x.sum()
        totals.pop("stale", None)
        totals.update(n=totals["n"] + 1, last=name)
        names.add(name)
        recent.append(x)
        groups[name].append(x.shape[0])
        return x + 1

    jitted = play.jit(f)
    for name in ("a", "b", "a", "a"):
        totals["stale"] = True
        play(jitted, whole(2), name)


@program(traces=2)
def a_container_is_emptied_sorted_and_sliced(play: Play) -> None:
    queue: list[Any] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        total = x
        while queue:
            total = total * queue.pop()
        queue.extend([3, 1, 2])
        queue.sort()
        queue[1:2] = [5, 5]
        del queue[0]
        return total

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(2))


@program(traces=2)
def the_last_result_is_kept_for_the_next_call(play: Play) -> None:
    class Net:
        def __init__(self) -> None:
            self.last: torch.Tensor | None = None

        def step(self, x: torch.Tensor) -> torch.Tensor:
            mixed = x if self.last is None else x + self.last
            self.last = mixed * 2
            return mixed

    net = Net()
    f = play.jit(net.step)
    for start in (1, 2, 3, 4, 5):
        play(f, whole(2, start=start))


@program(traces=2)
def a_table_remembers_what_was_computed(play: Play) -> None:
    memo: dict[int, torch.Tensor] = {}

    def f(x: torch.Tensor, n: int) -> torch.Tensor:
        if n not in memo:
            memo[n] = torch.arange(n) * 2.0
        return x[:n] + memo[n]

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(4), 3)
    memo[3].add_(100)
    play(jitted, whole(4), 3)
    memo.clear()
    play(jitted, whole(4), 3)
    play(jitted, whole(4), 3)


@program(traces=4)
def a_function_with_a_cache_is_called(play: Play) -> None:
    @functools.cache
    def scale(width: int) -> float:
        return width * 0.5

    f = play.jit(lambda x: x * scale(x.shape[0]))
    for width in (2, 2, 4, 4, 2):
        play(f, whole(width))
    scale.cache_clear()
    play(f, whole(2))


@program(traces=2)
def a_cached_property_is_computed_once(play: Play) -> None:
    class Net:
        @functools.cached_property
        def table(self) -> torch.Tensor:
            return torch.arange(3.0) * 2

    net = Net()
    f = play.jit(lambda x: x + net.table)
    for _ in range(3):
        play(f, whole(3))
    net.table = whole(3)
    play(f, whole(3))
    del net.table
    play(f, whole(3))


@program()
def text_is_printed_in_order_with_real_values(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        print("start", tuple(x.shape), end="; ")
        y = x * 2
        print(f"sum {y.sum().item()}", "of", y.tolist(), sep="|")
        print("to standard error", file=sys.stderr)
        sys.stdout.write("done\n")
        return y

    jitted = play.jit(f)
    for start in (1, 1, 5, -2):
        play(jitted, whole(2, start=start))


@program()
def a_tensor_itself_is_printed(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        print(x * 2, f"{x.sum():.2f}", x.dtype)
        return x + 1

    jitted = play.jit(f)
    for start in (1, 1, 5, -2):
        play(jitted, whole(2, start=start))


@program()
def text_is_printed_into_a_buffer_of_the_program(play: Play) -> None:
    buffer = io.StringIO()

    def f(x: torch.Tensor) -> torch.Tensor:
        print("call", x.shape[0], file=buffer)
        return x + 1

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(2))


@program(traces=2)
def records_are_logged_at_the_level_that_is_set(play: Play) -> None:
    logger = logging.getLogger("conformance.effects")

    def f(x: torch.Tensor) -> torch.Tensor:
        logger.debug("shape %s", tuple(x.shape))
        logger.warning("first %d of %d", x[0].item(), len(x))
        logging.getLogger("conformance").info("plain")
        return x + 1

    jitted = play.jit(f)
    try:
        for start in (1, 1, 4):
            play(jitted, whole(2, start=start))
        logger.setLevel(logging.ERROR)
        play(jitted, whole(2))
        play(jitted, whole(2))
    finally:
        logger.setLevel(logging.NOTSET)


@program()
def warnings_are_given_on_each_call(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("old spelling", DeprecationWarning, stacklevel=1)
        warnings.warn(f"width {x.shape[0]}", stacklevel=2)
        return x + 1

    jitted = play.jit(f)
    for _ in range(3):
        play(jitted, whole(2))


@program()
def warnings_once_per_place_are_given_once(play: Play) -> None:
    def f(x: torch.Tensor) -> torch.Tensor:
        warnings.warn("only once", RuntimeWarning, stacklevel=1)
        return x + 1

    jitted = play.jit(f)
    warnings.simplefilter("default")
    play(jitted, whole(2))
    play(jitted, whole(2))
    warnings.simplefilter("error")
    play(jitted, whole(2))
    warnings.simplefilter("always")
    play(jitted, whole(2))


@program(traces=3)
def a_callback_runs_on_each_call(play: Play) -> None:
    seen: list[Any] = []
    callbacks = [lambda y: seen.append(("sum", y.sum().item()))]

    def f(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        for callback in callbacks:
            callback(y)
        return y

    jitted = play.jit(f)
    for start in (1, 2, 3):
        play(jitted, whole(2, start=start))
    callbacks.append(lambda y: print("second", y[0].item()))
    for start in (4, 5):
        play(jitted, whole(2, start=start))


@program(compiled=False)
def iterators_advance(play: Play) -> None:
    numbers, letters = itertools.count(5), iter("abcdefgh")
    squares = (n * n for n in range(100))

    def f(x: torch.Tensor) -> tuple[str, torch.Tensor]:
        return next(letters), x * next(numbers) + next(squares)

    jitted = play.jit(f)
    for _ in range(5):
        play(jitted, whole(2))
    play.note("left", (next(numbers), next(letters), next(squares)))
    play(jitted, whole(2))


@program(traces=2)
def attributes_are_added_and_deleted(play: Play) -> None:
    box: Any = SimpleNamespace(scratch=1)

    def f(x: torch.Tensor) -> torch.Tensor:
        box.scratch = x * 2
        y = box.scratch + 1
        del box.scratch
        box.shape = x.shape
        setattr(box, f"width_{x.shape[0]}", True)
        return y

    jitted = play.jit(f)
    for _ in range(4):
        play(jitted, whole(2))


@program(traces=2)
def effects_stand_between_mutations(play: Play) -> None:
    log: list[Any] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        log.append(x.clone())
        x += 1
        log.append(x)
        log.append(x.sum())
        print(x[0].item())
        x *= 2
        return log[-2]

    jitted = play.jit(f)
    for start in (1, 2, 3):
        play(jitted, whole(2, start=start))


@program(traces=2)
def objects_are_made_and_kept(play: Play) -> None:
    class Record:
        def __init__(self, value: torch.Tensor, previous: Any) -> None:
            self.value, self.previous = value, previous

    chain = SimpleNamespace(head=None, all=[])

    def f(x: torch.Tensor) -> Record:
        record = Record(x + 1, chain.head)
        chain.head = record
        chain.all.append(record)
        return record

    jitted = play.jit(f)
    for start in range(5):
        play(jitted, whole(2, start=start))


@program(traces=3)
def a_key_value_cache_grows_over_a_decode(play: Play) -> None:
    def step(cache: DynamicCache, k: torch.Tensor) -> tuple[torch.Tensor, int]:
        keys, values = cache.update(k, k + 1, 0)
        return (keys * values).sum(-1), cache.get_seq_length()

    jitted, cache = play.jit(step), DynamicCache()
    for start in range(8):
        play(jitted, cache, whole(1, 2, 1, 2, start=start))


@program(traces=3, exact=False)
def a_language_model_decodes_with_its_cache(play: Play) -> None:
    config = GPT2Config(n_layer=2, n_embd=16, n_head=2, vocab_size=32, n_positions=32, bos_token_id=0, eos_token_id=0)
    model = play.jit(GPT2LMHeadModel(config).eval())
    cache = DynamicCache(config=config)
    tokens = torch.tensor([[1, 2, 3]])
    for _ in range(6):
        out = play(model, tokens, past_key_values=cache, use_cache=True)
        tokens = out.logits[:, -1:].argmax(-1)


@program(traces=2)
def an_effect_happens_on_one_branch_only(play: Play) -> None:
    alarms: list[float] = []

    def f(x: torch.Tensor) -> torch.Tensor:
        if x.max() > 10:
            alarms.append(x.max().item())
            print("high")
            return x.clamp(max=10)
        return x

    jitted = play.jit(f)
    for start in (1, 20, 1, 30, 40, 1):
        play(jitted, whole(2, start=start))


@program(traces=2)
def the_class_counts_its_instances(play: Play) -> None:
    class Token:
        made = 0

        def __init__(self, value: torch.Tensor) -> None:
            Token.made += 1
            self.value = value

    f = play.jit(lambda x: Token(x).value + Token.made)
    for _ in range(4):
        play(f, whole(2))
