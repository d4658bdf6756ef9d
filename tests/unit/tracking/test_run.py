"""The MLflow entry of a run with two arms."""

from pathlib import Path

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base.run_tables import RunTables
from wp1.runner.reports import make_report
from wp1.tracking.entry import Entry
from wp1.tracking.run import entry_of


@pytest.fixture
def entry(tmp_path: Path) -> Entry:
    shape = Shape(repeats=1, count=6, other_tokens={"disagg/256-conc1/r0/1"}, labels=("shared GPU",), shared_gpu=True)
    folder = make_run(tmp_path, shape)
    make_report(folder, tmp_path / "reports")
    return entry_of(RunTables(folder), tmp_path / "reports")


def test_figures_by_arm_and_of_the_comparison(entry: Entry) -> None:
    assert entry.metrics["agg/latency/requests"] == entry.metrics["disagg/latency/requests"] == 24
    assert entry.metrics["disagg/latency/ttft_ms/p50"] > 0
    assert 0.5 < entry.metrics["comparison/256-conc1/ttft_ms/mean/ratio"] < 2
    assert entry.metrics["comparison/same_tokens_share"] == pytest.approx(23 / 24)
    assert entry.metrics["disagg/goodput/256"] == 0.5  # two engines on one GPU
    assert not [name for name in entry.metrics if "/agg/agg" in name or "cells" in name]


def test_figures_of_handoffs(entry: Entry) -> None:
    assert entry.metrics["kv_transfer/handoffs"] == 24
    assert entry.metrics["kv_transfer/transfer_ms/p95"] > 0
    assert "kv_transfer/gb_per_s" in entry.metrics
    assert not [name for name in entry.metrics if name.startswith("kv_transfer/disagg")]


def test_the_files_that_make_the_report_again(entry: Entry) -> None:
    found = {(path.name, folder) for path, folder in entry.files}
    assert {
        ("handoffs.jsonl", None), ("queues.jsonl", None), ("e3_summary.json", None),
        ("e3_mode_comparison.csv", "artifacts"), ("requests.csv", "artifacts"), ("phases.png", "plots"),
    } <= found  # fmt: skip


def test_the_page_opens_with_what_was_found(entry: Entry) -> None:
    assert "**shared GPU**: engines share a GPU" in entry.description
    assert "disagg" in entry.description.split("\n\n")[1]
    assert "agg: TTFT p50" in entry.description
