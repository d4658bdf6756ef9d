"""Latency of every request, from the timestamps in its record: nothing runs beside the engines for it."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import metric_table, metrics
from wp1.analysis.base.run_tables import RunTables

# Beyond this many requests the samples are only in artifacts/requests.csv.
MAX_INLINE_SAMPLES = 10_000


class LatencyStatsCollector:
    """`profiling.latency`: TTFT, TPOT, ITL, E2E and their parts (ms), overall and by cell, with samples per request."""

    name = "latency"

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        pass

    def stop(self) -> None:
        pass

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        measured = requests.filter(~pl.col("warmup"))
        names = ["request_id", *(metric.key for metric in metric_table.summarised("request"))]
        return {
            "overall": metrics.latency(measured),
            "cells": {
                f"{arm}/{cell}": metrics.latency(rows)
                for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True)
            },
            "samples": measured.select(names).to_dict(as_series=False)
            if measured.height <= MAX_INLINE_SAMPLES
            else None,
            "samples_file": "artifacts/requests.csv",
        }
