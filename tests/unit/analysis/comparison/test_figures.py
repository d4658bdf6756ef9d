"""Differences of two arms by hand, and intervals that say neither more nor less than the data."""

import tracemalloc
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from wp1.analysis.base import aggregates, metrics, tables
from wp1.analysis.comparison.figures import compare, goodput, grow_with_output, unlike_lengths, verdict
from wp1.analysis.load.probes import bracket, planned_probes

SLO = {"ttft_ms": 1000, "tpot_ms": None}


def _arm(arm: str, ttfts: Sequence[Sequence[float]], cell: str = "256-conc1", tokens: int = 3) -> pl.DataFrame:
    """One cell of an arm: by repeat, the TTFT (ms) of its requests; negative for one that failed."""
    rows: list[dict[str, Any]] = []
    for repeat, of_repeat in enumerate(ttfts):
        for n, ttft in enumerate(of_repeat):
            ok, first = ttft >= 0, ttft / 1e3
            rows.append(
                {
                    "request_id": f"{arm}/{cell}/r{repeat}/{n}", "arm": arm, "cell": cell, "repeat": repeat,
                    "warmup": False, "status": "ok" if ok else "error", "output_tokens": tokens if ok else 0,
                    "t_intended": 0.0, "t_sent": 0.0, "t_scheduled": 0.0,
                    "t_engine_first_token": first if ok else None,
                    "t_tokens": [first + 0.1 * k for k in range(tokens)] if ok else [],
                    "t_end": first + 0.1 * (tokens - 1) if ok else 1.0,
                }
            )  # fmt: skip
    return tables.with_latencies(pl.DataFrame(rows, schema=tables.RECORD_SCHEMA))


def _row(rows: pl.DataFrame, metric: str, cell: str = "256-conc1") -> dict[str, Any]:
    return rows.row(by_predicate=(pl.col("metric") == metric) & (pl.col("cell") == cell), named=True)


def _noisy(seed: int, mean: float, repeats: int = 3, count: int = 8, sd: float = 50.0) -> list[list[float]]:
    return np.random.default_rng(seed).normal(mean, sd, (repeats, count)).tolist()


def test_figures_by_hand() -> None:
    rows = compare(_arm("agg", [[100, 200], [300, 400]]), _arm("disagg", [[50, 100], [150, 200]]), SLO)
    row = _row(rows, "ttft_ms/mean")
    assert (row["unit"], row["n_a"], row["n_b"], row["a"], row["b"]) == ("ms", 4, 4, 250, 125)
    assert (row["delta"], row["ratio"]) == (-125, 0.5)
    assert _row(rows, "ttft_ms/p50")["delta"] == -125
    assert _row(rows, "itl_ms/p95")["n_a"] == 8
    # Spans of 0.4 and 0.6 s against 0.3 and 0.4 s, twelve tokens in each arm.
    rate = _row(rows, "output_tokens_per_s")
    assert (rate["a"], rate["b"]) == (pytest.approx(12, abs=1e-3), pytest.approx(12 / 0.7, abs=1e-3))
    assert rows["metric"].to_list() == [figure.name for figure in metrics.shown_in("comparison")]


def test_what_an_arm_does_not_have_stays_empty() -> None:
    rows = compare(_arm("agg", _noisy(0, 300)), _arm("disagg", _noisy(1, 300)))
    row = _row(rows, "handoff_ms/mean")
    assert [row[key] for key in ("a", "b", "delta", "ratio", "low", "high", "excludes_zero")] == [None] * 7
    assert "slo_attainment" not in rows["metric"]


def test_a_difference_of_the_same_requests_is_found_that_would_drown_without_pairs() -> None:
    """Requests differ by hundreds of ms, the arms by twenty: what pairs share cancels."""
    base = _noisy(0, 1000, sd=300)
    jitter = np.random.default_rng(1).normal(0, 5, (3, 8))
    row = _row(compare(_arm("agg", base), _arm("disagg", (np.array(base) + 20 + jitter).tolist())), "ttft_ms/mean")
    assert row["excludes_zero"] is True
    assert 10 < row["low"] < row["delta"] < row["high"] < 30


def test_pairs_are_by_name_and_not_by_order() -> None:
    a = _arm("agg", _noisy(0, 1000, sd=300))
    b = a.with_columns(
        pl.col("request_id").str.replace("agg/", "disagg/"), pl.col("ttft_ms") + 20, arm=pl.lit("disagg")
    ).sample(fraction=1, shuffle=True, seed=3)
    row = _row(compare(a, b), "ttft_ms/mean")
    assert row["low"] == row["high"] == pytest.approx(20)


