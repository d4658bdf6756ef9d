"""Plots of single requests' latency, as PNG files. Labels such as random weights are part of the title."""

from pathlib import Path

import numpy as np
import polars as pl

from wp1.analysis.base import metrics, style
from wp1.analysis.base.style import Plot


def request_plots(folder: Path, measured: pl.DataFrame, mark: str) -> list[Plot]:
    """Writes the plots of time per request and of token gaps to `folder`; returns (caption, file) of each."""
    style.use()
    answered = measured.filter(pl.col("status") == "ok")
    made: list[Plot] = []
    # For several arms, the means by phase show more; for several cells of one prompt each, their tables do.
    if answered["arm"].n_unique() == 1 and not _one_prompt_a_cell(answered):
        made.append(("Where each request's time went: queue, prefill, decode.", folder / "requests.png"))
        _requests(answered, made[-1][1], mark)
    if answered["itl_ms"].list.eval(pl.element().is_finite()).list.any().any():
        made.append(
            ("Inter-token latency: the distribution of all gaps between consecutive output tokens.", folder / "itl.png")
        )
        _gaps(answered, made[-1][1], mark)
    return made


def _one_prompt_a_cell(answered: pl.DataFrame) -> bool:
    """Whether there are several cells and the requests of each have the same label, as with random tokens."""
    labels = answered.group_by("cell").agg(pl.col("label").n_unique())["label"]
    return labels.len() > 1 and labels.max() == 1


def _requests(answered: pl.DataFrame, path: Path, mark: str, most: int = 40) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    # A perplexity request has no latency: no user waits for it.
    timed = answered.drop_nulls("e2e_ms").sort("t_intended")
    rows = timed.head(most)
    colours = sns.color_palette(style.PALETTE)
    *before, decode = map(metrics.title_of, metrics.E2E_PHASES)
    parts = {name: rows[key].fill_null(0) for name, key in zip(before, metrics.E2E_PHASES, strict=False)}
    if not (parts["handoff"] != 0).any():
        del parts["handoff"]
    parts[decode] = rows["e2e_ms"] - sum(parts.values())
    of_part = {"queue": colours[7], "prefill": colours[1], "handoff": colours[4], "decode": colours[0]}
    # A single bar would leave no room for the axis and the legend.
    figure, axes = plt.subplots(figsize=(style.WIDTH, 1.5 + 0.26 * max(rows.height, 2)))
    left = np.zeros(rows.height)
    for name, values in parts.items():
        axes.barh(
            np.arange(rows.height),
            values.to_numpy(),
            left=left,
            color=of_part[name],
            label=name,
            height=0.72,
            linewidth=0,
        )
        left += values.to_numpy()
    names = [
        f"r{repeat}, {label}" if label.startswith(f"{tokens} ") else f"{_shorten(label, 34)}  r{repeat}, {tokens:,} tok"
        for label, repeat, tokens in rows.select("label", "repeat", "prompt_tokens").iter_rows()
    ]
    axes.set_yticks(np.arange(rows.height), names)
    axes.set_ylim(rows.height - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    more = f", the first {most} of {timed.height}" if timed.height > most else ""
    axes.set_xlabel("ms since intended arrival")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}" if value == round(value) else f"{value:g}")
    # The long tick labels leave too little width for a title above the axes, so it goes above the whole figure.
    style.over_all(figure, f"Where each request's time went{more}", mark)
    figure.legend(loc="outside lower center", ncols=4, frameon=False)
    sns.despine(ax=axes, left=True)
    style.save(figure, path)


def _gaps(answered: pl.DataFrame, path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    arms = answered["arm"].unique(maintain_order=True).to_list()
    colours = style.arm_colours(arms)
    lists = answered.select("arm", "itl_ms").drop_nulls()
    gaps = {
        arm: lists.filter(pl.col("arm") == arm)["itl_ms"].explode(empty_as_null=False, keep_nulls=False).to_numpy()
        for arm in arms
    }
    # A token without a timestamp has no gap on either side (NaN).
    gaps = {arm: values[np.isfinite(values)] for arm, values in gaps.items()}
    every = np.concatenate(list(gaps.values())) if len(arms) > 1 else gaps[arms[0]]
    # A handful of gaps above the 99.5th percentile would stretch the axis until nothing can be read.
    edge, least = float(np.percentile(every, 99.5)) * 1.05, float(every.min())
    del every
    figure, grid = plt.subplots(len(arms), 1, figsize=(style.WIDTH, 1.2 + 2.0 * len(arms)), squeeze=False, sharex=True)
    for axes, (arm, values) in zip(grid[:, 0], gaps.items(), strict=True):
        if not values.size:
            continue
        # Binned here: there may be a hundred million gaps, and seaborn would build a table of them.
        counts, edges = np.histogram(values, bins=50, range=(least, edge))
        sns.histplot(
            x=(edges[:-1] + edges[1:]) / 2,
            weights=counts,
            bins=list(edges),
            ax=axes,
            linewidth=0.3,
            color=colours[arm],
        )
        for percent, style_of_line in ((50, "-"), (95, "--"), (99, ":")):
            value = float(np.percentile(values, percent))
            # A line beyond the edge would stretch the axis too.
            label = f"p{percent} = {value:.1f} ms"
            if value <= edge:
                axes.axvline(value, color="black", linestyle=style_of_line, linewidth=1, label=label)
            else:
                axes.plot([], [], color="black", linestyle=style_of_line, linewidth=1, label=f"{label}, not shown")
        beyond = int((values > edge).sum())
        note = f"; {beyond} above {edge:,.{0 if edge >= 10 else 1}f} ms not shown" if beyond else ""
        of_arm = f" of {arm}" if len(arms) > 1 else ""
        axes.set_ylabel("gaps")
        axes.set_title(style.title(f"Inter-token latency{of_arm}, n = {values.size:,}{note}", mark, 66), pad=22)
        # Above the axes, because bars and lines may be anywhere inside.
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderpad=0.1, borderaxespad=0.2)
        sns.despine(ax=axes)
    grid[-1][0].set_xlabel("ms between consecutive tokens")
    style.save(figure, path)


def _shorten(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1].rstrip() + "…"
