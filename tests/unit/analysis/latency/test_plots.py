"""What plots make of a run's records and samples, beside how they look."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import style, tables
from wp1.analysis.comparison import plots as comparison_plots
from wp1.analysis.device import plots as device_plots
from wp1.analysis.latency import plots as latency_plots
from wp1.analysis.length import figures as length_figures
from wp1.analysis.length import plots as length_plots
from wp1.analysis.load import plots as load_plots
from wp1.analysis.quality import plots as quality_plots
from wp1.analysis.transfer import plots as transfer_plots


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The figures that are made, instead of files."""
    import matplotlib.pyplot as plt

    made: list[Any] = []
    monkeypatch.setattr(style, "save", lambda figure, path: made.append(figure))
    style.use()
    yield made
    plt.close("all")


@given(st.lists(st.floats(0.01, 100), min_size=0, max_size=30), st.integers(0, 4))
def test_sessions_hold_every_sample_once_and_break_where_it_is_longest(gaps: list[float], resumed: int) -> None:
    times = np.concatenate([[5.0], 5.0 + np.cumsum(gaps)])
    parts = device_plots.sessions(times, resumed)
    assert len(parts) <= resumed + 1
    assert [t for begin, end in parts for t in times[(times >= begin) & (times <= end)]] == times.tolist()
    between = [b - e for (_, e), (b, _) in itertools.pairwise(parts)]
    assert all(gap > device_plots.APART_S for gap in between)
    within = [gap for begin, end in parts for gap in np.diff(times[(times >= begin) & (times <= end)])]
    if between and within:
        assert max(within) <= min(between) + 1e-9


@pytest.mark.parametrize(("resumed", "lines"), [(1, 2), (0, 1)])
def test_the_line_of_a_device_is_broken_where_the_run_was(
    figures: list[Any], tmp_path: Path, resumed: int, lines: int
) -> None:
    """Two sessions of 10 s, an hour apart; of each the second half is measured."""
    times = [*range(10), *range(3600, 3610)]
    rows = [
        {"t": float(t), "device": "host", "memory_bytes": 1 << 30, "utilisation": 50.0, "power_w": None,
         "energy_j": None, "note": None}
        for t in times
    ]  # fmt: skip
    measured = pl.DataFrame({"t_sent": [5.0, 3605.0], "t_end": [9.0, 3609.0]})
    caption = device_plots.device_plot(
        pl.DataFrame(rows, schema=tables.DEVICE_SCHEMA), measured, resumed, tmp_path / "x.png", ""
    )
    for axes in figures[0].axes:
        drawn = [line for line in axes.lines if line.get_linestyle() == "-"]
        assert len(drawn) == lines
        assert len(axes.patches) == lines
        # The hour is not on the axis of a run that was resumed.
        assert (axes.get_xlim()[1] < 30) == bool(resumed)
    assert ("resumed" in caption) == bool(resumed)


@pytest.mark.parametrize("values", [(690.0, 830.0), (3.5, 3.5), (0.001, 12.0), ()])
def test_no_mark_is_cut_at_the_top(figures: list[Any], values: tuple[float, ...]) -> None:
    """On an axis from zero the highest point has room for more than half a mark, however close the points are."""
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, sharey=True, figsize=(style.WIDTH, 2.4))
    both[0].errorbar(range(len(values)), values, marker="s", markersize=4.5)
    style.from_zero(*both)
    figure.canvas.draw()
    top = both[0].get_window_extent().y1
    for axes in both:
        assert axes.get_ylim()[0] == 0
        assert all(top - axes.transData.transform((0, value))[1] > figure.dpi * 4.5 / 72 / 2 for value in values)
    plt.close(figure)


def test_the_queues_of_an_arm_lie_end_to_end_where_it_was_not_up(figures: list[Any], tmp_path: Path) -> None:
    """Ten seconds of queues, another arm's turn of an hour, and ten seconds more, of each the second half measured."""
    times = [0.1 * n for n in range(100)] + [3600 + 0.1 * n for n in range(100)]
    samples = pl.DataFrame({"t": times, "arm": "disagg"} | {name: [0, 1] * 100 for name in tables.QUEUES})
    measured = pl.DataFrame(
        {"arm": "disagg", "cell": "c", "repeat": [0, 1], "t_sent": [5.0, 3605.0], "t_end": [9.0, 3609.0]}
    )
    [(caption, _)] = transfer_plots.handoff_plots(tmp_path, samples, measured, "")
    assert "At a dotted line disagg was not up" in caption
    for axes in figures[0].axes:
        assert axes.get_xlim()[1] < 22
        assert [line.get_linestyle() for line in axes.lines] == [":"]
        assert [round(span.get_width(), 6) for span in axes.patches] == [4, 4]
    one = samples.filter(pl.col("t") < 100)
    [(caption, _)] = transfer_plots.handoff_plots(tmp_path, one, measured.filter(pl.col("repeat") == 0), "")
    assert "dotted" not in caption and not figures[1].axes[0].lines


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


def test_an_arm_has_one_colour_in_every_plot() -> None:
    both = style.arm_colours(["agg", "disagg"])
    assert style.arm_colours(["disagg"])["disagg"] == both["disagg"]
    assert style.arm_colours(["agg"])["agg"] == both["agg"]
    others = style.arm_colours(["yarn", "disagg", "unscaled"])
    assert others["disagg"] == both["disagg"]
    assert len({*both.values(), *others.values()}) == 4


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


