"""Number of requests in each place of a disaggregated scheduler, from each request's own timestamps. Pure.

The samples of queues.jsonl are a tenth of a second apart: one in a hundred would catch a transfer of a millisecond, and
make it look a tenth of a second long. The records have begin and end of every stay, to the microsecond.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from wp1.analysis.base import tables

# Begin and end of a stay in each of `tables.QUEUES`. A request is in one place at a time, in this order: KV that moves
# while the prompt is still being computed does not count as transferring.
STAYS = {
    "prefill_waiting": ("t_sent", "t_queued"),
    "prefilling": ("t_queued", "t_engine_first_token"),
    "decode_waiting": ("t_engine_first_token", "t_decode_sent"),
    "transferring": ("begin_moving", "there"),
    "decoding": ("there", "t_end"),
}


def stays(requests: pl.DataFrame, handoffs: pl.DataFrame | None = None) -> dict[str, np.ndarray]:
    """Begin and end (seconds, n x 2, ascending) of every stay in each of `tables.QUEUES`.

    requests, handoffs: `tables.requests` and `tables.handoffs` of one arm. A transfer lasts while bytes moved after the
    prompt was computed. If that was not timed, it lasts from the request to the decode engine until that engine could
    begin. A stay in which a request failed lasts until the request ended.
    """
    # Columns that an older run lacks are filled with nulls.
    rows = pl.concat([pl.DataFrame(schema=tables.RECORD_SCHEMA), requests], how="diagonal_relaxed")
    moved = pl.DataFrame(schema=tables.HANDOFF_SCHEMA) if handoffs is None else handoffs
    moved = moved.select("handoff_id", "t_transfer_begin", "t_transfer_end")
    rows = rows.join(moved, on="handoff_id", how="left", maintain_order="left")
    timed = pl.col("t_transfer_begin").is_not_null()
    sent = pl.max_horizontal("t_engine_first_token", "t_decode_sent")
    failed = pl.col("status").ne_missing("ok")
    handed_over = pl.col("t_decode_sent").is_not_null()
    ended = pl.when(timed).then("t_transfer_end").otherwise("t_decode_scheduled")
    rows = rows.with_columns(
        begin_moving=pl.when(timed).then(pl.max_horizontal(sent, "t_transfer_begin")).when(handed_over).then(sent),
        there=pl.when(ended.is_not_null()).then(pl.max_horizontal(sent, ended)),
    )
    found = {}
    for name, (begin, end) in STAYS.items():
        until = pl.when(failed).then(pl.coalesce(end, "t_end")).otherwise(end)
        kept = rows.select(begin=begin, end=until).drop_nulls()
        found[name] = kept.filter(pl.col("end") > pl.col("begin")).sort("begin", "end").to_numpy()
    return found


def steps(of_place: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Times at which the number of requests in a place changes (ascending, unique), and the number from then on.

    of_place: from `stays`.
    """
    times, where = np.unique(of_place.ravel(), return_inverse=True)
    changes = np.tile([1, -1], len(of_place))
    return times, np.cumsum(np.bincount(where.ravel(), weights=changes, minlength=times.size)).round().astype(int)


def sliced(of_place: np.ndarray, edges: Sequence[float] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and maximum number of requests in the place, for each slice between two edges (ascending, seconds)."""
    edges = np.asarray(edges, dtype=float)
    times, counts = steps(of_place)
    passed = _request_seconds(of_place[:, 0], edges) - _request_seconds(of_place[:, 1], edges)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.nan_to_num(np.diff(passed) / np.diff(edges))
    # The number at the beginning of a slice, then its changes within the slice.
    at_edges = np.concatenate([[0], counts])[np.searchsorted(times, edges[:-1], side="right")]
    most = at_edges.copy()
    slices = np.searchsorted(edges, times, side="right") - 1
    inside = (slices >= 0) & (slices < most.size)
    np.maximum.at(most, slices[inside], counts[inside])
    return mean, most


def _request_seconds(begins: np.ndarray, until: np.ndarray) -> np.ndarray:
    """Seconds passed since the begins before it, summed, for each moment of `until`."""
    ordered = np.sort(begins)
    count = np.searchsorted(ordered, until, side="right")
    return count * until - np.concatenate([[0.0], np.cumsum(ordered)])[count]
