"""Results of the goodput searches, from goodput.jsonl and the records of their probes. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, cells, steady
from wp1.analysis.base.markdown import number, percent, share, table
from wp1.analysis.device import roofline
from wp1.analysis.load.probes import bracket, passes, planned_probes
from wp1.core.records import Probe


def found(
    probes: Sequence[Probe], requests: pl.DataFrame, metadata: Mapping[str, Any], slo: Mapping[str, Any]
) -> list[dict[str, Any]] | None:
    """One search per arm and prompt length, with its path; None without probes.

    goodput: requests/s by `aggregates.goodput`, also per device. fails_at: the lowest rate that failed; the true
    goodput lies between the two. Attainment has its 95 % interval (`aggregates.attainment_interval`).
    """
    if not probes:
        return None
    limits = aggregates.limits(slo)
    searches: dict[tuple[str, int], list[Probe]] = {}
    for probe in probes:
        searches.setdefault((probe.arm, probe.prompt_len), []).append(probe)
    rows = []
    for (arm, prompt_len), of_search in searches.items():
        path = [probe for probe in of_search if probe.rate is not None]
        devices = roofline.devices_of(metadata["pools"], arm)
        low, high = bracket(path)
        rows.append(
            {
                "arm": arm,
                "prompt_len": prompt_len,
                "devices": devices,
                "goodput": low,
                "goodput_per_device": None if low is None else low / devices,
                "fails_at": high,
                "seconds": round(sum(probe.seconds for probe in path), 1),
                "ended": next((probe.ended for probe in of_search if probe.ended), "not ended"),
                "path": [_step(probe, requests, limits) for probe in path],
            }
        )
    return rows


def tested(requests: pl.DataFrame, arms: Sequence[str], slo: Mapping[str, Any]) -> list[Probe]:
    """The rates of a run without a search as a path, so that goodput is reported over the rates tested.

    [] with fewer than two rates at a length, without limits, or for several arms, whose comparison has its own.
    """
    limits = aggregates.limits(slo)
    measured = requests.filter(~pl.col("warmup"))
    names = [cell for cell in map(cells.parse, cells.ordered(measured["cell"])) if cell.rate > 0 and cell.prompt_len]
    if arms or not limits:
        return []
    probes: list[Probe] = []
    for (arm,), rows in measured.group_by("arm", maintain_order=True):
        for length in dict.fromkeys(cell.prompt_len for cell in names):
            of_length = [cell.name for cell in names if cell.prompt_len == length]
            path = planned_probes(rows.filter(pl.col("cell").is_in(of_length)), str(arm), length or 0, limits)
            if len(path) > 1:
                probes += [*path, Probe(str(arm), length or 0, len(path), ended="rates of the experiment, no search")]
    return probes


def _step(probe: Probe, requests: pl.DataFrame, limits: aggregates.Limits) -> dict[str, Any]:
    rows = requests.filter(~pl.col("warmup") & (pl.col("arm") == probe.arm) & (pl.col("cell") == probe.cell))
    # In an open loop with a steady state, attainment counts only the requests of that state.
    rows = steady.of_figures(rows)
    met = int(rows.select(aggregates.met(limits).sum()).item()) if rows.height else 0
    low, high = aggregates.attainment_interval(rows, limits) or (None, None)
    return {
        "number": probe.number + 1,
        "rate": probe.rate,
        "planned": probe.planned,
        "repeats": probe.repeats,
        "sent": rows.height,
        "met": met,
        "attainment": aggregates.attainment(rows, limits),
        "passed": passes(probe),
        "low": low,
        "high": high,
    }


def probe_cells(probes: Sequence[Probe]) -> set[tuple[str, str]]:
    """(arm, cell) of the cells that were measured for a search only."""
    return {(probe.arm, probe.cell) for probe in probes if probe.cell is not None and not probe.planned}


def _bound(row: Mapping[str, Any]) -> str:
    """The sign of a lower bound, which the highest rate tried is if none failed."""
    return "≥ " if row["fails_at"] is None else ""


def section(searches: Sequence[Mapping[str, Any]] | None, slo: Mapping[str, Any]) -> str:
    """The report's section; "" for a run without a search."""
    if searches is None:
        return ""
    several = len({row["arm"] for row in searches}) > 1
    lines = [
        [
            *([row["arm"]] if several else []),
            number(row["prompt_len"]),
            None if row["goodput"] is None else f"**{_bound(row)}{row['goodput_per_device']:,g}**",
            None if row["goodput"] is None else f"{_bound(row)}{row['goodput']:,g}",
            None if row["fails_at"] is None else f"{row['fails_at']:,g}",
            ", ".join(_in_words(step) for step in row["path"]),
            row["ended"] + (f", {row['seconds']:.0f} s" if row["seconds"] else ""),
        ]
        for row in searches
    ]
    header = ["arm"] if several else []
    header += ["prompt tokens", "goodput per device", "goodput", "fails at", "path", "ended"]
    least = share(aggregates.GOODPUT_ATTAINMENT)
    note = (
        f"**goodput**: the highest request rate tried (requests/s) at which, as at every lower rate tried, at least "
        f"{least} of requests meet {aggregates.limits_in_words(slo)}. **fails at**: the lowest rate tried that misses "
        "this; the true goodput lies between the two. **path**: every rate tried, in order, as rate: SLO attainment "
        "[95 % interval] of requests sent."
    )
    return f"## Goodput\n\n{table(header, lines, ('l' if several else '') + 'rrrrll')}\n\n{note}"


def _in_words(step: Mapping[str, Any]) -> str:
    bounds = "" if step["low"] is None else f" [{share(step['low'])}, {share(step['high'])}]"
    return f"{step['rate']:,g}: {percent(step['attainment'])}{bounds} of {step['sent']:,}"
