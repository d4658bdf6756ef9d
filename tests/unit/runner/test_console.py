"""The terminal output at the end of a run."""

import json
from pathlib import Path

import pytest

from tests.unit.analysis.synthetic import Shape, make_run
from wp1.analysis.base.run_tables import RunTables
from wp1.runner.console import Screen
from wp1.runner.outcome import Outcome
from wp1.runner.reports import make_report


def _shown(folder: Path, capfd: pytest.CaptureFixture[str]) -> str:
    make_report(folder, folder / "reports")
    with Screen() as screen:
        screen.end(
            Outcome("completed", None, RunTables(folder), None, json.loads((folder / "summary.json").read_text())), None
        )
    return capfd.readouterr().err


def test_arms_side_by_side(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = Shape(repeats=1, count=4, labels=("shared GPU",), fail={"disagg/256-conc1/r0/0"})
    lines = _shown(make_run(tmp_path, shape), capfd).splitlines()
    assert lines[0].startswith("shared GPU: engines share a GPU")
    assert lines[1].split()[:3] == ["arm", "cell", "ok"]
    rows = [line.split() for line in lines[2:10]]
    assert [row[:3] for row in rows[:2]] == [["agg", "256-conc1", "4/4"], ["disagg", "256-conc1", "3/4"]]
    assert len({tuple(row[:2]) for row in rows}) == 8
    assert any(line.startswith("✗ KV handoffs") for line in lines)


def test_questions_and_answers_of_one_arm(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shape = Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=2, handoffs=False, prompts="dataset")
    text = _shown(make_run(tmp_path, shape), capfd)
    assert "question" in text
    assert "TTFT p50" not in text
