"""The steady state of an open loop, rates within it, and engines that fall behind, on made-up requests."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wp1.analysis.base import aggregates, steady, tables


def _requests(
    count: int = 100, gap: float = 0.1, e2e: float = 1.0, cell: str = "512-rate10", arm: str = "agg", repeat: int = 0,
    start: float = 50.0, **changes: Any,
) -> list[dict[str, Any]]:  # fmt: skip
    """Arrivals `gap` seconds apart, each answered `e2e` s after it was due: ten tokens, the last at the end."""
    rows = []
    for n in range(count):
        due = start + n * gap
        times = [due + e2e * (k + 1) / 10 for k in range(10)]
        rows.append(
            {
                "request_id": f"{arm}/{cell}/r{repeat}/{n}", "arm": arm, "cell": cell, "repeat": repeat,
                "warmup": False, "status": "ok", "t_intended": due, "t_sent": due, "t_tokens": times,
                "t_end": times[-1], "prompt_tokens": 5, "output_tokens": 10, "ramp": False,
            } | changes
        )  # fmt: skip
    return rows


def _table(*parts: list[dict[str, Any]]) -> pl.DataFrame:
    rows = [row for part in parts for row in part]
    return steady.with_windows(tables.with_latencies(pl.DataFrame(rows, schema=tables.RECORD_SCHEMA)))


def test_the_window_leaves_out_one_latency_at_either_end() -> None:
    found = _table(_requests())
    assert found["window_begin"].unique().to_list() == pytest.approx([51.0], abs=0.002)
    assert found["window_end"].unique().to_list() == pytest.approx([50 + 9.9 - 1], abs=0.002)
    assert found["steady"].sum() == pytest.approx(80, abs=1)
    assert steady.window(found) == {
        "begin_s": 0.999, "end_s": 8.901, "requests": found["steady"].sum(), "of": 100, "repeats": 1,
    }  # fmt: skip


@pytest.mark.parametrize("rows", [_requests(cell="512-conc4"), _requests(25, e2e=0.5), _requests(100, e2e=6.0)])
def test_closed_loops_and_short_ones_are_taken_whole(rows: list[dict[str, Any]]) -> None:
    found = _table(rows)
    assert found["steady"].all()
    assert found["window_begin"].null_count() == found.height
    assert steady.window(found) is None


def test_both_arms_have_the_slower_ones_window() -> None:
    found = _table(_requests(), _requests(arm="disagg", e2e=2.0, start=500.0))
    by_arm = {arm: rows for (arm,), rows in found.group_by("arm")}
    assert by_arm["agg"]["window_begin"][0] == pytest.approx(52.0, abs=0.002)
    assert by_arm["disagg"]["window_begin"][0] == pytest.approx(502.0, abs=0.002)
    kept = [set(rows.filter("steady")["request_id"].str.replace(r"^\w+", "")) for rows in by_arm.values()]
    assert kept[0] == kept[1]


def test_a_ramp_is_left_out() -> None:
    rows = _requests(200)
    for row in rows[:51]:
        row["ramp"] = True
    assert _table(rows)["window_begin"][0] == pytest.approx(50 + 5 + 1, abs=0.002)


def test_a_load_that_grows_to_the_end_is_taken_whole() -> None:
    assert _table(_requests(200, ramp=True))["steady"].all()


def test_warm_ups_and_failures_move_no_window() -> None:
    failed = _requests(100, repeat=1, start=300.0)
    for row in failed[::2]:
        row.update(status="timeout", t_tokens=[], t_end=row["t_intended"] + 60)
    found = _table(_requests(), failed, _requests(1, warmup=True, start=0.0))
    assert found.filter(pl.col("repeat") == 1)["window_begin"][0] == pytest.approx(301.0, abs=0.002)
    assert found.filter(~pl.col("warmup") & (pl.col("repeat") == 0))["window_begin"][0] == pytest.approx(
        51.0, abs=0.002
    )


def test_rates_are_those_of_the_window() -> None:
    """Ten requests/s of ten tokens: without the window the last second's drain would lower both."""
    figures = aggregates.latency(_table(_requests()))
    assert figures["requests_per_s"] == pytest.approx(10, rel=0.02)
    assert figures["output_tokens_per_s"] == pytest.approx(100, rel=0.02)
    assert figures["requests"] == figures["ok"] == 100
    assert figures["ttft_ms"]["n"] == pytest.approx(80, abs=1)
    assert figures["output_tokens"] == 1000


@settings(deadline=None)
@given(gap=st.floats(0.01, 0.2), e2e=st.floats(0.05, 3), count=st.integers(1, 120), repeats=st.integers(1, 3))
def test_tokens_within_windows_are_those_that_came_within_them(
    gap: float, e2e: float, count: int, repeats: int
) -> None:
    found = _table(*(_requests(count, gap, e2e, repeat=n, start=100.0 * n) for n in range(repeats)))
    came = aggregates.delivered(found)
    answered, tokens = (came.rows[name].sum() for name in ("ended_inside", "tokens_inside"))
    if found["window_begin"].null_count():
        assert (answered, tokens) == (count * repeats, 10 * count * repeats)
        assert came.seconds == pytest.approx(aggregates.span(found))
        return
    times = found.explode("t_tokens")
    # Single precision in the gaps: a token at the very edge may fall on either side.
    edge = times.select(
        ((pl.col("t_tokens") - pl.col("window_begin")).abs() < 1e-4).sum()
        + ((pl.col("t_tokens") - pl.col("window_end")).abs() < 1e-4).sum()
    ).item()
    exact = times.select(pl.col("t_tokens").is_between("window_begin", "window_end").sum()).item()
    assert abs(tokens - exact) <= edge


def test_attainment_is_of_the_window() -> None:
    rows = _requests()
    for row in rows[:5]:
        row.update(status="error", t_tokens=[])
    assert aggregates.attainment(_table(rows), {"ttft_ms": 5000}) == 1.0
    assert aggregates.attainment(_table(rows[:30]), {"ttft_ms": 5000}) == pytest.approx(25 / 30, abs=1e-4)


def _served(rate: float, service: float, count: int = 200) -> pl.DataFrame:
    """One server that takes `service` seconds a request, first come first served."""
    due = 10 + np.cumsum(np.random.default_rng(0).exponential(1 / rate, count))
    rows, free = [], 0.0
    for n, t in enumerate(due):
        free = max(free, t) + service
        rows += _requests(1, start=t, cell=f"512-rate{rate:g}", request_id=f"agg/c/r0/{n}", t_end=free)
    return _table(rows)


@pytest.mark.parametrize(("rate", "saturated"), [(5, False), (8, False), (15, True), (40, True)])
def test_engines_that_fall_behind_are_found(rate: float, saturated: bool) -> None:
    """A server that can do ten a second."""
    found = steady.saturation(_served(rate, 0.1))
    assert found["over_saturated"] is saturated
    assert found["offered_per_s"] == pytest.approx(rate, rel=0.15)
    assert found["answered_per_s"] == pytest.approx(min(rate, 10), rel=0.15)


def test_a_few_requests_cannot_tell() -> None:
    assert steady.saturation(_table(_requests(19)))["over_saturated"] is None


def test_unanswered_requests_are_not_keeping_up() -> None:
    rows = _requests(100)
    for n, row in enumerate(rows):
        if n % 3:
            row.update(status="timeout", t_tokens=[], t_end=row["t_intended"] + 30)
    found = steady.saturation(_table(rows))
    assert found["over_saturated"] is True
