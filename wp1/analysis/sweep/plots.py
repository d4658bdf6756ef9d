"""A sweep's latencies as one plot: the mean TTFT and TPOT of each job, by cell, with intervals."""

from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import cells, metrics, style
from wp1.analysis.base.metrics import Figure
from wp1.analysis.sweep.figures import Job, all_labels, differing, name_of

# Overrides that the cell's name already includes.
IN_CELL = ("workload.prompt_len", "workload.request_rate", "workload.concurrency")
# Beyond this ratio of the largest mean to the smallest an axis is logarithmic.
LOG_FROM = 20
MAX_ROWS = 40

Row = dict[str, Any]


def sweep_plot(path: Path, jobs: list[Job], found: pl.DataFrame) -> bool:
    """Draws the means of all completed jobs' cells with 95 % intervals (ms); False if there are none.

    found: from `figures.rows`.
    """
    path.unlink(missing_ok=True)
    shown = found.filter((pl.col("status") == "completed") & pl.col("ttft_ms_mean").is_not_null())
    if shown.is_empty():
        return False
    style.use()
    import matplotlib.pyplot as plt
    import seaborn as sns

    order = cells.ordered(shown["cell"])
    place = pl.col("cell").replace_strict({name: n for n, name in enumerate(order)}, return_dtype=pl.Int64)
    rows = shown.sort(place, "job", "arm", maintain_order=True).head(MAX_ROWS).to_dicts()
    names = _names(jobs, rows)
    colours = _colours(names, [row["arm"] for row in rows])
    heights, ticks = _layout(rows, names, headed=len(order) > 1)
    means = metrics.means_in("plots")
    size = (style.WIDTH, 1.2 + 0.24 * (max(heights) + 1))
    figure, grid = plt.subplots(1, len(means), figsize=size, sharey=True, squeeze=False)
    panels = grid[0]
    for axes, mean in zip(panels, means, strict=True):
        _means(axes, mean, rows, heights, colours)
        axes.set(xlabel="%" if mean.metric.unit == "share" else mean.metric.unit, title=mean.metric.title)
        axes.grid(axis="y", visible=False)
        sns.despine(ax=axes, left=True)
    panels[0].set_yticks([height for height, _, _ in ticks], [label for _, label, _ in ticks])
    for tick, (_, _, heading) in zip(panels[0].get_yticklabels(), ticks, strict=True):
        tick.set_fontweight("bold" if heading else "normal")
    panels[0].set_ylim(max(heights) + 0.6, -0.6)
    heading = ["Mean and 95 % interval", *([cells.parse(order[0]).words] if len(order) == 1 else [])]
    heading += [f"the first {MAX_ROWS} of {shown.height}"] if shown.height > MAX_ROWS else []
    mark = f" ({', '.join(all_labels(jobs))})" if all_labels(jobs) else ""
    figure.suptitle(style.title(", ".join(heading), mark), x=0.01, ha="left", fontsize="medium")
    style.save(figure, path)
    return True


def _colours(names: list[str], arms: list[str]) -> list[Any]:
    """A colour for each row by its name; the usual colours of the arms if names and arms match one to one."""
    import seaborn as sns

    if len(set(zip(names, arms, strict=True))) == len(set(names)) == len(set(arms)):
        of_arms = style.arm_colours(arms)
        return [of_arms[arm] for arm in arms]
    of_names = dict(zip(dict.fromkeys(names), sns.color_palette(style.PALETTE, len(set(names))), strict=True))
    return [of_names[name] for name in names]


def _means(axes: Any, of: Figure, rows: list[Row], heights: list[float], colours: list[Any]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    for row, height, colour in zip(rows, heights, colours, strict=True):
        mean = row[of.column]
        if mean is not None:
            # Rates and shares have no bounds in a sweep's table.
            low, high = (row.get(f"{of.column}_{end}", mean) for end in ("low", "high"))
            mean, low, high = (value * of.scale for value in (mean, low, high))
            sides = [[mean - low], [high - mean]]
            axes.errorbar(mean, height, xerr=sides, fmt="o", markersize=4.5, capsize=3, color=colour, linewidth=1.4)
    known = [row[of.column] for row in rows if row[of.column] is not None]
    if known and min(known) > 0 and max(known) / min(known) > LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if max(known) / min(known) < 100 else (1,)))
        # Powers would be written as formulas, which `style` does not render.
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.set_xlim(left=0)


def _names(jobs: list[Job], rows: list[Row]) -> list[str]:
    """What distinguishes each row from the others of its cell."""
    keys = [key for key in differing(jobs) if key not in IN_CELL]
    of = {job.number: job for job in jobs}
    arms = {number: {row["arm"] for row in rows if row["job"] == number} for number in of}
    names = []
    for row in rows:
        job = of[row["job"]]
        parts = [name_of(job, keys)] if any(key in job.overrides for key in keys) else []
        parts += [row["arm"]] if len(arms[row["job"]]) > 1 or not parts else []
        names.append(", ".join(parts))
    if len({(row["cell"], name) for row, name in zip(rows, names, strict=True)}) < len(rows):
        names = [f"job {row['job']}, {name}" for row, name in zip(rows, names, strict=True)]
    return [name if len(name) <= 40 else name[:39] + "…" for name in names]


def _layout(rows: list[Row], names: list[str], headed: bool) -> tuple[list[float], list[tuple[float, str, bool]]]:
    """The height of each row, and the axis labels (height, text, is heading): rows, with cells as headings."""
    heights: list[float] = []
    ticks: list[tuple[float, str, bool]] = []
    at, cell = 0.0, None
    for row, name in zip(rows, names, strict=True):
        if headed and row["cell"] != cell:
            cell = row["cell"]
            at += 0.4 if heights else 0.0
            ticks.append((at, cells.parse(cell).words, True))
            at += 1.0
        heights.append(at)
        ticks.append((at, f"{name} (n = {row['requests_ok']})", False))
        at += 1.0
    return heights, ticks
