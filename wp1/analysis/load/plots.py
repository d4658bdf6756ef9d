"""Plots over load: latency, throughput, MBU and KV use by load; latency against throughput; goodput searches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from wp1.analysis.base import aggregates, metrics, style
from wp1.analysis.base.style import Plot

# The metrics that load changes most come first; the others follow in the table's order.
FIRST = ("tpot_ms", "itl_ms", "ttft_ms")
# Column of a cell's row (`load.figures`), title, unit, and the factor that values are multiplied by.
Panel = tuple[str, str, str, float]
OF_DEVICE: tuple[Panel, ...] = (
    ("mbu", "MBU of decode", "% of peak", 100.0),
    ("kv", "KV cache in use, peak", "% of blocks", 100.0),
)


def panels() -> list[Panel]:
    """The panels over load: the table's metrics, then MBU and KV use."""
    figures = [
        figure
        for metric in metrics.METRICS
        for figure in metric.at((metric.shown.load_panel,))
        if metric.shown.load_panel
    ]
    figures.sort(key=lambda figure: FIRST.index(figure.metric.key) if figure.metric.key in FIRST else len(FIRST))
    return [*map(_panel, figures), *OF_DEVICE]


def _panel(figure: metrics.Figure) -> Panel:
    metric = figure.metric
    title = (
        f"{metric.title}, {figure.statistic}" if metric.of_one_request else metric.title[0].upper() + metric.title[1:]
    )
    unit = "%" if metric.unit == "share" else metric.unit
    return figure.short_column, title + (" per device" if metric.kind == "rate" else ""), unit, figure.scale


def load_plots(folder: Path, found: Mapping[str, Any] | None, mark: str) -> list[Plot]:
    """Writes two plots per arm to `folder`; returns (caption, file) of each, [] for a run without loads."""
    if found is None:
        return []
    style.use()
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    made = []
    for arm in arms:
        rows = [row for row in found["rows"] if row["arm"] == arm and row["tpot_ms"]]
        if not rows:
            continue
        of_arm = f"-{arm}" if len(arms) > 1 else ""
        title = f" of {arm}" if len(arms) > 1 else ""
        n = f"n = {style.counts(row['ok'] for row in rows)}"
        made += [
            (
                f"Latency, output and device use{title} by load and prompt length, with 95 % intervals ({n} per cell).",
                folder / f"load{of_arm}.png",
            ),
            (
                f"Latency against throughput{title}: each line is a prompt length, each point a load.",
                folder / f"throughput{of_arm}.png",
            ),
        ]
        _panels(rows, made[-2][1], f"{title}, {n} per cell", mark)
        _frontier(rows, made[-1][1], f"{title}, {n} per cell", mark)
    return made


def _panels(rows: list[dict[str, Any]], path: Path, about: str, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    drawn = panels()
    down = -(-len(drawn) // 2)
    figure, grid = plt.subplots(down, 2, figsize=(style.WIDTH, 0.5 + 2.3 * down), squeeze=False, sharex=True)
    palette = sns.color_palette(style.PALETTE)
    loads = _loads(rows)
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    for axes, (column, title, unit, scale) in zip(grid.flat, drawn, strict=False):
        for k, prompt in enumerate(prompts):
            known = [(row, _figure(row, column)) for row in rows if row["prompt"] == prompt]
            shown = [(row, figure) for row, figure in known if figure]
            if shown:
                x = [loads.index(_load(row)) for row, _ in shown]
                looks = {"label": _words(prompt), "color": palette[k % 10], **style.series(k, len(prompts))}
                style.points(axes, x, [figure for _, figure in shown], scale, **looks)
        axes.set_title(title, fontsize="medium")
        axes.set_ylabel(unit)
        axes.set_xticks(range(len(loads)), [f"{load:g}" for _, load in loads])
        axes.set_xlim(-0.5, len(loads) - 0.5)
        axes.grid(axis="x", visible=False)
        _scale(axes, logarithmic=unit[0] != "%")
        sns.despine(ax=axes)
    rates = any(kind for kind, _ in loads)
    for n, axes in enumerate(grid.flat):
        axes.set_visible(n < len(drawn))
        # The lowest panel of each column carries the x axis, even if the last row is not full.
        if n + 2 >= len(drawn):
            axes.set_xlabel("requests/s" if rates else "requests at a time")
            axes.tick_params(labelbottom=True)
    style.over_all(figure, f"Load and context{about}", mark)
    style.legend_below(figure, grid[0][0], columns=5)
    style.save(figure, path)


def _frontier(rows: list[dict[str, Any]], path: Path, about: str, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.2))
    palette = sns.color_palette(style.PALETTE)
    prompts = list(dict.fromkeys(row["prompt"] for row in rows))
    for k, prompt in enumerate(prompts):
        shown = [row for row in rows if row["prompt"] == prompt and row["output_tokens_per_s_per_device"]]
        x = [row["output_tokens_per_s_per_device"]["value"] for row in shown]
        looks = {"label": _words(prompt), "color": palette[k % 10], **style.series(k, len(prompts))}
        style.points(axes, x, [row["tpot_ms"] for row in shown], **looks)
        # Only the ends of a line are labelled with their load: labels at every point would overlap.
        for n, place in {0: (-4, -12), len(shown) - 1: (5, 5)}.items():
            axes.annotate(
                f"{_load(shown[n])[1]:g}", (x[n], shown[n]["tpot_ms"]["value"]), textcoords="offset points",
                xytext=place, fontsize="x-small", color=palette[k % 10],
            )  # fmt: skip
    kind = "requests/s" if any(_load(row)[0] for row in rows) else "requests at a time"
    axes.set(
        xlabel="output tokens/s per device", ylabel="TPOT, mean, ms",
        title=style.title(f"Latency against throughput{about}", mark),
    )  # fmt: skip
    axes.margins(0.08)
    _scale(axes)
    axes.legend(frameon=False, title=f"prompt; labels: {kind}")
    sns.despine(ax=axes)
    style.save(figure, path)


def _figure(row: dict[str, Any], column: str) -> dict[str, float] | None:
    if column != "kv":
        return row.get(column)
    return None if row["kv_use_peak"] is None else {"value": row["kv_use_peak"]}


def _load(row: dict[str, Any]) -> tuple[bool, float]:
    """Whether the load is a rate, and its value."""
    return (True, row["request_rate"]) if row["request_rate"] else (False, float(row["concurrency"] or 1))


def _loads(rows: list[dict[str, Any]]) -> list[tuple[bool, float]]:
    return sorted({_load(row) for row in rows})


def _words(prompt: str) -> str:
    return f"{style.tokens(int(prompt))} tokens" if prompt.isdecimal() else prompt


def _scale(axes: Any, logarithmic: bool = True) -> None:
    """Makes the y axis start at zero, or logarithmic with plain numbers if values are far apart and not shares."""
    from matplotlib.ticker import FuncFormatter

    values = style.heights(axes)
    values = values[values > 0]
    plain = FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 and v == round(v) else f"{v:g}")
    axes.yaxis.set_major_formatter(plain)
    if not logarithmic or not values.size or values.max() / values.min() <= style.WIDE:
        style.from_zero(axes)
        return
    style.logarithmic(axes, values.min(), values.max(), plain)


