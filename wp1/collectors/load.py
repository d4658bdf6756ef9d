"""Whether the load was as intended: how punctual wp1 itself was, the steady state, and whether engines fell behind."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.load import notes
from wp1.collectors import Collector


class LoadStatsCollector(Collector):
    """`profiling.load`, made by `wp1.analysis.load.notes.profile`."""

    name = "load"

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return notes.profile(requests, run.lags)
