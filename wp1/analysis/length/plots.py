"""Plots over prompt length, one request at a time: TTFT with its fitted curve, prefill speed, and MFU and MBU."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wp1.analysis.base import style
from wp1.analysis.base.style import MARKERS, Plot
from wp1.analysis.length.figures import curve


def length_plots(folder: Path, found: Mapping[str, Any] | None, mark: str) -> list[Plot]:
    """Writes the plots to `folder` and returns (caption, file) of each; [] for a run without lengths."""
    if found is None or not any(row["ttft_ms"] for row in found["rows"]):
        return []
    style.use()
    n = f"n = {style.counts(row['ok'] for row in found['rows'])}"
    made = [
        (
            f"TTFT by prompt length, one request at a time: means with 95 % intervals ({n} per length), the "
            "fitted curve, and its quadratic part.",
            folder / "ttft_by_length.png",
        ),
        (
            f"Prefill speed by prompt length, and the share of the device's peaks that was reached ({n} per length).",
            folder / "prefill.png",
        ),
    ]
    _ttft(found, made[0][1], n, mark)
    _prefill(found, made[1][1], n, mark)
    return made


def _ttft(found: Mapping[str, Any], path: Path, n: str, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, axes = plt.subplots(figsize=(style.WIDTH, 4.4))
    colours = style.arm_colours(list(found["fits"]))
    several = len(found["fits"]) > 1
    for k, (arm, fitted) in enumerate(found["fits"].items()):
        rows = [row for row in found["rows"] if row["arm"] == arm and row["ttft_ms"]]
        name = f"{arm}: " if several else ""
        errorbar(axes, rows, "ttft_ms", label=f"{name}measured", color=colours[arm], marker=MARKERS[k % 4])
        if fitted:
            a, b, c = (fitted[key]["value"] for key in "abc")
            x = np.geomspace(fitted["lengths"][0], fitted["lengths"][-1], 200)
            whole, quadratic = ("-", ":") if k % 2 == 0 else ("--", "-.")
            looks = {"color": colours[arm], "linewidth": 1.2}
            axes.plot(x, curve((a, b, c), x), linestyle=whole, label=f"{name}a + b n + c n²", **looks)
            if c > 0:
                bottom = min(row["ttft_ms"]["value"] for row in rows) / 3
                part = c * x**2
                shown = part >= bottom
                axes.plot(x[shown], part[shown], linestyle=quadratic, label=f"{name}c n²", **looks)
    log_axes(axes, [row["prompt_len"] for row in found["rows"]])
    axes.set(
        xlabel="prompt tokens", ylabel="TTFT, ms", title=style.title(f"What prompt length costs, {n} per length", mark)
    )
    axes.legend(frameon=False, loc="upper left")
    sns.despine(ax=axes)
    style.save(figure, path)


def _prefill(found: Mapping[str, Any], path: Path, n: str, mark: str) -> None:
    import matplotlib.pyplot as plt
    import seaborn as sns

    figure, (speed, use) = plt.subplots(1, 2, figsize=(style.WIDTH, 3.3))
    arms = list(found["fits"])
    colours = style.arm_colours(arms)
    for k, arm in enumerate(arms):
        rows = [row for row in found["rows"] if row["arm"] == arm and row["ttft_ms"]]
        name = f"{arm}: " if len(arms) > 1 else ""
        errorbar(speed, rows, "prefill_tokens_per_s", label=arm, color=colours[arm], marker=MARKERS[k % 4])
        # Colour stands for the arm, so hollow markers stand for decode.
        for column, words, line, face in (
            ("mfu", "MFU, prefill", "-", colours[arm]),
            ("mbu", "MBU, decode", "--", "white"),
        ):
            looks = {
                "color": colours[arm], "marker": MARKERS[k % 4], "linestyle": line, "markerfacecolor": face,
            }  # fmt: skip
            errorbar(use, rows, column, 100, label=f"{name}{words}", **looks)
    lengths = [row["prompt_len"] for row in found["rows"]]
    for axes in (speed, use):
        log_axes(axes, lengths, y=False, narrow=True)
        style.from_zero(axes)
        axes.set_xlabel("prompt tokens")
        sns.despine(ax=axes)
    speed.yaxis.set_major_formatter(lambda v, _: f"{v:,.0f}")
    speed.set_ylabel("prompt tokens/s")
    speed.set_title("Prefill speed", fontsize="medium")
    use.set_ylabel("% of the device's peak")
    use.set_title("Use of the device", fontsize="medium")
    if found["why_no_mfu"]:
        use.text(
            0.5, 0.5, "unknown: see the note under the table", transform=use.transAxes, ha="center", fontsize="small"
        )
    else:
        use.legend(frameon=False, fontsize="small")
    if len(arms) > 1:
        speed.legend(frameon=False, fontsize="small")
    style.over_all(figure, f"Prefill by prompt length, {n} per length", mark)
    style.save(figure, path)


def errorbar(axes: Any, rows: Sequence[Mapping[str, Any]], column: str, scale: float = 1.0, **looks: Any) -> None:
    """Plots a column over prompt length with its intervals; all but TTFT, which has a fitted curve, joined by a line.

    scale: what values are multiplied by.
    """
    known = [row for row in rows if row[column]]
    if not known:
        return
    x = [row["prompt_len"] for row in known]
    style.points(
        axes, x, [row[column] for row in known], scale, **({"linestyle": "none"} if column == "ttft_ms" else {}) | looks
    )


def log_axes(axes: Any, lengths: Sequence[int], y: bool = True, narrow: bool = False) -> None:
    """Makes x logarithmic, as lengths are mostly doublings, with the lengths as ticks; and y too if `y` is set."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    axes.set_xscale("log", base=2)
    ticks = sorted(set(lengths))
    while len(ticks) > 9:
        ticks = ticks[::2] if len(ticks) % 2 else ticks[1::2]
    style.length_ticks(axes, ticks, [style.tokens(n) for n in ticks], narrow)
    axes.xaxis.set_minor_locator(NullLocator())
    if y:
        axes.set_yscale("log")
        values = style.heights(axes)
        low, high = axes.get_ylim()
        if (values > 0).any():
            low = max(low, values[values > 0].min() / 2)
            axes.set_ylim(bottom=low)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if np.log10(high / low) < 2.5 else (1, 3)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}" if v >= 1 else f"{v:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_minor_locator(NullLocator())
