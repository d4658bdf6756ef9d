"""Plot of handoffs: number of requests in each place over time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl

from wp1.analysis.base import style, tables
from wp1.analysis.base.markdown import ms
from wp1.analysis.base.style import Plot
from wp1.analysis.device import plots as device_plots
from wp1.analysis.load import occupancy

# Places of `occupancy.stays`, their titles, and the palette index of the phase that each belongs to.
PLACES = (
    ("prefill_waiting", "waiting in wp1 for a place in a prefill engine", 7),
    ("prefilling", "in a prefill engine: queue and prefill", 1),
    ("decode_waiting", "prefill done, waiting for a place in a decode engine; KV held by the prefill engine", 3),
    ("transferring", "prefill done, KV moving to a decode engine", 4),
    ("decoding", "in a decode engine: queue and decode", 0),
)


# Slices of the time axis: about one per pixel.
SLICES = 700


def handoff_plots(
    folder: Path, queues: pl.DataFrame, requests: pl.DataFrame, mark: str, handoffs: pl.DataFrame | None = None
) -> list[Plot]:
    """Plots requests in each place over time, a file per arm that has handoffs; returns (caption, file) of each.

    queues: `tables.queues`, which show when the arm was up; requests, handoffs: their timestamps place each request.
    """
    style.use()
    made = []
    rows = pl.concat([pl.DataFrame(schema=tables.RECORD_SCHEMA), requests], how="diagonal_relaxed")
    moved = pl.DataFrame(schema=tables.HANDOFF_SCHEMA) if handoffs is None else handoffs
    for (arm,), samples in queues.group_by("arm", maintain_order=True):
        path = folder / f"queues-{arm}.png"
        of_arm = pl.col("arm") == arm
        slice_s, cut = _queues(samples["t"], rows.filter(of_arm), moved.filter(of_arm), str(arm), path, mark)
        seams = f" Dotted lines mark times left out, in which {arm} was not up." if cut else ""
        made.append(
            (
                f"Requests in each place of {arm} over time, from the begin and end of each request's stay. Dark: mean "
                f"over slices of {slice_s * 1e3:,.0f} ms, so its area is the total time spent in the place. Pale: the "
                f"most at any moment of a slice. Grey background: requests were being measured.{seams}",
                path,
            )
        )
    return made


def _queues(
    up: pl.Series, requests: pl.DataFrame, handoffs: pl.DataFrame, arm: str, path: Path, mark: str
) -> tuple[float, bool]:
    """Draws a panel for each place, in the order in which requests pass them.

    up: moments at which the arm was up (seconds). Returns the length of a slice in seconds, and whether time is left
    out of the axis.
    """
    import matplotlib.pyplot as plt
    import seaborn as sns
    from matplotlib.ticker import MaxNLocator

    # There are no samples in another arm's turn, nor between the sessions of a resumed run.
    parts = device_plots.sessions(up.sort().to_numpy(), up.len())
    moments, places, seams = _end_to_end(parts)
    total = sum(end - begin for begin, end in parts)
    found = occupancy.stays(requests, handoffs)
    figure, grid = plt.subplots(len(PLACES), 1, figsize=(style.WIDTH, 6.4), sharex=True)
    palette = sns.color_palette(style.PALETTE)
    measured = requests.filter(~pl.col("warmup").fill_null(False))
    windows = measured.group_by("cell", "repeat").agg(begin=pl.min("t_sent"), end=pl.max("t_end")).drop_nulls()
    for axes, (name, words, colour) in zip(grid, PLACES, strict=True):
        for begin, end in windows.select("begin", "end").sort("begin").iter_rows():
            span = np.interp([begin, end], moments, places)
            axes.axvspan(*span, color="grey", alpha=0.13, linewidth=0)
        for seam in seams:
            axes.axvline(seam, color="black", linestyle=":", linewidth=1)
        highest = 1.0
        for begin, end in parts:
            # Edges are per stretch, so that no slice crosses a seam.
            edges = np.linspace(begin, end, 2 + round(SLICES * (end - begin) / total) if total else 2)
            mean, most = occupancy.sliced(found[name], edges)
            x = np.interp(edges, moments, places)
            for values, alpha in ((most, 0.35), (mean, 1.0)):
                shown = np.append(values, values[-1]).astype(float)
                axes.fill_between(x, shown, step="post", color=palette[colour], alpha=alpha, linewidth=0)
            highest = max(highest, float(most.max()))
        axes.set_ylim(0, 1.15 * highest)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
        axes.margins(x=0)
        axes.set_title(f"{words}{_stays_in_words(found[name])}", fontsize="small", fontweight="normal")
        axes.grid(axis="x", visible=False)
        sns.despine(ax=axes)
    grid[-1].set_xlabel(f"s, without times in which {arm} was not up" if seams else "s")
    figure.supylabel("requests (dark: mean, pale: most)", fontsize="medium")
    style.over_all(figure, f"Where the requests of {arm} were", mark)
    style.save(figure, path)
    return total / SLICES, bool(seams)


def _stays_in_words(of_place: np.ndarray) -> str:
    """The number of stays and their mean, since a stay shorter than a pixel cannot be read off the axis."""
    if not len(of_place):
        return ": none"
    return f": n = {len(of_place):,}, mean {ms(float((of_place[:, 1] - of_place[:, 0]).mean()) * 1e3)} ms"


def _end_to_end(parts: Sequence[tuple[float, float]]) -> tuple[list[float], list[float], list[float]]:
    """Begins and ends of stretches of time (s), their positions on an axis that joins them, and those of the seams."""
    pause = device_plots.SEAM * sum(end - begin for begin, end in parts)
    left, moments, places, seams = 0.0, [], [], []
    for begin, end in parts:
        if moments:
            seams.append(left - pause / 2)
        moments += [begin, end]
        places += [left, left + end - begin]
        left = places[-1] + pause
    return moments, places, seams
