"""Collectors: each may sample during a run, and turns the run's folder into figures afterwards."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wp1.core.parts import Kind

if TYPE_CHECKING:
    import polars as pl

    from wp1.analysis.base.run_tables import RunTables


class Collector(ABC):
    """Base class of all collectors. One that only needs what the run writes anyway implements `profile` alone.

    `start` is called before the engines start and `stop` after they have stopped; `profile` is pure and reads the run's
    folder. Keyword parameters of the constructor are the settings of `collectors.X`.
    """

    # Key under `profiling` in summary.json; "" stands for the key in `collectors`.
    name: str = ""

    def start(self, run_dir: Path, gpus: list[int]) -> None:
        """Begins to sample into files of the run's folder.

        gpus: indices of the GPUs that the engines will use; [] if they use none.
        """
        return

    def stop(self) -> None:
        """Stops sampling; also called if the run failed."""
        return

    @abstractmethod
    def profile(self, run: "RunTables", requests: "pl.DataFrame") -> dict[str, Any]:
        """Returns figures from the run's folder and its requests (`RunTables.requests`).

        A file that the collector wrote is at `run / "name.jsonl"`.
        """


COLLECTOR = Kind("collector", Collector)
