"""Which bounds of an index are compared with sizes."""

from __future__ import annotations

import pytest
import torch

from dsjit.trace.shapes.lockstep import _bounds_of_slices

MASK = torch.ones(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("index", "found"),
    [
        (slice(None, 12), [(0, 0, 12)]),
        ((slice(None), slice(0, 12)), [(1, 0, 12)]),
        ((..., slice(None, 12)), [(3, 0, 12)]),
        ((None, slice(3, 12), None, slice(None, 4, 1)), [(0, 3, 12), (1, 0, 4)]),
        ((MASK, slice(None, 4)), [(2, 0, 4)]),
        (([0, 1], torch.tensor([1]), slice(None, 4)), [(2, 0, 4)]),
        ((0, True, slice(None, 4)), [(1, 0, 4)]),
        (slice(None, 12, 2), []),
        (slice(3, None), []),
        (slice(None, torch.tensor(4)), []),
        (MASK, []),
    ],
    ids=str,
)
def test_bounds_are_found_at_their_dimension(index, found):
    assert list(_bounds_of_slices(4, index)) == found
