"""Intervals: known properties, and that they are not too narrow."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wp1.analysis.base.aggregates import wilson
from wp1.quality import scoring


def test_wilson_by_hand() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    low, high = wilson(0, 10)
    assert low == 0.0
    assert high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(0, 50), st.integers(1, 50))
def test_wilson_holds_the_share_and_mirrors(right: int, n: int) -> None:
    right = min(right, n)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n <= high <= 1
    assert wilson(n - right, n) == pytest.approx((1 - high, 1 - low))


@settings(deadline=None)  # the first example imports scipy
@given(st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_task_s_interval_holds_its_mean(values: list[float]) -> None:
    score = scoring.of_task(values)
    assert score["n"] == len(values)
    assert score["low"] - 1e-3 <= score["mean"] <= score["high"] + 1e-3


def test_ten_right_of_ten_is_not_certainty() -> None:
    assert scoring.of_task([1.0] * 10)["low"] < 75
    assert scoring.of_task([])["mean"] is None


def test_an_example_that_is_asked_again_counts_once() -> None:
    values = [1.0] * 14 + [0.0] * 6
    assert scoring.of_task(values * 3, list(range(20)) * 3) == scoring.of_task(values)
    assert scoring.of_task([1.0, 0.0], ["a", "a"])["n"] == 1


def test_part_marks_that_hardly_vary_are_no_certainty() -> None:
    """Nineteen full marks and nine tenths are about as much as twenty full marks, which are not the truth either."""
    assert scoring.of_task([1.0] * 19 + [0.9])["low"] < 85
    assert scoring.of_task([1.0] * 20)["high"] - scoring.of_task([1.0] * 20)["low"] > 15


@pytest.mark.parametrize("marks", [(2.0, 5.0), (0.5, 0.5), (3.0, 1.0)])
def test_part_marks_are_covered_as_often_as_it_says(marks: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    truth = 100 * marks[0] / sum(marks)
    found = [scoring.of_task(rng.beta(*marks, 20).tolist()) for _ in range(300)]
    assert 0.91 <= np.mean([row["low"] <= truth <= row["high"] for row in found]) <= 1.0


def test_wilson_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    right = rng.binomial(20, 0.3, 2000)
    bounds = [wilson(int(n), 20) for n in right]
    assert 0.92 < np.mean([low <= 0.3 <= high for low, high in bounds]) < 0.99


def test_one_answer_with_part_marks_says_nothing() -> None:
    score = scoring.of_task([0.5])
    assert score["high"] - score["low"] > 80


def test_an_overall_interval_is_no_wider_than_its_tasks_and_no_narrower_than_it_may() -> None:
    one = scoring.of_task([1.0] * 6 + [0.0] * 6)
    four = scoring.mean_of({name: [1.0] * 6 + [0.0] * 6 for name in "abcd"})
    assert scoring.mean_of({"a": [1.0] * 6 + [0.0] * 6})["low"] == one["low"]
    assert four["high"] - four["low"] == pytest.approx((one["high"] - one["low"]) / 2, rel=1e-3)
    none = scoring.mean_of({name: [0.0] for name in "abcd"})
    assert (none["mean"], none["low"]) == (0.0, 0.0)
    assert none["high"] > 30


def test_the_overall_score_is_of_categories_where_there_are_any() -> None:
    groups = {"a": [1.0, 1.0], "b": [0.0, 0.0], "c": [0.5, 0.5], "empty": []}
    assert scoring.mean_of(groups)["mean"] == 50.0
    found = scoring.mean_of(groups, {"a": "x", "b": "x", "c": "y"})
    assert found["mean"] == 50.0
    assert scoring.mean_of(groups, {"a": "x", "b": "y", "c": "y"})["mean"] == 62.5
    assert (found["n"], found["tasks"]) == (6, 3)
    assert scoring.mean_of({})["mean"] is None
