"""What moving KV caches between engines cost, from handoffs.jsonl and queues.jsonl: nothing runs beside the engines."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.transfer.figures import figures


class KVTransferStatsCollector:
    """`profiling.kv_transfer`: bytes, times (ms), rate and share of latency of handoffs, overall and by cell.

    {} where no measured request was handed over, as in aggregated serving.
    """

    name = "kv_transfer"

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        pass

    def stop(self) -> None:
        pass

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        handoffs = run.handoffs.filter(~pl.col("warmup"))
        if handoffs.is_empty():
            return {}
        measured = requests.filter(~pl.col("warmup"))
        cells = {}
        for (arm, cell), rows in handoffs.group_by("arm", "cell", maintain_order=True):
            of_cell = measured.filter((pl.col("arm") == arm) & (pl.col("cell") == cell))
            cells[f"{arm}/{cell}"] = figures(rows, of_cell, run.queues)
        of_arms = measured.filter(pl.col("arm").is_in(handoffs["arm"].unique().to_list()))
        return {"overall": figures(handoffs, of_arms, run.queues), "cells": cells}
