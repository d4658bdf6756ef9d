"""Figures of a cell's requests with their intervals."""

import polars as pl
import pytest

from wp1.stats import samples


def _requests(values: list[list[float]]) -> pl.DataFrame:
    """A table of requests, from the values in each repeat."""
    rows = [
        {"request_id": f"r{repeat}/{n}", "repeat": repeat, "x": value}
        for repeat, repeat_values in enumerate(values)
        for n, value in enumerate(repeat_values)
    ]
    return pl.DataFrame(rows, schema={"request_id": pl.String, "repeat": pl.Int64, "x": pl.Float64})


def test_the_interval_covers_the_spread_of_repeats() -> None:
    figure = samples.Sample(_requests([[10, 10, 10], [20, 20, 20], [30, 30, 30]])).figure("x")
    assert figure is not None
    assert (figure["n"], figure["value"]) == (9, 20)
    # Student's t with two degrees of freedom: 20 ± 4.303 · 10 / sqrt(3), cut off at zero.
    assert (figure["low"], figure["high"]) == (0.0, pytest.approx(44.84, abs=0.01))


def test_one_request_has_no_interval_and_none_has_no_figure() -> None:
    assert samples.Sample(_requests([[5]])).figure("x") == {"n": 1, "value": 5}
    assert samples.Sample(_requests([])).figure("x") is None


def test_a_list_counts_every_value() -> None:
    rows = _requests([[0, 0]]).with_columns(x=pl.Series([[1.0, 2.0], [3.0]]))
    figure = samples.Sample(rows).figure("x", "p50")
    assert figure is not None
    assert (figure["n"], figure["value"]) == (3, 2)


@pytest.mark.parametrize("count", [10_000, 10_001, 20_002, 30_000])
def test_every_request_counts(count: int) -> None:
    """A short and a long question alternate: every second request alone would be only one of them."""
    figure = samples.Sample(_requests([[10.0 if n % 2 == 0 else 100.0 for n in range(count)]])).figure("x")
    assert figure is not None
    assert figure["n"] == count
    assert figure["value"] == pytest.approx(55, abs=0.01)
    # Batches of both questions all have the same mean; other requests would not.
    assert figure["low"] < 54.9
    assert figure["high"] > 55.1


def test_an_interval_is_over_repeats_and_not_over_requests() -> None:
    """A hundred times as many requests in the same three repeats say no more about another repeat."""
    few, many = (samples.Sample(_requests([[10.0] * n, [11.0] * n, [12.0] * n])).figure("x") for n in (4, 400))
    assert few is not None and many is not None
    assert few["high"] - few["low"] == pytest.approx(many["high"] - many["low"])


def test_the_same_question_in_two_repeats_is_one_unit() -> None:
    once = samples.Sample(_requests([[10.0, 20.0, 30.0, 50.0]])).figure("x")
    twice = samples.Sample(_requests([[10.0, 20.0, 30.0, 50.0]] * 2)).figure("x")
    assert once is not None and twice is not None
    assert (once["low"], once["high"]) == (twice["low"], twice["high"])


def test_a_percentile_has_no_interval_without_values_beyond_it() -> None:
    """p95 of a dozen requests is the slowest of them, which says nothing about the next one."""
    dozen = samples.Sample(_requests([[float(n) for n in range(4)]] * 3)).figure("x", "p95")
    assert dozen is not None and "low" not in dozen
    many = samples.Sample(_requests([[float(n) for n in range(100)]] * 3)).figure("x", "p95")
    assert many is not None and many["low"] < many["value"] < many["high"]


def test_a_rate_is_total_work_over_total_time() -> None:
    found = samples.ratio([10, 20, 30], [1, 1, 1])
    assert found is not None
    assert (found["n"], found["value"], found["low"]) == (3, 20, 0)
    assert found["high"] == pytest.approx(44.84, abs=0.01)
    assert samples.ratio([10], [2]) == {"n": 1, "value": 5}
    assert samples.ratio([], []) is None
    assert samples.ratio([1], [0]) is None
