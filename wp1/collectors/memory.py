"""Where memory goes, from the notes of the engines' workers (memory.jsonl). Samples nothing itself."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.memory import figures
from wp1.analysis.memory.profile import profile
from wp1.collectors import Collector


class MemoryStatsCollector(Collector):
    """`profiling.memory`, made by `wp1.analysis.memory.profile.profile`."""

    name = "memory"

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return profile(figures.rows_of(run.notes, requests, run.metadata))
