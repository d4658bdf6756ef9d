"""Figures from tables: percentiles, means with intervals, throughput, attainment. Pure."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from wp1.analysis.base import metric_table, steady
from wp1.stats import intervals, samples
from wp1.stats.intervals import Units, wilson

# What the figures of a cell are made of, beside its metrics' own columns.
OF_CELL = (
    "request_id", "arm", "cell", "repeat", "status", "cause", "t_intended", "t_sent", "t_end", "prompt_tokens",
    "output_tokens", "window_begin", "window_end", "steady", "ttft_ms", "itl_ms",
)  # fmt: skip
PERCENTILES = (50, 90, 95, 99)
# Attainment from which on a request rate counts as served.
GOODPUT_ATTAINMENT = 0.9


def distribution(values: Any, units: Units | None = None, digits: int = 4) -> dict[str, Any]:
    """n, mean with its 95 % interval, min, p50/p90/p95/p99 (linear interpolation) and max, to so many decimals.

    units: of each value, NaN ones included (`units_of`); without, each value is independent of all others.
    """
    array = np.asarray(values, dtype=float)
    there = ~np.isnan(array)
    if not there.any():
        return {"n": 0}
    if units is not None:
        units = units._replace(of_slot=units.of_slot[there])
    return _figures(array[there], mean_interval(array[there], units=units), digits)


def gap_distribution(gaps: pl.Series, units: Units | None = None, digits: int = 4) -> dict[str, Any]:
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
    return _figures(every, mean_interval(sums, counts, units), digits)


def _figures(array: np.ndarray, interval: tuple[float, float], digits: int) -> dict[str, Any]:
    points = np.percentile(array, PERCENTILES)
    figures = {"mean": array.mean(dtype=float), "mean_low": interval[0], "mean_high": interval[1], "min": array.min()}
    figures |= {f"p{p}": value for p, value in zip(PERCENTILES, points, strict=True)}
    figures["max"] = array.max()
    return {"n": int(array.size), **{key: round(float(value), digits) for key, value in figures.items()}}


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
    """Counts and the metrics of some measured requests (`tables.requests`) that summary.json has.

    A metric of single requests is a `distribution`, a rate a number, a share {n, mean, mean_low, mean_high}.
    Counts are of all requests; metrics of the steady state, where an open loop has one (`steady`).
    """
    summarised = metric_table.summarised("request", "gaps", "rate", "share")
    needed = {name for metric in summarised for name in (metric.key, *metric.derive.meta.root_names())}
    # What is needed alone, as it is filtered twice.
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
            for metric in metric_table.summarised("request")
        },
        **{
            metric.key: gap_distribution(of_figures[metric.key], units, metric.digits)
            for metric in metric_table.summarised("gaps")
        },
        "prompt_tokens": int(ok["prompt_tokens"].sum()),
        "output_tokens": int(ok["output_tokens"].sum()),
        "duration_s": round(span(requests), 3),
        **{metric.key: _rate(came, metric) for metric in metric_table.summarised("rate")},
        **_shares(requests),
    }


def _shares(requests: pl.DataFrame) -> dict[str, Any]:
    found = {}
    for metric in metric_table.summarised("share"):
        figure = share(requests, metric, {})
        parts = ("mean", "mean_low", "mean_high")
        if figure is not None:
            values = (figure["value"], figure["low"], figure["high"])
            found[metric.key] = {"n": figure["n"], **dict(zip(parts, values, strict=True))}
    return found


class Delivered(NamedTuple):
    """What was answered, and the seconds in which that was. `rows` has `ended_inside` and `tokens_inside` added."""

    rows: pl.DataFrame
    seconds: float

    def amount(self, metric: metric_table.Metric) -> float:
        """What a rate is of: the sum over all answered requests."""
        return self.rows.select(metric.derive.sum()).item()


def delivered(requests: pl.DataFrame) -> Delivered:
    """Answered requests with ended_inside (whether it ended) and tokens_inside (how many of its tokens came) within its
    window, and the seconds of all windows.

    In a repeat with a steady state (`steady.with_windows`) the window is that; else it is all of the repeat.
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
    """Of requests that lie across an edge of their window: by `row`, how many of their tokens came within it."""
    first = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
    since = pl.concat_list(
        pl.lit(0.0), pl.col("itl_ms").cast(pl.List(pl.Float64)).list.eval(pl.element().cum_sum() / 1e3)
    )
    times = requests.select("row", "window_begin", "window_end", first=first, since=since).explode("since")
    came = (pl.col("first") + pl.col("since")).is_between("window_begin", "window_end")
    return times.group_by("row").agg(tokens_inside=came.sum().cast(pl.Int64))


