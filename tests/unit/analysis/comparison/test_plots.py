"""The plots of comparison: what they make of records and samples."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.conftest import marks_of
from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.comparison import plots as comparison_plots
from wp1.analysis.length import figures as length_figures
from wp1.analysis.length import plots as length_plots


@pytest.mark.parametrize("first_token", ["prefill", "decode"])
def test_the_phases_to_the_first_token_add_up_to_ttft(figures: list[Any], tmp_path: Path, first_token: str) -> None:
    folder = make_run(tmp_path, Shape(lengths=(256,), repeats=1, count=6, first_token=first_token))
    records = pl.read_ndjson(folder / "records.jsonl")
    # A request of one output token has no step of decoding beside those that have one.
    first = pl.col("request_id").str.ends_with("/0")
    records.with_columns(
        pl.when(first).then(pl.col("t_tokens").list.head(1)).otherwise("t_tokens").alias("t_tokens"),
        pl.when(first).then(1).otherwise("output_tokens").alias("output_tokens"),
    ).write_ndjson(folder / "records.jsonl")
    rows = tables.requests(folder / "records.jsonl").filter(~pl.col("warmup"))
    comparison_plots._phases(rows, ["agg", "disagg"], tmp_path / "x.png", "")
    axes = figures[0].axes[0]
    bars = [label.get_text() for label in axes.get_yticklabels()]
    lines = [line.get_xydata() for line in axes.lines if len(line.get_xydata())]
    for place, name in enumerate(bars):
        arm = rows.filter((pl.col("arm") == name.rpartition(" ")[2]) & pl.col("cell").str.contains(_cell(name)))
        (mark,) = (line for line in lines if line[0][1] < place < line[1][1])
        (way,) = (line for line in lines if list(line[:, 1]) == [place, place])
        assert mark[0][0] == way[1][0] == pytest.approx(arm["ttft_ms"].mean())
        ends = [
            bar.get_x() + bar.get_width() for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == place
        ]
        decoded = name.endswith("disagg") and first_token == "decode"
        # Queue and prefill; of a first token that decoding makes, all of it.
        assert way[0][0] == pytest.approx(ends[3 if decoded else 1])
        assert mark[0][0] - way[0][0] == pytest.approx(0 if decoded else arm["delivery_ms"].mean(), abs=1e-6)


def _cell(bar: str) -> str:
    return "conc1" if bar.startswith("one") else "rate"


def test_arms_look_alike_where_they_are_compared_and_by_length(figures: list[Any], tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(lengths=(256, 512, 1024), rates=(0,), repeats=1, count=2))
    requests = tables.requests(folder / "records.jsonl").filter(~pl.col("warmup"))
    comparison_plots.arm_plots(tmp_path, requests, ["agg", "disagg"], {}, "")
    metadata = {"pools": [], "model": {}, "peaks": None, "hardware": {"gpus": []}}
    found = length_figures.by_length(requests, metadata, {})
    length_plots.length_plots(tmp_path, found, "")
    compared, _, lengths, speed = figures
    colours = [
        {container.get_label().split(":")[0]: container.lines[0].get_color() for container in axes.containers}
        for axes in (compared.axes[0], lengths.axes[0], speed.axes[0])
    ]
    assert colours[0] == colours[1] == colours[2]
    assert list(colours[0]) == ["agg", "disagg"]


def test_points_of_several_arms_stand_at_their_true_places(figures: list[Any], tmp_path: Path) -> None:
    """On a steep line a step aside is a step down: disagg's lay below agg's where the table had it above."""
    shape = Shape(lengths=(256, 1024), rates=(0, 0.5, 1), repeats=1, count=4)
    rows = tables.requests(make_run(tmp_path, shape) / "records.jsonl").filter(~pl.col("warmup"))
    comparison_plots.arm_plots(tmp_path, rows, ["agg", "disagg"], shape.slo, "")
    latency, _, attainment = figures
    for axes in latency.axes:
        assert {label: list(x) for label, x in marks_of(axes).items()} == {"agg": [0, 1], "disagg": [0, 1]}
    for axes in attainment.axes:
        ticks = list(axes.get_xticks())
        assert {label: list(x) for label, x in marks_of(axes).items()} == {"agg": ticks, "disagg": ticks}
    # What lies on another is told from it by its mark and its line too.
    looks = {(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in latency.axes[0].containers}
    assert len(looks) == 2
