"""The journal keeps what is told, in order, with copies of what may change; and leaves everything as it was."""

from __future__ import annotations

import builtins
import io
import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any

import pytest
import torch

from dsjit.trace.effects.events import Logged, Printed, Warned, Written
from dsjit.trace.effects.journal import Journal
from dsjit.trace.reads.paths import Asked

LOGGER = logging.getLogger("dsjit.test.journal")


class Watcher:
    """Stands for the Observer."""

    def __init__(self) -> None:
        self.refused: list[str] = []
        self.asked: list[str] = []
        self.watching = True

    def undisturbed(self) -> AbstractContextManager[None]:
        @contextmanager
        def quiet() -> Iterator[None]:
            before, self.watching = self.watching, False
            yield
            self.watching = before

        return quiet()

    def is_watching(self) -> bool:
        return self.watching

    def existed(self, obj: object) -> bool:
        return False

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)

    def note_answer(self, owner: Any, label: str, step: Asked) -> None:
        self.asked.append(f"{label}.{step.name}: {step.get(owner)}")


def kept(told: Any) -> tuple[Journal, Watcher]:
    watcher = Watcher()
    journal = Journal(watcher, lambda number: None)
    with journal:
        told()
    return journal, watcher


def test_everything_is_kept_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    def told() -> None:
        print("a", 1, sep="-")
        sys.stdout.write("b\n")
        LOGGER.warning("c %d", 2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.warn("d", stacklevel=1)

    journal, watcher = kept(told)
    assert [type(event) for event, _ in journal.events] == [Printed, Written, Logged, Warned]
    assert [values for _, values in journal.events[:3]] == [["a", 1], ["b\n"], ["c %d", (2,), None]]
    assert capsys.readouterr().out == "a-1\nb\n"
    assert watcher.refused == [] and watcher.asked == ["warnings.raises: False"]


def test_containers_and_tensors_are_copied_and_other_objects_are_text() -> None:
    items, tensor = [1], torch.zeros(2)

    def told() -> None:
        print(items, tensor, {1, 2})
        items.append(2)
        tensor.add_(1)

    ((_, values),) = kept(told)[0].events
    assert values[0] == [1] and torch.equal(values[1], torch.zeros(2)) and values[2] == "{1, 2}"


class Own(io.StringIO):
    def write(self, text: str) -> int:
        return super().write(text.upper())


def test_streams_that_run_code_of_the_users_are_refused() -> None:
    own = Own()
    with redirect_stdout(own):
        journal, watcher = kept(lambda: print("x"))
    assert (journal.events, watcher.refused, own.getvalue()) == ([], ["prints to a Own"], "X\n")


def test_text_in_a_stream_made_by_the_call_is_no_effect() -> None:
    stream = io.StringIO()
    journal, watcher = kept(lambda: print("x", file=stream))
    assert (journal.events, watcher.refused, stream.getvalue()) == ([], [], "x\n")


def test_logged_exceptions_are_refused() -> None:
    def told() -> None:
        try:
            raise ValueError
        except ValueError:
            LOGGER.exception("failed")

    assert kept(told)[1].refused == ["logs an exception or a stack"]


def test_other_threads_are_not_kept() -> None:
    def told() -> None:
        thread = threading.Thread(target=lambda: print("elsewhere"))
        thread.start()
        thread.join()

    assert kept(told)[0].events == []


def test_stand_ins_of_two_threads_leave_nothing_behind() -> None:
    before = (builtins.print, sys.stdout, warnings.warn, logging.Logger.handle)
    entered, left = threading.Event(), threading.Event()

    def other() -> None:
        def wait() -> None:
            entered.set()
            left.wait(10)

        kept(wait)

    thread = threading.Thread(target=other)

    def told() -> None:
        thread.start()
        entered.wait(10)

    kept(told)
    left.set()
    thread.join()
    assert (builtins.print, sys.stdout, warnings.warn, logging.Logger.handle) == before
