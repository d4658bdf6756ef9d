"""What prompt length costs one request at a time: TTFT and prefill by length, and a curve through them. Pure.

The curve is TTFT(n) = a + b n + c n^2: what every prompt pays, what a token pays, and what attention pays for pairs.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells, metric_table, metrics
from wp1.analysis.device import roofline
from wp1.stats import intervals, samples

# With fewer the three coefficients are not determined.
MIN_LENGTHS = 3
# Curves that are fitted again for an interval where repeats are too few to give one each.
REDRAWN = 500


def lengths_alone(requests: pl.DataFrame) -> list[cells.CellName]:
    """The cells of one request at a time at a known prompt length, short ones first."""
    names = [cells.parse(name) for name in cells.ordered(requests["cell"])]
    return [cell for cell in names if cell.prompt_len is not None and cell.rate == 0 and cell.concurrency == 1]


def by_length(requests: pl.DataFrame, metadata: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows by arm and length, and the fit of each arm; None where not two lengths or more were run, all one at a time.

    prefill_tokens_per_s and mfu are of the tokens that were computed, without those from the prefix cache; lengths with
    cached tokens are left out of the fit.

    requests: `tables.requests`; profile: of the device collector, or {}. Figures are {n, value, low, high}, times in
    ms, with 95 % intervals (`intervals`).
    """
    measured = requests.filter(~pl.col("warmup"))
    names = lengths_alone(measured)
    if len(names) < 2 or len(names) < measured["cell"].n_unique():
        return None
    shape, _ = roofline.shape_of(metadata)
    rows, fits = [], {}
    for (arm,), of_arm in measured.group_by("arm", maintain_order=True):
        device, chunk = roofline.device_of(metadata, str(arm)), roofline.chunk_of(metadata, str(arm))
        by_length: dict[int, samples.Sample] = {}
        for cell in names:
            sent = of_arm.filter(pl.col("cell") == cell.name)
            answered = sent.filter(pl.col("status") == "ok")
            if sent.height:
                length = cell.prompt_len or 0
                rows.append(_row(str(arm), cell, sent, answered, shape, device, chunk, profile))
                # A curve over length is one of whole prompts: what a cache answered has no length.
                if answered.height and not answered["cached_tokens"].fill_null(0).sum():
                    by_length[length] = samples.Sample(answered)
        fits[str(arm)] = fit(by_length)
        if fits[str(arm)] is not None and shape is not None:
            fits[str(arm)]["flops_quadratic_share"] = round(shape.quadratic_share(max(by_length)), 4)
    return {"rows": rows, "fits": fits, "why_no_mfu": roofline.why_not(metadata)}


def _row(
    arm: str, cell: cells.CellName, sent: pl.DataFrame, answered: pl.DataFrame, shape: Any,
    device: roofline.Device | None, chunk: int | None, profile: Mapping[str, Any],
) -> dict[str, Any]:  # fmt: skip
    columns = [
        (roofline.computed() / pl.col("prefill_ms") * 1e3).alias("prefill_tokens_per_s"),
        (pl.col("ttft_ms") - pl.col("prefill_ms")).alias("host_ms"),
    ]
    rows = answered.with_columns(columns)
    if shape is not None and device is not None:
        peak = device.flops * device.prefill / 1e3  # FLOPs a ms
        needed = [
            None if tokens is None else shape.prefill_flops(tokens, cached or 0)
            for tokens, cached in rows.select("prompt_tokens", "cached_tokens").iter_rows()
        ]
        rows = rows.with_columns(mfu=pl.Series(needed, dtype=pl.Float64) / pl.col("prefill_ms") / peak)
    sample = samples.Sample(rows)
    memory = [
        found["memory_gib_peak"]
        for found in profile.get("cells", {}).get(f"{arm}/{cell.name}", {}).get("devices", {}).values()
        if found["memory_gib_peak"] is not None
    ]
    mfu = sample.figure("mfu") if "mfu" in rows.columns else None
    roof = roofline.roofline(answered, shape, device, chunk) | {"mfu": mfu}
    of_ttft, others = shown()
    return {
        "arm": arm,
        "cell": cell.name,
        "prompt_len": cell.prompt_len,
        "sent": sent.height,
        "ok": answered.height,
        **metrics.figures(sent, of_ttft),
        "prefill_ms": sample.figure("prefill_ms"),
        "host_ms": sample.figure("host_ms"),
        "prefill_tokens_per_s": sample.figure("prefill_tokens_per_s"),
        "mfu": mfu,
        **metrics.figures(sent, others),
        "mbu": roof["mbu"],
        "memory_gib_peak": max(memory, default=None),
        "limited_by": roofline.words(roof) or None,
    }


def shown() -> tuple[list[metric_table.Figure], list[metric_table.Figure]]:
    """What the table shows by length: TTFT, which the section is about, and the other metrics."""
    figures = list(metric_table.shown_in("length"))
    first = [figure for figure in figures if figure.metric.key == "ttft_ms"]
    return first, [figure for figure in figures if figure not in first]


