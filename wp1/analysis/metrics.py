"""Figures from tables: percentiles, means with intervals, throughput, attainment. Pure."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

LATENCIES = (
    "ttft_ms", "tpot_ms", "e2e_ms", "queue_ms", "prefill_ms", "handoff_ms", "decode_step_ms", "delivery_ms",
    "client_delay_ms",
)  # fmt: skip
PERCENTILES = (50, 90, 95, 99)
# Attainment from which on a request rate counts as served (DistServe, OSDI 2024).
GOODPUT_ATTAINMENT = 0.9


def distribution(values: Any) -> dict[str, Any]:
    """n, mean with its 95 % interval, min, p50/p90/p95/p99 (linear interpolation) and max, to 3 decimals."""
    array = np.asarray(values, dtype=float)
    array = array[~np.isnan(array)]
    if not array.size:
        return {"n": 0}
    low, high = mean_interval(array)
    points = np.percentile(array, PERCENTILES)
    figures = {"mean": array.mean(), "mean_low": low, "mean_high": high, "min": array.min()}
    figures |= {f"p{p}": value for p, value in zip(PERCENTILES, points, strict=True)}
    figures["max"] = array.max()
    return {"n": int(array.size), **{key: round(float(value), 3) for key, value in figures.items()}}


def mean_interval(values: np.ndarray, resamples: int = 2000, level: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval of the mean (Efron, 1979), with a fixed seed: the same values give the same one.

    Large samples are resampled in slices, so that memory stays bounded.
    """
    if values.size == 1:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(0)
    rows = max(1, 4_000_000 // values.size)
    means = np.concatenate(
        [
            rng.choice(values, (min(rows, resamples - start), values.size)).mean(axis=1)
            for start in range(0, resamples, rows)
        ]
    )
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def latency(requests: pl.DataFrame) -> dict[str, Any]:
    """Counts, distributions in ms, and throughput of some measured requests, from `tables.requests`."""
    ok = requests.filter(pl.col("status") == "ok")
    seconds = span(requests)
    return {
        "requests": requests.height,
        "ok": ok.height,
        "failed": requests.height - ok.height,
        "statuses": {str(k): int(n) for k, n in requests["status"].value_counts(sort=True).iter_rows()},
        **{name: distribution(ok[name].drop_nulls().to_numpy()) for name in LATENCIES},
        "itl_ms": distribution(ok["itl_ms"].explode().drop_nulls().to_numpy()),
        "prompt_tokens": int(ok["prompt_tokens"].sum()),
        "output_tokens": int(ok["output_tokens"].sum()),
        "duration_s": round(seconds, 3),
        "requests_per_s": _rate(ok.height, seconds),
        "output_tokens_per_s": _rate(int(ok["output_tokens"].sum()), seconds),
    }


Limits = tuple[float | None, float | None, float | None]


def limits(slo: Mapping[str, Any]) -> Limits:
    """The limits of TTFT, TPOT and E2E in ms, from the configuration's slo; None where there is none."""
    return slo.get("ttft_ms"), slo.get("tpot_ms"), slo.get("e2e_ms")


def limits_in_words(slo: Mapping[str, Any]) -> str:
    """As in TTFT ≤ 2000 ms, TPOT ≤ 200 ms."""
    pairs = zip(("TTFT", "TPOT", "E2E"), limits(slo), strict=True)
    return ", ".join(f"{name} ≤ {value:g} ms" for name, value in pairs if value is not None)


def attainment(
    requests: pl.DataFrame, ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None = None
) -> float | None:
    """SLO attainment: the share of all requests sent that met every limit; None without a limit or a request."""
    if (ttft_ms is None and tpot_ms is None and e2e_ms is None) or requests.is_empty():
        return None
    return round(float(requests.select(met(ttft_ms, tpot_ms, e2e_ms).mean()).item()), 4)


def wilson(met: int, sent: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a share (Wilson, 1927): unlike a bootstrap it has a width also at 0 and 100 %."""
    share = met / sent
    centre = (share + z * z / 2 / sent) / (1 + z * z / sent)
    half = z / (1 + z * z / sent) * float(np.sqrt(share * (1 - share) / sent + z * z / 4 / sent / sent))
    return round(max(0.0, centre - half), 6), round(min(1.0, centre + half), 6)


def met(ttft_ms: float | None, tpot_ms: float | None, e2e_ms: float | None = None) -> pl.Expr:
    """Whether a request met every limit (ms). One that failed did not; one of a single token has no TPOT to miss."""
    found = pl.col("status") == "ok"
    if ttft_ms is not None:
        found &= pl.col("ttft_ms") <= ttft_ms
    if tpot_ms is not None:
        found &= pl.col("tpot_ms").is_null() | (pl.col("tpot_ms") <= tpot_ms)
    if e2e_ms is not None:
        found &= pl.col("e2e_ms") <= e2e_ms
    return found.fill_null(False)


def span(requests: pl.DataFrame) -> float:
    """Seconds in which requests were being served: repeats are added up, the pauses between them are not counted."""
    sent = requests.filter(pl.col("t_sent").is_not_null())
    spans = sent.group_by("arm", "cell", "repeat").agg(span=pl.max("t_end") - pl.min("t_sent"))
    return float(spans["span"].sum())


def _rate(count: int, seconds: float) -> float | None:
    return round(count / seconds, 3) if seconds > 0 else None
