"""What moving KV caches between engines cost, from handoffs.jsonl and queues.jsonl: nothing runs beside the engines."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import tables
from wp1.analysis.transfer.figures import figures
from wp1.collectors import Collector


class KVTransferStatsCollector(Collector):
    """`profiling.kv_transfer`: bytes, times (ms), rate and share of latency of handoffs, overall and by cell.

    {} where no measured request was handed over, as in aggregated serving.
    """

    name = "kv_transfer"

    def profile(self, run_dir: Path, requests: pl.DataFrame) -> dict[str, Any]:
        handoffs = tables.handoffs(run_dir / "handoffs.jsonl").filter(~pl.col("warmup"))
        if handoffs.is_empty():
            return {}
        queues = tables.queues(run_dir / "queues.jsonl")
        measured = requests.filter(~pl.col("warmup"))
        cells = {}
        for (arm, cell), rows in handoffs.group_by("arm", "cell", maintain_order=True):
            of_cell = measured.filter((pl.col("arm") == arm) & (pl.col("cell") == cell))
            cells[f"{arm}/{cell}"] = figures(rows, of_cell, queues)
        of_arms = measured.filter(pl.col("arm").is_in(handoffs["arm"].unique().to_list()))
        return {"overall": figures(handoffs, of_arms, queues), "cells": cells}
