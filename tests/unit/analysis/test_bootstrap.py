"""Resampled figures against samples written out, and intervals against what made the data."""

import numpy as np
import polars as pl
import pytest

from wp1.analysis import bootstrap


def test_the_percentile_of_a_resample_is_that_of_the_sample_written_out() -> None:
    rng = np.random.default_rng(0)
    values, draws = rng.normal(0, 1, 9), rng.multinomial(9, np.full(9, 1 / 9), 50).astype(np.float32)
    found = bootstrap.resampled((np.arange(9), values), "p95", draws)
    expected = [np.percentile(np.repeat(values, row.astype(int)), 95) for row in draws]
    assert found == pytest.approx(expected)


def test_many_gaps_in_bins_give_nearly_the_same_percentile() -> None:
    rng = np.random.default_rng(0)
    values, pairs = rng.lognormal(3, 0.5, 20_000), np.repeat(np.arange(40), 500)
    draws = rng.multinomial(40, np.full(40, 1 / 40), 5).astype(np.float32)
    found = bootstrap.resampled((pairs, values), "p95", draws)
    expected = [np.percentile(np.repeat(values, row[pairs].astype(int)), 95) for row in draws]
    assert found == pytest.approx(expected, rel=5e-3)


def _requests(values: list[list[float]]) -> pl.DataFrame:
    """By repeat, the value of each request."""
    rows = [
        {"request_id": f"r{repeat}/{n}", "repeat": repeat, "x": value}
        for repeat, of_repeat in enumerate(values)
        for n, value in enumerate(of_repeat)
    ]
    return pl.DataFrame(rows, schema={"request_id": pl.String, "repeat": pl.Int64, "x": pl.Float64})


def test_the_interval_holds_what_repeats_differ_by() -> None:
    figure = bootstrap.Sample(_requests([[10, 10, 10], [20, 20, 20], [30, 30, 30]])).figure("x")
    assert figure is not None
    assert (figure["n"], figure["value"]) == (9, 20)
    # Within a repeat nothing varies, so the width comes of the repeats alone.
    assert figure["low"] == 10
    assert figure["high"] == 30


def test_one_request_has_no_interval_and_none_has_no_figure() -> None:
    assert bootstrap.Sample(_requests([[5]])).figure("x") == {"n": 1, "value": 5}
    assert bootstrap.Sample(_requests([])).figure("x") is None


def test_a_list_counts_every_value() -> None:
    rows = _requests([[0, 0]]).with_columns(x=pl.Series([[1.0, 2.0], [3.0]]))
    figure = bootstrap.Sample(rows).figure("x", "p50")
    assert figure is not None
    assert (figure["n"], figure["value"]) == (3, 2)


def test_a_large_sample_is_thinned_evenly_and_says_so() -> None:
    many = _requests([[float(n) for n in range(15_000)] for _ in range(2)])
    figure = bootstrap.Sample(many).figure("x")
    assert figure is not None
    assert figure["n"] == 10_000
    assert figure["value"] == pytest.approx(7500, rel=1e-3)
    assert figure["low"] < 7500 < figure["high"]


def test_a_rate_is_all_that_was_done_over_all_the_time() -> None:
    found = bootstrap.ratio([10, 30], [1, 1])
    assert found is not None
    assert (found["n"], found["value"], found["low"], found["high"]) == (2, 20, 10, 30)
    assert bootstrap.ratio([10], [2]) == {"n": 1, "value": 5}
    assert bootstrap.ratio([], []) is None
    assert bootstrap.ratio([1], [0]) is None
