"""Cost of moving KV caches between engines, from handoffs.jsonl and queues.jsonl. Samples nothing itself."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.transfer import figures
from wp1.collectors import Collector


class KVTransferStatsCollector(Collector):
    """`profiling.kv_transfer`, made by `wp1.analysis.transfer.figures.profile`."""

    name = "kv_transfer"

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        return figures.profile(run.handoffs, requests, run.queues)
