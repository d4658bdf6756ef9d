"""Figures from tables: percentiles, means with intervals, throughput, SLO attainment. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from wp1.analysis.base import metrics, steady
from wp1.stats import intervals, samples
from wp1.stats.intervals import Units, wilson

# Columns that a cell's figures need, besides its metrics' own.
OF_CELL = (
    "request_id", "arm", "cell", "repeat", "status", "cause", "t_intended", "t_sent", "t_end", "prompt_tokens",
    "output_tokens", "window_begin", "window_end", "steady", "ttft_ms", "itl_ms",
)  # fmt: skip
PERCENTILES = (50, 90, 95, 99)
# The least SLO attainment at which a request rate counts as served.
GOODPUT_ATTAINMENT = 0.9


def distribution(values: Any, units: Units | None = None, digits: int = 4) -> dict[str, Any]:
    """n, mean with its 95 % interval, min, p50/p90/p95/p99 (linear interpolation) and max, rounded to `digits`.

    NaN values are left out. units: the independent unit of each value, NaN ones included (`units_of`); None: all values
    are independent.
    """
    array = np.asarray(values, dtype=float)
    there = ~np.isnan(array)
    if not there.any():
        return {"n": 0}
    if units is not None:
        units = units._replace(of_slot=units.of_slot[there])
    return _figures(array[there], mean_interval(array[there], units=units), digits)


def gap_distribution(gaps: pl.Series, units: Units | None = None, digits: int = 4) -> dict[str, Any]:
    """`distribution` of the gaps in a column of lists (one list per request), pooled; n counts gaps.

    units: the unit of each request. Gaps themselves are never units, as they shared its batches.
    """
    every = gaps.explode(empty_as_null=False, keep_nulls=False).to_numpy()
    if not every.size:
        return {"n": 0}
    counts = gaps.list.len().fill_null(0).cast(pl.Int64).to_numpy()
    having = counts > 0
    sums = np.zeros(counts.size)
    sums[having] = np.add.reduceat(every, (np.cumsum(counts) - counts)[having], dtype=float)
    return _figures(every, mean_interval(sums, counts, units), digits)


def _figures(array: np.ndarray, interval: tuple[float, float], digits: int) -> dict[str, Any]:
    points = np.percentile(array, PERCENTILES)
    figures = {"mean": array.mean(dtype=float), "mean_low": interval[0], "mean_high": interval[1], "min": array.min()}
    figures |= {f"p{p}": value for p, value in zip(PERCENTILES, points, strict=True)}
    figures["max"] = array.max()
    return {"n": int(array.size), **{key: round(float(value), digits) for key, value in figures.items()}}


def units_of(requests: pl.DataFrame) -> Units:
    """The independent unit of each row: its repeat, or with fewer than three repeats its position in the repeat."""
    return intervals.units(requests["repeat"].to_numpy(), samples.order_of(requests["request_id"]))


def in_order(count: int) -> Units:
    """Units of `count` consecutive values, whose neighbours may be correlated."""
    return Units(np.arange(count, dtype=np.int32), False)


def mean_interval(
    values: np.ndarray, counts: np.ndarray | None = None, units: Units | None = None
) -> tuple[float, float]:
    """The 95 % interval of a mean (`wp1.stats.intervals`); for a single value that value twice, without width.

    counts: if given, `values` are sums over that many items each, and the mean is sum of values / sum of counts.
    units: as in `distribution`.
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
    """Counts and metrics of some measured requests (`tables.requests`), as in summary.json.

    A metric of single requests is a `distribution`, a rate a number, a share {n, mean, mean_low, mean_high}.
    Counts cover all requests; metrics cover the steady state, if an open loop has one (`steady`).
    """
    summarised = metrics.summarised("request", "gaps", "rate", "share")
    needed = {name for metric in summarised for name in (metric.key, *metric.derive.meta.root_names())}
    # Only the needed columns, as the table is filtered twice.
    requests = requests.select(name for name in requests.columns if name in needed or name in OF_CELL)
    ok = requests.filter(pl.col("status") == "ok")
    of_figures = steady.of_figures(ok)
    units = units_of(of_figures)
    came = delivered(requests)
    causes = requests.filter(pl.col("status") != "ok").select(pl.col("cause").fill_null("unknown"))["cause"]
    return {
        "requests": requests.height,
        "ok": ok.height,
        "failed": requests.height - ok.height,
        "statuses": {str(k): int(n) for k, n in requests["status"].value_counts(sort=True).iter_rows()},
        "causes": {str(k): int(n) for k, n in causes.value_counts(sort=True).iter_rows()},
        **{
            metric.key: distribution(of_figures[metric.key].cast(pl.Float64).to_numpy(), units, metric.digits)
            for metric in metrics.summarised("request")
        },
        **{
            metric.key: gap_distribution(of_figures[metric.key], units, metric.digits)
            for metric in metrics.summarised("gaps")
        },
        "prompt_tokens": int(ok["prompt_tokens"].sum()),
        "output_tokens": int(ok["output_tokens"].sum()),
        "duration_s": round(span(requests), 3),
        **{metric.key: _rate(came, metric) for metric in metrics.summarised("rate")},
        **_shares(requests),
    }


