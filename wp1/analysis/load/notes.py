"""Whether a cell's load was as intended: how punctual wp1 itself was, and whether engines fell behind."""

from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, cells, steady
from wp1.analysis.base.markdown import short

# If one request in a hundred is sent later than this, the latencies measure the client itself.
LATE_MS = 10.0


def profile(requests: pl.DataFrame, lags: pl.DataFrame) -> dict[str, Any]:
    """By cell (arm/cell), how late wp1 sent, how its event loop lagged (ms), and `steady`'s figures; and the worst."""
    columns = ("arm", "cell", "repeat", "status", "ramp", "steady", "window_begin", "window_end")
    columns += ("t_intended", "t_end", "client_delay_ms")
    measured = requests.filter(~pl.col("warmup")).select(columns)
    found = {
        f"{arm}/{cell}": _of_cell(cell, rows, lags.filter((pl.col("arm") == arm) & (pl.col("cell") == cell)))
        for (arm, cell), rows in measured.group_by("arm", "cell", maintain_order=True)
    }
    return {"overall": _worst(list(found.values())), "cells": found}


def _of_cell(name: Any, requests: pl.DataFrame, lags: pl.DataFrame) -> dict[str, Any]:
    """How late wp1 sent a cell's requests and how late its event loop was (ms); for open loops, `steady`'s figures."""
    delays = requests["client_delay_ms"].drop_nulls()
    late = delays.quantile(0.99, "linear")
    late_by = lags["lags"].explode(empty_as_null=False).drop_nulls().to_numpy() * 1e3
    found: dict[str, Any] = {
        "client_delay_p99_ms": None if late is None else round(late, 3),
        "client_late": late is not None and late > LATE_MS,
        "loop_lag_ms": aggregates.distribution(late_by, aggregates.in_order(late_by.size)),
    }
    if cells.parse(name).open_loop:
        found |= {"steady": steady.window(requests), **steady.saturation(requests)}
    return found


def _worst(found: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of the worst cell, and how many cells are marked."""
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
    """Whether any cell's figures cover its steady state only."""
    return any(cell.get("steady") for cell in _cells(summary).values())


def notes(summary: dict[str, Any], name: str) -> list[str]:
    """Notes on the figures of a cell (arm/name), each as `subject: sentence`."""
    cell = of_cell(summary, name)
    if cell is None:
        return []
    sentences = []
    if cell["client_late"]:
        sentences.append(
            f"client late: one request in a hundred was sent {cell['client_delay_p99_ms']:.0f} ms or more after it was "
            f"due (event-loop lag p99: {cell['loop_lag_ms'].get('p99', 0):.0f} ms); TTFT includes this delay"
        )
    if cell.get("over_saturated"):
        sentences.append(
            f"over-saturated: {short(cell['offered_per_s'])} requests/s were offered and "
            f"{short(cell['answered_per_s'])} answered, and requests in flight grew from "
            f"{short(cell['in_flight_middle'])} to {short(cell['in_flight_last'])}; latencies depend on how long this "
            "lasted"
        )
    window = cell.get("steady")
    if window is not None:
        sentences.append(
            f"steady state: {window['requests']:,} of {window['of']:,} requests, due {window['begin_s']:.1f} to "
            f"{window['end_s']:.1f} s after the first; latencies, rates and attainment count these only"
        )
    elif "steady" in cell:
        sentences.append(
            "no steady state: fewer than 20 requests per repeat lie between fill-up and drain, so all requests count"
        )
    return sentences


def of_cell(summary: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The load figures of a cell (arm/name), or None."""
    return _cells(summary).get(name)


def _cells(summary: dict[str, Any]) -> dict[str, Any]:
    return summary["profiling"].get("load", {}).get("cells", {})
