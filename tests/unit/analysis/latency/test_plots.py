"""What plots make of a run's records and samples, beside how they look."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.latency import plots as latency_plots


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.filterwarnings("error")
def test_few_requests_have_a_legend_too(figures: list[Any], tmp_path: Path, count: int) -> None:
    shape = Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=count, handoffs=False)
    rows = tables.requests(make_run(tmp_path, shape) / "records.jsonl").filter(~pl.col("warmup"))
    latency_plots._requests(rows, tmp_path / "x.png", " (a label, another)")
    figures[0].canvas.draw()
    legend = figures[0].legends[0].get_window_extent()
    assert 0 <= legend.y0 < legend.y1 <= figures[0].axes[0].get_window_extent().y0


def test_the_title_over_long_names_is_not_cut(figures: list[Any], tmp_path: Path) -> None:
    shape = Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=60, handoffs=False)
    rows = tables.requests(make_run(tmp_path, shape) / "records.jsonl").filter(~pl.col("warmup"))
    named = rows.with_columns(label=pl.lit("number_string: What is the sequence of digits"))
    # A request for perplexity has no times, and no bar.
    timed = named.with_columns(e2e_ms=pl.when(pl.col("request_id").str.ends_with("/0")).then(None).otherwise("e2e_ms"))
    latency_plots._requests(timed, tmp_path / "x.png", " (built-in tasks)")
    figures[0].canvas.draw()
    assert figures[0]._suptitle.get_window_extent().x1 <= figures[0].bbox.x1
    assert "the first 40 of 59" in figures[0]._suptitle.get_text()


def test_requests_of_several_cells_that_nothing_tells_apart_are_not_drawn(tmp_path: Path) -> None:
    """Forty bars of `1024 random tokens`, all of the first cell, say nothing."""
    shape = Shape(arms=("agg",), lengths=(256, 512), rates=(0,), repeats=1, count=1, handoffs=False)
    folder = make_run(tmp_path, shape)
    records = tables.requests(folder / "records.jsonl").filter(~pl.col("warmup"))
    rows = records.with_columns(label=pl.col("cell") + " random tokens")
    several = [file.name for _, file in latency_plots.request_plots(tmp_path, rows, "")]
    assert "requests.png" not in several
    one = rows.filter(pl.col("cell").str.starts_with("256"))
    assert "requests.png" in [file.name for _, file in latency_plots.request_plots(tmp_path, one, "")]
    asked = rows.with_columns(label=pl.col("request_id"))
    twice = pl.concat([asked, asked.with_columns(label=pl.col("label") + "?")])
    assert "requests.png" in [file.name for _, file in latency_plots.request_plots(tmp_path, twice, "")]


def test_the_legend_of_itl_lies_beside_the_lines_that_it_names(figures: list[Any], tmp_path: Path) -> None:
    gaps = np.random.default_rng(1).normal(50, 8, (20, 30)).clip(1).tolist()
    latency_plots._gaps(
        pl.DataFrame({"arm": ["agg", "disagg"] * 10, "itl_ms": gaps}), tmp_path / "x.png", " (a label)" * 9
    )
    figure = figures[0]
    figure.canvas.draw()
    for axes in figure.axes:
        legend = axes.get_legend().get_window_extent()
        assert axes.get_window_extent().y1 - 1 <= legend.y0
        assert legend.y1 <= axes._left_title.get_window_extent().y0 + 1
        assert legend.x1 <= figure.bbox.x1
