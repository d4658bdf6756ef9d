"""Figures from tables: percentiles, means with intervals, throughput, attainment. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import steady
from wp1.stats import intervals, samples
from wp1.stats.intervals import Units, wilson

LATENCIES = (
    "ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "prefill_ms", "handoff_ms", "decode_step_ms", "delivery_ms",
    "client_delay_ms",
)  # fmt: skip
# What the figures of a cell are made of.
OF_LATENCY = (
    "request_id", "arm", "cell", "repeat", "status", "cause", "t_intended", "t_sent", "t_end", "prompt_tokens",
    "output_tokens", "window_begin", "window_end", "steady", *LATENCIES, "itl_ms",
)  # fmt: skip
PERCENTILES = (50, 90, 95, 99)
# Attainment from which on a request rate counts as served.
GOODPUT_ATTAINMENT = 0.9


def distribution(values: Any, units: Units | None = None) -> dict[str, Any]:
    """n, mean with its 95 % interval, min, p50/p90/p95/p99 (linear interpolation) and max, to 3 decimals.

    units: of each value, NaN ones included (`units_of`); without, each value is independent of all others.
    """
    array = np.asarray(values, dtype=float)
    there = ~np.isnan(array)
    if not there.any():
        return {"n": 0}
    if units is not None:
        units = units._replace(of_slot=units.of_slot[there])
    return _figures(array[there], mean_interval(array[there], units=units))


def gap_distribution(gaps: pl.Series, units: Units | None = None) -> dict[str, Any]:
    """`distribution` of the gaps in a column of lists, one list a request, and n of them all.

    units: of each request; its gaps are never units, as they shared its neighbours.
    """
    every = gaps.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    if not every.size:
        return {"n": 0}
    counts = gaps.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    having = counts > 0
    sums = np.zeros(counts.size)
    sums[having] = np.add.reduceat(every, (np.cumsum(counts) - counts)[having], dtype=float)
    return _figures(every, mean_interval(sums, counts, units))


def _figures(array: np.ndarray, interval: tuple[float, float]) -> dict[str, Any]:
    points = np.percentile(array, PERCENTILES)
    figures = {"mean": array.mean(dtype=float), "mean_low": interval[0], "mean_high": interval[1], "min": array.min()}
    figures |= {f"p{p}": value for p, value in zip(PERCENTILES, points, strict=True)}
    figures["max"] = array.max()
    return {"n": int(array.size), **{key: round(float(value), 3) for key, value in figures.items()}}


def units_of(requests: pl.DataFrame) -> Units:
    """The independent unit of each row: its repeat, or with fewer than three of these its place in it."""
    return intervals.units(requests["repeat"].to_numpy(), samples.order_of(requests["request_id"]))


def in_order(count: int) -> Units:
    """Of so many values that came one after the other, where neighbours may be alike."""
    return Units(np.arange(count, dtype=np.int32), False)


def mean_interval(
    values: np.ndarray, counts: np.ndarray | None = None, units: Units | None = None
) -> tuple[float, float]:
    """The 95 % interval of a mean (`wp1.stats.intervals`); of a single value that value twice, which is no interval.

    counts: `values` are then sums over so many things each, and the mean is that over all things: sum of values / sum
    of counts. units: as of `distribution`.
    """
    values = np.asarray(values, dtype=float)
    counts = np.ones(values.size) if counts is None else np.asarray(counts, dtype=float)
    not_negative = bool((values >= 0).all())
    if units is None:
        found = intervals.around(intervals.of_ratio(values, counts), not_negative)
    else:
        found = intervals.around_mean(units, values, counts, not_negative)
    mean = float(values.sum() / counts.sum())
    return (mean, mean) if found is None else (found.low, found.high)


def latency(requests: pl.DataFrame) -> dict[str, Any]:
    """Counts, distributions in ms, and throughput of some measured requests, from `tables.requests`.

    Counts are of all requests; latencies and rates of the steady state, where an open loop has one (`steady`).
    """
    # What is needed alone, as it is filtered twice.
    requests = requests.select(name for name in OF_LATENCY if name in requests.columns)
    ok = requests.filter(pl.col("status") == "ok")
    of_figures = steady.of_figures(ok)
    units = units_of(of_figures)
    seconds = span(requests)
    answered, tokens, within = delivered(requests)
    causes = requests.filter(pl.col("status") != "ok").select(pl.col("cause").fill_null("unknown"))["cause"]
    return {
        "requests": requests.height,
        "ok": ok.height,
        "failed": requests.height - ok.height,
        "statuses": {str(k): int(n) for k, n in requests["status"].value_counts(sort=True).iter_rows()},
        "causes": {str(k): int(n) for k, n in causes.value_counts(sort=True).iter_rows()},
        **{name: distribution(of_figures[name].to_numpy(), units) for name in LATENCIES},
        "itl_ms": gap_distribution(of_figures["itl_ms"], units),
        "prompt_tokens": int(ok["prompt_tokens"].sum()),
        "output_tokens": int(ok["output_tokens"].sum()),
        "duration_s": round(seconds, 3),
        "requests_per_s": _rate(answered, within),
        "output_tokens_per_s": _rate(tokens, within),
    }


def delivered(requests: pl.DataFrame) -> tuple[int, int, float]:
    """Requests answered, the tokens of answered ones, and the seconds in which that was.

    In a repeat with a steady state (`steady.with_windows`) what ended, or came, within its window; else all of it.
    """
    ok = requests.filter(pl.col("status") == "ok")
    if "window_begin" not in requests.columns:
        return ok.height, int(ok["output_tokens"].sum()), span(requests)
    windowed = pl.col("window_begin").is_not_null()
    windows = requests.filter(windowed).select("arm", "cell", "repeat", "window_begin", "window_end").unique()
    seconds = float((windows["window_end"] - windows["window_begin"]).sum()) + span(requests.filter(~windowed))
    ended = pl.col("t_end").is_between("window_begin", "window_end")
    answered = ok.select((ended | ~windowed).sum()).item()
    begun = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
    inside = (begun >= pl.col("window_begin")) & ended
    tokens = int(ok.select(pl.col("output_tokens").filter(~windowed | inside).sum()).item())
    across = ok.filter(
        windowed & ~inside & (begun <= pl.col("window_end")) & (pl.col("t_end") >= pl.col("window_begin"))
    )
    return int(answered), tokens + _tokens_inside(across), seconds


def _tokens_inside(requests: pl.DataFrame) -> int:
    """How many tokens of requests that lie across an edge of their window came within it."""
    first = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
    since = pl.concat_list(
        pl.lit(0.0), pl.col("itl_ms").cast(pl.List(pl.Float64)).list.eval(pl.element().cum_sum() / 1e3)
    )
    times = requests.select("window_begin", "window_end", first=first, since=since).explode("since")
    came = pl.col("first") + pl.col("since")
    return int(times.select(came.is_between("window_begin", "window_end").sum()).item())


Limits = tuple[float | None, float | None, float | None]


def limits(slo: Mapping[str, Any]) -> Limits:
    """The limits of TTFT, TPOT and E2E in ms, from the configuration's slo; None where there is none."""
    return slo.get("ttft_ms"), slo.get("tpot_ms"), slo.get("e2e_ms")


