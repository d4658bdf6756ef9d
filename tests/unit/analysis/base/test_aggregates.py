"""Latencies by their formulas, on records worked out by hand."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis.base import aggregates, tables


def _requests(*rows: dict[str, Any]) -> pl.DataFrame:
    base: dict[str, Any] = {
        "arm": "agg",
        "cell": "c",
        "repeat": 0,
        "warmup": False,
        "status": "ok",
        "prompt_tokens": 10,
        "output_tokens": 3,
        "t_intended": 10.0,
        "t_sent": 10.1,
        "t_scheduled": 10.3,
        "t_engine_first_token": 10.9,
        "t_tokens": [11.0, 11.2, 11.6],
        "t_end": 11.7,
    }
    return tables.with_latencies(pl.DataFrame([base | row for row in rows], schema=tables.RECORD_SCHEMA))


def test_latencies_of_one_request() -> None:
    row = _requests({}).row(0, named=True)
    assert row["ttft_ms"] == pytest.approx(1000)
    assert row["tpot_ms"] == pytest.approx(300)
    assert row["e2e_ms"] == pytest.approx(1600)
    assert row["queue_ms"] == pytest.approx(300)
    assert row["prefill_ms"] == pytest.approx(600)
    assert row["delivery_ms"] == pytest.approx(100)
    assert row["client_delay_ms"] == pytest.approx(100)
    assert row["itl_ms"] == pytest.approx([200, 400])


def test_one_token_has_no_time_per_output_token() -> None:
    row = _requests({"output_tokens": 1, "t_tokens": [11.0]}).row(0, named=True)
    assert row["tpot_ms"] is None
    assert row["ttft_ms"] == pytest.approx(1000)
    assert row["itl_ms"] == []


def test_a_request_without_tokens_has_no_latency() -> None:
    row = _requests({"status": "error", "output_tokens": 0, "t_tokens": [], "t_scheduled": None}).row(0, named=True)
    assert [row[name] for name in ("ttft_ms", "tpot_ms", "e2e_ms", "queue_ms")] == [None] * 4


def test_failures_are_counted_and_not_averaged() -> None:
    found = aggregates.latency(_requests({}, {"status": "timeout", "t_tokens": [99.0]}, {"status": "error"}))
    assert (found["requests"], found["ok"], found["failed"]) == (3, 1, 2)
    assert found["statuses"] == {"ok": 1, "timeout": 1, "error": 1}
    assert found["ttft_ms"]["n"] == 1
    assert found["output_tokens"] == 3


def test_the_pause_between_repeats_is_not_in_the_rate() -> None:
    second = {"repeat": 1, "t_intended": 100.0, "t_sent": 100.1, "t_end": 101.7}
    found = aggregates.latency(_requests({}, second))
    assert found["duration_s"] == pytest.approx(3.2)
    assert found["output_tokens_per_s"] == pytest.approx(6 / 3.2, rel=1e-3)


def test_no_requests_at_all() -> None:
    found = aggregates.latency(_requests())
    assert found["requests"] == 0
    assert found["ttft_ms"] == {"n": 0}
    assert found["requests_per_s"] is None


def test_attainment_counts_failures_as_misses() -> None:
    slow = {"t_tokens": [13.0, 13.2, 13.6]}
    requests = _requests({}, {}, slow, {"status": "error", "t_tokens": []})
    assert aggregates.attainment(requests, {"ttft_ms": 1500}) == 0.5
    assert aggregates.attainment(requests, {"ttft_ms": 1500, "tpot_ms": 299}) == 0.0
    assert aggregates.attainment(requests, {"tpot_ms": 301}) == 0.75
    assert aggregates.attainment(requests, {}) is None


def test_percentiles_interpolate() -> None:
    found = aggregates.distribution(list(range(101)))
    assert (found["p50"], found["p90"], found["p95"], found["p99"]) == (50, 90, 95, 99)
    assert (found["n"], found["mean"], found["min"], found["max"]) == (101, 50, 0, 100)


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=60))
def test_the_interval_is_around_the_mean_and_repeats(values: list[float]) -> None:
    array = np.array(values)
    low, high = aggregates.mean_interval(array)
    slack = 1e-9 * max(1.0, float(np.abs(array).max()))
    assert low - slack <= array.mean() <= high + slack
    assert aggregates.mean_interval(array) == (low, high)


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        low, high = aggregates.mean_interval(rng.normal(5, 2, 40))
        hits += low <= 5 <= high
    assert 0.88 <= hits / 200 <= 0.99


def test_large_samples_have_the_interval_of_the_normal_law() -> None:
    """From a skewed law, where the mean of many is normal: mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).lognormal(0, 1, 300_000)
    low, high = aggregates.mean_interval(values)
    error = 1.96 * values.std() / np.sqrt(values.size)
    assert low == pytest.approx(values.mean() - error, abs=error / 5)
    assert high == pytest.approx(values.mean() + error, abs=error / 5)


def test_neighbours_that_are_alike_count_as_less() -> None:
    """Forty thousand timers of a loop whose lag drifts are no forty thousand independent ones."""
    drifting = np.repeat(np.linspace(0, 1, 100), 400)
    low, high = aggregates.mean_interval(drifting)
    assert high - low == pytest.approx(2 * 1.96 * drifting.std() / np.sqrt(drifting.size), rel=0.15)
    low, high = aggregates.mean_interval(drifting, units=aggregates.in_order(drifting.size))
    assert high - low > 0.3


def test_gaps_count_by_request() -> None:
    """Requests that differ, each of a hundred like gaps: there are thirty units, not three thousand."""
    rng = np.random.default_rng(0)
    lists = [rng.normal(mean, 0.1, 100).tolist() for mean in rng.normal(20, 5, 30)]
    found = aggregates.gap_distribution(pl.Series(lists, dtype=pl.List(pl.Float32)))
    every = np.concatenate(lists)
    assert found["n"] == 3000
    assert found["mean"] == pytest.approx(every.mean(), abs=1e-3)
    assert found["p95"] == pytest.approx(np.percentile(every, 95), abs=1e-3)
    assert found["mean_high"] - found["mean_low"] > 2
    naive_low, naive_high = aggregates.mean_interval(every)
    assert naive_high - naive_low < 0.5


def test_gaps_of_nobody() -> None:
    assert aggregates.gap_distribution(pl.Series([[], []], dtype=pl.List(pl.Float32))) == {"n": 0}
    assert aggregates.gap_distribution(pl.Series([], dtype=pl.List(pl.Float32))) == {"n": 0}
    assert aggregates.gap_distribution(pl.Series([[], [1.0]], dtype=pl.List(pl.Float32)))["mean_low"] == 1.0


def test_failures_are_counted_by_cause() -> None:
    died = {"status": "error", "cause": "engine_died", "t_tokens": []}
    found = aggregates.latency(
        _requests({}, died, died, {"status": "timeout", "cause": "timeout"}, {"status": "error"})
    )
    assert found["causes"] == {"engine_died": 2, "timeout": 1, "unknown": 1}