@pytest.mark.parametrize(
    ("length", "written"), [(512, "512"), (1024, "1k"), (32640, "32,640"), (65536, "64k"), (131056, "131,056")]
)
def test_lengths_are_written_as_whole_k_or_in_full(length: int, written: str) -> None:
    assert style.tokens(length) == written


def test_axes_have_their_thousands_apart() -> None:
    import matplotlib.pyplot as plt

    style.use()
    figure, axes = plt.subplots()
    axes.plot([0.00125, 0.0015], [0, 3000])
    style.thousands(figure)
    figure.canvas.draw()
    assert "2,500" in [label.get_text() for label in axes.get_yticklabels()]
    assert not [label for label in axes.get_xticklabels() if "," in label.get_text()]
    plt.close(figure)


def _drawn(axes: Any) -> dict[str, np.ndarray]:
    """By label, the places of the marks of each line with intervals, and that these stand on its marks."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        found[str(container.get_label())] = line.get_xdata()
        for bar in bars:
            assert [segment[0][0] for segment in bar.get_segments()] == list(line.get_xdata())
    return found


def test_points_of_several_arms_stand_at_their_true_places(figures: list[Any], tmp_path: Path) -> None:
    """On a steep line a step aside is a step down: disagg's lay below agg's where the table had it above."""
    shape = Shape(lengths=(256, 1024), rates=(0, 0.5, 1), repeats=1, count=4)
    rows = tables.requests(make_run(tmp_path, shape) / "records.jsonl").filter(~pl.col("warmup"))
    comparison_plots.arm_plots(tmp_path, rows, ["agg", "disagg"], shape.slo, "")
    latency, _, attainment = figures
    for axes in latency.axes:
        assert {label: list(x) for label, x in _drawn(axes).items()} == {"agg": [0, 1], "disagg": [0, 1]}
    for axes in attainment.axes:
        ticks = list(axes.get_xticks())
        assert {label: list(x) for label, x in _drawn(axes).items()} == {"agg": ticks, "disagg": ticks}
    # What lies on another is told from it by its mark and its line too.
    looks = {(c.lines[0].get_marker(), c.lines[0].get_linestyle()) for c in latency.axes[0].containers}
    assert len(looks) == 2


def test_points_of_several_lengths_stand_at_their_loads(figures: list[Any], tmp_path: Path) -> None:
    rows = [
        {"arm": "agg", "prompt": prompt, "concurrency": load, "request_rate": None, "ok": 4, "kv_use_peak": 0.5}
        | {name: {"n": 4, "value": 1.0 * load, "low": 0.5, "high": 90.0} for name, *_ in load_plots.panels()[:-1]}
        for prompt in ("256", "1024", "4096")
        for load in (1, 8, 64)
    ]
    load_plots.load_plots(tmp_path, {"rows": rows}, "")
    for axes in figures[0].axes:
        assert [list(x) for x in _drawn(axes).values()] == [[0, 1, 2]] * 3


def test_scores_and_perplexity_stand_at_their_lengths(figures: list[Any], tmp_path: Path) -> None:
    spread = {"mean": 50.0, "low": 40.0, "high": 60.0, "n": 3}
    arms = {
        arm: {
            "by_length": [spread | {"bucket": length} for length in (1024, 2048)],
            "perplexity": [spread | {"to": length, "texts": 3} for length in (1024, 2048)],
        }
        for arm in ("yarn", "unscaled", "third")
    }
    both = [{"to": length, "texts": 2, "a": spread | {"texts": 2}} for length in (1024, 2048)]
    quality_plots._lengths(arms, tmp_path / "x.png", "")
    quality_plots._perplexity(arms, both, tmp_path / "y.png", "")
    for figure, count in zip(figures, (3, 4), strict=True):
        assert [list(x) for x in _drawn(figure.axes[0]).values()] == [[1024, 2048]] * count


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


def test_what_is_shaded_of_a_device_was_measured(figures: list[Any], tmp_path: Path) -> None:
    """Between the turns of two arms engines start."""
    rows = [
        {"t": float(t), "device": f"cuda:{n}", "memory_bytes": 1 << 30, "utilisation": 50.0, "power_w": None,
         "energy_j": None, "note": None}
        for t in range(60)
        for n in range(2)
    ]  # fmt: skip
    measured = pl.DataFrame(
        {"arm": ["agg", "agg", "disagg"], "cell": "c", "repeat": 0, "t_sent": [5.0, 7.0, 40.0], "t_end": [8.0, 9.0, 50]}
    )
    device_plots.device_plot(pl.DataFrame(rows, schema=tables.DEVICE_SCHEMA), measured, 0, tmp_path / "x.png", "")
    for axes in figures[0].axes:
        assert [(span.get_x(), span.get_width()) for span in axes.patches] == [(5, 4), (40, 10)]
        assert len({line.get_linestyle() for line in axes.lines}) == 2
    assert len(figures[0].legends) == 1


def test_an_interval_that_reaches_to_zero_does_not_stretch_a_logarithmic_axis(figures: list[Any]) -> None:
    """It was linear for one that ends at 0, so that 30 ms beside 4,000 could not be read, and from 0.04 for one that
    ends there, so that all the rest lay in the upper half."""
    import matplotlib.pyplot as plt

    for least in (0.0, 0.04):
        _, axes = plt.subplots()
        figure = [{"value": 30.0, "low": least, "high": 60.0}, {"value": 4000.0, "low": 3900.0, "high": 4100.0}]
        style.points(axes, [1, 2], figure)
        assert list(style.heights(axes)) == [30, 4000]
        load_plots._scale(axes)
        assert axes.get_yscale() == "log"
        assert axes.get_ylim()[0] >= 15
