"""The common style of wp1's plots: one palette that is safe for colour-blind readers, one width, thin grids."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wp1.core import files
from wp1.core.labels import SHARED_GPU

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = "colorblind"
# Palette indices that no phase of a request uses (`comparison.plots.PHASE_COLOURS`), so that no arm looks like a phase.
ARMS = {"agg": 2, "disagg": 3}
OTHER_ARMS = (9, 5, 6, 8)
WIDTH = 7.2  # inches
MARKERS = ("o", "s", "D", "^")
LINES = ("-", "--", "-.", ":")
# Values that differ by more than this factor get a logarithmic axis: a linear one would hide the lower ones.
WIDE = 12


def use() -> None:
    """Sets seaborn's theme and a backend that works without a display."""
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
            # A dollar sign in a question is not mathematics.
            "text.parse_math": False,
        }
    )


def arm_colours(arms: Sequence[str]) -> dict[str, Any]:
    """A colour for each arm of a run: fixed for agg and disagg in all plots, by order for others."""
    import seaborn as sns

    palette = sns.color_palette(PALETTE)
    others = [arm for arm in dict.fromkeys(arms) if arm not in ARMS]
    places = ARMS | {arm: OTHER_ARMS[n % len(OTHER_ARMS)] for n, arm in enumerate(others)}
    return {arm: palette[places[arm]] for arm in arms}


def series(k: int, count: int) -> dict[str, Any]:
    """The look of the k-th of several lines with markers and intervals, which can be told apart without colour.

    Lines may overlap, as all are drawn at their true positions: those drawn first have larger markers and wider caps.
    """
    below = min(count - 1 - k, 3)
    return {
        "marker": MARKERS[k % 4], "linestyle": LINES[k % 4], "markersize": 4.5 + 1.8 * below,
        "capsize": 2.5 + 2.0 * below, "zorder": 2 + 0.1 * k,
    }  # fmt: skip


def title(text: str, mark: str, most: int = 62) -> str:
    """A title with the run's labels, on a second line if both together exceed `most` characters."""
    return text + mark if len(text + mark) <= most else f"{text}\n{mark.strip()}".rstrip()


def over_all(figure: "Figure", text: str, mark: str) -> None:
    """A title over the whole figure, from its left edge."""
    figure.suptitle(title(text, mark), x=0.01, ha="left", fontsize="large", fontweight="bold")


def legend_below(figure: "Figure", axes: Any, columns: int = 6) -> None:
    """The legend of `axes` below the whole figure, in at most `columns` columns."""
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=min(columns, len(names)), frameon=False)


def counts(numbers: Iterable[int]) -> str:
    """The numbers of samples behind several points: `60`, or `4 to 60` if they differ."""
    known = sorted(numbers)
    return f"{known[0]}" if known[0] == known[-1] else f"{known[0]} to {known[-1]}"


def tokens(length: int) -> str:
    """Tokens for ticks and legends: 4096 is 4k (k is 1,024 here); other numbers are written in full."""
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def length_ticks(axes: Any, places: Sequence[float], labels: Sequence[str], narrow: bool = True) -> None:
    """Sets ticks for prompt lengths, slanted in a narrow panel if long labels would overlap."""
    slanted = narrow and len(labels) > 5 and max(map(len, labels)) > 4
    axes.set_xticks(places, labels, **({"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if slanted else {}))


def from_zero(*panels: Any) -> None:
    """Sets all y axes from zero to beyond the highest point of all panels, with room for its marker.

    Matplotlib's own margin is a share of the distance between lowest and highest point. If these are close, it is less
    than half a marker.
    """
    # Minus infinity for a panel without points.
    highest = max(axes.dataLim.y1 for axes in panels)
    for axes in panels:
        axes.set_ylim(0, 1.06 * highest if highest > 0 else None)


def points(
    axes: Any, x: Sequence[float], figures: Sequence[Mapping[str, float]], scale: float = 1.0, **looks: Any
) -> None:
    """Draws values with their intervals at the positions x."""
    y = np.array([figure["value"] for figure in figures]) * scale
    low = np.array([figure.get("low", figure["value"]) for figure in figures]) * scale
    high = np.array([figure.get("high", figure["value"]) for figure in figures]) * scale
    # Rounding may put a bound slightly beyond the value.
    spread = np.maximum([y - low, high - y], 0)
    axes.errorbar(x, y, yerr=spread, **{"markersize": 4.5, "linewidth": 1.4, "elinewidth": 1.2, "capsize": 2.5} | looks)


def heights(*panels: Any) -> Any:
    """The finite y values of all lines, without the ends of intervals, which may be near or at zero."""
    from matplotlib.container import ErrorbarContainer

    found = [np.empty(0)]
    for axes in panels:
        bars = [bar for bar in axes.containers if isinstance(bar, ErrorbarContainer)]
        ends = {id(cap) for bar in bars for cap in bar.lines[1]}
        found += [np.asarray(line.get_ydata(), dtype=float) for line in axes.lines if id(line) not in ends]
    values = np.concatenate(found)
    return values[np.isfinite(values)]


def logarithmic(axes: Any, lowest: float, highest: float, formatter: Any) -> None:
    """Sets a logarithmic y axis for values from `lowest` to `highest`, with a few ticks at round numbers only.

    It begins no lower than half the lowest value; intervals that extend further down are cut off.
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
    """Writes 2500 as 2,500 on every axis with the default formatter."""
    from matplotlib.ticker import ScalarFormatter

    class Apart(ScalarFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            # Only the digits before the decimal point.
            return re.sub(r"(?<![.\d])\d{4,}", lambda found: f"{int(found[0]):,}", super().__call__(x, pos))

    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            if type(axis.get_major_formatter()) is ScalarFormatter:
                axis.set_major_formatter(Apart())


def save(figure: "Figure", path: Path) -> None:
    """Writes a PNG without date and version, so that the same figure has the same bytes."""
    import matplotlib.pyplot as plt

    thousands(figure)
    with files.replaced(path) as work:
        figure.savefig(work, dpi=150, metadata={"Software": None})
    plt.close(figure)


def mark_of(metadata: Mapping[str, Any], arm: str | None = None) -> str:
    """A run's labels for plot titles; arm: the only arm in the plot, which may not share a GPU."""
    pools = [pool for pool in metadata["pools"] if arm is None or pool.get("arm") == arm]
    shared = arm is None or any(pool.get("shared_gpu") for pool in pools)
    labels = [label for label in metadata["labels"] if shared or label != SHARED_GPU]
    return f" ({', '.join(labels)})" if labels else ""


Plot = tuple[str, Path]
