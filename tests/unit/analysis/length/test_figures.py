"""The curve through lengths, and figures by length, from times that follow a formula."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.analysis.timed import LLAMA_8B, alone, metadata, request, table
from wp1.analysis.base.tables import flat
from wp1.analysis.length.figures import by_length
from wp1.analysis.length.report import section

LENGTHS = [1024, 4096, 16384, 65536]


def _fit(a: float, b: float, c: float, noise: float = 0.0):
    rows = alone(lambda n: a + b * n + c * n**2, LENGTHS, noise=noise, repeats=10 if noise else 3)
    found = by_length(rows, metadata(), {})
    assert found is not None
    return found["fits"]["agg"]


@settings(deadline=None, max_examples=15)
@given(st.floats(0, 0.1), st.floats(1e-6, 1e-4), st.floats(0, 1e-9))
def test_the_curve_is_found_where_there_is_no_noise(a: float, b: float, c: float) -> None:
    fit = _fit(a, b, c)
    n = LENGTHS[-1]
    total = a + b * n + c * n**2
    assert fit["quadratic_share"]["value"] == pytest.approx(c * n**2 / total, abs=1e-3)
    assert fit["a"]["value"] == pytest.approx(a * 1e3, abs=total * 0.02)
    assert fit["worst"] < 1e-3


def test_the_interval_covers_the_truth_and_nothing_is_below_zero() -> None:
    fit = _fit(0.02, 2e-5, 5e-10, noise=0.05)
    assert fit["b"]["low"] < 2e-2 < fit["b"]["high"]
    assert fit["c"]["low"] < 5e-7 < fit["c"]["high"]
    straight = _fit(0.0, 2e-5, 0.0, noise=0.05)
    assert min(straight[key]["low"] for key in "abc") >= 0


def test_two_lengths_have_rows_and_no_curve() -> None:
    found = by_length(alone(lambda n: n * 1e-4, LENGTHS[:2]), metadata(), {})
    assert found is not None
    assert found["fits"] == {"agg": None}
    assert "that takes three lengths" in section(found)
    assert by_length(alone(lambda n: n * 1e-4, LENGTHS[:1]), metadata(), {}) is None


def test_a_run_at_loads_is_not_one_of_lengths() -> None:
    rows = alone(lambda n: n * 1e-4, LENGTHS)
    loaded = rows.with_columns(cell=pl.col("cell").str.replace("65536-conc1", "65536-conc4"))
    assert by_length(loaded, metadata(), {}) is None


def test_rows_by_hand() -> None:
    profile = {"cells": {"agg/4096-conc1": {"devices": {"cuda:0": {"memory_gib_peak": 70.5}}}}}
    found = by_length(alone(lambda n: n * 1e-4, LENGTHS), metadata(), profile)
    assert found is not None
    row = found["rows"][1]
    assert (row["prompt_len"], row["sent"], row["ok"], row["memory_gib_peak"]) == (4096, 6, 6, 70.5)
    assert row["ttft_ms"]["value"] == pytest.approx(409.6)
    assert row["prefill_tokens_per_s"]["value"] == pytest.approx(1e4)
    assert row["host_ms"]["value"] == pytest.approx(0, abs=1e-6)
    assert row["tpot_ms"]["value"] == pytest.approx(10)
    # 6.98e9 parameters, attention 0.5 x 4 x 4096 x 32 x 4096 tokens, in 0.1 ms a token at 1e15 FLOP/s.
    assert row["mfu"]["value"] == pytest.approx((2 * 6.98e9 + 262_144 * 4096) / 1e11, rel=1e-2)
    assert row["limited_by"].startswith("prefill is overhead-bound")
    page = section(found)
    assert "| 4,096 | 6 | 410 |" in page
    assert "TTFT ≈" in page
    csv = flat(found["rows"], ["random weights"])
    assert csv["ttft_ms"].to_list() == pytest.approx([102.4, 409.6, 1638.4, 6553.6])
    assert csv["labels"].unique().to_list() == ["random weights"]


def test_failed_requests_and_lengths_without_an_answer_do_not_hide() -> None:
    rows = alone(lambda n: n * 1e-4, LENGTHS[:3]).to_dicts()
    for row in rows:
        if row["cell"] == "16384-conc1" or row["request_id"] == "agg/1024-conc1/r0/0":
            row["status"] = "error"
    keep = set(request("c", 0, 0, 0.0, 1, 1, 1.0, 1.0))
    found = by_length(table([{k: row[k] for k in keep} for row in rows]), metadata(), {})
    assert found is not None
    assert [(row["sent"], row["ok"]) for row in found["rows"]] == [(6, 5), (6, 6), (6, 0)]
    assert found["rows"][2]["ttft_ms"] is None
    page = section(found)
    assert "5 of 6" in page
    assert "0 of 6" in page


def test_cached_prompt_tokens_are_neither_computed_nor_on_the_curve() -> None:
    rows = alone(lambda n: n * 1e-4, LENGTHS)
    half = rows.with_columns(
        cached_tokens=pl.when(pl.col("prompt_tokens") == 4096).then(pl.lit(2048)),
    )
    plain, cached = by_length(rows, metadata(), {}), by_length(half, metadata(), {})
    assert plain is not None
    assert cached is not None
    before, after = plain["rows"][1], cached["rows"][1]
    assert before["prefill_tokens_per_s"]["value"] == pytest.approx(1e4)
    assert after["prefill_tokens_per_s"]["value"] == pytest.approx(5e3)
    share = LLAMA_8B.prefill_flops(4096, 2048) / LLAMA_8B.prefill_flops(4096)
    assert after["mfu"]["value"] == pytest.approx(share * before["mfu"]["value"], rel=1e-3)
    assert cached["fits"]["agg"]["lengths"] == [1024, 16384, 65536]
    # The other lengths are as they were.
    assert cached["rows"][2] == plain["rows"][2]