def figures(
    requests: pl.DataFrame, of: Iterable[metric_table.Figure], limits: "Limits | None" = None, devices: int = 1
) -> dict[str, dict[str, Any] | None]:
    """Figures of a cell of one arm, each {n, value, low, high}, by `Figure.short_column`; None if it has no value.

    requests: `tables.requests`, all that were sent. Rates are per device.
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


# By the key of a metric of single requests, the most that it may be.
Limits = Mapping[str, float]


def limits(slo: Mapping[str, Any]) -> Limits:
    """The limits of the configuration's slo: it limits the metrics whose keys it has, if it says how much."""
    return {
        metric.key: slo[metric.key] for metric in metric_table.of_kind("request") if slo.get(metric.key) is not None
    }


def limits_in_words(slo: Mapping[str, Any], between: str = ", ") -> str:
    """As in TTFT ≤ 2,000 ms, TPOT ≤ 200 ms."""
    found = [(metric, slo.get(metric.key)) for metric in metric_table.of_kind("request")]
    return between.join(f"{metric.title} ≤ {most:,g} {metric.unit}" for metric, most in found if most is not None)


def slo_in_words(slo: Mapping[str, Any]) -> str:
    """The limits that attainment and goodput are of, in a sentence; "" where there are none."""
    found = limits_in_words(slo)
    name = f" `{slo['name']}`" if slo.get("name") else ""
    return f"SLO{name}: {found}." if found else ""


def attainment(requests: pl.DataFrame, limits: Limits) -> float | None:
    """SLO attainment: the share of requests sent that met every limit; None without a limit or a request.

    Of an open loop with a steady state, of the requests that were due in it.
    """
    requests = steady.of_figures(requests)
    if not limits or requests.is_empty():
        return None
    return float(requests.select(met(limits).mean()).item())


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


def attainment_interval(requests: pl.DataFrame, limits: Limits) -> tuple[float, float] | None:
    """The 95 % interval of `attainment` (`_share_interval`). None without a request."""
    return _share_interval(steady.of_figures(requests), met(limits))


def _share_interval(requests: pl.DataFrame, kept: pl.Expr) -> tuple[float, float] | None:
    """The 95 % interval of a share of requests: over repeats where there are three or more, and never narrower than
    Wilson's over requests. None without a request."""
    if requests.is_empty():
        return None
    counts = requests.select("repeat", kept=kept).group_by("repeat").agg(pl.sum("kept"), sent=pl.len())
    sums, sent = counts["kept"].to_numpy(), counts["sent"].to_numpy()
    if sums.size < intervals.MIN_REPEATS:
        return wilson(sums.sum(), sent.sum())
    return intervals.of_share(intervals.of_ratio(sums, sent), sums.sum(), sent.sum())


def share(requests: pl.DataFrame, metric: metric_table.Metric, limits: Limits) -> dict[str, Any] | None:
    """n, value, low and high of a share of the requests sent; None without a request, or without limits if it is of
    these."""
    judged = steady.of_figures(with_met(requests, limits))
    if judged.is_empty() or (metric.needs_slo and not limits):
        return None
    kept = metric.derive.fill_null(False)
    low, high = _share_interval(judged, kept) or (0.0, 1.0)
    values = {"value": judged.select(kept.mean()).item(), "low": low, "high": high}
    return {"n": judged.height, **{key: round(float(value), metric.digits) for key, value in values.items()}}


def with_met(requests: pl.DataFrame, limits: Limits) -> pl.DataFrame:
    """Adds met_slo: whether a request met every limit; null without limits."""
    return requests.with_columns(met_slo=met(limits) if limits else pl.lit(None, pl.Boolean))


def met(limits: Limits) -> pl.Expr:
    """Whether a request met every limit. One that failed did not.

    What an answered request has not it cannot miss: one of a single token has no TPOT, one for perplexity no times.
    """
    found = pl.col("status") == "ok"
    for key, most in limits.items():
        found &= pl.col(key).is_null() | (pl.col(key) <= most)
    return found.fill_null(False)


def span(requests: pl.DataFrame) -> float:
    """Seconds in which requests were being served: repeats are added up, the pauses between them are not counted."""
    sent = requests.filter(pl.col("t_sent").is_not_null())
    spans = sent.group_by("arm", "cell", "repeat").agg(span=pl.max("t_end") - pl.min("t_sent"))
    return float(spans["span"].sum())


def _rate(came: Delivered, metric: metric_table.Metric) -> float | None:
    return round(came.amount(metric) / came.seconds, metric.digits) if came.seconds > 0 else None
