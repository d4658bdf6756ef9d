"""Memory and load of the devices over a run, as a plot. The sessions of a run that was resumed lie end to end."""

from pathlib import Path

import numpy as np
import polars as pl

from wp1.analysis import style
from wp1.hardware import GIB

# Seconds without a sample that can be the time between two sessions; a run takes longer than that to come up.
APART_S = 2.0
# Between two sessions on the axis, of their seconds in all.
SEAM = 0.03


def device_plot(samples: pl.DataFrame, measured: pl.DataFrame, resumed: int, path: Path, mark: str) -> str:
    """Draws `path` and returns its caption.

    samples: `wp1.collectors.device.SCHEMA`, at least one with figures. resumed: how often the run went on.
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
    for n, (begin, end) in enumerate(parts):
        for (device,), rows in samples.filter(pl.col("t").is_between(begin, end)).group_by(
            "device", maintain_order=True
        ):
            seconds = (rows["t"] - begin + left).to_numpy()
            named = {"color": colours[device], "label": str(device) if n == 0 else None}
            memory.plot(seconds, rows["memory_bytes"].to_numpy() / GIB, linewidth=1.4, **named)
            load.plot(seconds, rows["utilisation"].to_numpy(), linewidth=0.8, **named)
        sent = measured.filter(pl.col("t_sent").is_between(begin, end))
        window = sent.select(pl.min("t_sent"), pl.max("t_end").alias("end")).row(0)
        for axes in (memory, load):
            if None not in window:
                axes.axvspan(*(t - begin + left for t in window), color="grey", alpha=0.15, linewidth=0)
            if n:
                axes.axvline(left - pause / 2, color="black", linestyle=":", linewidth=1)
        left += end - begin + pause
    for axes in (memory, load):
        style.from_zero(axes)
        axes.margins(x=0)
        sns.despine(ax=axes)
    memory.set(
        ylabel="GiB", title=style.title("Resident memory of the engines, host" if host else "GPU memory in use", mark)
    )
    load.set(
        ylabel="% of a core" if host else "%",
        xlabel="s" if len(parts) == 1 else "s, without the time between sessions",
        title="CPU load of the engines, host" if host else "GPU utilisation",
    )
    if not host:
        memory.legend(frameon=False)
    style.save(figure, path)
    seams = "" if len(parts) == 1 else " At a dotted line the run was resumed."
    return f"The devices over the run; the shaded part is measured, before it, engines start.{seams}"


def sessions(times: np.ndarray, resumed: int) -> list[tuple[float, float]]:
    """Begin and end of each stretch of samples, seconds, of a run that went on `resumed` times.

    times: of the samples, ascending. A stretch without samples in a run that never stopped is no seam: whatever kept
    the sampler away, the line between its two ends is what is known.
    """
    holes = np.diff(times)
    seams = [int(n) for n in np.argsort(-holes, kind="stable")[:resumed] if holes[n] > APART_S]
    begins = [0, *sorted(n + 1 for n in seams)]
    ends = [*(n - 1 for n in begins[1:]), len(times) - 1]
    return [(float(times[begin]), float(times[end])) for begin, end in zip(begins, ends, strict=True)]
