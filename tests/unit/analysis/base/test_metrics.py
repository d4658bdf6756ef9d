"""A metric is one row of a table: a row that is added here is found everywhere that metrics are shown."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import metrics, style
from wp1.analysis.base.metrics import METRICS, Metric
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep import plots as sweep_plots
from wp1.analysis.sweep import report as sweep_report
from wp1.analysis.sweep import runs
from wp1.config.schema import Slo
from wp1.core.run_folder import RunFolder, read_json
from wp1.runner.console import Screen
from wp1.runner.outcome import Outcome
from wp1.runner.reports import make_report
from wp1.tracking.entry import Entry
from wp1.tracking.run import entry_of

DOCS = Path(__file__).parents[4] / "docs" / "metrics.md"
NEW = (
    Metric(
        "engine_queue_ms", "engine queue", "ms", "request", (pl.col("t_scheduled") - pl.col("t_sent")) * 1e3,
        "scheduled − sent",
    ),
    Metric(
        "slow_gap_ms", "slow gap", "ms", "gaps", pl.col("t_tokens").list.diff(null_behavior="drop") * 1e3,
        "gaps once more",
    ),
    Metric(
        "from_token_ms", "from token to end", "ms", "request", pl.col("e2e_ms") - pl.col("ttft_ms"),
        "E2E − TTFT: made of other metrics",
    ),
    Metric(
        "input_tokens_per_s", "input tokens/s", "tokens/s", "rate", pl.col("prompt_tokens").filter("ended_inside"),
        "prompt tokens of answered requests / seconds", less_is_better=False,
    ),
    Metric("long_share", "long prompts", "share", "share", pl.col("prompt_tokens") > 500, "of all requests sent"),
)  # fmt: skip
OF_REQUEST = [metric for metric in NEW if metric.kind == "request"]


@dataclass
class Made:
    """What a run, or a comparison of runs, left."""

    page: str
    plots: set[str]  # titles of panels
    said: str = ""
    summary: dict[str, Any] | None = None
    entry: Entry | None = None
    folder: Path = Path()


@pytest.fixture(scope="module")
def patch() -> Iterator[pytest.MonkeyPatch]:
    """With the rows of NEW in the table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "METRICS", (*METRICS, *NEW))
        yield patch


def _made(folder: Path, patch: pytest.MonkeyPatch) -> Made:
    import matplotlib.pyplot as plt

    titles: set[str] = set()

    def save(figure: Any, path: Path) -> None:
        titles.update(axes.get_title(loc) for axes in figure.axes for loc in ("left", "center"))
        path.touch()
        plt.close(figure)

    patch.setattr(style, "save", save)
    page = make_report(folder, folder / "reports").read_text()
    summary = read_json(folder / "summary.json")
    return Made(page, titles, "", summary, entry_of(RunFolder(folder), folder / "reports"), folder)


SHAPES = {
    "loads": Shape(arms=("agg",), repeats=3, count=4, handoffs=False),
    "lengths": Shape(arms=("agg",), rates=(0,), repeats=3, count=2, handoffs=False),
    "arms": Shape(repeats=3, count=6),
}


@pytest.fixture(scope="module")
def made(patch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return {name: _made(make_run(tmp_path_factory.mktemp(name), shape), patch) for name, shape in SHAPES.items()}


def _table(page: str, begin: str) -> list[str]:
    """The lines of the first table whose header begins so."""
    lines = page.splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith(begin))
    return lines[first : lines.index("", first)]


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_a_new_row_is_in_the_files_of_a_run(made: dict[str, Made], metric: Metric) -> None:
    run = made["loads"]
    assert run.summary is not None
    found = run.summary["profiling"]["latency"]["cells"]["agg/1024-rate0.5"][metric.key]
    assert (found if metric.kind == "rate" else found["mean"]) > 0
    by_load = pl.read_csv(run.folder / "artifacts" / "e3_by_load.csv")
    assert metric.at(("mean",))[0].short_column in by_load.columns
    by_length = pl.read_csv(made["lengths"].folder / "artifacts" / "e3_by_length.csv")
    assert metric.at(("mean",))[0].short_column in by_length.columns
    if metric.kind == "request":
        csv = pl.read_csv(run.folder / "artifacts" / "requests.csv")
        assert csv[metric.key].null_count() == 0


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_a_new_row_is_on_the_page_of_a_run(made: dict[str, Made], metric: Metric) -> None:
    page = made["loads"].page
    latency = page.partition("## Latency")[2].partition("\n## ")[0]
    if metric.kind == "rate":
        assert len(re.findall(rf"[\d,.]+ {metric.title}", latency)) == 4
    else:
        assert latency.count(f"\n| {metric.title} | ") == 4
    assert f"- **{metric.title}**: {metric.formula}." in page
    [mean] = metric.at(("mean",))
    assert f"| {mean.short_title} |" in _table(page, "| prompt tokens | load | n | TTFT |")[0]
    assert f"| {mean.short_title} |" in _table(made["lengths"].page, "| prompt tokens | n | TTFT |")[0]


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_a_new_row_is_compared_between_arms(made: dict[str, Made], metric: Metric) -> None:
    run = made["arms"]
    compared = json.loads((run.folder / "e3_summary.json").read_text())
    table = pl.read_csv(run.folder / "artifacts" / "e3_mode_comparison.csv")
    for figure in metric.at(metric.shown.comparison):
        assert all(figure.name in of_cell for of_cell in compared["cells"].values())
        assert table.filter(pl.col("metric") == figure.name)["unit"].unique().to_list() == [metric.unit]
        assert f"| {figure.title}{', ms' if metric.unit == 'ms' else ''} | " in run.page


