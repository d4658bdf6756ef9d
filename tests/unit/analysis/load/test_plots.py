"""The plots of load: what they make of records and samples."""

from pathlib import Path
from typing import Any

from tests.unit.analysis.conftest import marks_of
from wp1.analysis.base import style
from wp1.analysis.load import plots as load_plots


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
        assert [list(x) for x in marks_of(axes).values()] == [[0, 1, 2]] * 3


def test_an_interval_that_reaches_to_zero_does_not_stretch_a_logarithmic_axis(figures: list[Any]) -> None:
    """It was linear for one that ends at 0, so that 30 ms beside 4,000 could not be read, and from 0.04 for one that
    ends there, so that all the rest lay in the upper half."""
    import matplotlib.pyplot as plt

    for least in (0.0, 0.04):
        _, axes = plt.subplots()
        figure = [{"value": 30.0, "low": least, "high": 60.0}, {"value": 4000.0, "low": 3900.0, "high": 4100.0}]
        style.points(axes, [1, 2], figure)
        assert list(style.heights(axes)) == [30, 4000]
        load_plots._scale(axes)
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] >= 15
