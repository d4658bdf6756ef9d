"""Whether the load was as meant, for a cell: how punctual wp1 itself was, and whether engines fell behind."""

from typing import Any

import polars as pl

from wp1.analysis.base import cells, metrics, steady
from wp1.analysis.base.markdown import short

# A client that sends later than this, for one request in a hundred, measures itself.
LATE_MS = 10.0


def cell_figures(name: Any, requests: pl.DataFrame, lags: pl.DataFrame) -> dict[str, Any]:
    """How late wp1 sent the requests of a cell and how late its event loop was (ms), and at rates `steady`'s."""
    delays = requests["client_delay_ms"].drop_nulls()
    late = delays.quantile(0.99, "linear")
    late_by = lags["lags"].explode(empty_as_null=False).drop_nulls().to_numpy() * 1e3
    found: dict[str, Any] = {
        "client_delay_p99_ms": None if late is None else round(late, 3),
        "client_late": late is not None and late > LATE_MS,
        "loop_lag_ms": metrics.distribution(late_by, metrics.in_order(late_by.size)),
    }
    if cells.parse(name).open_loop:
        found |= {"steady": steady.window(requests), **steady.saturation(requests)}
    return found


def overall(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The latest cell's figures, and how many cells are marked."""
    return {
        "client_delay_p99_ms": max((c["client_delay_p99_ms"] or 0.0 for c in found), default=None),
        "loop_lag_p99_ms": max((c["loop_lag_ms"].get("p99", 0.0) for c in found), default=None),
        "client_late_cells": sum(c["client_late"] for c in found),
        "over_saturated_cells": sum(bool(c.get("over_saturated")) for c in found),
    }


def late_cells(summary: dict[str, Any]) -> list[str]:
    """The cells (arm/name) in which wp1 itself was late."""
    return [name for name, cell in _cells(summary).items() if cell["client_late"]]


def has_windows(summary: dict[str, Any]) -> bool:
    """Whether figures of some cell are those of a part of its requests."""
    return any(cell.get("steady") for cell in _cells(summary).values())


def notes(summary: dict[str, Any], name: str) -> list[str]:
    """What is to be said beside the figures of a cell (arm/name), in sentences; the first words name the matter."""
    cell = of_cell(summary, name)
    if cell is None:
        return []
    said = []
    if cell["client_late"]:
        said.append(
            f"client late: one request in a hundred was sent {cell['client_delay_p99_ms']:.0f} ms or more after it was "
            f"due (event loop p99 {cell['loop_lag_ms'].get('p99', 0):.0f} ms late); TTFT includes that"
        )
    if cell.get("over_saturated"):
        said.append(
            f"over-saturated: {short(cell['offered_per_s'])} requests/s were offered and "
            f"{short(cell['answered_per_s'])} answered, and requests in flight grew from "
            f"{short(cell['in_flight_middle'])} to {short(cell['in_flight_last'])}; how long requests took depends on "
            "how long this went on"
        )
    window = cell.get("steady")
    if window is not None:
        said.append(
            f"steady state: {window['requests']:,} of {window['of']:,} requests, due {window['begin_s']:.1f} to "
            f"{window['end_s']:.1f} s after the first; latencies, rates and attainment are of these"
        )
    elif "steady" in cell:
        said.append("no steady state to take: fewer than 20 requests a repeat lie between start and end, so all count")
    return said


def of_cell(summary: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The figures of a cell (arm/name), of a run that has them."""
    return _cells(summary).get(name)


def _cells(summary: dict[str, Any]) -> dict[str, Any]:
    return summary["profiling"].get("load", {}).get("cells", {})
