"""The first bad rewrite of a compile, by binary search over optimisation fuel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dsjit.passes.fuel import Fuel, Rewrite

__all__ = ["BadRewrite", "first_bad_rewrite", "search"]


@dataclass(frozen=True, slots=True)
class BadRewrite:
    """With `number` rewrites of `total` the answer is wrong, with one fewer it is right. rewrite: the last of them."""

    number: int
    total: int
    rewrite: Rewrite

    def __str__(self) -> str:
        return f"{self.number} of {self.total}: {self.rewrite}"


def first_bad_rewrite(is_wrong: Callable[[Fuel], bool]) -> BadRewrite | None:
    """is_wrong: compiles with so much fuel, and says whether the answer is wrong. None when it is right with all
    rewrites, or wrong with none."""
    whole = Fuel()
    if not is_wrong(whole) or is_wrong(Fuel(0)):
        return None
    total = len(whole.done)
    number = search(total, lambda limit: is_wrong(Fuel(limit)))
    last = Fuel(number)
    is_wrong(last)
    return BadRewrite(number, total, last.done[-1])


def search(total: int, is_wrong: Callable[[int], bool]) -> int:
    """The smallest limit up to `total` with which the answer is wrong, given that it is right with 0 and wrong with
    `total`; one of them, when there are several changes between right and wrong."""
    right, wrong = 0, total
    while wrong - right > 1:
        middle = (right + wrong) // 2
        if is_wrong(middle):
            wrong = middle
        else:
            right = middle
    return wrong
