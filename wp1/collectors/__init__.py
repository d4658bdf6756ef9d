"""What watches a run: each collector may sample while it goes, and turns the run's folder into figures afterwards."""

from pathlib import Path
from typing import Any, Protocol

import polars as pl

from wp1.analysis.base.run_tables import RunTables


class Collector(Protocol):
    """`start` and `stop` bracket the engines' life; `profile` is pure, from the run's folder."""

    name: str  # its key under `profiling` in summary.json

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        """`gpus`: indices of those that the engines are to use; [] where they use none."""
        ...

    def stop(self) -> None: ...

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]:
        """Figures from the run's folder and from its requests (`RunTables.requests`).

        A file of one's own is at `run / "name.jsonl"`.
        """
        ...
