"""What watches a run: a collector may sample while it goes on, and turns the run's folder into figures afterwards."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wp1.core.parts import Kind

if TYPE_CHECKING:
    import polars as pl


class Collector(ABC):
    """What all collectors derive from; one that needs no more than what the run writes has `profile` alone.

    `start` and `stop` bracket the engines' life; `profile` is pure, from the run's folder. Keyword parameters of the
    constructor are the settings of `collectors.X`.
    """

    # Its key under `profiling` in summary.json; "": the key that it has in `collectors`.
    name: str = ""

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        """Begins to sample, into files of the run's folder.

        gpus: indices of those that the engines are to use; [] if they use none.
        """
        return

    def stop(self) -> None:
        """Ends what `start` began; also called if the run failed."""
        return

    @abstractmethod
    def profile(self, run_dir: Path, requests: "pl.DataFrame") -> dict[str, Any]:
        """Figures from the run's folder and its table of requests (`wp1.analysis.base.tables.requests`)."""


COLLECTOR = Kind("collector", Collector)
