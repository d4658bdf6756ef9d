"""Whether the load was as meant: how punctual wp1 itself was, the steady state, and whether engines fell behind."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.load.notes import _cell, _worst


class LoadStatsCollector:
    """`profiling.load`: by cell, how late wp1 sent, how its event loop lagged (ms), and `steady`'s figures."""

    name = "load"

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        pass

    def stop(self) -> None:
        pass

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        columns = ("arm", "cell", "repeat", "status", "ramp", "steady", "window_begin", "window_end")
        columns += ("t_intended", "t_end", "client_delay_ms")
        measured = requests.filter(~pl.col("warmup")).select(columns)
        found = {
            f"{arm}/{cell}": _cell(cell, rows, run.lags.filter((pl.col("arm") == arm) & (pl.col("cell") == cell)))
            for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True)
        }
        return {"overall": _worst(list(found.values())), "cells": found}