def _shares(requests: pl.DataFrame) -> dict[str, Any]:
    found = {}
    for metric in metrics.summarised("share"):
        figure = share(requests, metric, {})
        parts = ("mean", "mean_low", "mean_high")
        if figure is not None:
            values = (figure["value"], figure["low"], figure["high"])
            found[metric.key] = {"n": figure["n"], **dict(zip(parts, values, strict=True))}
    return found


class Delivered(NamedTuple):
    """Answered requests, with `ended_inside` and `tokens_inside` added, and the seconds they are counted over."""

    rows: pl.DataFrame
    seconds: float

    def amount(self, metric: metrics.Metric) -> float:
        """The numerator of a rate: the sum over all answered requests."""
        return self.rows.select(metric.derive.sum()).item()


def delivered(requests: pl.DataFrame) -> Delivered:
    """Answered requests, with ended_inside (whether each ended within its window) and tokens_inside (how many of its
    tokens came within it), and the total seconds of all windows.

    The window is the repeat's steady state (`steady.with_windows`), or the whole repeat if it has none.
    """
    ok = requests.filter(pl.col("status") == "ok")
    if "window_begin" not in requests.columns:
        return Delivered(ok.with_columns(ended_inside=pl.lit(True), tokens_inside="output_tokens"), span(requests))
    windowed = pl.col("window_begin").is_not_null()
    windows = requests.filter(windowed).select("arm", "cell", "repeat", "window_begin", "window_end").unique()
    seconds = float((windows["window_end"] - windows["window_begin"]).sum()) + span(requests.filter(~windowed))
    ended = pl.col("t_end").is_between("window_begin", "window_end")
    begun = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
    inside = (begun >= pl.col("window_begin")) & ended
    across = windowed & ~inside & (begun <= pl.col("window_end")) & (pl.col("t_end") >= pl.col("window_begin"))
    ok = ok.with_row_index("row").with_columns(ended_inside=(ended | ~windowed).fill_null(False))
    ok = ok.join(_tokens_inside(ok.filter(across)), on="row", how="left", maintain_order="left")
    whole = pl.when((~windowed | inside).fill_null(False)).then("output_tokens")
    return Delivered(
        ok.with_columns(tokens_inside=pl.coalesce(whole, "tokens_inside").fill_null(0)).drop("row"), seconds
    )


def _tokens_inside(requests: pl.DataFrame) -> pl.DataFrame:
    """For requests that cross an edge of their window: by `row`, how many of their tokens came within it."""
    first = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
    since = pl.concat_list(
        pl.lit(0.0), pl.col("itl_ms").cast(pl.List(pl.Float64)).list.eval(pl.element().cum_sum() / 1e3)
    )
    times = requests.select("row", "window_begin", "window_end", first=first, since=since).explode("since")
    came = (pl.col("first") + pl.col("since")).is_between("window_begin", "window_end")
    return times.group_by("row").agg(tokens_inside=came.sum().cast(pl.Int64))


def figures(
    requests: pl.DataFrame, of: Iterable[metrics.Figure], limits: "Limits | None" = None, devices: int = 1
) -> dict[str, dict[str, Any] | None]:
    """Figures of one arm's cell, each {n, value, low, high}, by `Figure.short_column`; None without a value.

    requests: all requests sent (`tables.requests`). Rates are per device.
    """
    wanted = list(of)
    sample = samples.Sample(steady.of_figures(requests.filter(pl.col("status") == "ok")))
    repeats = [delivered(rows) for _, rows in requests.group_by("repeat", maintain_order=True)]
    seconds = [repeat.seconds * devices for repeat in repeats]
    found: dict[str, dict[str, Any] | None] = {}
    for figure in wanted:
        metric = figure.metric
        if metric.kind == "rate":
            made = samples.ratio([repeat.amount(metric) for repeat in repeats], seconds)
        elif metric.kind == "share":
            made = share(requests, metric, limits or {})
        else:
            made = sample.figure(metric.key, figure.statistic, metric.digits)
        found[figure.short_column] = made
    return found


# Upper limits, by the key of a metric of single requests.
Limits = Mapping[str, float]


def limits(slo: Mapping[str, Any]) -> Limits:
    """The limits in the configuration's slo: its keys that are metrics and not null."""
    return {metric.key: slo[metric.key] for metric in metrics.of_kind("request") if slo.get(metric.key) is not None}