def test_arms_that_are_alike_are_mostly_not_told_apart() -> None:
    shown = [
        _row(compare(_arm("a", _noisy(2 * n, 500)), _arm("b", _noisy(2 * n + 1, 500))), "ttft_ms/mean")["excludes_zero"]
        for n in range(60)
    ]
    assert sum(shown) <= 9


def test_repeats_that_differ_as_a_whole_widen_the_interval() -> None:
    """A drift of one repeat is no evidence in eight requests of it."""
    base = np.array(_noisy(0, 500, sd=20))
    drift = np.array([[60.0], [0.0], [-60.0]])
    calm = _row(compare(_arm("a", base.tolist()), _arm("b", (base + 5).tolist())), "ttft_ms/mean")
    drifting = _row(compare(_arm("a", base.tolist()), _arm("b", (base + 5 + drift).tolist())), "ttft_ms/mean")
    assert calm["excludes_zero"] is True
    assert drifting["excludes_zero"] is False
    assert drifting["high"] - drifting["low"] > 50


@pytest.mark.parametrize(("count", "verdict"), [(2, None), (5, None), (6, True)])
def test_fewer_than_six_pairs_tell_nothing(count: int, verdict: bool | None) -> None:
    a, b = _arm("a", [[100.0 + n for n in range(count)]]), _arm("b", [[200.0 + 2 * n for n in range(count)]])
    assert _row(compare(a, b), "ttft_ms/mean")["excludes_zero"] is verdict


def test_one_pair_has_no_interval() -> None:
    row = _row(compare(_arm("a", [[100]]), _arm("b", [[300]])), "ttft_ms/mean")
    assert (row["delta"], row["low"], row["high"], row["excludes_zero"]) == (200, None, None, None)


def test_rates_rest_on_repeats() -> None:
    one = _row(compare(_arm("a", _noisy(0, 300, repeats=1)), _arm("b", _noisy(1, 300, repeats=1))), "requests_per_s")
    assert one["a"] is not None
    assert one["low"] is None
    three = _row(compare(_arm("a", _noisy(0, 300)), _arm("b", _noisy(1, 900))), "requests_per_s")
    assert (three["n_a"], three["over"], three["units"]) == (3, "repeats", 3)
    assert three["low"] < three["delta"] < three["high"] < 0
    assert three["excludes_zero"] is True
    two = _row(compare(_arm("a", _noisy(0, 300, 2)), _arm("b", _noisy(1, 900, 2))), "requests_per_s")
    assert two["excludes_zero"] is None


def test_a_share_is_over_as_many_repeats_as_there_were() -> None:
    """Its interval may be that of pairs: a table had "18 repeats" of three of six requests each."""
    rows = compare(_arm("a", _noisy(0, 300)), _arm("b", [[*repeat[:-1], -1] for repeat in _noisy(0, 300)]), SLO)
    for metric in ("slo_attainment", "failed_share"):
        assert (_row(rows, metric)["over"], _row(rows, metric)["units"]) == ("repeats", 3)
    assert _row(rows, "failed_share")["repeats_needed"] < 24


def test_two_shares_differ_by_one_at_most() -> None:
    """An interval of attainment went down to -118.9 points."""
    missed = [[100.0] * 2 + [9000.0] * 10, [9000.0] * 12, [9000.0] * 12]
    row = _row(compare(_arm("a", [[100.0] * 12] * 3), _arm("b", missed), SLO), "slo_attainment")
    assert -1 <= row["low"] < row["delta"] < row["high"] < 0


def test_failures_stay_in_the_shares_and_out_of_latencies() -> None:
    rows = compare(_arm("a", [[100] * 8]), _arm("b", [[100] * 4 + [-1] * 4]), SLO)
    assert (_row(rows, "failed_share")["a"], _row(rows, "failed_share")["b"]) == (0, 0.5)
    assert (_row(rows, "slo_attainment")["b"], _row(rows, "slo_attainment")["unit"]) == (0.5, "share")
    assert _row(rows, "ttft_ms/mean")["n_b"] == 4
    assert _row(rows, "ttft_ms/mean")["excludes_zero"] is None  # four pairs


