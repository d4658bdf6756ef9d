"""The plots of a run with several arms, as PNG files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import aggregates, cells, metrics, style
from wp1.analysis.base.metrics import Figure
from wp1.analysis.base.style import Plot

# The place of each phase's colour in the palette; the first four are the same in every plot of requests.
PHASE_COLOURS = (7, 1, 4, 0)


def arm_plots(folder: Path, measured: pl.DataFrame, arms: Sequence[str], slo: dict[str, Any], mark: str) -> list[Plot]:
    """Draws latency by length, phases and SLO attainment by rate, if there is data; (caption, file) of each."""
    style.use()
    answered = measured.filter((pl.col("status") == "ok") & pl.col("arm").is_in(list(arms)))
    if answered.is_empty():
        return []
    made = [
        (
            f"Mean {_listed([mean.metric.title for mean in metrics.means_in('plots')])} with 95 % "
            "intervals, by prompt length and load.",
            folder / "latency_by_length.png",
        ),
        (
            "Mean duration of each phase of the answered requests. The black mark is the mean TTFT; the line before it "
            "is the first token's delivery from the engine to the client, during which the next phase has begun.",
            folder / "phases.png",
        ),
    ]
    _latency(measured, arms, made[0][1], mark)
    _phases(answered, arms, made[1][1], mark)
    limits = aggregates.limits(slo)
    if limits and any(cells.parse(name).rate > 0 for name in measured["cell"].unique()):
        caption = "Share of all requests sent that met the SLO, with 95 % intervals; goodput requires 90 %."
        made.append((caption, folder / "attainment.png"))
        _attainment(measured, arms, slo, made[-1][1], mark)
    return made


def _listed(titles: Sequence[str]) -> str:
    return f"{', '.join(titles[:-1])} and {titles[-1]}" if len(titles) > 1 else "".join(titles)


def _latency(measured: pl.DataFrame, arms: Sequence[str], path: Path, mark: str) -> None:
    """A row of panels for each load, a column for each metric, TTFT on the left."""
    import matplotlib.pyplot as plt

    names = [cells.parse(name) for name in cells.ordered(measured.filter(pl.col("status") == "ok")["cell"])]
    loads = list(dict.fromkeys(cell.load for cell in sorted(names, key=lambda c: (c.rate, c.concurrency or 0))))
    prompts = list(dict.fromkeys(cell.prompt for cell in names))
    means = metrics.means_in("plots")
    figure, grid = plt.subplots(
        len(loads), len(means), figsize=(style.WIDTH, 0.9 + 2.3 * len(loads)), squeeze=False, sharex=True, sharey="col"
    )
    for row, load in zip(grid, loads, strict=True):
        of_load = {cell.prompt: cell.name for cell in names if cell.load == load}
        for axes, mean in zip(row, means, strict=True):
            for n, arm in enumerate(arms):
                _means(axes, measured.filter(pl.col("arm") == arm), mean, prompts, of_load, arm, n, arms)
            title = mean.metric.title
            axes.set_title(f"{title}, {load}" if load else title, fontsize="medium")
            axes.set_ylabel("%" if mean.metric.unit == "share" else mean.metric.unit)
            _length_axis(axes, prompts)
    for axes in grid[-1]:
        axes.set_xlabel("prompt tokens" if all(p.isdecimal() for p in prompts) else "prompts")
    for column in range(len(means)):
        _scale(grid[:, column])
    style.over_all(figure, "Latency by prompt length", mark)
    style.legend_below(figure, grid[0][0])
    style.save(figure, path)


def _means(
    axes: Any, rows: pl.DataFrame, mean: Figure, prompts: Sequence[str], of_load: dict[str, str],
    arm: str, n: int, arms: Sequence[str],
) -> None:  # fmt: skip
    """Draws the means of the report's tables, with the same intervals."""
    known = []
    for place, prompt in enumerate(prompts):
        of_cell = rows.filter(pl.col("cell") == of_load.get(prompt, ""))
        found = aggregates.figures(of_cell, [mean])[mean.short_column] if of_cell.height else None
        if found is not None:
            known.append((place, found))
    looks = {"label": arm, "color": style.arm_colours(arms)[arm], **style.series(n, len(arms))}
    style.points(axes, [place for place, _ in known], [found for _, found in known], mean.scale, **looks)


