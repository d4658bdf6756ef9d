"""The plots of load: what they make of records and samples."""

from pathlib import Path
from typing import Any

import numpy as np

from wp1.analysis.load import plots as load_plots


def _drawn(axes: Any) -> dict[str, np.ndarray]:
    """By label, the places of the marks of each line with intervals, and that these stand on its marks."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        found[str(container.get_label())] = line.get_xdata()
        for bar in bars:
            assert [segment[0][0] for segment in bar.get_segments()] == list(line.get_xdata())
    return found


def test_points_of_several_lengths_stand_at_their_loads(figures: list[Any], tmp_path: Path) -> None:
    rows = [
        {"arm": "agg", "prompt": prompt, "concurrency": load, "request_rate": None, "ok": 4, "kv_use_peak": 0.5}
        | {name: {"n": 4, "value": 1.0 * load, "low": 0.5, "high": 90.0} for name, *_ in load_plots.panels()[:-1]}
        for prompt in ("256", "1024", "4096")
        for load in (1, 8, 64)
    ]
    load_plots.load_plots(tmp_path, {"rows": rows}, "")
    # An odd number of panels leaves the last place empty.
    drawn = [axes for axes in figures[0].axes if axes.get_visible()]
    assert len(drawn) == len(load_plots.panels())
    for axes in drawn:
        assert [list(x) for x in _drawn(axes).values()] == [[0, 1, 2]] * 3