def test_an_arm_that_answered_nothing_gives_no_difference() -> None:
    row = _row(compare(_arm("a", [[100] * 8]), _arm("b", [[-1] * 8])), "ttft_ms/mean")
    assert (row["a"], row["b"], row["delta"], row["excludes_zero"]) == (100, None, None, None)
    assert compare(_arm("a", [[100]]), _arm("b", []))["b"].null_count() > 0
    assert compare(_arm("a", []), _arm("b", [])).is_empty()


def test_the_same_records_give_the_same_intervals() -> None:
    a, b = _arm("a", _noisy(0, 300)), _arm("b", _noisy(1, 320))
    assert compare(a, b).equals(compare(a.reverse(), b.reverse()))


def test_cells_come_by_length_then_load() -> None:
    names = ["1024-rate0.5", "256-rate2", "256-conc1", "1024-conc1"]
    a, b = (pl.concat([_arm(arm, [[100]], cell) for cell in names]) for arm in "ab")
    assert compare(a, b)["cell"].unique(maintain_order=True).to_list() == [
        "256-conc1", "256-rate2", "1024-conc1", "1024-rate0.5",
    ]  # fmt: skip


def test_what_is_shown_stands_among_all_that_was_tested() -> None:
    """Of thirty comparisons of arms that are alike, some exclude zero by their own intervals; hardly any is shown."""
    tables_of = [
        compare(_arm("a", _noisy(2 * n, 500, 3, 6)), _arm("b", _noisy(2 * n + 1, 500, 3, 6)), SLO) for n in range(30)
    ]
    assert sum(rows["excludes_zero"].any() for rows in tables_of) >= 3
    assert sum(rows["shown"].any() for rows in tables_of) <= 2
    apart = compare(_arm("a", _noisy(0, 500)), _arm("b", _noisy(1, 900)), SLO)
    assert _row(apart, "ttft_ms/mean")["shown"] is True
    assert verdict({"excludes_zero": True, "shown": None}) is True
    assert verdict({"excludes_zero": True, "shown": False}) is False


def test_how_many_repeats_would_tell_is_said() -> None:
    row = _row(compare(_arm("a", _noisy(0, 500)), _arm("b", _noisy(1, 510))), "ttft_ms/mean")
    assert row["shown"] is False
    assert row["repeats_needed"] > 3
    assert row["detectable"] > abs(row["delta"])
    one = _row(compare(_arm("a", _noisy(0, 500, 1)), _arm("b", _noisy(1, 900, 1))), "ttft_ms/mean")
    assert (one["over"], one["shown"], one["repeats_needed"], one["detectable"]) == ("requests", True, None, None)


def test_a_limit_that_all_keep_is_no_certainty() -> None:
    row = _row(compare(_arm("a", [[100] * 8] * 3), _arm("b", [[100] * 8] * 3), SLO), "slo_attainment")
    assert (row["delta"], row["excludes_zero"]) == (0, False)
    assert row["low"] < 0 < row["high"]
    one = _row(compare(_arm("a", [[100] * 8] * 3), _arm("b", [[100] * 7 + [5000]] * 3), SLO), "slo_attainment")
    assert one["delta"] == pytest.approx(-1 / 8)
    assert one["excludes_zero"] is False


def test_a_comparison_of_many_requests_needs_little_memory() -> None:
    """100,000 requests a cell in each of two arms, with eight gaps each: less than what their tables are."""
    count = 100_000
    gaps = pl.Series(np.ones((count, 8), dtype=np.float32)).arr.to_list()
    arms = []
    for arm in "ab":
        ttft = np.random.default_rng(ord(arm)).lognormal(4, 0.4, count)
        rows = pl.DataFrame({"request_id": [f"{arm}/256-rate9/r0/{n}" for n in range(count)], "ttft_ms": ttft})
        arms.append(
            rows.with_columns(
                pl.col("ttft_ms").alias(metric.key)
                for metric in metrics.of_kind("request")
                if metric.key != "ttft_ms"
            ).with_columns(
                arm=pl.lit(arm), cell=pl.lit("256-rate9"), repeat=pl.lit(0), warmup=pl.lit(False), itl_ms=gaps,
                status=pl.lit("ok"), t_sent=pl.lit(0.0), t_intended=pl.lit(0.0), t_end=pl.lit(1.0),
                output_tokens=pl.lit(9),
            )
        )  # fmt: skip
    tracemalloc.start()
    compare(arms[0], arms[1], SLO)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # of numpy's; resamples of 2 GB would be


