"""Latency of every request, from the timestamps in its record. Samples nothing itself."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.latency import figures
from wp1.collectors import Collector


class LatencyStatsCollector(Collector):
    """`profiling.latency`, made by `wp1.analysis.latency.figures.profile`."""

    name = "latency"

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return figures.profile(requests)
