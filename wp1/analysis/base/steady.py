"""Which requests of an open loop were due in the steady state, and whether there was one. Pure.

An open loop starts with empty engines and ends with engines running empty. Requests are then faster than under the
cell's load. Both phases last about as long as a request, so a repeat's window begins one median end-to-end latency
after its first arrival (or after the end of a ramp), and ends the same time before its last.
"""

from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import cells

# With fewer arrivals in its window, a repeat counts as a whole: its ends are then not the largest source of doubt.
MIN_REQUESTS = 20
# Arms are sent the same schedule, but the recorded times differ by microseconds.
SLACK_S = 1e-3
# A cell is over-saturated if less than this share of the offered rate was answered, and requests in flight grew by more
# than this factor from the middle third of the arrivals to the last. (Steady growth from zero gives 5/3.)
ANSWERED, GROWTH = 0.9, 1.3


def with_windows(requests: pl.DataFrame) -> pl.DataFrame:
    """Adds to `tables.requests`:

    window_begin, window_end   the steady state of the request's repeat (s, monotonic); null if it counts as a whole
    steady                     whether the request was due within it; true if the repeat counts as a whole

    Windows have the same offsets from the first arrival in every arm, set by the slower arm's latency, so that the same
    requests are compared. Closed loops count as a whole.
    """
    open_loops = [name for name in requests["cell"].unique().drop_nulls() if cells.parse(name).open_loop]
    key = ["cell", "repeat"]
    begun = requests.filter(pl.col("cell").is_in(open_loops) & ~pl.col("warmup")).select(
        "arm", *key, "t_intended", ramp=pl.col("ramp").fill_null(False),
        e2e=pl.when(pl.col("status") == "ok").then("e2e_ms") / 1e3,
        first=pl.min("t_intended").over("arm", *key),
    )  # fmt: skip
    begun = begun.with_columns(offset=pl.col("t_intended") - pl.col("first"))
    per_arm = begun.group_by("arm", *key).agg(
        pl.first("first"),
        fill=pl.median("e2e"),
        last=pl.max("offset"),
        ramp=pl.col("offset").filter(pl.col("ramp")).max(),
    )
    windows = per_arm.with_columns(
        begin=pl.max("fill").over(key) + pl.max("ramp").over(key).fill_null(0.0) - SLACK_S,
        end=pl.min("last").over(key) - pl.max("fill").over(key) + SLACK_S,
    )
    counts = (
        begun.join(windows.select("arm", *key, "begin", "end"), on=["arm", *key])
        .group_by("arm", *key)
        .agg(inside=pl.col("offset").is_between("begin", "end").fill_null(False).sum())
    )
    windows = windows.join(counts, on=["arm", *key]).filter(pl.min("inside").over(key) >= MIN_REQUESTS)
    windows = windows.select(
        "arm", *key, window_begin=pl.col("first") + pl.col("begin"), window_end=pl.col("first") + pl.col("end")
    )
    found = requests.join(windows, on=["arm", *key], how="left", maintain_order="left")
    return found.with_columns(steady=pl.col("t_intended").is_between("window_begin", "window_end").fill_null(True))


def of_figures(requests: pl.DataFrame) -> pl.DataFrame:
    """The measured requests whose latencies count: those in the steady state."""
    return requests.filter("steady") if "steady" in requests.columns else requests


def window(requests: pl.DataFrame) -> dict[str, Any] | None:
    """The steady state of one arm's cell, or None if its repeats count as a whole.

    begin_s and end_s: seconds from the first arrival, means over repeats; of: arrivals of the repeats that have a
    window; requests: those of them due within it.
    """
    rows = requests.filter(pl.col("window_begin").is_not_null())
    if rows.is_empty():
        return None
    repeats = rows.group_by("repeat").agg(
        begin=pl.first("window_begin") - pl.min("t_intended"), end=pl.first("window_end") - pl.min("t_intended")
    )
    return {
        "begin_s": round(float(repeats["begin"].mean()), 3),  # type: ignore[arg-type]
        "end_s": round(float(repeats["end"].mean()), 3),  # type: ignore[arg-type]
        "requests": int(rows["steady"].sum()),
        "of": rows.height,
        "repeats": repeats.height,
    }


def saturation(requests: pl.DataFrame) -> dict[str, Any]:
    """Whether the engines kept up with one arm's open-loop cell, without its ramp. Rates in requests/s:

    offered_per_s      arrivals over the time between the first and the last
    answered_per_s     answers over the time between the first and the last
    in_flight_middle, in_flight_last   mean number of requests in flight at the arrivals of the middle and the last
                       third
    over_saturated     answered < 90 % of offered, and in_flight_last > 1.3 in_flight_middle; None if repeats are too
                       short to tell (fewer than 20 requests)
    All are means over repeats.
    """
    found = [
        _saturation(rows)
        for _, rows in requests.filter(~pl.col("ramp").fill_null(False)).group_by("repeat", maintain_order=True)
        if rows.height >= MIN_REQUESTS
    ]
    found = [row for row in found if row is not None]
    names = ("offered_per_s", "answered_per_s", "in_flight_middle", "in_flight_last")
    if not found:
        return dict.fromkeys(names) | {"over_saturated": None}
    means = {name: float(np.mean([row[n] for row in found])) for n, name in enumerate(names)}
    behind = means["answered_per_s"] < ANSWERED * means["offered_per_s"]
    grew = means["in_flight_last"] > GROWTH * means["in_flight_middle"]
    return {name: round(value, 4) for name, value in means.items()} | {"over_saturated": behind and grew}


def _saturation(rows: pl.DataFrame) -> tuple[float, float, float, float] | None:
    due = np.sort(rows["t_intended"].to_numpy())
    ended = np.sort(rows["t_end"].drop_nulls().to_numpy())
    answered = rows.filter(pl.col("status") == "ok")["t_end"]
    if due[-1] <= due[0]:
        return None
    offered = (len(due) - 1) / (due[-1] - due[0])
    took = float(answered.max() - answered.min()) if len(answered) > 1 else 0.0  # type: ignore[operator]
    in_flight = np.arange(1, len(due) + 1) - np.searchsorted(ended, due, side="right")
    _, middle, last = np.array_split(in_flight, 3)
    return offered, (len(answered) - 1) / took if took > 0 else 0.0, float(middle.mean()), float(last.mean())