def test_goodput_is_the_highest_rate_that_attains() -> None:
    fine, poor = [[100.0] * 10], [[100.0] * 8 + [5000.0] * 2]
    rows = pl.concat(
        [_arm("a", fine, "256-rate1"), _arm("a", fine, "256-rate2"), _arm("a", poor, "256-rate4"),
         _arm("a", poor, "512-rate1"), _arm("a", fine, "1024-conc1")]
    )  # fmt: skip
    found = {row["prompt"]: row for row in goodput(rows, SLO, devices=2).to_dicts()}
    assert (found["256"]["goodput"], found["256"]["goodput_per_device"]) == (2, 1)
    assert found["256"]["rates"] == [1, 2, 4]
    assert found["512"]["goodput"] is None
    assert (found["1024"]["rates"], found["1024"]["goodput"]) == ([], None)
    assert goodput(rows, {"ttft_ms": None, "tpot_ms": None}, devices=2).is_empty()


@pytest.mark.parametrize(
    ("attained", "best", "fails"),
    [
        ({1.0: 1.0, 2.0: 0.8, 3.0: 1.0}, 1.0, 2.0),
        ({1.0: 0.8, 2.0: 1.0}, None, 1.0),
        ({1.0: 1.0, 3.0: 1.0}, 3.0, None),
        ({1.0: 1.0, 2.0: 0.9}, 2.0, None),
        ({}, None, None),
    ],
)
def test_goodput_is_the_same_of_cells_and_of_a_search(
    attained: dict[float, float], best: float | None, fails: float | None
) -> None:
    """A rate that passes above one that fails does not count, whoever measured it."""
    ttfts = {
        rate: [[100.0] * round(10 * share) + [5000.0] * round(10 - 10 * share)] for rate, share in attained.items()
    }
    cells = [_arm("a", of_rate, f"256-rate{rate:g}") for rate, of_rate in ttfts.items()]
    rows = pl.concat([*cells, _arm("a", [[100.0]], "256-conc1")])
    of_cells = goodput(rows, SLO, devices=3).row(0, named=True)
    path = planned_probes(rows, "a", 256, aggregates.limits(SLO))
    assert bracket(path) == (of_cells["goodput"], of_cells["fails_at"]) == (best, fails)
    assert of_cells["goodput_per_device"] == (None if best is None else best / 3)


def test_attainment_just_below_the_limit_is_not_rounded_up_to_it() -> None:
    kept, sent = 17_999, 20_000  # 89.995 %, which is 0.9 to four decimals
    rows = _arm("a", [[100.0] * kept + [5000.0] * (sent - kept)], "256-rate1", tokens=1)
    assert aggregates.attainment(rows, aggregates.limits(SLO)) == kept / sent
    assert goodput(rows, SLO, devices=1)["goodput"].to_list() == [None]
    assert _row(compare(rows, rows, SLO), "slo_attainment", "256-rate1")["a"] == kept / sent


def test_warm_ups_are_in_no_figure() -> None:
    a, b = _arm("a", [[100] * 3]), _arm("b", [[100] * 3])
    warm = pl.col("request_id").str.ends_with("/2")
    rows = compare(a.with_columns(warmup=warm), b.with_columns(warmup=warm))
    assert (_row(rows, "ttft_ms/mean")["n_a"], _row(rows, "failed_share")["n_b"]) == (2, 2)


def test_what_grows_with_the_answer_has_no_verdict_where_lengths_differ() -> None:
    """The second arm's answers have ten times the tokens: it takes longer, and nobody knows by that which is faster."""
    a, b = _arm("yarn", _noisy(0, 300), tokens=3), _arm("unscaled", _noisy(1, 900), tokens=30)
    slo = {"ttft_ms": 1000, "tpot_ms": None, "e2e_ms": 5000}
    rows = compare(a, b, slo)
    grow = grow_with_output(aggregates.limits(slo))
    assert {"e2e_ms/mean", "e2e_ms/p95", "decode_ms/mean", "requests_per_s", "slo_attainment"} < grow
    for metric in grow:
        assert _row(rows, metric)["excludes_zero"] is None, metric
    assert _row(rows, "e2e_ms/mean")["delta"] > 2000
    assert _row(rows, "ttft_ms/mean")["excludes_zero"] is True
    assert unlike_lengths(a, b) == {"256-conc1": {"pairs": 24, "unlike": 24, "a": 3.0, "b": 30.0}}
    same = compare(a, _arm("unscaled", _noisy(1, 900), tokens=3))
    assert _row(same, "e2e_ms/mean")["excludes_zero"] is True
    assert unlike_lengths(a, a) == {}
