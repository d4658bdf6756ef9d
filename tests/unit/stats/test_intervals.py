"""The estimator compared with known results, and its calibration: how often it claims that equal arms differ."""

import math

import numpy as np
import pytest

from tests.bench import calibration
from tests.bench.calibration import Design
from wp1.stats import intervals
from wp1.stats.intervals import Parts

# Trials per design, and how far their rate may be from 5 % by chance: two and a half standard errors.
TRIALS = 500
CHANCE = 2.5 * math.sqrt(0.05 * 0.95 / TRIALS)
DESIGNS = (
    Design(3, 4), Design(3, 4, 0.05), Design(3, 30, 0.05), Design(6, 30), Design(10, 4, 0.05), Design(10, 30, 0.05),
    Design(3, 1000, 0.05), Design(4, 60, 0.05, 0.8),
)  # fmt: skip


@pytest.mark.parametrize("statistic", ["mean", "p50", "p95", "rate"])
def test_equal_arms_differ_significantly_once_in_twenty_times(statistic: str) -> None:
    """3 to 10 repeats of 4 to 1,000 requests, with and without repeats that differ as a whole: 2 to 7 % each."""
    found = [calibration.claimed(design, statistic, TRIALS, seed) for seed, design in enumerate(DESIGNS)]
    for design, share in zip(DESIGNS, found, strict=True):
        assert 0.02 - CHANCE / 2 <= share <= 0.07 + CHANCE / 2, (design, share)
    assert 0.03 <= np.mean(found) <= 0.06


def test_equal_shares_differ_significantly_no_more_often() -> None:
    """Few requests are near a limit, and a share changes in steps: mostly it cannot differ by enough."""
    few = [calibration.claimed(design, "attainment", 200, seed) for seed, design in enumerate(DESIGNS[:6])]
    assert max(few) <= 0.07
    many = calibration.claimed(Design(3, 1000, 0.05), "attainment", TRIALS)
    assert 0.02 - CHANCE / 2 <= many <= 0.07 + CHANCE / 2


@pytest.mark.parametrize("design", [Design(1, 6), Design(1, 30), Design(1, 200, 0.0, 0.5), Design(2, 20)])
def test_one_repeat_is_judged_by_its_requests_which_may_be_correlated(design: Design) -> None:
    share = calibration.claimed(design, "mean", TRIALS)
    assert 0.02 - CHANCE / 2 <= share <= 0.07 + CHANCE / 2


def test_with_many_cells_a_false_difference_appears_once_in_twenty_comparisons() -> None:
    assert calibration.anything_shown(Design(5, 30, 0.05), 300) <= 0.07


@pytest.mark.parametrize("design", [Design(3, 30), Design(3, 30, 0.05), Design(8, 30, 0.05), Design(1, 40)])
def test_an_interval_of_one_arm_covers_the_truth(design: Design) -> None:
    for statistic in ("mean", "p50"):
        assert 0.91 <= calibration.covered(design, statistic, 300) <= 1.0


def test_a_percentile_is_covered_too_with_enough_values() -> None:
    assert 0.92 <= calibration.covered(Design(4, 60, 0.05), "p95", 300) <= 1.0
    assert intervals.around_percentile(Parts(1.0, np.ones(3)), np.ones(71), "p95") is None
    assert intervals.around_percentile(Parts(1.0, np.ones(3)), np.ones(72), "p95") is not None


def test_student_by_hand() -> None:
    """Three repeats of 10, 20 and 30: 20 ± 4.303 · 10 / sqrt(3)."""
    found = intervals.around(Parts(20.0, np.array([10.0, 20.0, 30.0])))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(20 - 24.84, abs=0.01), pytest.approx(20 + 24.84, abs=0.01))
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    cut = intervals.around(Parts(20.0, np.array([10.0, 20.0, 30.0])), not_negative=True)
    assert cut is not None and cut.low == 0
    assert intervals.around(Parts(20.0, np.array([20.0, np.nan]))) is None


def test_a_ratio_counts_parts_by_their_size() -> None:
    """100 tokens in 10 s and 30 in 1 s are 130 in 11 s, not the mean of 10 and 30 per second."""
    parts = intervals.of_ratio(np.array([100.0, 30.0]), np.array([10.0, 1.0]))
    assert parts.value == pytest.approx(130 / 11)
    assert parts.of_part.mean() == pytest.approx(parts.value)


def test_equal_shares_have_an_interval_with_a_width() -> None:
    same = intervals.of_shares(intervals.around(Parts(0.0, np.zeros(3))), np.zeros(24))
    assert same is not None
    assert same.low < 0 < same.high
    one_each = intervals.of_shares(intervals.around(Parts(0.1, np.full(3, 0.1))), np.repeat([1.0, 0.0], [3, 27]))
    assert one_each is not None
    assert one_each.low < 0 < one_each.high
    low, high = intervals.of_share(Parts(1.0, np.ones(3)), 20, 20)
    assert (low, high) == (pytest.approx(0.839, abs=1e-3), 1.0)


def test_benjamini_and_hochberg_by_hand() -> None:
    """Their paper's example: of fifteen, the four with the smallest p."""
    p_values = [
        0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459, 0.3240, 0.4262, 0.5719, 0.6528, 0.7590,
        1.000,
    ]  # fmt: skip
    assert intervals.false_discovery(p_values) == [True] * 4 + [False] * 11
    assert intervals.false_discovery([None, 0.04, None]) == [None, True, None]
    assert intervals.false_discovery([0.04, 0.5]) == [False, False]


def test_how_many_repeats_a_difference_needs() -> None:
    """One standard deviation takes ten repeats, as in tables of the paired t-test; three take four."""
    assert intervals.repeats_needed(1.0, 1 / math.sqrt(3), 3) == 10
    assert intervals.repeats_needed(3.0, 1 / math.sqrt(3), 3) == 4
    assert intervals.repeats_needed(0.3, 1 / math.sqrt(3), 3) == pytest.approx(90, abs=2)
    assert intervals.repeats_needed(0.001, 1 / math.sqrt(3), 3) is None
    # 5.65 standard errors with three repeats: what is that far from zero is seen four times in five.
    rng = np.random.default_rng(0)
    shift = intervals.detectable(1.0, 3)
    draws = shift / math.sqrt(1) + rng.standard_normal((20_000, 3)) * math.sqrt(3)
    t = draws.mean(axis=1) / (draws.std(axis=1, ddof=1) / math.sqrt(3))
    assert (t > intervals.t_quantile(2)).mean() == pytest.approx(0.8, abs=0.01)
