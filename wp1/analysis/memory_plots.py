"""Where memory goes by prompt length: a picture for each arm, with a panel for each of its pools."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from wp1.analysis import style
from wp1.analysis.memory import PARTS, Row
from wp1.analysis.plots import Plot

GIB = 1 << 30
# Places in the palette. KV in use and free are one pool: the same colour, the free part pale.
COLOURS = {
    "weights": 0, "runtime": 7, "buffers": 5, "graphs": 8, "transfer": 4, "kv_in_use": 2, "kv_free": 2,
    "activations": 1, "kept": 9, "unexplained": 3,
}  # fmt: skip
PALE = 0.35


def by_length(folder: Path, rows: Sequence[Row], mark: str) -> list[Plot]:
    """Stacked parts by prompt length, the first engine of each pool; (caption, file) of each arm."""
    style.use()
    made = []
    for arm in dict.fromkeys(row.arm for row in rows):
        path = folder / f"memory-{arm}.png"
        shown = _first_engines([row for row in rows if row.arm == arm])
        _stacked(shown, arm, path, mark)
        made.append(
            (f"Where the memory of each engine of {arm} goes, one request of each prompt length (n = 1).", path)
        )
    return made


def _first_engines(rows: Sequence[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        of_pool = found.setdefault(row.pool, [])
        if row.rank == 0 and (not of_pool or of_pool[0].engine == row.engine):
            of_pool.append(row)
    return found


def _stacked(pools: dict[str, list[Row]], arm: str, path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    palette = sns.color_palette(style.PALETTE)
    figure, grid = plt.subplots(1, len(pools), figsize=(style.WIDTH, 4.6), squeeze=False, sharey=True)
    shown = [
        (name, title)
        for name, title in PARTS
        if any(row.parts[name] > row.total / 1000 for rows in pools.values() for row in rows)
    ]
    highest = max(row.total for rows in pools.values() for row in rows) / GIB
    limit = next(iter(pools.values()))[0].limit / GIB
    for axes, (pool, rows) in zip(grid[0], pools.items(), strict=True):
        places = np.arange(len(rows))
        bottom = np.zeros(len(rows))
        for name, title in shown:
            values = np.array([max(0, row.parts[name]) for row in rows]) / GIB
            axes.bar(
                places, values, bottom=bottom, width=0.78, color=palette[COLOURS[name]], label=title, linewidth=0,
                alpha=PALE if name == "kv_free" else 1,
            )  # fmt: skip
            bottom += values
        axes.set_xticks(places, [f"{row.prompt_len:,}" for row in rows], rotation=45, ha="right")
        axes.set(xlabel="prompt tokens", title=pool if len(pools) > 1 else "")
        axes.title.set_fontweight("normal")
        axes.grid(axis="x", visible=False)
        _limit_line(axes, highest, limit)
        sns.despine(ax=axes)
    grid[0][0].set_ylabel("GiB")
    handles, labels = grid[0][0].get_legend_handles_labels()
    # From the top of the stack down, as one reads it.
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(style.title(f"Where memory goes: {arm}", mark), x=0.01, ha="left", fontweight="bold")
    style.save(figure, path)


def _limit_line(axes: object, highest: float, limit: float) -> None:
    """The device's memory; at the top edge, and so said, where it would leave the bars too low to be read."""
    from matplotlib.axes import Axes

    assert isinstance(axes, Axes)
    near = limit <= 2.5 * highest
    top = limit * 1.12 if near else highest * 1.25
    at = limit if near else highest * 1.14
    axes.set_ylim(0, top)
    axes.axhline(at, color="black", linestyle="--", linewidth=1.1)
    beyond = "" if near else " (line not to scale)"
    axes.annotate(
        f"device: {limit:,.1f} GiB{beyond}", (0.02, at), xycoords=("axes fraction", "data"), xytext=(0, 3),
        textcoords="offset points", fontsize="small",
    )  # fmt: skip
