"""What is said of a cell's load: a late client, engines that fell behind, and the window."""

from pathlib import Path
from typing import Any

import pytest

from tests.records import read_records
from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.load.notes import late_cells, notes
from wp1.analysis.summary import summarise
from wp1.collectors.load import LoadStatsCollector
from wp1.core.jsonl import RecordWriter
from wp1.core.records import LoopLag
from wp1.core.run_folder import read_json


def _profile(folder: Path) -> dict[str, Any]:
    run = RunTables(folder)
    return {"profiling": {"load": LoadStatsCollector().profile(RunTables(run), run.requests)}}


def _delayed(folder: Path, seconds: float) -> None:
    """Sends every request later, as a client that is too busy would."""
    path = folder / "records.jsonl"
    records = read_records(path)
    path.unlink()
    with RecordWriter(path) as writer:
        for record in records:
            assert record.t_sent is not None
            record.t_sent += seconds
            writer.write(record)


def test_a_punctual_client_is_not_marked(tmp_path: Path) -> None:
    summary = _profile(make_run(tmp_path, Shape()))
    assert late_cells(summary) == []
    assert summary["profiling"]["load"]["cells"]["agg/256-conc1"]["client_delay_p99_ms"] == pytest.approx(0.1)
    assert notes(summary, "agg/256-conc1") == []


def test_a_late_client_is_marked_in_words_and_by_a_label(tmp_path: Path) -> None:
    folder = make_run(tmp_path, Shape(labels=("random weights",)))
    _delayed(folder, 0.02)
    with RecordWriter(folder / "loop.jsonl") as writer:
        writer.write(LoopLag(1.0, "agg", "256-conc1", 0, [0.001] * 49 + [0.015]))
    collectors = [LoadStatsCollector()]
    summary = summarise(RunTables(folder), collectors)
    assert summary["labels"] == ["random weights", "client late"]
    assert len(late_cells(summary)) == summary["profiling"]["load"]["overall"]["client_late_cells"] == 8
    assert "client late: one request in a hundred was sent 20 ms or more" in notes(summary, "agg/256-conc1")[0]
    assert summary["profiling"]["load"]["cells"]["agg/256-conc1"]["loop_lag_ms"]["max"] == 15
    assert "client late" in (folder / "artifacts" / "requests.csv").read_text()
    # Made again with the label there already, it is not there twice.
    metadata = read_json(folder / "run_metadata.json")
    assert metadata["labels"] == ["random weights"]
    assert summarise(RunTables(folder), collectors)["labels"] == ["random weights", "client late"]


def test_an_open_loop_says_its_window(tmp_path: Path) -> None:
    summary = _profile(make_run(tmp_path, Shape(lengths=(16,), rates=(20.0,), count=200, step_s=0.001)))
    [note] = [note for note in notes(summary, "agg/16-rate20") if note.startswith("steady")]
    window = summary["profiling"]["load"]["cells"]["agg/16-rate20"]["steady"]
    assert f"{window['requests']:,} of 600 requests" in note
    assert 500 < window["requests"] < 600


def test_a_short_open_loop_says_that_it_is_whole(tmp_path: Path) -> None:
    summary = _profile(make_run(tmp_path, Shape()))
    assert notes(summary, "agg/256-rate0.5")[0].startswith("no steady state")


def test_engines_that_fell_behind_are_said_to(tmp_path: Path) -> None:
    summary = _profile(make_run(tmp_path, Shape(lengths=(100,), rates=(30.0,), count=100, handoffs=False)))
    [note] = [note for note in notes(summary, "agg/100-rate30") if note.startswith("over-saturated")]
    assert "requests/s were offered" in note


def test_a_run_without_this_collector_has_nothing_to_say() -> None:
    assert notes({"profiling": {}}, "agg/c") == late_cells({"profiling": {}}) == []
