"""examples/: a scheduler, a collector and an experiment from outside wp1, on a real engine."""

import subprocess
import sys
from pathlib import Path

from tests.engine.conftest import Start
from tests.user_run import TINY_SHAPE
from wp1.core.run_folder import read_json


def test_a_scheduler_and_a_collector_from_outside(start: Start, tmp_path: Path) -> None:
    run = start(
        "experiment=shortest_first", *TINY_SHAPE, "workload.max_warmup=1", "tracking=none", "--config-dir=examples/conf"
    )
    code, output = run.finish()
    assert code == 0, output
    records = [record for record in run.records() if not record.warmup]
    assert {record.arm for record in records} == {"arrival", "shortest"}
    assert all(record.status == "ok" and record.pool == "shortest_first" for record in records)
    figures = read_json(run.run_dir / "summary.json")["profiling"]["overtaking"]
    assert figures["arrival"]["overtaken_share"] == 0
    assert figures["shortest"]["overtaken_share"] > 0
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert [arm["moves_kv"] for arm in metadata["arms"]] == [False, False]
    # Elsewhere, without the package: the folder is data, and its figures are those that the run wrote.
    (tmp_path / "reports").mkdir()
    made = subprocess.run(
        [sys.executable, "-m", "wp1.report", str(run.run_dir)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    page = Path(made.stdout.strip()).read_text()
    assert "> **Not made**: overtaking of `collectors`, which is none of wp1's own, and its figures" in page
    assert "## Collector overtaking" in page
    assert read_json(run.run_dir / "summary.json")["profiling"]["overtaking"] == figures
