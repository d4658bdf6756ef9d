"""Two arms side by side: every metric of every cell, with the interval of its difference. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis import bootstrap, cells, metrics

# Five pairs that all lean the same way do so by chance once in sixteen times, which is more than 5 %: from fewer than
# six nobody can tell a difference, however narrow an interval is.
MIN_UNITS = 6

# Name, title, unit. The name of a latency is its column in `tables.requests` and the statistic.
METRICS = (
    ("ttft_ms/mean", "TTFT mean", "ms"),
    ("ttft_ms/p50", "TTFT p50", "ms"),
    ("ttft_ms/p95", "TTFT p95", "ms"),
    ("tpot_ms/mean", "TPOT mean", "ms"),
    ("tpot_ms/p95", "TPOT p95", "ms"),
    ("itl_ms/p95", "ITL p95", "ms"),
    ("e2e_ms/mean", "E2E mean", "ms"),
    ("e2e_ms/p95", "E2E p95", "ms"),
    ("queue_ms/mean", "queue mean", "ms"),
    ("prefill_ms/mean", "prefill mean", "ms"),
    ("handoff_ms/mean", "handoff mean", "ms"),
    ("decode_step_ms/mean", "first decode step mean", "ms"),
    ("decode_ms/mean", "decode mean", "ms"),
    ("output_tokens_per_s", "output tokens/s", "tokens/s"),
    ("requests_per_s", "requests/s", "requests/s"),
    ("slo_attainment", "SLO attainment", "share"),
    ("failed_share", "requests failed", "share"),
)
# A longer answer takes longer: where answers of a pair differ in length, these compare lengths, and not speed.
BY_LENGTH = ("e2e_ms/mean", "e2e_ms/p95", "decode_ms/mean", "output_tokens_per_s", "requests_per_s")
LATENCIES = tuple(dict.fromkeys(name.partition("/")[0] for name, _, unit in METRICS if unit == "ms"))
SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "cell": pl.String,
    "metric": pl.String,
    "unit": pl.String,
    "n_a": pl.Int64,
    "n_b": pl.Int64,
    "a": pl.Float64,
    "b": pl.Float64,
    "delta": pl.Float64,
    "ratio": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "excludes_zero": pl.Boolean,
}
GOODPUT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "prompt": pl.String,
    "rates": pl.List(pl.Float64),
    "devices": pl.Int64,
    "goodput": pl.Float64,
    "goodput_per_device": pl.Float64,
}


# A request's name in every arm.
_NAME = pl.col("request_id").str.replace(r"^[^/]*/", "").alias("name")


def compare(a: pl.DataFrame, b: pl.DataFrame, slo: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """One row for each cell and metric of two arms (tables of `tables.requests`), or of two runs.

    a, b, delta (b - a), low and high have the metric's unit; ratio is b / a; null where an arm has no such figure.
    n_a, n_b: what the figure is made of (requests, gaps, or repeats for a rate). slo: the limits `ttft_ms`,
    `tpot_ms` and `e2e_ms` for attainment. Latencies are of requests that were answered, shares of all that were sent.

    Requests are paired by their id without the arm, since both arms were sent the same prompts at the same times.
    low and high are the 95 % percentile interval of delta from a bootstrap (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, ch. 13) in two levels (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section
    3.8): repeats are drawn with replacement, as they are what is independent, then within each its pairs. A pair is
    drawn whole, so what both arms share cancels. With one repeat only pairs are drawn, and the interval says nothing
    of another day. Rates are properties of a repeat and resample repeats alone; with one there is no interval. Few
    repeats make an interval narrower than it should be.

    excludes_zero is null below six pairs (of a rate: repeats), where no interval can tell, and for BY_LENGTH (with a
    limit of E2E also for attainment) in cells whose answers differ in length (`unlike_lengths`), where none may.
    """
    limits = dict(slo or {})
    unjudged = {*BY_LENGTH, *(["slo_attainment"] if metrics.limits(limits)[2] is not None else [])}
    unlike = unlike_lengths(a, b)
    a, b = _prepared(a, limits), _prepared(b, limits)
    rows = []
    for cell in cells.ordered([*a["cell"], *b["cell"]]):
        of_cell = pl.col("cell") == cell
        for row in _cell(a.filter(of_cell), b.filter(of_cell), limits):
            verdict = {"excludes_zero": None} if cell in unlike and row["metric"] in unjudged else {}
            rows.append({"cell": cell, **row, **verdict})
    return pl.DataFrame(rows, schema=SCHEMA)


def unlike_lengths(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The cells in which answers to the same request differ in length: `pairs` (answered by both arms), how many of
    them are `unlike`, and the mean output tokens of a pair's answers, `a` and `b`.

    a, b: as in `compare`.
    """
    answered = [
        rows.filter(~pl.col("warmup") & pl.col("e2e_ms").is_not_null()).select("cell", _NAME, "output_tokens")
        for rows in (a, b)
    ]
    pairs = answered[0].join(answered[1], on=["cell", "name"], suffix="_b").group_by("cell").agg(
        pairs=pl.len(),
        unlike=(pl.col("output_tokens") != pl.col("output_tokens_b")).sum(),
        a=pl.col("output_tokens").mean().round(1),
        b=pl.col("output_tokens_b").mean().round(1),
    )  # fmt: skip
    found = {row.pop("cell"): row for row in pairs.filter(pl.col("unlike") > 0).iter_rows(named=True)}
    return {cell: found[cell] for cell in cells.ordered(found)}


