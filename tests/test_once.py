"""What is made once is made once, though many threads ask for it first."""

from __future__ import annotations

import threading
import time

import pytest

from dsjit.once import once


def test_threads_that_come_together_get_the_same() -> None:
    made: list[object] = []

    @once
    def slow() -> object:
        time.sleep(0.02)
        made.append(object())
        return made[-1]

    found: list[object] = []
    threads = [threading.Thread(target=lambda: found.append(slow())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == made * 8


def test_each_choice_of_arguments_is_made_once() -> None:
    made: list[int] = []

    @once
    def double(number: int) -> int:
        made.append(number)
        return 2 * number

    assert [double(1), double(2), double(1)] == [2, 4, 2]
    assert made == [1, 2]


def test_what_failed_is_tried_again() -> None:
    answers = iter([ValueError("not yet"), 1])

    @once
    def second() -> int:
        answer = next(answers)
        if isinstance(answer, ValueError):
            raise answer
        return answer

    with pytest.raises(ValueError, match="not yet"):
        second()
    assert second() == 1
