"""Figures from tables: percentiles, means with intervals, throughput, attainment. Pure."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis import steady

LATENCIES = (
    "ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "prefill_ms", "handoff_ms", "decode_step_ms", "delivery_ms",
    "client_delay_ms",
)  # fmt: skip
PERCENTILES = (50, 90, 95, 99)
LEVEL_Z = 1.959964  # of a 95 % interval
# Of the bootstrap: values that are resampled one by one, and numbers drawn at a time, which bounds its memory.
GROUPS, SLICE = 4000, 1_000_000
# Attainment from which on a request rate counts as served (DistServe, OSDI 2024).
GOODPUT_ATTAINMENT = 0.9


def distribution(values: Any) -> dict[str, Any]:
    """n, mean with its 95 % interval, min, p50/p90/p95/p99 (linear interpolation) and max, to 3 decimals."""
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    return _figures(array, mean_interval(array)) if array.size else {"n": 0}


def gap_distribution(gaps: pl.Series) -> dict[str, Any]:
    """`distribution` of the gaps in a column of lists, one list a request, and n of them all.

    The interval resamples requests and not gaps: the gaps of one request are alike, as they shared its neighbours.
    """
    every = gaps.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    if not every.size:
        return {"n": 0}
    counts = gaps.list.len().fill_null(0).to_numpy()
    sums = gaps.cast(pl.List(pl.Float64)).list.sum().fill_null(0).to_numpy()
    return _figures(every, mean_interval(sums, counts))


def _figures(array: np.ndarray, interval: tuple[float, float]) -> dict[str, Any]:
    points = np.percentile(array, PERCENTILES)
    figures = {"mean": array.mean(dtype=float), "mean_low": interval[0], "mean_high": interval[1], "min": array.min()}
    figures |= {f"p{p}": value for p, value in zip(PERCENTILES, points, strict=True)}
    figures["max"] = array.max()
    return {"n": int(array.size), **{key: round(float(value), 3) for key, value in figures.items()}}


def mean_interval(
    values: np.ndarray, counts: np.ndarray | None = None, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean (Efron, 1979), with a fixed seed: the same values give the same one.

    counts: `values` are then sums over so many things each, what is resampled is the sums, and the mean is that over
    all things: sum of values / sum of counts.
    More than 4,000 values are first put at random into 4,000 groups of equal size, and these are resampled: the mean
    of a resample has the same variance, as that of a group's sum is the sum of its values'. A million take a tenth of
    a second, and not a quarter of a minute.
    """
    if counts is None:
        counts = np.ones(values.size)
    values, counts = np.asarray(values, dtype=float)[counts > 0], np.asarray(counts, dtype=float)[counts > 0]
    if values.size == 1:
        return float(values[0] / counts[0]), float(values[0] / counts[0])
    rng = np.random.default_rng(0)
    if values.size > GROUPS:
        order = rng.permutation(values.size)
        edges = np.arange(GROUPS) * values.size // GROUPS
        values, counts = np.add.reduceat(values[order], edges), np.add.reduceat(counts[order], edges)
    rows = max(1, SLICE // values.size)
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        drawn = rng.integers(0, values.size, (min(rows, resamples - start), values.size))
        means[start : start + rows] = values[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def latency(requests: pl.DataFrame) -> dict[str, Any]:
    """Counts, distributions in ms, and throughput of some measured requests, from `tables.requests`.

    Counts are of all requests; latencies and rates of the steady state, where an open loop has one (`steady`).
    """
    ok = requests.filter(pl.col("status") == "ok")
    of_figures = steady.of_figures(ok)
    seconds = span(requests)
    answered, tokens, within = delivered(requests)
    causes = requests.filter(pl.col("status") != "ok").select(pl.col("cause").fill_null("unknown"))["cause"]
    return {
        "requests": requests.height,
        "ok": ok.height,
        "failed": requests.height - ok.height,
        "statuses": {str(k): int(n) for k, n in requests["status"].value_counts(sort=True).iter_rows()},
        "causes": {str(k): int(n) for k, n in causes.value_counts(sort=True).iter_rows()},
        **{name: distribution(of_figures[name].drop_nulls().to_numpy()) for name in LATENCIES},
        "itl_ms": gap_distribution(of_figures["itl_ms"]),
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
    tokens = int(ok.filter(~windowed | inside)["output_tokens"].sum())
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
    return round(float(requests.select(met(ttft_ms, tpot_ms, e2e_ms).mean()).item()), 4)


def wilson(met: float, sent: int) -> tuple[float, float]:
    """95 % interval of a share, in 0..1 (Wilson, 1927): honest for few, and unlike a bootstrap's never without width.

    met may be a sum of part marks. Of none sent it is all there is, 0 to 1.
    """
    if not sent:
        return 0.0, 1.0
    share, z2 = met / sent, LEVEL_Z**2
    centre = (share + z2 / (2 * sent)) / (1 + z2 / sent)
    half = LEVEL_Z / (1 + z2 / sent) * math.sqrt(share * (1 - share) / sent + z2 / (4 * sent * sent))
    # Exactly 0 and 1 at the ends, where rounding would leave a crumb.
    return (max(0.0, centre - half) if met else 0.0), (min(1.0, centre + half) if met < sent else 1.0)


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
