"""The plots of transfer: what they make of records and samples."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from wp1.analysis.base import tables
from wp1.analysis.transfer import plots as transfer_plots


def test_the_queues_of_an_arm_lie_end_to_end_where_it_was_not_up(figures: list[Any], tmp_path: Path) -> None:
    """Ten seconds of queues, another arm's turn of an hour, and ten seconds more, of each the second half measured."""
    times = [0.1 * n for n in range(100)] + [3600 + 0.1 * n for n in range(100)]
    samples = pl.DataFrame({"t": times, "arm": "disagg"} | {name: [0, 1] * 100 for name in tables.QUEUES})
    measured = pl.DataFrame(
        {"arm": "disagg", "cell": "c", "repeat": [0, 1], "t_sent": [5.0, 3605.0], "t_end": [9.0, 3609.0]}
    )
    [(caption, _)] = transfer_plots.handoff_plots(tmp_path, samples, measured, "")
    assert "Dotted lines mark times left out, in which disagg was not up" in caption
    for axes in figures[0].axes:
        assert axes.get_xlim()[1] < 22
        assert [line.get_linestyle() for line in axes.lines] == [":"]
        assert [round(span.get_width(), 6) for span in axes.patches] == [4, 4]
    one = samples.filter(pl.col("t") < 100)
    [(caption, _)] = transfer_plots.handoff_plots(tmp_path, one, measured.filter(pl.col("repeat") == 0), "")
    assert "dotted" not in caption and not figures[1].axes[0].lines


def test_a_transfer_is_drawn_as_long_as_it_took(figures: list[Any], tmp_path: Path) -> None:
    """Three transfers of 0.6 ms in 20 s, and samples of a tenth of a second that each meet one."""
    begins = (2.0, 9.0, 16.0)
    requests = pl.DataFrame(
        [
            {"request_id": f"disagg/c/r0/{n}", "arm": "disagg", "cell": "c", "repeat": 0, "warmup": False,
             "status": "ok", "handoff_id": f"h{n}", "t_sent": t - 1, "t_queued": t - 0.9, "t_scheduled": t - 0.5,
             "t_engine_first_token": t, "t_decode_sent": t, "t_decode_scheduled": t + 0.01, "t_end": t + 2}
            for n, t in enumerate(begins)
        ],
        schema=tables.RECORD_SCHEMA,
    )  # fmt: skip
    handoffs = pl.DataFrame(
        [
            {"handoff_id": f"h{n}", "request_id": f"disagg/c/r0/{n}", "arm": "disagg", "t_transfer_begin": t - 0.3,
             "t_transfer_end": t + 0.0006}
            for n, t in enumerate(begins)
        ],
        schema=tables.HANDOFF_SCHEMA,
    )  # fmt: skip
    times = np.arange(0, 20.05, 0.1)
    samples = pl.DataFrame({"t": times, "arm": "disagg"} | {name: [1] * times.size for name in tables.QUEUES})
    [(caption, _)] = transfer_plots.handoff_plots(tmp_path, samples, requests, "", handoffs)
    assert "begin and end of each request's stay" in caption
    expected = {"prefilling": 0.9, "transferring": 0.0006, "decoding": 1.9994}
    for axes, (name, *_) in zip(figures[0].axes, transfer_plots.PLACES, strict=True):
        most, mean = axes.collections
        assert _area(mean) == pytest.approx(3 * expected.get(name, 0.1 if name == "prefill_waiting" else 0), rel=1e-6)
        # The pale ones say that there was one at all, within a slice.
        assert _area(most) <= 3 * (expected.get(name, 0.1) + 2 * 20 / transfer_plots.SLICES)
        if name == "transferring":
            assert axes.get_title(loc="left").endswith("n = 3, mean 0.60 ms")


def _area(filled: Any) -> float:
    x, y = filled.get_paths()[0].vertices.T
    return float(abs(np.sum(x * np.roll(y, -1) - np.roll(x, -1) * y)) / 2)
