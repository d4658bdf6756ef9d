"""Plot of the devices' memory and load over a run. The sessions of a resumed run are drawn end to end."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import style
from wp1.analysis.base.style import Plot, mark_of
from wp1.machine.hardware import GIB
from wp1.stats import spans

# Gap between samples (seconds) above which two sessions may be apart; a run takes longer than that to start.
APART_S = 2.0
# Gap between two sessions on the axis, as a share of all sampled seconds.
SEAM = 0.03


def device_plot(samples: pl.DataFrame, measured: pl.DataFrame, resumed: int, path: Path, mark: str) -> str:
    """Draws `path` and returns its caption.

    samples: `tables.device_samples`, at least one with figures. resumed: how often the run was resumed.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns

    parts = sessions(samples["t"].unique().sort().to_numpy(), resumed)
    pause = SEAM * sum(end - begin for begin, end in parts)
    host = samples["device"][0] == "host"
    figure, (memory, load) = plt.subplots(2, 1, figsize=(style.WIDTH, 4.2), sharex=True)
    devices = samples["device"].unique(maintain_order=True).to_list()
    colours = dict(zip(devices, sns.color_palette(style.PALETTE, len(devices)), strict=True))
    left = 0.0
    looks = {device: style.LINES[n % len(style.LINES)] for n, device in enumerate(devices)}
    for n, (begin, end) in enumerate(parts):
        for (device,), rows in samples.filter(pl.col("t").is_between(begin, end)).group_by(
            "device", maintain_order=True
        ):
            seconds = (rows["t"] - begin + left).to_numpy()
            named = {"color": colours[device], "label": str(device) if n == 0 else None, "linestyle": looks[device]}
            memory.plot(seconds, rows["memory_bytes"].to_numpy() / GIB, linewidth=1.4, **named)
            load.plot(seconds, rows["utilisation"].to_numpy(), linewidth=0.8, **named)
        windows = _windows(measured.filter(pl.col("t_sent").is_between(begin, end)))
        for axes in (memory, load):
            for window in windows:
                axes.axvspan(*(window - begin + left), color="grey", alpha=0.15, linewidth=0)
            if n:
                axes.axvline(left - pause / 2, color="black", linestyle=":", linewidth=1)
        left += end - begin + pause
    for axes in (memory, load):
        style.from_zero(axes)
        axes.margins(x=0)
        sns.despine(ax=axes)
    of_one = f", {devices[0]}" if len(devices) == 1 else ""
    title = "Resident memory of the engines, host" if host else f"GPU memory in use{of_one}"
    memory.set(ylabel="GiB", title=style.title(title, mark))
    load.set(
        ylabel="% of a core" if host else "%",
        xlabel="s" if len(parts) == 1 else "s, without the time between sessions",
        title="CPU load of the engines, host" if host else f"GPU utilisation{of_one}",
    )
    if len(devices) > 1:
        style.legend_below(figure, memory, columns=4)
    style.save(figure, path)
    seams = "" if len(parts) == 1 else " The run was resumed at each dotted line."
    return (
        "Memory and load of the devices over the run. Shaded: requests were being measured; engines start and warm up "
        f"in between.{seams}"
    )


def _windows(measured: pl.DataFrame) -> np.ndarray:
    """When repeats of cells were measured (seconds, n x 2); engines start and warm up in between."""
    unit = [name for name in ("arm", "cell", "repeat") if name in measured.columns]
    rows = measured.group_by(unit) if unit else measured.group_by(pl.lit(0))
    ends = rows.agg(begin=pl.min("t_sent"), end=pl.max("t_end")).drop_nulls(["begin", "end"])
    return spans.merged([ends.select("begin", "end").to_numpy()])


def sessions(times: np.ndarray, resumed: int) -> list[tuple[float, float]]:
    """Begin and end (seconds) of each session of a run that was resumed `resumed` times.

    times: of the samples, ascending. A gap in a run that never stopped does not split a session: the plot then joins
    both ends of the gap by a line, whatever delayed the sampler.
    """
    holes = np.diff(times)
    seams = [int(n) for n in np.argsort(-holes, kind="stable")[:resumed] if holes[n] > APART_S]
    begins = [0, *sorted(n + 1 for n in seams)]
    ends = [*(n - 1 for n in begins[1:]), len(times) - 1]
    return [(float(times[begin]), float(times[end])) for begin, end in zip(begins, ends, strict=True)]


def device_plots(folder: Path, measured: pl.DataFrame, samples: pl.DataFrame, metadata: dict[str, Any]) -> list[Plot]:
    """Writes the plot of the devices over the run to `folder`; [] if nothing was sampled or measured."""
    style.use()
    figures = samples.filter(pl.col("note").is_null())
    if not figures.height or not measured.height:
        return []
    path = folder / "device.png"
    return [(device_plot(figures, measured, len(metadata.get("resumed", ())), path, mark_of(metadata)), path)]
