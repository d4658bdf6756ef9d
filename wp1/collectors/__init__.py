"""What watches a run: each collector may sample while it goes, and turns the run's folder into figures afterwards."""

from pathlib import Path
from typing import Any, Protocol

import polars as pl


class Collector(Protocol):
    """`start` and `stop` bracket the engines' life; `profile` is pure, from the run's folder."""

    name: str  # its key under `profiling` in summary.json

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        """`gpus`: indices of those that the engines are to use; [] where they use none."""
        ...

    def stop(self) -> None: ...

    def profile(self, run_dir: Path, requests: pl.DataFrame) -> dict[str, Any]:
        """Figures from the run's folder and its table of requests (`wp1.analysis.base.tables.requests`)."""
        ...
