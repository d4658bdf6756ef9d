"""The plots of length: what they make of records and samples."""

from typing import Any

from wp1.analysis.base import style
from wp1.analysis.load import plots as load_plots


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
