"""Which operands overlap what an op writes, at other indices."""

from __future__ import annotations

import pytest
import torch

from dsjit.trace.recording.partial_overlap import lies_within, overlap_partially

X = torch.arange(48.0).reshape(6, 8)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (X, X),
        (X[:, 0], X[:, 1]),
        (X[..., ::2], X[..., 1::2]),
        (X[:, :4], X[:, 4:]),
        (X[:1], X[0]),
        (X[:0], X),
        (X[:2], X.view(torch.int32)[2:]),
        (X[:, ::2], X.view(torch.int16)[:, 2::4]),
    ],
)
def test_elements_that_are_apart_or_alike_are_no_matter(written, read) -> None:
    assert not overlap_partially(written, read)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (X, X[..., :1]),
        (X[:, 1:], X[:, :-1]),
        (X[:, :6], X[:, :6].t()),
        (X[..., ::2], X[0]),
        (X[:, ::2], X.view(torch.int16)[:, ::2]),
        (X.view(torch.float16), X),
    ],
)
def test_an_element_that_is_written_at_another_index_is_found(written, read) -> None:
    assert overlap_partially(written, read)


@pytest.mark.parametrize(
    ("part", "whole", "within"),
    [
        (X.as_strided((2, 3), (1, 1)), X, True),
        (X[1:], X, True),
        (X, X[1:], False),
        (X[:, ::4], X[:, ::2], True),
        (X[:, 1:3], X[:, ::2], False),
        (X[:0], X[3:], True),
    ],
)
def test_what_lies_in_gaps_or_beyond_is_not_within(part, whole, within: bool) -> None:
    assert lies_within(part, whole) is within
