"""Patterns of a scale through reshapes and concatenations, against moving the full index tensor."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stripefold.graph.patterns import concatenated, index_along, pattern_along, regrouped, varies

SIZES = st.lists(st.sampled_from([1, 2, 3, 4]), min_size=1, max_size=4)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], int]:
    """A shape, another one with as many elements, an axis of the first."""
    before = tuple(draw(SIZES))
    after, left = [], math.prod(before)
    while left > 1:
        size = draw(st.sampled_from([d for d in range(2, left + 1) if left % d == 0]))
        after.append(size)
        left //= size
    for _ in range(draw(st.integers(0, 2))):
        after.insert(draw(st.integers(0, len(after))), 1)
    return before, tuple(after), draw(st.integers(0, len(before) - 1))


@given(reshapes())
def test_a_reshape_moves_the_pattern_as_it_moves_the_elements(
    case: tuple[tuple[int, ...], tuple[int, ...], int],
) -> None:
    before, after, axis = case
    pattern = pattern_along(before, axis)
    moved = regrouped(pattern, before, after)
    assert moved.dim() == len(after)
    assert torch.equal(moved.expand(after), pattern.expand(before).reshape(after))
    assert torch.equal(regrouped(moved, after, before).expand(before), pattern.expand(before))


def test_what_does_not_vary_stays_small() -> None:
    assert regrouped(pattern_along((2, 6, 4, 4), 1), (2, 6, 4, 4), (2, 6, 16)).shape == (1, 6, 1)
    assert regrouped(pattern_along((2, 6, 4, 4), 1), (2, 6, 4, 4), (2, 96)).shape == (1, 96)


def test_sizes_that_do_not_fit_are_an_error() -> None:
    with pytest.raises(ValueError, match="does not reshape"):
        regrouped(pattern_along((2, 3), 1), (2, 3), (2, 4))


def test_a_concatenation_marks_what_is_not_scaled() -> None:
    shapes = [(2, 3, 4, 4), (2, 2, 4, 4)]
    pattern = concatenated([pattern_along(shapes[0], 1), None], shapes, 1)
    assert index_along(pattern, (2, 5, 4, 4), 1) == (0, 1, 2, -1, -1)
    assert not varies(pattern, [0, 2, 3])


def test_a_concatenation_along_another_axis_keeps_the_channels() -> None:
    shapes = [(2, 3, 4, 4), (2, 3, 2, 4)]
    both = concatenated([pattern_along(shapes[0], 1), pattern_along(shapes[1], 1)], shapes, 2)
    assert index_along(both, (2, 3, 6, 4), 1) == (0, 1, 2)
    one = concatenated([pattern_along(shapes[0], 1), None], shapes, 2)
    assert index_along(one, (2, 3, 6, 4), 1) is None  # scaled in some rows only
