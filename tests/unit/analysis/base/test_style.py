"""Colours, titles and axes that all plots share."""

from typing import Any

import pytest

from wp1.analysis.base import style


@pytest.mark.parametrize("values", [(690.0, 830.0), (3.5, 3.5), (0.001, 12.0), ()])
def test_no_mark_is_cut_at_the_top(figures: list[Any], values: tuple[float, ...]) -> None:
    """On an axis from zero the highest point has room for more than half a mark, however close the points are."""
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, sharey=True, figsize=(style.WIDTH, 2.4))
    both[0].errorbar(range(len(values)), values, marker="s", markersize=4.5)
    style.from_zero(*both)
    figure.canvas.draw()
    top = both[0].get_window_extent().y1
    for axes in both:
        assert axes.get_ylim()[0] == 0
        assert all(top - axes.transData.transform((0, value))[1] > figure.dpi * 4.5 / 72 / 2 for value in values)
    plt.close(figure)


def test_an_arm_has_one_colour_in_every_plot() -> None:
    both = style.arm_colours(["agg", "disagg"])
    assert style.arm_colours(["disagg"])["disagg"] == both["disagg"]
    assert style.arm_colours(["agg"])["agg"] == both["agg"]
    others = style.arm_colours(["yarn", "disagg", "unscaled"])
    assert others["disagg"] == both["disagg"]
    assert len({*both.values(), *others.values()}) == 4


@pytest.mark.parametrize(
    ("length", "written"), [(512, "512"), (1024, "1k"), (32640, "32,640"), (65536, "64k"), (131056, "131,056")]
)
def test_lengths_are_written_as_whole_k_or_in_full(length: int, written: str) -> None:
    assert style.tokens(length) == written


def test_axes_have_their_thousands_apart() -> None:
    import matplotlib.pyplot as plt

    style.use()
    figure, axes = plt.subplots()
    axes.plot([0.00125, 0.0015], [0, 3000])
    style.thousands(figure)
    figure.canvas.draw()
    assert "2,500" in [label.get_text() for label in axes.get_yticklabels()]
    assert not [label for label in axes.get_xticklabels() if "," in label.get_text()]
    plt.close(figure)
