"""Where memory goes, for summary.json."""

from collections.abc import Sequence
from typing import Any

from wp1.analysis.memory.figures import Row
from wp1.machine.hardware import GIB


def profile(rows: Sequence[Row]) -> dict[str, Any]:
    """The parts of each arm's workers at their longest prompt (GiB), and by cell (arm/cell; bytes).

    rows: from `figures.rows_of`, shorter prompts first. {} if no notes were taken (experiment.memory=false).
    """
    if not rows:
        return {}
    longest: dict[str, dict[str, float]] = {}
    by_cell: dict[str, dict[str, Any]] = {}
    for row in rows:
        worker = row.engine + (f"/rank{row.rank}" if row.rank else "")
        longest[f"{row.arm}/{worker}"] = {
            **{f"{part}_gib": round(size / GIB, 4) for part, size in row.parts.items()},
            "total_gib": round(row.total / GIB, 4),
        }
        by_cell.setdefault(f"{row.arm}/{row.cell}", {})[worker] = {
            "parts": row.parts,
            "calculated": row.calculated,
            "reported": row.reported,
            "source": row.source,
            "adds_up": row.adds_up,
        }
    return {"overall": longest, "cells": by_cell}
