"""Plots of memory by prompt length: one for each arm, with a panel for each of its pools."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from wp1.analysis.base import style
from wp1.analysis.base.style import Plot, mark_of
from wp1.analysis.device import roofline
from wp1.analysis.memory.figures import PARTS, Row, together
from wp1.machine.hardware import GIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Indices into the palette. KV in use and free KV are one pool: the same colour, with the free part pale.
COLOURS = {
    "weights": 0, "runtime": 7, "buffers": 5, "graphs": 8, "transfer": 4, "kv_in_use": 2, "kv_free": 2,
    "activations": 1, "kept": 9, "unexplained": 3,
}  # fmt: skip
PALE = 0.65  # share of white


Bar = tuple[str, dict[str, int]]  # the prompt length's label, bytes of each part


def by_length(folder: Path, rows: Sequence[Row], metadata: Mapping[str, Any]) -> list[Plot]:
    """Plots stacked parts by prompt length: each pool's first engine, and all engines together if they share a device.

    metadata: run_metadata.json. Returns (caption, file) of each arm.
    """
    style.use()
    made = []
    for arm in dict.fromkeys(row.arm for row in rows):
        path = folder / f"memory-{arm}.png"
        of_arm = [row for row in rows if row.arm == arm]
        panels = {pool: _bars(_first_engine(of_arm, pool)) for pool in dict.fromkeys(row.pool for row in of_arm)}
        if len({row.engine for row in of_arm}) > 1 and roofline.devices_of(metadata["pools"], arm) == 1:
            panels["all engines together"] = _bars(of_arm)
        # NVML's total is larger: it includes what the driver keeps from CUDA.
        device = "device, for CUDA" if of_arm[0].kind == "gpu" else "host"
        _stacked(panels, (device, of_arm[0].limit / GIB), arm, path, mark_of(metadata, arm))
        caption = (
            f"Memory of each engine of {arm} by part and prompt length, measured with one request per length (n = 1)."
        )
        made.append((caption, path))
    return made


def _first_engine(rows: Sequence[Row], pool: str) -> list[Row]:
    of_pool = [row for row in rows if row.pool == pool and row.rank == 0]
    return [row for row in of_pool if row.engine == of_pool[0].engine]


def _bars(rows: Sequence[Row]) -> list[Bar]:
    """The sum of the rows of each length."""
    bars = []
    for length in sorted({row.prompt_len for row in rows}):
        of_length = [row for row in rows if row.prompt_len == length]
        bars.append((style.tokens(length), {name: max(0, together(of_length, name)) for name, _ in PARTS}))
    return bars


def _stacked(panels: Mapping[str, list[Bar]], limit: tuple[str, float], arm: str, path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    palette = sns.color_palette(style.PALETTE)
    figure, grid = plt.subplots(1, len(panels), figsize=(style.WIDTH, 4.6), squeeze=False, sharey=True)
    every = [parts for bars in panels.values() for _, parts in bars]
    shown = [(name, title) for name, title in PARTS if any(parts[name] > sum(parts.values()) / 1000 for parts in every)]
    highest = max(sum(parts.values()) for parts in every) / GIB
    for axes, (panel, bars) in zip(grid[0], panels.items(), strict=True):
        places = np.arange(len(bars))
        bottom = np.zeros(len(bars))
        for name, title in shown:
            values = np.array([parts[name] for _, parts in bars]) / GIB
            colour = palette[COLOURS[name]]
            if name == "kv_free":
                colour = tuple(PALE + (1 - PALE) * channel for channel in colour)
            axes.bar(places, values, bottom=bottom, width=0.78, color=colour, label=title, linewidth=0)
            bottom += values
        axes.set_xticks(places, [length for length, _ in bars], rotation=45, ha="right")
        axes.set(xlabel="prompt tokens", title=panel if len(panels) > 1 else "")
        axes.title.set_fontweight("normal")
        axes.grid(axis="x", visible=False)
        _limit_line(axes, highest, *limit)
        sns.despine(ax=axes)
    grid[0][0].set_ylabel("GiB")
    handles, labels = grid[0][0].get_legend_handles_labels()
    # In the order of the stack, from the top down.
    figure.legend(handles[::-1], labels[::-1], loc="outside lower center", ncols=3, frameon=False, fontsize="small")
    figure.suptitle(style.title(f"Where memory goes: {arm}", mark), x=0.01, ha="left", fontweight="bold")
    style.save(figure, path)


def _limit_line(axes: "Axes", highest: float, device: str, limit: float) -> None:
    """Draws the device's memory as a line; at the top edge, and labelled so, if to scale it would dwarf the bars."""
    near = limit <= 2.5 * highest
    beyond = "" if near else ", line not to scale"
    axes.set_ylim(0, limit * 1.05 if near else highest * 1.2)
    axes.axhline(
        limit if near else highest * 1.14, color="black", linestyle="--", linewidth=1.1,
        label=f"{device}: {limit:,.1f} GiB{beyond}",
    )  # fmt: skip
