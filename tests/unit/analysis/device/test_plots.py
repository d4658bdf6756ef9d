"""The plots of device: what they make of records and samples."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wp1.analysis.base import tables
from wp1.analysis.device import plots as device_plots


@given(st.lists(st.floats(0.01, 100), min_size=0, max_size=30), st.integers(0, 4))
def test_sessions_hold_every_sample_once_and_break_where_it_is_longest(gaps: list[float], resumed: int) -> None:
    times = np.concatenate([[5.0], 5.0 + np.cumsum(gaps)])
    parts = device_plots.sessions(times, resumed)
    assert len(parts) <= resumed + 1
    assert [t for begin, end in parts for t in times[(times >= begin) & (times <= end)]] == times.tolist()
    between = [b - e for (_, e), (b, _) in itertools.pairwise(parts)]
    assert all(gap > device_plots.APART_S for gap in between)
    within = [gap for begin, end in parts for gap in np.diff(times[(times >= begin) & (times <= end)])]
    if between and within:
        assert max(within) <= min(between) + 1e-9


@pytest.mark.parametrize(("resumed", "lines"), [(1, 2), (0, 1)])
def test_the_line_of_a_device_is_broken_where_the_run_was(
    figures: list[Any], tmp_path: Path, resumed: int, lines: int
) -> None:
    """Two sessions of 10 s, an hour apart; of each the second half is measured."""
    times = [*range(10), *range(3600, 3610)]
    rows = [
        {"t": float(t), "device": "host", "memory_bytes": 1 << 30, "utilisation": 50.0, "power_w": None,
         "energy_j": None, "note": None}
        for t in times
    ]  # fmt: skip
    measured = pl.DataFrame({"t_sent": [5.0, 3605.0], "t_end": [9.0, 3609.0]})
    caption = device_plots.device_plot(
        pl.DataFrame(rows, schema=tables.DEVICE_SCHEMA), measured, resumed, tmp_path / "x.png", ""
    )
    for axes in figures[0].axes:
        drawn = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(drawn) == lines
        assert len(axes.patches) == lines
        # The hour is not on the axis of a run that was resumed.
        assert (axes.get_xlim()[1] < 30) == bool(resumed)
    assert ("resumed" in caption) == bool(resumed)


def test_what_is_shaded_of_a_device_was_measured(figures: list[Any], tmp_path: Path) -> None:
    """Between the turns of two arms engines start."""
    rows = [
        {"t": float(t), "device": f"cuda:{n}", "memory_bytes": 1 << 30, "utilisation": 50.0, "power_w": None,
         "energy_j": None, "note": None}
        for t in range(60)
        for n in range(2)
    ]  # fmt: skip
    measured = pl.DataFrame(
        {"arm": ["agg", "agg", "disagg"], "cell": "c", "repeat": 0, "t_sent": [5.0, 7.0, 40.0], "t_end": [8.0, 9.0, 50]}
    )
    device_plots.device_plot(pl.DataFrame(rows, schema=tables.DEVICE_SCHEMA), measured, 0, tmp_path / "x.png", "")
    for axes in figures[0].axes:
        assert [(span.get_x(), span.get_width()) for span in axes.patches] == [(5, 4), (40, 10)]
        assert len({line.get_linestyle() for line in axes.lines}) == 2
    assert len(figures[0].legends) == 1