def _length_axis(axes: Any, prompts: Sequence[str]) -> None:
    """Spaces prompt lengths evenly, as they are mostly doublings; datasets have no length at all."""
    import seaborn as sns

    style.length_ticks(axes, range(len(prompts)), [_short(prompt) for prompt in prompts])
    axes.set_xlim(-0.5, len(prompts) - 0.5)
    axes.grid(axis="x", visible=False)
    sns.despine(ax=axes)


def _short(prompt: str) -> str:
    return style.tokens(int(prompt)) if prompt.isdecimal() else prompt


def _scale(column: Any) -> None:
    """Scales a column alike: from zero, or logarithmic with plain numbers if the values are far apart."""
    from matplotlib.ticker import FuncFormatter

    plain = FuncFormatter(lambda v, _: f"{v:,.0f}" if v == round(v) else f"{v:g}")
    values = style.heights(*column)
    wide = values.size > 0 and values.min() > 0 and values.max() / values.min() > style.WIDE
    for axes in column:
        axes.yaxis.set_major_formatter(plain)
        if wide:
            style.logarithmic(axes, values.min(), values.max(), plain)
    if not wide:
        style.from_zero(*column)


def _attainment(measured: pl.DataFrame, arms: Sequence[str], slo: dict[str, Any], path: Path, mark: str) -> None:
    """A panel for each length, attainment by request rate; where only one rate was tested, one panel by length."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = [cell for cell in map(cells.parse, cells.ordered(measured["cell"])) if cell.rate > 0]
    prompts = list(dict.fromkeys(cell.prompt for cell in names))
    rates = sorted({cell.rate for cell in names})
    if len(rates) == 1:
        panels = {f"{rates[0]:g} requests/s": {_short(cell.prompt): cell.name for cell in names}}
        ticks, axis = [_short(prompt) for prompt in prompts], "prompt tokens"
    else:
        panels = {
            f"{int(prompt):,} tokens" if prompt.isdecimal() else prompt: {
                f"{cell.rate:g}": cell.name for cell in names if cell.prompt == prompt
            }
            for prompt in prompts
        }
        ticks, axis = [f"{rate:g}" for rate in rates], "requests/s"
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(style.WIDTH, 1.3 + 2.1 * down), squeeze=False, sharex=True, sharey=True
    )
    flat = grid.flatten()
    for axes, (title, of_tick) in zip(flat, panels.items(), strict=False):
        for n, arm in enumerate(arms):
            _shares(axes, measured.filter(pl.col("arm") == arm), ticks, of_tick, aggregates.limits(slo), arm, n, arms)
        axes.axhline(aggregates.GOODPUT_ATTAINMENT * 100, color="black", linestyle="--", linewidth=0.9)
        axes.set_title(title, fontsize="medium")
        axes.set_ylim(0, 103)
        axes.set_yticks([0, 25, 50, 75, 90, 100])
        axes.set_xlim(-0.5, len(ticks) - 0.5)
        axes.set_xticks(range(len(ticks)), ticks)
        axes.grid(axis="x", visible=False)
        sns.despine(ax=axes)
    for axes in flat[len(panels) :]:
        axes.set_visible(False)
    for n, axes in enumerate(flat[: len(panels)]):
        # The lowest panel of each column has the axis, even if the last row is not full.
        if n + across >= len(panels):
            axes.set_xlabel(axis)
            axes.tick_params(labelbottom=True)
        if n % across == 0:
            axes.set_ylabel("% of requests")
    style.over_all(figure, f"SLO attainment: {aggregates.limits_in_words(slo, ' and ')}", mark)
    style.legend_below(figure, flat[0])
    style.save(figure, path)


def _shares(
    axes: Any, rows: pl.DataFrame, ticks: Sequence[str], of_tick: dict[str, str],
    limits: aggregates.Limits, arm: str, n: int, arms: Sequence[str],
) -> None:  # fmt: skip
    xs, shares, bounds = [], [], []
    for place, tick in enumerate(ticks):
        of_cell = rows.filter(pl.col("cell") == of_tick.get(tick, ""))
        if of_cell.height:
            xs.append(place)
            shares.append(100 * (aggregates.attainment(of_cell, limits) or 0.0))
            bounds.append([100 * bound for bound in aggregates.attainment_interval(of_cell, limits) or (0, 1)])
    if not xs:
        return
    low, high = np.array(bounds).T
    # Rounding may put a bound slightly beyond the share.
    spread = np.maximum([shares - low, high - shares], 0)
    axes.errorbar(
        xs, shares, yerr=spread, label=arm, color=style.arm_colours(arms)[arm], linewidth=1.4, elinewidth=1.2,
        clip_on=False, **style.series(n, len(arms)),
    )  # fmt: skip


def _phases(answered: pl.DataFrame, arms: Sequence[str], path: Path, mark: str) -> None:
    """Draws a panel for each length, with its own scale and a bar for each load and arm."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = [cells.parse(name) for name in cells.ordered(answered["cell"])]
    panels: dict[str, list[tuple[str, pl.DataFrame]]] = {}
    for cell in names:
        for arm in arms:
            rows = answered.filter((pl.col("arm") == arm) & (pl.col("cell") == cell.name)).drop_nulls("ttft_ms")
            if rows.height:
                panels.setdefault(cell.prompt, []).append((f"{cell.load} · {arm}" if cell.load else arm, rows))
    heights = [len(bars) + 0.3 for bars in panels.values()]
    # Inches: the surroundings, a line per bar, and title and ticks per panel.
    figure, grid = plt.subplots(
        len(panels), 1, figsize=(style.WIDTH, 1.25 + 0.25 * sum(heights) + 0.52 * len(panels)), squeeze=False,
        gridspec_kw={"height_ratios": heights},
    )  # fmt: skip
    palette = sns.color_palette(style.PALETTE)
    for axes, (prompt, bars) in zip(grid[:, 0], panels.items(), strict=True):
        left = np.zeros(len(bars))
        for column, colour in zip(metrics.TTFT_PHASES, PHASE_COLOURS, strict=True):
            # All means are over the same requests, so that they add up: a phase that a request skipped counts as 0.
            means = np.array([rows[column].fill_null(0).mean() for _, rows in bars], dtype=float)
            axes.barh(
                range(len(bars)),
                means,
                left=left,
                height=0.7,
                color=palette[colour],
                linewidth=0,
                label=metrics.title_of(column),
            )
            left += means
        for place, (_, rows) in enumerate(bars):
            begin, ttft = first_token(rows)
            axes.plot([ttft] * 2, [place - 0.45, place + 0.45], color="black", linewidth=2)
            axes.plot([begin, ttft], [place] * 2, color="black", linewidth=1.2, solid_capstyle="butt")
        axes.set_yticks(range(len(bars)), [name for name, _ in bars])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:,.0f}" if v == round(v) else f"{v:g}")
        axes.grid(axis="y", visible=False)
        axes.set_title(f"{int(prompt):,} tokens" if prompt.isdecimal() else prompt, fontsize="medium")
        sns.despine(ax=axes, left=True)
    grid[-1][0].set_xlabel("ms since intended arrival, mean")
    grid[0][0].plot([], [], color="black", marker="|", markeredgewidth=2, markersize=11, linestyle="", label="TTFT")
    grid[0][0].plot([], [], color="black", linewidth=1.2, label="delivery")
    style.over_all(figure, "Where time goes before the first decode step", mark)
    style.legend_below(figure, grid[0][0], columns=3)
    style.save(figure, path)


def first_token(rows: pl.DataFrame) -> tuple[float, float]:
    """Means, in ms since the intended arrival: the end of the phases that make the first token, and TTFT.

    Between the two the token is being delivered to the client. If the decode engine makes it, the decode step is
    counted up to the client, and the two are equal.
    """
    way = rows.select(pl.when("first_by_decode").then(0.0).otherwise(pl.col("delivery_ms")).mean()).item()
    ttft = rows.select(pl.col("ttft_ms").mean()).item()
    return ttft - (way or 0.0), ttft
