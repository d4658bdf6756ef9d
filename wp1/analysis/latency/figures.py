"""Latency of every request, overall and by cell."""

from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, metrics

# With more requests than this, samples are in artifacts/requests.csv only.
MAX_INLINE_SAMPLES = 10_000


def profile(requests: pl.DataFrame) -> dict[str, Any]:
    """TTFT, TPOT, ITL, E2E and their parts (ms), overall and by cell (arm/cell), and each request's values."""
    measured = requests.filter(~pl.col("warmup"))
    names = ["request_id", *(metric.key for metric in metrics.summarised("request"))]
    return {
        "overall": aggregates.latency(measured),
        "cells": {
            f"{arm}/{cell}": aggregates.latency(rows)
            for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True)
        },
        "samples": measured.select(names).to_dict(as_series=False) if measured.height <= MAX_INLINE_SAMPLES else None,
        "samples_file": "artifacts/requests.csv",
    }