def _prepared(requests: pl.DataFrame, limits: Mapping[str, Any]) -> pl.DataFrame:
    """Measured requests with their name in every arm; latencies of answered ones alone, figures of the steady state."""
    ok = pl.col("status") == "ok"
    counts = pl.col("steady") if "steady" in requests.columns else pl.lit(True)
    met = metrics.met(*metrics.limits(limits)).cast(pl.Float64)
    return requests.filter(~pl.col("warmup")).with_columns(
        _NAME,
        slo_attainment=pl.when(counts).then(met),
        failed_share=pl.when(counts).then((~ok).cast(pl.Float64)),
        **{name: pl.when(ok & counts).then(pl.col(name)) for name in LATENCIES},
    )


def _cell(a: pl.DataFrame, b: pl.DataFrame, limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    slots = pl.concat([a.select("repeat", "name"), b.select("repeat", "name")]).unique().sort("repeat", "name")
    repeats, draws = bootstrap.resamples(slots["repeat"].to_numpy())
    index = {name: n for n, name in enumerate(slots["name"])}
    rows = []
    for name, _, unit in METRICS:
        if unit in ("tokens/s", "requests/s"):
            figures = _rate_row(a, b, name, slots["repeat"].unique().sort().to_list(), repeats)
        elif name == "slo_attainment" and metrics.limits(limits) == (None, None, None):
            continue
        else:
            column, _, statistic = name.partition("/")
            figures = _row(
                bootstrap.values(a, column, index), bootstrap.values(b, column, index), statistic or "mean", draws
            )
        rows.append({"metric": name, "unit": unit, **figures})
    return rows


def _row(a: bootstrap.Values, b: bootstrap.Values, statistic: str, draws: np.ndarray) -> dict[str, Any]:
    point = {"mean": np.mean, "p50": lambda v: np.percentile(v, 50), "p95": lambda v: np.percentile(v, 95)}[statistic]
    of_a, of_b = (float(point(values)) if values.size else None for _, values in (a, b))
    units = np.intersect1d(a[0], b[0]).size
    deltas = np.empty(0)
    if units > 1:
        deltas = bootstrap.resampled(b, statistic, draws) - bootstrap.resampled(a, statistic, draws)
    return _figures(a[1].size, b[1].size, of_a, of_b, deltas, units)


def _rate_row(a: pl.DataFrame, b: pl.DataFrame, name: str, repeats: list[int], draws: np.ndarray) -> dict[str, Any]:
    """A rate is what all repeats gave over the seconds that all of them took."""
    done = [[_done(rows.filter(pl.col("repeat") == n), name) for n in repeats] for rows in (a, b)]
    count_a, span_a, count_b, span_b = (np.array([d[part] for d in arm]) for arm in done for part in (0, 1))
    of_a, of_b = (float(c.sum() / s.sum()) if s.sum() > 0 else None for c, s in ((count_a, span_a), (count_b, span_b)))
    units = int(((span_a > 0) & (span_b > 0)).sum())
    deltas = np.empty(0)
    if units > 1:
        with np.errstate(invalid="ignore", divide="ignore"):
            deltas = (draws @ count_b) / (draws @ span_b) - (draws @ count_a) / (draws @ span_a)
    return _figures(int((span_a > 0).sum()), int((span_b > 0).sum()), of_a, of_b, deltas, units)


def _done(rows: pl.DataFrame, name: str) -> tuple[float, float]:
    """Tokens or requests of the answered ones of a repeat, and its seconds."""
    answered, tokens, seconds = metrics.delivered(rows)
    return float(answered if name == "requests_per_s" else tokens), seconds


def _figures(n_a: int, n_b: int, a: float | None, b: float | None, deltas: np.ndarray, units: int) -> dict[str, Any]:
    bounds = bootstrap.interval(deltas)
    low, high = bounds or (None, None)
    excludes = bool(bounds[0] > 0 or bounds[1] < 0) if bounds and units >= MIN_UNITS else None
    delta = b - a if a is not None and b is not None else None
    return {
        "n_a": n_a,
        "n_b": n_b,
        "a": _rounded(a),
        "b": _rounded(b),
        "delta": _rounded(delta),
        "ratio": _rounded(b / a) if a and b is not None else None,
        "low": _rounded(low),
        "high": _rounded(high),
        "excludes_zero": excludes,
    }


def _rounded(value: float | None) -> float | None:
    # Adding zero turns -0.0 into 0.0.
    return None if value is None else round(value, 4) + 0.0


def goodput(
    requests: pl.DataFrame, slo: Mapping[str, Any], devices: int, at_least: float = metrics.GOODPUT_ATTAINMENT
) -> pl.DataFrame:
    """The highest request rate (requests/s, and per device) at which attainment is at least 90 %, one row a prompt.

    DistServe's definition (Zhong et al., OSDI 2024), over the rates that were tested: the true one may lie between the
    one given and the next. Null where no rate above 0 was tested, or none attains. Empty without limits in `slo`.
    """
    limits = metrics.limits(slo)
    measured = requests.filter(~pl.col("warmup"))
    if limits == (None, None, None):
        return pl.DataFrame(schema=GOODPUT_SCHEMA)
    tested: dict[str, dict[float, float]] = {}
    for name in cells.ordered(measured["cell"]):
        cell = cells.parse(name)
        rates = tested.setdefault(cell.prompt, {})
        if cell.rate > 0:
            rates[cell.rate] = metrics.attainment(measured.filter(pl.col("cell") == name), *limits) or 0.0
    rows = []
    for prompt, rates in tested.items():
        best = max((rate for rate, attained in rates.items() if attained >= at_least), default=None)
        per_device = None if best is None else round(best / devices, 4)
        rows.append(
            {
                "prompt": prompt,
                "rates": sorted(rates),
                "devices": devices,
                "goodput": best,
                "goodput_per_device": per_device,
            }
        )
    return pl.DataFrame(rows, schema=GOODPUT_SCHEMA)
