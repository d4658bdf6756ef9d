"""How often a request was overtaken by one that arrived later, and the longest wait for a first token."""

from typing import Any

import polars as pl

from wp1.analysis.base.run_tables import RunTables
from wp1.collectors import Collector


class OvertakingCollector(Collector):
    """`profiling.overtaking`: for each arm, the share of requests that were overtaken, and the longest TTFT (ms)."""

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        answered = requests.filter(~pl.col("warmup") & pl.col("ttft_ms").is_not_null()).sort("t_intended")
        first_token = pl.col("t_intended") + pl.col("ttft_ms") / 1e3
        # The earliest first token among all requests that arrived later.
        later = first_token.reverse().cum_min().reverse().shift(-1).over("arm", "cell", "repeat")
        overtaken = answered.with_columns(overtaken=(later < first_token).fill_null(False))
        return {
            str(arm): {
                "requests": rows.height,
                "overtaken_share": round(rows["overtaken"].sum() / rows.height, 3),
                "longest_ttft_ms": round(float(rows["ttft_ms"].max()), 1),  # pyright: ignore[reportArgumentType]
            }
            for (arm,), rows in overtaken.group_by("arm", maintain_order=True)
        }