def limits_in_words(slo: Mapping[str, Any], between: str = ", ") -> str:
    """The limits as text, such as `TTFT ≤ 2,000 ms, TPOT ≤ 200 ms`."""
    found = [(metric, slo.get(metric.key)) for metric in metrics.of_kind("request")]
    return between.join(f"{metric.title} ≤ {most:,g} {metric.unit}" for metric, most in found if most is not None)


def slo_in_words(slo: Mapping[str, Any]) -> str:
    """The limits behind attainment and goodput, as a sentence; "" if there are none."""
    found = limits_in_words(slo)
    name = f" `{slo['name']}`" if slo.get("name") else ""
    return f"SLO{name}: {found}." if found else ""


def attainment(requests: pl.DataFrame, limits: Limits) -> float | None:
    """SLO attainment: the share of requests sent that met every limit; None without limits or requests.

    In an open loop with a steady state, only requests due in it count.
    """
    requests = steady.of_figures(requests)
    if not limits or requests.is_empty():
        return None
    return float(requests.select(met(limits).mean()).item())


def attains(share: float | None) -> bool:
    """Whether a rate with this SLO attainment counts as served (DistServe, OSDI 2024); None does not."""
    return (share or 0.0) >= GOODPUT_ATTAINMENT


def goodput(attained: Mapping[float, float | None]) -> tuple[float | None, float | None]:
    """The goodput and the lowest rate that failed, from tested rates (requests/s) with their SLO attainment.

    Goodput is the highest tested rate up to which every tested rate attains GOODPUT_ATTAINMENT (DistServe, OSDI 2024:
    the highest rate that is served at that attainment). A rate that passes above one that fails does not count: the
    tests do not show that the load can be carried up to there, and the best of many noisy tests is too high. Each is
    None if there is no such rate.
    """
    failed = min((rate for rate, share in attained.items() if not attains(share)), default=None)
    return max((rate for rate in attained if failed is None or rate < failed), default=None), failed


def attainment_interval(requests: pl.DataFrame, limits: Limits) -> tuple[float, float] | None:
    """The 95 % interval of `attainment` (`_share_interval`). None without a request."""
    return _share_interval(steady.of_figures(requests), met(limits))


def _share_interval(requests: pl.DataFrame, kept: pl.Expr) -> tuple[float, float] | None:
    """The 95 % interval of a share of requests: over repeats if there are three or more, and never narrower than
    Wilson's over requests. None without a request."""
    if requests.is_empty():
        return None
    counts = requests.select("repeat", kept=kept).group_by("repeat").agg(pl.sum("kept"), sent=pl.len())
    sums, sent = counts["kept"].to_numpy(), counts["sent"].to_numpy()
    if sums.size < intervals.MIN_REPEATS:
        return wilson(sums.sum(), sent.sum())
    return intervals.of_share(intervals.of_ratio(sums, sent), sums.sum(), sent.sum())


def share(requests: pl.DataFrame, metric: metrics.Metric, limits: Limits) -> dict[str, Any] | None:
    """n, value, low and high of a share of the requests sent; None without a request, or without limits if it needs
    them."""
    counted = steady.of_figures(with_met(requests, limits))
    if counted.is_empty() or (metric.needs_slo and not limits):
        return None
    kept = metric.derive.fill_null(False)
    low, high = _share_interval(counted, kept) or (0.0, 1.0)
    values = {"value": counted.select(kept.mean()).item(), "low": low, "high": high}
    return {"n": counted.height, **{key: round(float(value), metric.digits) for key, value in values.items()}}


def with_met(requests: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """Adds met_slo: whether a request met every limit; null without limits."""
    return requests.with_columns(met_slo=met(limits) if limits else pl.lit(None, pl.Boolean))


def met(limits: Limits) -> pl.Expr:
    """Whether a request met every limit. A failed request did not.

    A limit on a metric that an answered request does not have is ignored: a single token has no TPOT, and a request for
    perplexity has no times.
    """
    found = pl.col("status") == "ok"
    for key, most in limits.items():
        found &= pl.col(key).is_null() | (pl.col(key) <= most)
    return found.fill_null(False)


def span(requests: pl.DataFrame) -> float:
    """Seconds in which requests were served: the sum over repeats, without the pauses between them."""
    sent = requests.filter(pl.col("t_sent").is_not_null())
    spans = sent.group_by("arm", "cell", "repeat").agg(span=pl.max("t_end") - pl.min("t_sent"))
    return float(spans["span"].sum())


def _rate(came: Delivered, metric: metrics.Metric) -> float | None:
    return round(came.amount(metric) / came.seconds, metric.digits) if came.seconds > 0 else None
