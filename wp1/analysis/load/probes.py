"""Rates tried by the goodput search (goodput.jsonl)."""

from collections.abc import Sequence

import polars as pl

from wp1.analysis.base import aggregates, cells
from wp1.core.records import Probe


def passes(probe: Probe) -> bool:
    """Whether enough requests attained the SLO at this rate."""
    return aggregates.attains(probe.attainment)


def bracket(path: Sequence[Probe]) -> tuple[float | None, float | None]:
    """Goodput over the rates tried, and the lowest rate that failed (`aggregates.goodput`)."""
    return aggregates.goodput({probe.rate: probe.attainment for probe in path if probe.rate is not None})


def planned_probes(requests: pl.DataFrame, arm: str, prompt_len: int, limits: aggregates.Limits) -> list[Probe]:
    """Rates that the experiment measured anyway at this length; the search starts from them."""
    found = []
    for name in cells.ordered(requests["cell"]):
        cell, rows = cells.parse(name), requests.filter(pl.col("cell") == name)
        if cell.rate > 0:
            attained = aggregates.attainment(rows, limits)
            repeats = rows["repeat"].n_unique()
            found.append(Probe(arm, prompt_len, len(found), cell.rate, name, True, repeats, attained))
    return found


def ended(probes: Sequence[Probe], arm: str, lengths: Sequence[int]) -> bool:
    """Whether an arm's search finished at each of these lengths; an interrupted one starts again."""
    return set(lengths) <= {probe.prompt_len for probe in probes if probe.arm == arm and probe.ended is not None}
