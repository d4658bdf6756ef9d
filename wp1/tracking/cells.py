"""The cells of a run for MLflow: the figures of each, and curves over the prompt length. Pure."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from wp1.analysis.base import cells, metrics


@dataclass(frozen=True)
class Cell:
    """One cell under one arm, measured or skipped."""

    arm: str
    name: str
    figures: Mapping[str, Any] = field(default_factory=dict)  # as in summary.json's profiling.latency.cells
    reason: str | None = None  # of one that was skipped

    @property
    def prompt_len(self) -> int | None:
        """Tokens; None for a dataset's prompts."""
        return cells.parse(self.name).prompt_len

    @property
    def load(self) -> str:
        """As in the cell's name: conc4, rate0.5."""
        cell = cells.parse(self.name)
        return f"rate{cell.rate:g}" if cell.rate > 0 else f"conc{cell.concurrency}"

    @property
    def words(self) -> str:
        return cells.parse(self.name).words


def measured(summary: Mapping[str, Any]) -> list[Cell]:
    """The cells of a run, from its summary.json; [] if its latency was not profiled."""
    result = []
    for key, figures in summary["profiling"].get("latency", {}).get("cells", {}).items():
        arm, _, name = key.partition("/")
        result.append(Cell(arm, name, figures))
    return result


def skipped(metadata: Mapping[str, Any]) -> list[Cell]:
    """The cells that were not measured, by arm, from run_metadata.json."""
    arms = list(dict.fromkeys(pool["arm"] for pool in metadata["pools"]))
    return [Cell(arm, one["cell"], {}, one["reason"]) for arm in arms for one in metadata.get("skipped", ())]


def curves(of_run: Iterable[Cell]) -> Iterator[tuple[str, float, int]]:
    """Metrics over the prompt length in tokens, as `by_prompt_len/agg/conc1/ttft_ms/mean`, for each arm and load."""
    for cell in of_run:
        if cell.prompt_len is None:
            continue
        for figure in metrics.shown_in("mlflow_curves"):
            value = figure.value_in(cell.figures)
            if value is not None:
                yield f"by_prompt_len/{cell.arm}/{cell.load}/{figure.name}", float(value), cell.prompt_len
