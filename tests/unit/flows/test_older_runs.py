"""Runs of an earlier wp1, from docs/results: their schedulers have a mode, and their hashes follow another rule."""

import gzip
import shutil
from pathlib import Path

import pytest

from tests import REPO
from wp1.analysis import completeness
from wp1.analysis.sweep.runs import differing_settings
from wp1.core.arms import arms_moving_kv
from wp1.core.errors import ConfigError
from wp1.core.identity import settings_of
from wp1.core.run_folder import RunFolder, read_config, read_metadata
from wp1.runner import resume
from wp1.runner.reports import make_report


def unpacked(name: str, folder: Path) -> Path:
    """A run of docs/results as its folder was."""
    run_dir = folder / name
    run_dir.mkdir(parents=True)
    for path in (REPO / "docs" / "results" / name).iterdir():
        if path.suffix == ".gz":
            (run_dir / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        elif path.suffix in (".json", ".yaml"):
            shutil.copy(path, run_dir)
    return run_dir


@pytest.mark.parametrize(("name", "moving"), [("e0-cpu", []), ("e3-8b-shape-h200", ["disagg"])])
@pytest.mark.usefixtures("without_pixels")
def test_a_run_of_before_makes_its_report(tmp_path: Path, name: str, moving: list[str]) -> None:
    run_dir = unpacked(name, tmp_path)
    metadata, config = read_metadata(run_dir), read_config(run_dir)
    assert "arms" not in metadata
    assert arms_moving_kv(metadata, config) == moving
    (run_dir / "queues.jsonl").unlink(missing_ok=True)
    assert ("queues.jsonl" in completeness.absent(RunFolder(run_dir))) == bool(moving)
    page = make_report(run_dir, tmp_path / "reports").read_text()
    assert metadata["config_hash"][:12] in page
    assert "## Latency" in page
    assert "Not recomputed" not in page


def test_a_run_of_before_does_not_go_on_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="earlier version of wp1, which hashed configurations differently"):
        resume.check_same(None, unpacked("e0-cpu", tmp_path))


def test_runs_of_before_and_of_now_differ_in_what_differs(tmp_path: Path) -> None:
    before = settings_of(read_config(unpacked("e0-cpu", tmp_path)))
    now = before | {"seed": 7}
    assert differing_settings([before, now]) == ["seed"]
    assert before["scheduler.name"] == "agg"