def test_the_words_of_a_comparison_look_at_a_new_row(made: dict[str, Made]) -> None:
    [looked_at] = re.findall(r"Tested metrics: .*?\.", made["arms"].page)
    assert "mean engine queue" in looked_at and "mean from token to end" in looked_at and "long prompts" in looked_at
    assert re.search(r"mean slow gap was \w+", made["arms"].page) or "mean slow gap" in looked_at


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_a_new_row_is_drawn(made: dict[str, Made], metric: Metric) -> None:
    over_load = f"{metric.title}, mean" if metric.of_one_request else metric.title[0].upper() + metric.title[1:]
    assert over_load + (" per device" if metric.kind == "rate" else "") in made["loads"].plots
    assert f"{metric.title}, 0.5 requests/s" in made["arms"].plots


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_mlflow_is_told_of_a_new_row(made: dict[str, Made], metric: Metric) -> None:
    run, of_arms = made["loads"].entry, made["arms"].entry
    assert run is not None and of_arms is not None
    [mean] = metric.at(("mean",))
    name = f"latency/{metric.key}" + {"rate": "", "share": "/mean"}.get(metric.kind, "/p95")
    assert name in run.metrics
    assert f"agg/{name}" in of_arms.metrics and f"disagg/{name}" in of_arms.metrics
    assert all(name.removeprefix("latency/") in cell.metrics for cell in run.cells)
    assert f"by_prompt_len/agg/rate0.5/{mean.name}" in {curve for curve, _, _ in run.curves}


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_the_screen_shows_a_new_row(made: dict[str, Made], metric: Metric, capfd: pytest.CaptureFixture[str]) -> None:
    run = made["loads"]
    with Screen() as screen:
        screen.console.width = 400
        screen.end(Outcome("completed", None, RunTables(run.folder), None, run.summary), None)
    said = capfd.readouterr().err
    assert f"{metric.title}{' p50 ms' if metric.of_one_request else ''}" in said


@pytest.fixture(scope="module")
def side_by_side(patch: pytest.MonkeyPatch, made: dict[str, Made]) -> Made:
    """Two runs as `wp1.compare` holds them against each other."""
    titles: set[str] = set()
    patch.setattr(style, "save", lambda figure, _: titles.update(axes.get_title("left") for axes in figure.axes))
    jobs = runs.read_runs([made["loads"].folder, made["arms"].folder])
    found = sweep_figures.rows(jobs)
    sweep_plots.sweep_plot(made["loads"].folder / "comparison.png", jobs, found)
    return Made(sweep_report.jobs_table(jobs, found), titles, said=" ".join(found.columns))


@pytest.mark.parametrize("metric", NEW, ids=lambda metric: metric.key)
def test_a_new_row_is_in_a_sweep(side_by_side: Made, metric: Metric) -> None:
    for figure in metric.at(metric.shown.sweep):
        assert figure.column in side_by_side.said.split()
        assert f" {figure.title} |" in side_by_side.page
    assert metric.title in side_by_side.plots


def test_a_request_only_for_perplexity_has_no_new_latency() -> None:
    assert all(metric.for_users for metric in OF_REQUEST)


def test_keys_and_titles_are_unique() -> None:
    for name in ("key", "title"):
        values = [getattr(metric, name) for metric in METRICS]
        assert len(set(values)) == len(values)


def test_what_the_configuration_limits_is_a_metric_of_single_requests() -> None:
    limited = {field.name for field in fields(Slo)} - {"name"}
    assert limited <= {metric.key for metric in metrics.of_kind("request")}


def test_the_documentation_has_every_formula() -> None:
    """A row of a table in docs/metrics.md: the title first, then the unit or not, then the formula as it is here."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", DOCS.read_text()).replace("`", "")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    for metric in METRICS:
        formulas = [cell for row in rows if row[0] == metric.title for cell in row[1:]]
        assert any(cell.startswith(metric.formula) for cell in formulas), (
            f"docs/metrics.md has no row '{metric.title}' with the formula '{metric.formula}': add it to its table"
        )
