"""TTFT and prefill by prompt length, one request at a time, and a curve fitted to TTFT. Pure.

The curve is TTFT(n) = a + b n + c n^2: a fixed cost per prompt, a cost per token, and attention's cost per token pair.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import aggregates, cells, metrics
from wp1.analysis.device import roofline
from wp1.stats import intervals, samples

# Fewer lengths do not determine three coefficients.
MIN_LENGTHS = 3
# Number of refitted curves behind an interval if there are too few repeats to fit one curve each.
REDRAWN = 500


def lengths_alone(requests: pl.DataFrame) -> list[cells.CellName]:
    """The cells with a known prompt length and one request at a time, shortest first."""
    names = [cells.parse(name) for name in cells.ordered(requests["cell"])]
    return [cell for cell in names if cell.prompt_len is not None and cell.rate == 0 and cell.concurrency == 1]


def by_length(requests: pl.DataFrame, metadata: Mapping[str, Any], profile: Mapping[str, Any]) -> dict[str, Any] | None:
    """Rows by arm and length, and the fit of each arm; None unless there are two lengths, all run one at a time.

    prefill_tokens_per_s and mfu count computed tokens only, not those from the prefix cache. Lengths with cached tokens
    are left out of the fit.

    requests: `tables.requests`; profile: the device collector's figures, or {}. Figures are {n, value, low, high},
    times in ms, with 95 % intervals (`intervals`).
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
                # The curve is over whole prompts: with cached tokens, the computed length is shorter than the prompt.
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
        peak = device.flops * device.prefill / 1e3  # FLOPs per ms
        flops = [
            None if tokens is None else shape.prefill_flops(tokens, cached or 0)
            for tokens, cached in rows.select("prompt_tokens", "cached_tokens").iter_rows()
        ]
        rows = rows.with_columns(mfu=pl.Series(flops, dtype=pl.Float64) / pl.col("prefill_ms") / peak)
    sample = samples.Sample(rows)
    memory = [
        figures["memory_gib_peak"]
        for figures in profile.get("cells", {}).get(f"{arm}/{cell.name}", {}).get("devices", {}).values()
        if figures["memory_gib_peak"] is not None
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
        **aggregates.figures(sent, of_ttft),
        "prefill_ms": sample.figure("prefill_ms"),
        "host_ms": sample.figure("host_ms"),
        "prefill_tokens_per_s": sample.figure("prefill_tokens_per_s"),
        "mfu": mfu,
        **aggregates.figures(sent, others),
        "mbu": roof["mbu"],
        "memory_gib_peak": max(memory, default=None),
        "limited_by": roofline.words(roof) or None,
    }


def shown() -> tuple[list[metrics.Figure], list[metrics.Figure]]:
    """The metrics in the table by length: TTFT, the section's subject, and then the others."""
    figures = list(metrics.shown_in("length"))
    first = [figure for figure in figures if figure.metric.key == "ttft_ms"]
    return first, [figure for figure in figures if figure not in first]


def fit(samples: Mapping[int, samples.Sample]) -> dict[str, Any] | None:
    """a (ms), b (ms per token), c (ms per token squared) with intervals; None with fewer than three lengths.

    Least squares on the relative error of each length's mean: absolute errors would let the longest prompt decide
    alone. No coefficient is negative, since no cost is. quadratic_share: c n^2 / TTFT(n) at the longest prompt.
    worst: the largest relative distance of a mean from the curve.

    Intervals: with three repeats or more, Student's t over one curve per repeat. With fewer, each length's mean is
    redrawn from Student's t with its own standard error and the curve is fitted again, REDRAWN times.
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
    return {
        "formula": "TTFT ms = a + b n + c n^2",
        "lengths": [int(n) for n in lengths],
        **{name: _figure(best[k], every[:, k], repeats) for k, name in enumerate("abc")},
        "quadratic_share": _figure(_share(best, longest), np.array([_share(row, longest) for row in every]), repeats),
        "at": int(longest),
        "worst": round(float(np.abs(curve(best, lengths) / means - 1).max()), 4),
    }


def curve(coefficients: Sequence[float] | np.ndarray, n: np.ndarray) -> np.ndarray:
    """TTFT in ms at prompt lengths n (tokens), from coefficients a, b, c."""
    a, b, c = coefficients
    return a + b * n + c * n**2


def _share(coefficients: np.ndarray, n: float) -> float:
    total = float(curve(coefficients, np.array([n]))[0])
    return float(coefficients[2] * n**2 / total) if total > 0 else 0.0


def _means_of_repeats(samples: Sequence[samples.Sample]) -> np.ndarray:
    """Mean TTFT (ms) of each repeat that every length has: (repeats x lengths)."""
    by_length = [sample.by_repeat("ttft_ms") for sample in samples]
    repeats = sorted(set.intersection(*(set(means) for means in by_length)))
    return np.array([[means[repeat] for means in by_length] for repeat in repeats])


def _drawn_means(samples: Sequence[samples.Sample], means: np.ndarray) -> np.ndarray:
    """Redrawn mean TTFTs: (REDRAWN x lengths); (0 x lengths) if a length has no interval."""
    known = [sample.interval("ttft_ms") for sample in samples]
    rng = np.random.default_rng(0)
    columns = [
        mean + interval.error * rng.standard_t(interval.parts - 1, REDRAWN)
        for mean, interval in zip(means, known, strict=True)
        if interval is not None
    ]
    return np.array(columns).T if len(columns) == len(means) else np.empty((0, len(means)))


def _least_squares(lengths: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Non-negative least squares with three unknowns: tries every subset that may be above zero and keeps the best."""
    # Lengths are scaled by the longest, so that columns have similar magnitudes.
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
    """A non-negative figure with its interval. others: the same figure of each repeat, or of each refitted curve."""
    figure = {"value": float(f"{value:.6g}")}
    if repeats and others.size > 1:
        interval = intervals.around(intervals.Parts(float(value), others), not_negative=True)
        low, high = (interval.low, interval.high) if interval else (value, value)
    elif others.size:
        low, high = np.quantile(others, [intervals.ALPHA / 2, 1 - intervals.ALPHA / 2])
    else:
        return figure
    return figure | {"low": float(f"{low:.6g}"), "high": float(f"{high:.6g}")}
