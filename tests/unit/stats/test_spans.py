"""Unions of intervals of time, worked out by hand."""

import numpy as np
import pytest

from wp1.stats import spans


@pytest.mark.parametrize(
    ("intervals", "seconds"),
    [([], 0), ([(0, 2)], 2), ([(0, 2), (1, 3)], 3), ([(0, 9), (1, 2)], 9), ([(5, 6), (0, 1)], 2)],
)
def test_what_goes_on_side_by_side_counts_once(intervals: list[tuple[float, float]], seconds: float) -> None:
    assert spans.length(spans.merged([np.array(intervals, dtype=float).reshape(-1, 2)])) == seconds


def test_unions_by_hand() -> None:
    union = spans.merged([np.array([[3.0, 4.0], [0.0, 1.0]]), np.array([[0.5, 2.0], [4.0, 5.0]])])
    assert union.tolist() == [[0, 2], [3, 5]]
    assert spans.length(union) == 4
    assert spans.overlap(union, np.array([[1.0, 3.5]])) == 1.5
    assert spans.overlap(union, np.empty((0, 2))) == 0
    assert spans.inside(np.array([-1, 0, 2, 2.5, 3, 6]), union).tolist() == [False, True, True, False, True, False]
    assert spans.inside(np.array([1.0]), np.empty((0, 2))).tolist() == [False]