def fit(samples: Mapping[int, samples.Sample]) -> dict[str, Any] | None:
    """a (ms), b (ms a token), c (ms a token squared) with intervals; None with fewer than three lengths.

    Least squares of the relative error of each length's mean, as absolute errors would see the longest alone; no
    coefficient below zero, since nothing costs less than nothing. quadratic_share: c n^2 / TTFT(n) at the longest
    prompt. worst: the largest relative distance of a mean from the curve.

    Intervals: from three repeats on Student's t over the curves of the single repeats. With fewer, each length's mean
    is drawn anew from Student's law by its own error and the curve is fitted again, REDRAWN times.
    """
    lengths = np.array(sorted(samples), dtype=float)
    if lengths.size < MIN_LENGTHS:
        return None
    means = np.array([samples[int(n)].requests["ttft_ms"].mean() for n in lengths], dtype=float)
    if not (means > 0).all():
        return None
    best = _least_squares(lengths, means)
    of_repeats = _means_of_repeats([samples[int(n)] for n in lengths])
    repeats = len(of_repeats) if len(of_repeats) >= intervals.MIN_REPEATS else None
    drawn = of_repeats if repeats else _drawn_means([samples[int(n)] for n in lengths], means)
    every = np.array([_least_squares(lengths, row) for row in drawn if (row > 0).all()]).reshape(-1, 3)
    longest = lengths[-1]
    found: dict[str, Any] = {
        "formula": "TTFT ms = a + b n + c n^2",
        "lengths": [int(n) for n in lengths],
        **{name: _figure(best[k], every[:, k], repeats) for k, name in enumerate("abc")},
        "quadratic_share": _figure(_share(best, longest), np.array([_share(row, longest) for row in every]), repeats),
        "at": int(longest),
        "worst": round(float(np.abs(curve(best, lengths) / means - 1).max()), 4),
    }
    return found


def curve(coefficients: Sequence[float] | np.ndarray, n: np.ndarray) -> np.ndarray:
    """TTFT in ms by a, b, c and prompt length (tokens)."""
    a, b, c = coefficients
    return a + b * n + c * n**2


def _share(coefficients: np.ndarray, n: float) -> float:
    total = float(curve(coefficients, np.array([n]))[0])
    return float(coefficients[2] * n**2 / total) if total > 0 else 0.0


def _means_of_repeats(samples: Sequence[samples.Sample]) -> np.ndarray:
    """Mean TTFT of each repeat that every length has: (repeats x lengths)."""
    by_length = [sample.by_repeat("ttft_ms") for sample in samples]
    repeats = sorted(set.intersection(*(set(means) for means in by_length)))
    return np.array([[means[repeat] for means in by_length] for repeat in repeats])


def _drawn_means(samples: Sequence[samples.Sample], means: np.ndarray) -> np.ndarray:
    """Means as other requests might have given them: (REDRAWN x lengths); none where a length has no interval."""
    found = [sample.interval("ttft_ms") for sample in samples]
    rng = np.random.default_rng(0)
    columns = [
        mean + interval.error * rng.standard_t(interval.parts - 1, REDRAWN)
        for mean, interval in zip(means, found, strict=True)
        if interval is not None
    ]
    return np.array(columns).T if len(columns) == len(means) else np.empty((0, len(means)))


def _least_squares(lengths: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Non-negative least squares with three unknowns: of all choices of those above zero, the best allowed one."""
    # Lengths in units of the longest, so that columns are of one size.
    longest = lengths[-1]
    x = lengths / longest
    full = np.column_stack([np.ones_like(x), x, x**2]) / means[:, None]
    best, least = np.zeros(3), np.inf
    for size in (1, 2, 3):
        for chosen in combinations(range(3), size):
            solved, *_ = np.linalg.lstsq(full[:, chosen], np.ones_like(means), rcond=None)
            error = float(((full[:, chosen] @ solved - 1) ** 2).sum())
            if (solved >= 0).all() and error < least - 1e-15:
                best, least = np.zeros(3), error
                best[list(chosen)] = solved
    return best / np.array([1, longest, longest**2])


def _figure(value: float, others: np.ndarray, repeats: int | None) -> dict[str, float]:
    """A figure that is not below zero. others: of each repeat; without repeats, of curves that were fitted anew."""
    found = {"value": float(f"{value:.6g}")}
    if repeats and others.size > 1:
        made = intervals.around(intervals.Parts(float(value), others), not_negative=True)
        low, high = (made.low, made.high) if made else (value, value)
    elif others.size:
        low, high = np.quantile(others, [intervals.ALPHA / 2, 1 - intervals.ALPHA / 2])
    else:
        return found
    return found | {"low": float(f"{low:.6g}"), "high": float(f"{high:.6g}")}
