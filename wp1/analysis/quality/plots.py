"""Plots of scores: by task, by prompt length, by depth of a needle, and perplexity by position."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wp1.analysis.base import style
from wp1.analysis.base.style import Plot

# Hatches of each arm's bars, so that colour is not the only difference.
HATCHES = ("", "////", "....", "xxxx")


def quality_plots(folder: Path, found: Mapping[str, Any] | None, mark: str) -> list[Plot]:
    """Writes every plot that has data to `folder`; returns (caption, file) of each."""
    if found is None:
        return []
    style.use()
    arms = found["arms"]
    made: list[Plot] = []
    if any(len(of["tasks"]) > 1 for of in arms.values()):
        made.append(("Score of each task with its 95 % interval; n is the number of examples.", folder / "scores.png"))
        _tasks(arms, made[-1][1], mark)
    if any(len(of["by_length"]) > 1 for of in arms.values()):
        made.append(("Mean score of the tasks by prompt length, with 95 % intervals.", folder / "score_by_length.png"))
        _lengths(arms, made[-1][1], mark)
    if any(_grid(of) for of in arms.values()):
        made.append(("Share of needles found, by prompt length and by depth of the needle.", folder / "needles.png"))
        _needles(arms, made[-1][1], mark)
    if any(len(of["perplexity"]) > 1 for of in arms.values()):
        both = (found["differences"] or {}).get("perplexity", [])
        own = [row["n"] for row in next(iter(arms.values()))["perplexity"]] != [row["n"] for row in both]
        more = " Dashed: the first arm over the second arm's texts only." if both and own else ""
        caption = f"Perplexity by position in a long text, with 95 % intervals, over all texts of each arm.{more}"
        made.append((caption if len(arms) > 1 else caption.replace(" of each arm", ""), folder / "perplexity.png"))
        _perplexity(arms, both if own else [], made[-1][1], mark)
    if len(arms) > 1:
        # Arms differ most by length, and a report begins with what matters most.
        made.sort(key=lambda plot: plot[1].name != "score_by_length.png")
    return made


def _tasks(arms: Mapping[str, Any], path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    names = list(dict.fromkeys((task["benchmark"], task["task"]) for of in arms.values() for task in of["tasks"]))
    benchmarks = list(dict.fromkeys(benchmark for benchmark, _ in names))
    names.sort(key=lambda name: benchmarks.index(name[0]))
    colours, of_arms = sns.color_palette(style.PALETTE), style.arm_colours(list(arms))
    figure, axes = plt.subplots(figsize=(style.WIDTH, 1.3 + 0.26 * len(names) * max(1, len(arms) * 0.7)))
    height = 0.75 / len(arms)
    for k, (arm, of) in enumerate(arms.items()):
        by_name = {(task["benchmark"], task["task"]): task for task in of["tasks"]}
        for place, name in enumerate(names):
            task = by_name.get(name)
            if task is None or task["mean"] is None:
                continue
            y = place + (k - (len(arms) - 1) / 2) * height
            # Colour tells arms apart if there are several, else benchmarks.
            colour = of_arms[arm] if len(arms) > 1 else colours[benchmarks.index(name[0])]
            label = arm if len(arms) > 1 else name[0]
            hatch = HATCHES[k % len(HATCHES)]
            axes.barh(
                y, task["mean"], height=height, color=colour, label=label, linewidth=0, hatch=hatch, edgecolor="white"
            )
            spread = [[max(0.0, task["mean"] - task["low"])], [max(0.0, task["high"] - task["mean"])]]
            axes.errorbar(task["mean"], y, xerr=spread, color="black", linewidth=0.9, capsize=2)
            axes.text(min(task["high"] + 1.5, 101), y, f"n = {task['n']}", va="center", fontsize=7, color="0.35")
    axes.set_yticks(range(len(names)), [task for _, task in names])
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set(xlim=(0, 112), xticks=range(0, 101, 20), xlabel="score, %", title=style.title("Score by task", mark))
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if len(unique) > 1:
        figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=len(unique), frameon=False)
    sns.despine(ax=axes, left=True)
    style.save(figure, path)


def _lengths(arms: Mapping[str, Any], path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(style.WIDTH, 3.6))
    colours = style.arm_colours(list(arms))
    for k, (arm, of) in enumerate(arms.items()):
        rows = [row for row in of["by_length"] if row["mean"] is not None]
        n = style.counts(row["n"] for row in rows)
        x = [row["bucket"] for row in rows]
        y = [row["mean"] for row in rows]
        spread = [[row["mean"] - row["low"] for row in rows], [row["high"] - row["mean"] for row in rows]]
        looks = {"color": colours[arm], "label": f"{arm}, n = {n} per length", **style.series(k, len(arms))}
        axes.errorbar(x, y, yerr=np.maximum(spread, 0), **looks)
    _length_axis(axes, sorted({row["bucket"] for of in arms.values() for row in of["by_length"]}))
    axes.set(ylim=(-3, 103), ylabel="mean score of the tasks, %", xlabel="prompt tokens, up to")
    axes.set_title(style.title("Score by prompt length", mark))
    axes.legend(frameon=False, loc="best")
    sns.despine(ax=axes)
    style.save(figure, path)


def _length_axis(axes: Any, lengths: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_xticks(lengths, [style.tokens(length) for length in lengths])
    axes.minorticks_off()


def _grid(of: Mapping[str, Any]) -> bool:
    return len({row["length"] for row in of["needles"]}) > 1 and len({row["depth"] for row in of["needles"]}) > 1


def _needles(arms: Mapping[str, Any], path: Path, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    shown = {arm: of["needles"] for arm, of in arms.items() if of["needles"]}
    every = [row for rows in shown.values() for row in rows]
    lengths = sorted({row["length"] for row in every})
    depths = sorted({row["depth"] for row in every})
    figure, grid = plt.subplots(
        len(shown), 1, figsize=(style.WIDTH, 0.9 + len(shown) * (0.9 + 0.3 * len(depths))), squeeze=False, sharex=True
    )
    for axes, (arm, rows) in zip(grid[:, 0], shown.items(), strict=True):
        values = np.full((len(depths), len(lengths)), np.nan)
        for row in rows:
            values[depths.index(row["depth"]), lengths.index(row["length"])] = row["mean"]
        n = style.counts(row["n"] for row in rows)
        sns.heatmap(
            values, ax=axes, vmin=0, vmax=100, cmap="cividis", annot=True, fmt=".0f", linewidths=0.5,
            annot_kws={"fontsize": 8}, cbar_kws={"label": "found, %"}, mask=np.isnan(values),
        )  # fmt: skip
        axes.set_facecolor("0.9")
        axes.set_xticks(np.arange(len(lengths)) + 0.5, [style.tokens(length) for length in lengths])
        axes.set_yticks(np.arange(len(depths)) + 0.5, [f"{depth:g}" for depth in depths], rotation=0)
        of_arm = f", {arm}" if len(shown) > 1 else ""
        axes.set(ylabel="depth, %", title=style.title(f"Needles found{of_arm}, n = {n} per field", mark))
    grid[-1][0].set_xlabel("tokens of prompt and answer; grey: not measured")
    style.save(figure, path)


def _spread(rows: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    """Distances of the lower and upper bounds from the perplexity; 0 with too few texts for an interval."""
    return [
        [0.0 if row["low"] is None else row["mean"] - row["low"] for row in rows],
        [0.0 if row["high"] is None else row["high"] - row["mean"] for row in rows],
    ]


def _perplexity(arms: Mapping[str, Any], both: Sequence[Mapping[str, Any]], path: Path, mark: str) -> None:
    """both: rows of `perplexity.of_both` if the first arm also had other texts, else []."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(style.WIDTH, 3.4))
    colours = style.arm_colours(list(arms))
    highest = 0.0
    for k, (arm, of) in enumerate(arms.items()):
        rows = of["perplexity"]
        if not rows:
            continue
        x, y = [row["to"] for row in rows], [row["mean"] for row in rows]
        spread = _spread(rows)
        fewest = f", {rows[-1]['texts']} at the end" if rows[-1]["texts"] != rows[0]["texts"] else ""
        label = f"{arm}, {rows[0]['texts']} texts{fewest}"
        # Dashed is the first arm over the other's texts.
        looks = {"color": colours[arm], "label": label, **style.series(k, len(arms)), "linestyle": "-"}
        axes.errorbar(x, y, yerr=np.maximum(spread, 0), **looks)
        highest = max(highest, *(row["high"] or row["mean"] for row in rows))
    if both:
        first = next(iter(arms))
        rows = [row["a"] | {"to": row["to"]} for row in both]
        spread = _spread(rows)
        axes.errorbar(
            [row["to"] for row in rows], [row["mean"] for row in rows], yerr=np.maximum(spread, 0),
            **{**style.series(0, 3), "markerfacecolor": "white", "linestyle": "--"}, color=colours[first],
            label=f"{first}, the same {rows[0]['texts']} texts as {list(arms)[1]}",
        )  # fmt: skip
    _length_axis(axes, sorted({row["to"] for of in arms.values() for row in of["perplexity"]}))
    if highest > 100:
        axes.set_yscale("log")
    else:
        style.from_zero(axes)
    axes.set(xlabel="position in the text, tokens, up to", ylabel="perplexity")
    axes.set_title(style.title("Perplexity by position", mark))
    axes.legend(frameon=False)
    sns.despine(ax=axes)
    style.save(figure, path)
