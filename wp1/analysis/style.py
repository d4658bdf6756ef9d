"""How every plot of wp1 looks: one palette that colour-blind people can tell apart, one size, thin grids."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PALETTE = "colorblind"
WIDTH = 7.2  # inches
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


def title(text: str, mark: str, most: int = 62) -> str:
    """A title with the labels of its run, these on a line of their own where one of `most` signs does not hold both."""
    return text + mark if len(text + mark) <= most else f"{text}\n{mark.strip()}".rstrip()


def over_all(figure: "Figure", text: str, mark: str) -> None:
    """A title over the whole figure, from its left edge."""
    figure.suptitle(title(text, mark), x=0.01, ha="left", fontsize="large", fontweight="bold")


def tokens(length: int) -> str:
    """4096 as 4k, for ticks; what is no round number of k in full up to 10,000, and beyond to three digits."""
    if length >= 10_000:
        return f"{length / 1024:.3g}k"
    return f"{length // 1024}k" if length >= 1024 and length % 1024 == 0 else f"{length:,}"


def logarithmic(axes: Any, lowest: float, highest: float, formatter: Any) -> None:
    """A logarithmic y axis for values from `lowest` to `highest`, with a few numbers at round places and no others."""
    import numpy as np
    from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

    axes.set_yscale("log")
    decades = np.log10(highest / lowest)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3)))
    axes.yaxis.set_major_formatter(formatter)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_minor_locator(NullLocator())


def save(figure: "Figure", path: Path) -> None:
    """Writes a PNG without date or version in it: the same figure has the same bytes."""
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=150, metadata={"Software": None})
    plt.close(figure)
