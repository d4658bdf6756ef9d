"""The comparison of a run's arms, as written to the run's folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates
from wp1.analysis.comparison import figures as comparison_figures
from wp1.analysis.comparison import narrative, parity
from wp1.analysis.device import roofline


def names_of(config: Mapping[str, Any]) -> list[str]:
    """The arms of a run with several, in the configuration's order; [] for a run of one scheduler."""
    arms = list(config.get("arms") or {})
    return arms if len(arms) > 1 else []


def file_of(run_dir: Path, experiment: str) -> Path:
    """Path of the comparison: e3_summary.json."""
    return run_dir / f"{experiment}_summary.json"


def table_of(run_dir: Path, experiment: str) -> Path:
    """Path of the comparison's table: artifacts/e3_mode_comparison.csv."""
    return run_dir / "artifacts" / f"{experiment}_mode_comparison.csv"


def contents(
    requests: pl.DataFrame,
    arms: Sequence[str],
    slo: Mapping[str, Any],
    devices: Mapping[str, int],
    tokens: parity.Basis | None = None,
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The comparison of the first two arms: as an object for JSON, and as the table of `figures.compare`.

    requests: `tables.requests` of all arms; devices: how many each arm uses; tokens: what a comparison of tokens needs.
    """
    measured = requests.filter(~pl.col("warmup"))
    a, b = (measured.filter(pl.col("arm") == arm) for arm in arms[:2])
    rows = comparison_figures.compare(a, b, slo)
    unlike = comparison_figures.unlike_lengths(a, b)
    cells: dict[str, dict[str, Any]] = {}
    for row in rows.iter_rows(named=True):
        figures = {_by_arm(key, arms): value for key, value in row.items() if key not in ("cell", "metric")}
        cells.setdefault(row["cell"], {})[row["metric"]] = figures
    content = {
        "arms": list(arms[:2]),
        "not_compared": list(arms[2:]),
        "devices": dict(devices),
        "slo": dict(slo),
        "words": narrative.in_words(rows, arms[0], arms[1], unlike),
        "unlike_lengths": unlike,
        "cells": cells,
        "goodput": {
            arm: comparison_figures.goodput(part, slo, devices[arm]).to_dicts()
            for arm, part in zip(arms[:2], (a, b), strict=True)
        },
        "parity": parity.parity(a, b, tokens),
        "overall": {
            arm: aggregates.latency(part) | {"slo_attainment": aggregates.attainment(part, aggregates.limits(slo))}
            for arm, part in zip(arms[:2], (a, b), strict=True)
        },
    }
    return content, rows


def labelled(rows: pl.DataFrame, arms: Sequence[str], labels: Sequence[str]) -> pl.DataFrame:
    """The table with columns named after the arms, and the run's labels in every row."""
    named = rows.rename({name: _by_arm(name, arms) for name in ("a", "b", "n_a", "n_b")})
    return named.with_columns(labels=pl.lit(", ".join(labels)))


def _by_arm(column: str, arms: Sequence[str]) -> str:
    return {"a": arms[0], "b": arms[1], "n_a": f"n_{arms[0]}", "n_b": f"n_{arms[1]}"}.get(column, column)


def devices_of(pools: Sequence[Mapping[str, Any]], arms: Sequence[str]) -> dict[str, int]:
    """How many devices each arm uses: distinct GPUs, however many engines share one; a host without GPU counts as 1."""
    return {arm: roofline.devices_of(pools, arm) for arm in arms}
