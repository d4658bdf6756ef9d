"""Two arms side by side: every metric of every cell, with the interval of its difference. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import aggregates, cells, metrics
from wp1.stats import intervals, samples
from wp1.stats.intervals import Interval, Units, Values

# With one or two repeats the units are requests; with fewer pairs than this their mean is not normal enough to judge.
MIN_PAIRS = 6

# Columns that are null in rows without a verdict.
VERDICT = ("excludes_zero", "p", "shown", "detectable", "repeats_needed")
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
    "p": pl.Float64,
    "shown": pl.Boolean,
    "over": pl.String,
    "units": pl.Int64,
    "detectable": pl.Float64,
    "repeats_needed": pl.Int64,
}
GOODPUT_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "prompt": pl.String,
    "rates": pl.List(pl.Float64),
    "devices": pl.Int64,
    "goodput": pl.Float64,
    "goodput_per_device": pl.Float64,
    "fails_at": pl.Float64,
}


# A request's name, which is the same in every arm.
NAME = pl.col("request_id").str.replace(r"^[^/]*/", "").alias("name")


def compare(a: pl.DataFrame, b: pl.DataFrame, slo: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """One row for each cell and metric of two arms (each a `tables.requests`), or of two runs.

    a, b, delta (b - a), low and high are in the metric's unit; ratio is b / a; null if an arm lacks the figure.
    n_a, n_b: the number of requests, gaps, or (for a rate) repeats behind the figure. slo: the limits for attainment
    (`aggregates.limits`). Latencies are of answered requests, shares of all requests sent.

    Both arms were sent the same prompts at the same times, so requests are paired by their id without the arm, and what
    the arms share cancels. low and high are the 95 % interval of delta (`wp1.stats.intervals`): with three or more
    repeats, Student's t over the differences of each repeat; with fewer, over batches of pairs, which says nothing
    about another repeat and leaves rates without a verdict. over: "repeats" or "requests"; units: how many parts the
    interval is over.

    excludes_zero: whether the interval excludes zero, as one in twenty does by chance; p: the probability of a
    difference at least as large if there is none. Both are null if they cannot be judged: with fewer than three
    repeats, for rates and from fewer than six pairs; and, in cells whose answers differ in length (`unlike_lengths`),
    for metrics that grow with the output, and for attainment if one of those has a limit. shown: whether the difference
    remains after correction for all tests of the comparison (`intervals.false_discovery`); sentences rely on this.

    detectable: the smallest difference that four of five such runs would show; repeats_needed: how many repeats would
    show one of this size equally often, null if over a thousand. Both follow from the row's own interval.
    """
    limits = aggregates.limits(slo or {})
    unjudged = grow_with_output(limits)
    unlike = unlike_lengths(a, b)
    a, b = _prepared(a, limits), _prepared(b, limits)
    rows = []
    for cell in cells.ordered([*a["cell"], *b["cell"]]):
        of_cell = pl.col("cell") == cell
        for row in _cell(a.filter(of_cell), b.filter(of_cell), limits):
            verdict = dict.fromkeys(VERDICT) if cell in unlike and row["metric"] in unjudged else {}
            rows.append({"cell": cell, **row, **verdict})
    for row, shown in zip(rows, intervals.false_discovery([row["p"] for row in rows]), strict=True):
        row["shown"] = shown
    return pl.DataFrame(rows, schema=SCHEMA)


def grow_with_output(limits: aggregates.Limits) -> set[str]:
    """The metrics (`Figure.name`) that compare lengths rather than speed if a pair's answers differ in length.

    A longer answer takes longer. If one of them has a limit, metrics that depend on limits are included.
    """
    limited = any(metric.key in limits for metric in metrics.METRICS if metric.grows_with_output)
    return {
        figure.name
        for figure in metrics.shown_in("comparison")
        if figure.metric.grows_with_output or (figure.metric.needs_slo and limited)
    }


def verdict(row: Mapping[str, Any]) -> bool | None:
    """Whether a row's difference is shown, after correction for all tests; None if it cannot be judged.

    Comparisons written before this correction existed only have each row's own verdict.
    """
    shown = row.get("shown")
    return row.get("excludes_zero") if shown is None else shown


def unlike_lengths(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, dict[str, Any]]:
    """The cells in which answers to the same request differ in length, by name.

    Each has `pairs` (answered by both arms), how many of them are `unlike`, and the mean output tokens `a` and `b`.
    a, b: as in `compare`.
    """
    answered = [
        rows.filter(~pl.col("warmup") & pl.col("e2e_ms").is_not_null()).select("cell", NAME, "output_tokens")
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


def _prepared(requests: pl.DataFrame, limits: aggregates.Limits) -> pl.DataFrame:
    """Measured requests with their name; latencies only of answered ones, figures only of the steady state."""
    ok = pl.col("status") == "ok"
    counts = pl.col("steady") if "steady" in requests.columns else pl.lit(True)
    measured = aggregates.with_met(requests.filter(~pl.col("warmup")), limits)
    prepared = {}
    for metric, _ in metrics.shown_in("comparison"):
        if metric.of_one_request:
            prepared[metric.key] = pl.when(ok & counts).then(metric.key)
        elif metric.kind == "share":
            prepared[metric.key] = pl.when(counts).then(metric.derive.cast(pl.Float64))
    return measured.with_columns(NAME, **prepared)


def _cell(a: pl.DataFrame, b: pl.DataFrame, limits: aggregates.Limits) -> list[dict[str, Any]]:
    names = pl.concat([a.select("repeat", "name"), b.select("repeat", "name")]).unique().sort("repeat", "name")
    names = names.with_row_index("slot")
    repeats, of = samples.repeats_and_units(names["repeat"].to_numpy(), samples.order_of(names["name"]))
    slots_a, slots_b = (
        rows.join(names, on=["repeat", "name"], how="left", maintain_order="left")["slot"].to_numpy() for rows in (a, b)
    )
    rows = []
    for figure in metrics.shown_in("comparison"):
        metric = figure.metric
        if metric.needs_slo and not limits:
            continue
        if metric.kind == "rate":
            figures = _rate_row(a, b, metric, repeats.tolist())
        else:
            both = (samples.of_slots(slots_a, a[metric.key]), samples.of_slots(slots_b, b[metric.key]))
            figures = _row(*both, "share" if metric.kind == "share" else figure.statistic, of)
        rows.append({"metric": figure.name, "unit": metric.unit, **figures})
    return rows


def _row(a: Values, b: Values, statistic: str, of: Units) -> dict[str, Any]:
    """The figures of one metric. of: the unit of every slot that the values name (`samples.repeats_and_units`)."""
    of_a, of_b = (intervals.figure_of(side.numbers, statistic) if side.numbers.size else None for side in (a, b))
    found, pairs, count = None, 0, 0
    if a.numbers.size and b.numbers.size:
        in_a, in_b = (_present(side, of) for side in (a, b))
        pairs = int((in_a & in_b).sum())
        fewer = min(a.numbers.size, b.numbers.size)
        part_of_slot, count = intervals.parts_of(of, in_a & in_b, statistic, fewer)
        if count and pairs > 1:
            found = intervals.between(*(intervals.in_parts(side, part_of_slot, count, statistic) for side in (a, b)))
        if statistic == "share":
            found = intervals.of_shares(found, _differences(a, b, of))
    judged = found is not None and (found.parts >= intervals.MIN_REPEATS if of.are_repeats else pairs >= MIN_PAIRS)
    # A share's interval may be over its pairs of requests; `units` counts repeats nevertheless.
    units = count if found is not None and of.are_repeats else None
    return _figures(a.numbers.size, b.numbers.size, of_a, of_b, found, judged, of.are_repeats, units)


def _present(side: Values, of: Units) -> np.ndarray:
    found = np.zeros(of.of_slot.size, dtype=bool)
    found[side.slots] = True
    return found


def _differences(a: Values, b: Values, of: Units) -> np.ndarray:
    """b - a of each pair that both sides have; each slot has one value."""
    sides = np.full((2, of.of_slot.size), np.nan)
    for row, side in zip(sides, (a, b), strict=True):
        row[side.slots] = side.numbers
    differences = sides[1] - sides[0]
    return differences[~np.isnan(differences)]


def _rate_row(a: pl.DataFrame, b: pl.DataFrame, metric: metrics.Metric, repeats: list[int]) -> dict[str, Any]:
    """The figures of a rate: the sum over all repeats, divided by the seconds they took."""
    done = [[_done(rows.filter(pl.col("repeat") == n), metric) for n in repeats] for rows in (a, b)]
    counts, spans = (np.array([[d[part] for d in arm] for arm in done]).reshape(2, -1) for part in (0, 1))
    parts = [intervals.of_ratio(count, span) for count, span in zip(counts, spans, strict=True)]
    of_a, of_b = (part.value if np.isfinite(part.value) else None for part in parts)
    found = intervals.between(*parts)
    n_a, n_b = ((span > 0).sum() for span in spans)
    judged = found is not None and found.parts >= intervals.MIN_REPEATS
    return _figures(int(n_a), int(n_b), of_a, of_b, found, judged, True)


def _done(rows: pl.DataFrame, metric: metrics.Metric) -> tuple[float, float]:
    """The amount behind a rate in a repeat, such as output tokens, and its seconds."""
    came = aggregates.delivered(rows)
    return float(came.amount(metric)), came.seconds


def _figures(
    n_a: int, n_b: int, a: float | None, b: float | None, found: Interval | None, judged: bool, repeats: bool,
    units: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """units: how many parts the interval is over, if not those of `found`."""
    units = units or (None if found is None else found.parts)
    delta = b - a if a is not None and b is not None else None
    row: dict[str, Any] = {
        "n_a": n_a,
        "n_b": n_b,
        "a": _rounded(a),
        "b": _rounded(b),
        "delta": _rounded(delta),
        "ratio": _rounded(b / a) if a and b is not None else None,
        "low": None if found is None else _rounded(found.low),
        "high": None if found is None else _rounded(found.high),
        **dict.fromkeys(VERDICT),
        "over": None if found is None else "repeats" if repeats else "requests",
        "units": units,
    }
    if found is None or delta is None or not judged:
        return row
    row |= {"excludes_zero": bool(found.low > 0 or found.high < 0), "p": float(f"{found.p:.6g}")}
    if repeats:
        row["detectable"] = _rounded(intervals.detectable(found.error, found.parts))
        row["repeats_needed"] = intervals.repeats_needed(delta, found.error, units or found.parts)
    return row


def _rounded(value: float | None) -> float | None:
    # Removes only floating-point noise: a share of 0.89996 is not 0.9. Adding zero turns -0.0 into 0.0.
    return None if value is None else round(float(f"{value:.9g}"), 9) + 0.0


def goodput(requests: pl.DataFrame, slo: Mapping[str, Any], devices: int) -> pl.DataFrame:
    """Goodput (`aggregates.goodput`) over the tested rates, in requests/s and per device, one row per prompt length.

    The true goodput may lie between this rate and the next. fails_at: the lowest rate that failed, if any. Null if no
    rate above 0 was tested, or none counts. Empty without limits in `slo`.
    """
    limits = aggregates.limits(slo)
    measured = requests.filter(~pl.col("warmup"))
    if not limits:
        return pl.DataFrame(schema=GOODPUT_SCHEMA)
    tested: dict[str, dict[float, float | None]] = {}
    for name in cells.ordered(measured["cell"]):
        cell = cells.parse(name)
        rates = tested.setdefault(cell.prompt, {})
        if cell.rate > 0:
            rates[cell.rate] = aggregates.attainment(measured.filter(pl.col("cell") == name), limits)
    rows = []
    for prompt, rates in tested.items():
        best, fails = aggregates.goodput(rates)
        rows.append(
            {
                "prompt": prompt,
                "rates": sorted(rates),
                "devices": devices,
                "goodput": best,
                "goodput_per_device": None if best is None else best / devices,
                "fails_at": fails,
            }
        )
    return pl.DataFrame(rows, schema=GOODPUT_SCHEMA)
