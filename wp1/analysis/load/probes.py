"""The rates that the search for goodput has tried (goodput.jsonl)."""

from collections.abc import Sequence

import polars as pl

from wp1.analysis.base import cells, metrics
from wp1.core.records import Probe


def passes(probe: Probe) -> bool:
    """Whether the rate counts as served."""
    return metrics.attains(probe.attainment)


def bracket(path: Sequence[Probe]) -> tuple[float | None, float | None]:
    """The goodput of the rates that were tried, and the lowest that failed (`metrics.goodput`)."""
    return metrics.goodput({probe.rate: probe.attainment for probe in path if probe.rate is not None})


def planned_probes(requests: pl.DataFrame, arm: str, prompt_len: int, limits: metrics.Limits) -> list[Probe]:
    """Rates that the experiment has measured anyway at this length: the search begins with what they say."""
    found = []
    for name in cells.ordered(requests["cell"]):
        cell, rows = cells.parse(name), requests.filter(pl.col("cell") == name)
        if cell.rate > 0:
            attained = metrics.attainment(rows, limits)
            repeats = rows["repeat"].n_unique()
            found.append(Probe(arm, prompt_len, len(found), cell.rate, name, True, repeats, attained))
    return found


def ended(probes: Sequence[Probe], arm: str, lengths: Sequence[int]) -> bool:
    """Whether an arm's search came to its end at each of these lengths; one that was cut short is begun anew."""
    return set(lengths) <= {probe.prompt_len for probe in probes if probe.arm == arm and probe.ended is not None}
