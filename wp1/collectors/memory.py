"""Where memory goes, from what the engines' workers noted (memory.jsonl): nothing runs beside the engines."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.memory import figures as memory_figures
from wp1.machine.hardware import GIB


class MemoryStatsCollector:
    """`profiling.memory`: of each arm and pool at its longest prompt, the parts in GiB, and of each cell in bytes.

    {} where no notes were taken (experiment.memory=false).
    """

    name = "memory"

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        pass

    def stop(self) -> None:
        pass

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        rows = memory_figures.rows_of(run.notes, requests, run.metadata)
        if not rows:
            return {}
        longest: dict[str, dict[str, float]] = {}
        by_cell: dict[str, dict[str, Any]] = {}
        for row in rows:
            worker = row.engine + (f"/rank{row.rank}" if row.rank else "")
            # Shorter ones come first.
            longest[f"{row.arm}/{worker}"] = {
                **{f"{part}_gib": round(size / GIB, 4) for part, size in row.parts.items()},
                "total_gib": round(row.total / GIB, 4),
            }
            by_cell.setdefault(f"{row.arm}/{row.cell}", {})[worker] = {
                "parts": row.parts,
                "calculated": row.calculated,
                "reported": row.reported,
                "source": row.source,
                "adds_up": row.adds_up,
            }
        return {"overall": longest, "cells": by_cell}
