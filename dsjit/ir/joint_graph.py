"""The forward and the backward of one function in a single Graph, before they are cut apart."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

from dsjit.ir.graph import Graph

__all__ = ["JointGraph"]


@dataclass(frozen=True, slots=True, eq=False)
class JointGraph:
    """graph: from the function's inputs, and gradients of its results, to its results and the gradients of its inputs.

    Inputs: `primals` tensors of the caller, then one gradient for each of `differentiated` (numbers of results).
    Outputs: `results` tensors, then gradients. gradients: for each primal, the number among those, or None;
    shapes: and the shape to which it is expanded.
    keepable: numbers of the primals, and of the results, that eager keeps for its backward. Only these may be kept
        here, too: the caller may write to the others before the backward runs.
    """

    graph: Graph
    primals: int
    results: int
    differentiated: tuple[int, ...]
    gradients: tuple[int | None, ...]
    shapes: tuple[tuple[int, ...] | None, ...]
    keepable_primals: frozenset[int]
    keepable_results: frozenset[int]

    @property
    def key(self) -> Hashable:
        """All but the Graph."""
        return (
            self.primals, self.results, self.differentiated, self.gradients, self.shapes,
            self.keepable_primals, self.keepable_results,
        )  # fmt: skip
