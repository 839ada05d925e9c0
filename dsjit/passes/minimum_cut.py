"""Minimum cuts of networks with integer capacities.

By blocking flows along shortest ways (Dinic, "Algorithm for solution of a problem of maximum flow in networks with
power estimation", 1970).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

__all__ = ["UNLIMITED", "Network"]

UNLIMITED: Final = 2**100
"""The capacity of an edge that no minimum cut crosses: more than all others together."""


@dataclass(frozen=True, slots=True)
class Network:
    """Vertices are numbers. edges: of each vertex, by number; edge 2n leads on, and 2n + 1 back. heads, capacities: of
    each edge. What flows through an edge is taken from its capacity, and added to that of the one back."""

    edges: list[list[int]] = field(default_factory=list)
    heads: list[int] = field(default_factory=list)
    capacities: list[int] = field(default_factory=list)

    def vertex(self) -> int:
        """A new one."""
        self.edges.append([])
        return len(self.edges) - 1

    def connect(self, tail: int, head: int, capacity: int = UNLIMITED) -> None:
        """With an edge."""
        self.edges[tail].append(len(self.heads))
        self.edges[head].append(len(self.heads) + 1)
        self.heads.extend((head, tail))
        self.capacities.extend((capacity, 0))

    def behind_cut(self, source: int, end: int) -> set[int]:
        """The vertices behind the minimum cut that is nearest to `end`, which is one of them. The network is then full.

        Time: vertices^2 * edges at worst; nearly linear where ways are short and seldom share edges.

        Raises ValueError when something unlimited leads from `source` to `end`.
        """
        while True:
            distances = self._distances(end)
            if distances[source] < 0:
                return {vertex for vertex, distance in enumerate(distances) if distance >= 0}
            self._fill(source, end, distances)

    def _distances(self, end: int) -> list[int]:
        """From each vertex to the end, along edges with some capacity left; -1 where there is no way."""
        found = [-1] * len(self.edges)
        found[end] = 0
        row = [end]
        while row:
            before: list[int] = []
            for vertex in row:
                for edge in self.edges[vertex]:
                    tail = self.heads[edge]
                    if found[tail] < 0 and self.capacities[edge ^ 1] > 0:
                        found[tail] = found[vertex] + 1
                        before.append(tail)
            row = before
        return found

    def _fill(self, source: int, end: int, distances: list[int]) -> None:
        """All shortest ways, until each has an edge that is full."""
        edges, heads, capacities = self.edges, self.heads, self.capacities
        tried = [0] * len(edges)
        way: list[int] = []
        vertex = source
        while True:
            if vertex == end:
                amount = min([capacities[edge] for edge in way])
                if amount >= UNLIMITED:
                    raise ValueError("a network without a cut: something unlimited leads to its end")
                for edge in way:
                    capacities[edge] -= amount
                    capacities[edge ^ 1] += amount
                full = next(place for place, edge in enumerate(way) if capacities[edge] == 0)
                vertex = heads[way[full] ^ 1]
                del way[full:]
                continue
            own = edges[vertex]
            while tried[vertex] < len(own):
                edge = own[tried[vertex]]
                if capacities[edge] > 0 and distances[heads[edge]] == distances[vertex] - 1:
                    way.append(edge)
                    vertex = heads[edge]
                    break
                tried[vertex] += 1
            else:
                if not way:
                    return
                vertex = heads[way.pop() ^ 1]
                tried[vertex] += 1