def limits_in_words(slo: Mapping[str, Any]) -> str:
    """As in TTFT ≤ 2,000 ms, TPOT ≤ 200 ms."""
    pairs = zip(("TTFT", "TPOT", "E2E"), limits(slo), strict=True)
    return ", ".join(f"{name} ≤ {value:,g} ms" for name, value in pairs if value is not None)


def slo_in_words(slo: Mapping[str, Any]) -> str:
    """The limits that attainment and goodput are of, in a sentence; "" where there are none."""
    found = limits_in_words(slo)
    name = f" `{slo['name']}`" if slo.get("name") else ""
    return f"SLO{name}: {found}." if found else ""


def attainment(
    requests: pl.DataFrame, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None = None
) -> float | None:
    """SLO attainment: the share of requests sent that met every limit; None without a limit or a request.

    Of an open loop with a steady state, of the requests that were due in it.
    """
    requests = steady.of_figures(requests)
    if (ttft_ms is None and tpot_ms is None and e2e_ms is None) or requests.is_empty():
        return None
    return float(requests.select(met(ttft_ms, tpot_ms, e2e_ms).mean()).item())


def attains(share: float | None) -> bool:
    """Whether a rate with this SLO attainment counts as served (DistServe, OSDI 2024); one without any does not."""
    return (share or 0.0) >= GOODPUT_ATTAINMENT


def goodput(attained: Mapping[float, float | None]) -> tuple[float | None, float | None]:
    """Of tested rates (requests/s) with their SLO attainment: the goodput, and the lowest rate that failed.

    Goodput is the highest tested rate up to which every tested rate attains GOODPUT_ATTAINMENT (DistServe, OSDI 2024:
    the highest rate that is served at that attainment). A rate that passes above one that fails does not count: what
    was tested does not show that the load can be carried up to there, and the best of many noisy tests is too high.
    None where no rate counts, or none failed.
    """
    failed = min((rate for rate, share in attained.items() if not attains(share)), default=None)
    return max((rate for rate in attained if failed is None or rate < failed), default=None), failed


def attainment_interval(requests: pl.DataFrame, limits: "Limits") -> tuple[float, float] | None:
    """The 95 % interval of `attainment`: over repeats where there are three or more, and never narrower than Wilson's
    over requests. None without a request."""
    judged = steady.of_figures(requests)
    if judged.is_empty():
        return None
    kept = judged.select("repeat", kept=met(*limits)).group_by("repeat").agg(pl.sum("kept"), sent=pl.len())
    sums, counts = kept["kept"].to_numpy(), kept["sent"].to_numpy()
    if sums.size < intervals.MIN_REPEATS:
        return wilson(sums.sum(), counts.sum())
    return intervals.of_share(intervals.of_ratio(sums, counts), sums.sum(), counts.sum())


def met(ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None = None) -> pl.Expr:
    """Whether a request met every limit (ms). One that failed did not.

    What an answered request has not it cannot miss: one of a single token has no TPOT, one for perplexity no times.
    """
    found = pl.col("status") == "ok"
    for name, limit in (("ttft_ms", ttft_ms), ("tpot_ms", tpot_ms), ("e2e_ms", e2e_ms)):
        if limit is not None:
            found &= pl.col(name).is_null() | (pl.col(name) <= limit)
    return found.fill_null(False)


def span(requests: pl.DataFrame) -> float:
    """Seconds in which requests were being served: repeats are added up, the pauses between them are not counted."""
    sent = requests.filter(pl.col("t_sent").is_not_null())
    spans = sent.group_by("arm", "cell", "repeat").agg(span=pl.max("t_end") - pl.min("t_sent"))
    return float(spans["span"].sum())


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