def goodput_plots(
    folder: Path, searches: Sequence[Mapping[str, Any]] | None, slo: Mapping[str, Any], mark: str
) -> list[Plot]:
    """Plots the path of every search, a file per arm: attainment by rate, probes numbered in order."""
    if searches is None:
        return []
    style.use()
    arms = list(dict.fromkeys(row["arm"] for row in searches))
    made = []
    for arm in arms:
        rows = [row for row in searches if row["arm"] == arm and row["path"]]
        if rows:
            of_arm = f"-{arm}" if len(arms) > 1 else ""
            caption = (
                "SLO attainment at every rate tried, with 95 % intervals; numbers give the order of the tries. Goodput "
                "lies in the shaded range."
            )
            made.append((caption, folder / f"goodput{of_arm}.png"))
            _paths(rows, made[-1][1], slo, f" of {arm}" if len(arms) > 1 else "", mark)
    return made


def _paths(rows: list[Mapping[str, Any]], path: Path, slo: Mapping[str, Any], of_arm: str, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    across = min(3, len(rows))
    down = -(-len(rows) // across)
    figure, grid = plt.subplots(
        down, across, figsize=(style.WIDTH, 1.1 + 2.4 * down), squeeze=False, sharey=True
    )  # fmt: skip
    palette = sns.color_palette(style.PALETTE)
    for n, axes in enumerate(grid.flat):
        if n >= len(rows):
            axes.set_visible(False)
            continue
        row = rows[n]
        steps = sorted(row["path"], key=lambda step: step["rate"])
        figures = [{"value": s["attainment"] or 0.0, "low": s["low"] or 0.0, "high": s["high"] or 0.0} for s in steps]
        style.points(axes, [s["rate"] for s in steps], figures, 100, color=palette[0], marker="o", clip_on=False)
        for step in steps:
            axes.annotate(
                step["number"], (step["rate"], 100 * (step["attainment"] or 0.0)), textcoords="offset points",
                xytext=(6, 3), fontsize="x-small",
            )  # fmt: skip
        if row["goodput"] and row["fails_at"]:
            axes.axvspan(row["goodput"], row["fails_at"], color=palette[2], alpha=0.2, linewidth=0)
        axes.axhline(aggregates.GOODPUT_ATTAINMENT * 100, color="black", linestyle="--", linewidth=0.9)
        axes.set_ylim(-4, 104)
        axes.set_yticks([0, 25, 50, 75, 90, 100])
        axes.margins(x=0.12)
        axes.set_title(_words(str(row["prompt_len"])), fontsize="medium")
        axes.set_xlabel("requests/s")
        if n % across == 0:
            axes.set_ylabel("% of requests")
        sns.despine(ax=axes)
    style.over_all(figure, f"Goodput{of_arm}: {aggregates.limits_in_words(slo)}", mark)
    style.save(figure, path)
