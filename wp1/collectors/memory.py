"""Where memory goes, from what the engines' workers noted (memory.jsonl): nothing runs beside the engines."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.memory import figures
from wp1.analysis.memory.profile import profile
from wp1.collectors import Collector


class MemoryStatsCollector(Collector):
    """`profiling.memory`: `wp1.analysis.memory.profile.profile`."""

    name = "memory"

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return profile(figures.rows_of(run.notes, requests, run.metadata))
