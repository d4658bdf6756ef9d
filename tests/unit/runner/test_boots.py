"""The times of an earlier boot in a run that is resumed after a reboot."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.load import figures as load_figures
from wp1.collectors.device import GPUStatsCollector
from wp1.core import files, run_files
from wp1.core.jsonl import RecordWriter
from wp1.core.records import EngineStats, LoopLag, RequestRecord
from wp1.core.run_folder import read_json
from wp1.runner import boots

METADATA: dict[str, Any] = {
    "boot": "one", "starts": [{"arm": "agg", "seconds": 1.0, "idle": [290.0, 291.0]}], "taken_over": [],
}  # fmt: skip


def record(cell: str, number: int, t: float) -> RequestRecord:
    return RequestRecord(
        f"agg/{cell}/r0/{number}", "agg", cell, 0, "", False, 0, "ok", t_intended=t, t_sent=t, t_scheduled=t,
        t_engine_first_token=t + 0.1, t_tokens=[t + 0.1, t + 1], t_end=t + 1, output_tokens=2, prompt_tokens=256,
    )  # fmt: skip


def measure(run_dir: Path, cell: str, kv_use: float, gib: int) -> None:
    """Five requests and their samples, on a clock that has counted 300 seconds."""
    with RecordWriter(run_dir / "records.jsonl") as out:
        for n in range(5):
            out.write(record(cell, n, 300.0 + n))
    with RecordWriter(run_dir / "engine_stats.jsonl") as out:
        for n in range(6):
            out.write(EngineStats(299.9 + n, "agg", "agg-0", kv_use, kv_use, 2, 0, 0, 5))
    with RecordWriter(run_dir / "loop.jsonl") as out:
        out.write(LoopLag(301.0, "agg", cell, 0, [0.001]))
    with files.appended(run_dir / "device.jsonl") as out:
        for n in range(12):
            row = {"t": 299.5 + n / 2, "device": "cuda:0", "memory_bytes": gib << 30, "power_w": 100.0 * gib}
            out.write(f"{json.dumps(row)}\n".encode())


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run that was measured over three boots, each of which had its clock at the same place."""
    metadata = METADATA
    for n, boot in enumerate(("one", "two", "three")):
        if n:
            metadata = boots.move(tmp_path, metadata, boot)
        measure(tmp_path, f"{256 << n}-conc2", 0.1 * (n + 1), n + 1)
        (tmp_path / run_files.METADATA.name).write_text(json.dumps(metadata))
    return tmp_path


def test_samples_belong_to_the_cell_that_was_measured_in_their_boot(run_dir: Path) -> None:
    requests = tables.requests(run_dir / "records.jsonl")
    stats = tables.engine_stats(run_dir / "engine_stats.jsonl")
    cells = GPUStatsCollector().profile(RunTables(run_dir), requests)["cells"]
    for n in range(3):
        cell = f"{256 << n}-conc2"
        rows = requests.filter(pl.col("cell") == cell)
        assert load_figures.kv_use(stats, rows)["kv_use_peak"] == pytest.approx(0.1 * (n + 1))
        assert cells[f"agg/{cell}"]["devices"]["cuda:0"]["memory_gib_peak"] == n + 1
        assert cells[f"agg/{cell}"]["energy"]["joules"] == pytest.approx(500.0 * (n + 1))
        assert rows["ttft_ms"].to_list() == pytest.approx([100.0] * 5)


def test_the_order_of_boots_stays_and_the_metadata_says_how_far_each_was_moved(run_dir: Path) -> None:
    requests = tables.requests(run_dir / "records.jsonl")
    begins = requests.group_by("cell", maintain_order=True).agg(pl.col("t_intended").min())["t_intended"]
    assert begins.is_sorted()
    metadata = read_json(run_dir / run_files.METADATA.name)
    assert [one["boot"] for one in metadata["boots"]] == ["one", "two"]
    for one, begin in zip(metadata["boots"], begins, strict=False):
        assert begin - one["moved_s"] == pytest.approx(300.0)
    assert metadata["starts"][0]["idle"][0] - metadata["boots"][0]["moved_s"] == pytest.approx(290.0)


@pytest.mark.parametrize("dies_at", range(9))
def test_killed_at_any_file_it_moves_all_or_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies_at: int
) -> None:
    measure(tmp_path, "256-conc2", 0.5, 1)
    (tmp_path / run_files.METADATA.name).write_text(json.dumps(METADATA))
    replace, count = Path.replace, 0

    def replace_or_die(self: Path, target: Path) -> Path:
        nonlocal count
        count += 1
        if count > dies_at:
            raise KeyboardInterrupt
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)
    with pytest.raises(KeyboardInterrupt):
        boots.move(tmp_path, METADATA, "two")
    monkeypatch.undo()
    boots.finish(tmp_path)
    moved = read_json(tmp_path / run_files.METADATA.name)["boot"] == "two"
    assert moved == (dies_at > 5)
    for name in ("records.jsonl", "engine_stats.jsonl", "device.jsonl", "loop.jsonl"):
        rows = [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]
        assert all((row.get("t", row.get("t_intended")) < 0) == moved for row in rows), name


@pytest.mark.parametrize("name", [file.name for file in run_files.with_times()])
def test_every_file_of_a_run_has_its_times_moved(name: str, tmp_path: Path) -> None:
    """control.jsonl among them, which is read beside records.jsonl."""
    (tmp_path / name).write_text(json.dumps({"t_sent": 300.0, "t_tokens": [301.0], "t": 302.0}) + "\n")
    boots.move(tmp_path, METADATA, "two")
    row = json.loads((tmp_path / name).read_text())
    assert row == {"t_sent": -62.0, "t_tokens": [-61.0], "t": -60.0}


def test_what_is_asked_again_has_its_times_moved(tmp_path: Path) -> None:
    (tmp_path / "control.jsonl").write_text(json.dumps({"t_sent": 300.0}) + "\n")
    boots.move(tmp_path, METADATA, "two")
    assert json.loads((tmp_path / "control.jsonl").read_text()) == {"t_sent": -60.0}
