"""Two arms side by side: every metric of every cell, with the interval of its difference. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis import cells, metrics

RESAMPLES = 2000
LEVEL = 0.95
# Five pairs that all lean the same way do so by chance once in sixteen times, which is more than 5 %: from fewer than
# six nobody can tell a difference, however narrow an interval is.
MIN_UNITS = 6
# A bootstrap of more gaps than this sees them in as many bins of equal count; the figures themselves see every gap.
MAX_BINS = 1000

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


def compare(a: pl.DataFrame, b: pl.DataFrame, slo: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """One row for each cell and metric of two arms (tables of `tables.requests`), or of two runs.

    a, b, delta (b - a), low and high have the metric's unit; ratio is b / a; null where an arm has no such figure.
    n_a, n_b: what the figure is made of (requests, gaps, or repeats for a rate). slo: the limits `ttft_ms` and
    `tpot_ms` for attainment. Latencies are of requests that were answered, shares of all that were sent.

    Requests are paired by their id without the arm, since both arms were sent the same prompts at the same times.
    low and high are the 95 % percentile interval of delta from a bootstrap (Efron & Tibshirani, An Introduction to the
    Bootstrap, 1993, ch. 13) in two levels (Davison & Hinkley, Bootstrap Methods and their Application, 1997, section
    3.8): repeats are drawn with replacement, as they are what is independent, then within each its pairs. A pair is
    drawn whole, so what both arms share cancels. With one repeat only pairs are drawn, and the interval says nothing
    of another day. Rates are properties of a repeat and resample repeats alone; with one there is no interval. Few
    repeats make an interval narrower than it should be.

    excludes_zero is null below six pairs (of a rate: repeats), where no interval can tell.
    """
    limits = dict(slo or {})
    a, b = _prepared(a, limits), _prepared(b, limits)
    rows = []
    for cell in cells.ordered([*a["cell"], *b["cell"]]):
        of_cell = pl.col("cell") == cell
        rows += [{"cell": cell, **row} for row in _cell(a.filter(of_cell), b.filter(of_cell), limits)]
    return pl.DataFrame(rows, schema=SCHEMA)


def _prepared(requests: pl.DataFrame, limits: Mapping[str, Any]) -> pl.DataFrame:
    """Measured requests with their name in every arm; latencies of answered ones alone, figures of the steady state."""
    ok = pl.col("status") == "ok"
    counts = pl.col("steady") if "steady" in requests.columns else pl.lit(True)
    met = metrics.met(limits.get("ttft_ms"), limits.get("tpot_ms")).cast(pl.Float64)
    return requests.filter(~pl.col("warmup")).with_columns(
        name=pl.col("request_id").str.replace(r"^[^/]*/", ""),
        slo_attainment=pl.when(counts).then(met),
        failed_share=pl.when(counts).then((~ok).cast(pl.Float64)),
        **{name: pl.when(ok & counts).then(pl.col(name)) for name in LATENCIES},
    )


def _cell(a: pl.DataFrame, b: pl.DataFrame, limits: Mapping[str, Any]) -> list[dict[str, Any]]:
    slots = pl.concat([a.select("repeat", "name"), b.select("repeat", "name")]).unique().sort("repeat", "name")
    repeats, draws = _resamples(slots["repeat"].to_numpy())
    index = {name: n for n, name in enumerate(slots["name"])}
    rows = []
    for name, _, unit in METRICS:
        if unit in ("tokens/s", "requests/s"):
            figures = _rate_row(a, b, name, slots["repeat"].unique().sort().to_list(), repeats)
        elif name == "slo_attainment" and limits.get("ttft_ms") is None and limits.get("tpot_ms") is None:
            continue
        else:
            column, _, statistic = name.partition("/")
            figures = _row(_values(a, column, index), _values(b, column, index), statistic or "mean", draws)
        rows.append({"metric": name, "unit": unit, **figures})
    return rows


def _resamples(repeat_of_slot: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How often each repeat and each pair of requests is in each resample: (resamples x repeats), (resamples x pairs).

    The seed is fixed: the same run gives the same intervals.
    """
    rng = np.random.default_rng(0)
    names, counts = np.unique(repeat_of_slot, return_counts=True)
    repeats = rng.multinomial(names.size, np.full(names.size, 1 / names.size), RESAMPLES)
    # A repeat drawn twice has its pairs drawn twice, independently, which is one draw of twice as many.
    pairs = [
        rng.multinomial(repeats[:, n] * count, np.full(count, 1 / count), RESAMPLES) for n, count in enumerate(counts)
    ]
    draws = np.empty((RESAMPLES, repeat_of_slot.size), dtype=np.float32)
    for n, name in enumerate(names):
        draws[:, repeat_of_slot == name] = pairs[n]
    return repeats, draws


