"""The cut is a minimum one, and of these the nearest to the end."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dsjit.passes.minimum_cut import Network

VERTICES = 6
SOURCE, END = 0, 1


def network_of(edges):
    network = Network()
    for _ in range(VERTICES):
        network.vertex()
    for tail, head, capacity in edges:
        network.connect(tail, head, capacity)
    return network


def crossing(edges, behind):
    return sum(capacity for tail, head, capacity in edges if tail not in behind and head in behind)


def least_cuts(edges):
    """What is behind each minimum cut."""
    inner = [vertex for vertex in range(VERTICES) if vertex not in (SOURCE, END)]
    sets = [{END, *chosen} for count in range(len(inner) + 1) for chosen in combinations(inner, count)]
    least = min(crossing(edges, each) for each in sets)
    return [each for each in sets if crossing(edges, each) == least]


vertex = st.integers(0, VERTICES - 1)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(vertex, vertex, st.integers(0, 5)), max_size=16))
def test_no_cut_is_smaller_and_none_that_is_as_small_is_nearer_to_the_end(edges):
    behind = network_of(edges).behind_cut(SOURCE, END)
    cuts = least_cuts(edges)
    assert behind in cuts and all(behind <= each for each in cuts)


def test_flow_goes_back_where_a_longer_way_wants_the_edge():
    edges = [(0, 2, 1), (0, 3, 1), (2, 4, 1), (3, 4, 1), (2, 5, 1), (4, 1, 1), (5, 1, 1)]
    assert crossing(edges, network_of(edges).behind_cut(SOURCE, END)) == 2


def test_a_network_without_a_cut_is_refused():
    network = network_of([])
    network.connect(SOURCE, 2)
    network.connect(2, END)
    with pytest.raises(ValueError, match="something unlimited leads to its end"):
        network.behind_cut(SOURCE, END)
