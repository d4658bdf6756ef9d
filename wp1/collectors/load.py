"""Whether the load was as meant: how punctual wp1 itself was, the steady state, and whether engines fell behind."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import tables
from wp1.analysis.load.notes import cell_figures, overall
from wp1.collectors import Collector


class LoadStatsCollector(Collector):
    """`profiling.load`: by cell, how late wp1 sent, how its event loop lagged (ms), and `steady`'s figures."""

    name = "load"

    def profile(self, run_dir: Path, requests: pl.DataFrame) -> dict[str, Any]:
        lags = tables.lags(run_dir / "loop.jsonl")
        columns = ("arm", "cell", "repeat", "status", "ramp", "steady", "window_begin", "window_end")
        columns += ("t_intended", "t_end", "client_delay_ms")
        measured = requests.filter(~pl.col("warmup")).select(columns)
        found = {
            f"{arm}/{cell}": cell_figures(cell, rows, lags.filter((pl.col("arm") == arm) & (pl.col("cell") == cell)))
            for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True)
        }
        return {"overall": overall(list(found.values())), "cells": found}