def _values(rows: pl.DataFrame, column: str, index: Mapping[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """The values of a column, and the pair that each belongs to. A list column has several values a request."""
    found = rows.select("name", column)
    if found.schema[column] == pl.List:
        found = found.explode(column)
    found = found.drop_nulls(column)
    pairs = np.fromiter((index[name] for name in found["name"]), dtype=np.int64, count=found.height)
    return pairs, found[column].to_numpy().astype(float)


Values = tuple[np.ndarray, np.ndarray]


def _row(a: Values, b: Values, statistic: str, draws: np.ndarray) -> dict[str, Any]:
    point = {"mean": np.mean, "p50": lambda v: np.percentile(v, 50), "p95": lambda v: np.percentile(v, 95)}[statistic]
    of_a, of_b = (float(point(values)) if values.size else None for _, values in (a, b))
    units = np.intersect1d(a[0], b[0]).size
    deltas = np.empty(0)
    if units > 1:
        deltas = _resampled(b, statistic, draws) - _resampled(a, statistic, draws)
    return _figures(a[1].size, b[1].size, of_a, of_b, deltas, units)


def _resampled(values: Values, statistic: str, draws: np.ndarray) -> np.ndarray:
    """The statistic in every resample; NaN where none of its requests was drawn."""
    pairs, numbers = values
    if statistic == "mean":
        sums = np.bincount(pairs, numbers, draws.shape[1])
        counts = np.bincount(pairs, minlength=draws.shape[1])
        with np.errstate(invalid="ignore", divide="ignore"):
            return (draws @ sums) / (draws @ counts)
    return _resampled_percentile(pairs, numbers, float(statistic[1:]) / 100, draws)


def _resampled_percentile(pairs: np.ndarray, numbers: np.ndarray, q: float, draws: np.ndarray) -> np.ndarray:
    """The percentile, by linear interpolation, of each resample, without writing any resample out."""
    order = np.argsort(numbers, kind="stable")
    pairs, numbers = pairs[order], numbers[order]
    if numbers.size <= MAX_BINS:
        counts = draws[:, pairs].astype(float)
    else:
        bins = np.arange(numbers.size) * MAX_BINS // numbers.size
        in_bin = np.zeros((draws.shape[1], MAX_BINS), dtype=np.float32)
        np.add.at(in_bin, (pairs, bins), 1)
        counts = (draws @ in_bin).astype(float)
        numbers = np.bincount(bins, numbers) / np.bincount(bins)
    below = counts.cumsum(axis=1)
    total = below[:, -1]
    rank = np.maximum(total - 1, 0) * q
    low, high = np.floor(rank), np.ceil(rank)
    last = numbers.size - 1
    at_low = numbers[np.minimum((below <= low[:, None]).sum(axis=1), last)]
    at_high = numbers[np.minimum((below <= high[:, None]).sum(axis=1), last)]
    return np.where(total > 0, at_low + (rank - low) * (at_high - at_low), np.nan)


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
    deltas = deltas[np.isfinite(deltas)]
    low = high = excludes = None
    # Where most resamples have no figure, those that do are no sample of it.
    if deltas.size > RESAMPLES / 2:
        low, high = (float(v) for v in np.quantile(deltas, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))
        excludes = bool(low > 0 or high < 0) if units >= MIN_UNITS else None
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
    limits = (slo.get("ttft_ms"), slo.get("tpot_ms"))
    measured = requests.filter(~pl.col("warmup"))
    if limits == (None, None):
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
