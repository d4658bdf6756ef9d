"""The table of KV transfers: which rates it shows, and how numbers are written."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base import tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.transfer import report as transfer_report
from wp1.collectors.kv_transfer import KVTransferStatsCollector


def _profile(folder: Path, **shape: Any) -> dict[str, Any]:
    run = make_run(folder, Shape(lengths=(256,), rates=(0,), repeats=2, count=4, **shape))
    return KVTransferStatsCollector().profile(RunTables(run), tables.requests(run / "records.jsonl"))


@pytest.mark.parametrize(
    ("shape", "copy", "over"),
    [
        ({}, False, True),
        ({"copy_gb_per_s": 1120.0}, True, True),
        ({"copy_gb_per_s": 1120.0, "overlap": True}, True, False),
        ({"overlap": True}, False, False),
    ],
)
def test_rates_are_of_the_copy_and_over_a_transfer_only_where_it_waits_for_nothing(
    tmp_path: Path, shape: dict[str, Any], copy: bool, over: bool
) -> None:
    profile = _profile(tmp_path, **shape)
    header, _, row = transfer_report.section(profile).splitlines()[2:5]
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert ("copy GB/s" in cells, "GB/s over transfers" in cells) == (copy, over)
    assert "GB/s" not in cells
    words = transfer_report.how_to_read(profile)
    assert ("**copy GB/s**" in words, "**GB/s over transfers**" in words) == (copy, over)
    if copy:
        assert "1,1" in cells["copy GB/s"] and "e+" not in row
    text = transfer_report.section(profile)
    assert ("8 of 8 transfers began before their prompt was computed" in text) == (not over)


def test_the_row_of_all_cells_mixes_no_times(tmp_path: Path) -> None:
    run = make_run(tmp_path, Shape(lengths=(256, 1024), rates=(0,), repeats=2, count=4, copy_gb_per_s=1120.0))
    profile = KVTransferStatsCollector().profile(RunTables(run), tables.requests(run / "records.jsonl"))
    lines = transfer_report.section(profile).splitlines()
    header = [cell.strip() for cell in lines[2].strip("|").split("|")]
    rows = {cells[0].strip(): dict(zip(header, cells, strict=True)) for cells in
            (line.strip("|").split("|") for line in lines[4:7])}  # fmt: skip
    for column in ("copy ms", "transfer ms", "handoff ms", "wait for a place ms"):
        assert " / " in rows["disagg/256-conc1"][column], column
        assert " / " not in rows["all"][column], column
    assert "1,1" in rows["all"]["copy GB/s"]


def test_a_run_without_handoffs_has_no_table() -> None:
    assert transfer_report.section({}) == ""
