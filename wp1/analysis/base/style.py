"""How every plot of wp1 looks: one palette that colour-blind people can tell apart, one size, thin grids."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wp1.core import files
from wp1.core.labels import SHARED_GPU

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = "colorblind"
# Places in the palette that are no phase's of a request (`comparison_plots.PHASE_COLOURS`): no arm looks like one.
ARMS = {"agg": 2, "disagg": 3}
OTHER_ARMS = (9, 5, 6, 8)
WIDTH = 7.2  # inches
MARKERS = ("o", "s", "D", "^")
LINES = ("-", "--", "-.", ":")
# Values that differ by more than this factor get a logarithmic axis: on a linear one the lower could not be read.
WIDE = 12


def use() -> None:
    """Sets seaborn's theme, and a backend that needs no display."""
    import matplotlib

    matplotlib.use("Agg")
    import seaborn as sns

    sns.set_theme(context="paper", style="whitegrid", palette=PALETTE, font_scale=1.15)
    matplotlib.rcParams.update(
        {
            "figure.constrained_layout.use": True,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "grid.linewidth": 0.5,
            # A dollar in a question is a dollar.
            "text.parse_math": False,
        }
    )


def arm_colours(arms: Sequence[str]) -> dict[str, Any]:
    """A colour for each arm of a run: agg and disagg have theirs in every plot, others by their order."""
    import seaborn as sns

    palette = sns.color_palette(PALETTE)
    others = [arm for arm in dict.fromkeys(arms) if arm not in ARMS]
    places = ARMS | {arm: OTHER_ARMS[n % len(OTHER_ARMS)] for n, arm in enumerate(others)}
    return {arm: palette[places[arm]] for arm in arms}


def series(k: int, count: int) -> dict[str, Any]:
    """How the k-th of some lines with marks and intervals is drawn, so that each is seen without its colour.

    All stand at their true places, where they may lie on each other: so those that are drawn first have the larger
    marks and the wider caps.
    """
    below = min(count - 1 - k, 3)
    return {
        "marker": MARKERS[k % 4], "linestyle": LINES[k % 4], "markersize": 4.5 + 1.8 * below,
        "capsize": 2.5 + 2.0 * below, "zorder": 2 + 0.1 * k,
    }  # fmt: skip


def title(text: str, mark: str, most: int = 62) -> str:
    """A title with the labels of its run, these on a line of their own where one of `most` signs does not hold both."""
    return text + mark if len(text + mark) <= most else f"{text}\n{mark.strip()}".rstrip()


def over_all(figure: "Figure", text: str, mark: str) -> None:
    """A title over the whole figure, from its left edge."""
    figure.suptitle(title(text, mark), x=0.01, ha="left", fontsize="large", fontweight="bold")


def tokens(length: int) -> str:
    """Tokens for ticks and legends: 4096 is 4k, as k is 1,024 here, and what is no whole number of k is in full."""
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def length_ticks(axes: Any, places: Sequence[float], labels: Sequence[str], narrow: bool = True) -> None:
    """Ticks of prompt lengths; in a narrow panel slanted where a long one would run into its neighbour."""
    slanted = narrow and len(labels) > 5 and max(map(len, labels)) > 4
    axes.set_xticks(places, labels, **({"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}))


def from_zero(*panels: Any) -> None:
    """Y axes from zero to beyond the highest point of all of them, with room for its mark.

    The margin that an axis has by itself is a share of what lies between lowest and highest point, and where these are
    close that is less than half a mark.
    """
    # Of one without points it is minus infinity.
    highest = max(axes.dataLim.y1 for axes in panels)
    for axes in panels:
        axes.set_ylim(0, 1.06 * highest if highest > 0 else None)


def points(
    axes: Any, x: Sequence[float], figures: Sequence[Mapping[str, float]], scale: float = 1.0, **looks: Any
) -> None:
    """Values with their intervals at given places."""
    y = np.array([figure["value"] for figure in figures]) * scale
    low = np.array([figure.get("low", figure["value"]) for figure in figures]) * scale
    high = np.array([figure.get("high", figure["value"]) for figure in figures]) * scale
    # Rounding may put a bound a hair beyond the value.
    spread = np.maximum([y - low, high - y], 0)
    axes.errorbar(x, y, yerr=spread, **{"markersize": 4.5, "linewidth": 1.4, "elinewidth": 1.2, "capsize": 2.5} | looks)


def heights(*panels: Any) -> Any:
    """The finite y values of all lines, without the ends of intervals: these may be near zero, or on it."""
    from matplotlib.container import ErrorbarContainer

    found = [np.empty(0)]
    for axes in panels:
        bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        ends = {id(cap) for bar in bars for cap in bar.lines[1]}
        found += [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if id(line) not in ends]
    values = np.concatenate(found)
    return values[np.isfinite(values)]


def logarithmic(axes: Any, lowest: float, highest: float, formatter: Any) -> None:
    """A logarithmic y axis for values from `lowest` to `highest`, with a few numbers at round places and no others.

    It begins at half the lowest value at least: an interval that goes further down is cut off there.
    """
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    axes.set_ylim(bottom=max(axes.get_ylim()[0], lowest / 2))
    decades = np.log10(highest / lowest)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3)))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def thousands(figure: "Figure") -> None:
    """Writes 2500 as 2,500 on every axis that has no numbers of its own making."""
    from matplotlib.ticker import ScalarFormatter

    class Apart(ScalarFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            # Of the digits before the point.
            return re.sub(r"(?<![.\d])\d{4,}", lambda found: f"{int(found[0]):,}", super().__call__(x, pos))

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(Apart())


def save(figure: "Figure", path: Path) -> None:
    """Writes a PNG without date or version in it: the same figure has the same bytes."""
    import matplotlib.pyplot as plt

    thousands(figure)
    with files.replaced(path) as work:
        figure.savefig(work, dpi=150, metadata={"Software": None})
    plt.close(figure)


def mark_of(metadata: Mapping[str, Any], arm: str | None = None) -> str:
    """The labels of a run as its plots' titles carry them; arm: of a plot of it alone, which may share no GPU."""
    pools = [pool for pool in metadata["pools"] if arm is None or pool.get("arm") == arm]
    shared = arm is None or any(pool.get("shared_gpu") for pool in pools)
    labels = [label for label in metadata["labels"] if shared or label != SHARED_GPU]
    return f" ({', '.join(labels)})" if labels else ""


Plot = tuple[str, Path]
