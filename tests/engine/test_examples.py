"""examples/: a scheduler, a collector and an experiment from outside wp1, on a real engine."""

import os
import subprocess
import sys
from pathlib import Path

from tests import REPO
from tests.engine.conftest import Start
from tests.user_run import TINY_SHAPE
from wp1.core.run_folder import read_json


def test_a_scheduler_and_a_collector_from_outside(start: Start, tmp_path: Path) -> None:
    """One of the experiment's two arms, whose engines take most of the time; the other has its test with a double."""
    run = start(
        "experiment=shortest_first", "~arms.arrival", *TINY_SHAPE, "workload.max_warmup=1", "tracking=none",
        "--config-dir=examples/conf",
    )  # fmt: skip
    code, output = run.finish()
    assert code == 0, output
    records = [record for record in run.records() if not record.warmup]
    assert len(records) == 6
    assert all(record.status == "ok" and record.pool == "shortest_first" for record in records)
    figures = read_json(run.run_dir / "summary.json")["profiling"]["overtaking"]
    assert figures["shortest"]["overtaken_share"] > 0
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert metadata["arms"] == [{"arm": "shortest", "scheduler": "shortest_first", "moves_kv": False}]
    # Elsewhere, without the package: the folder is data, and its figures are those that the run wrote.
    words = [sys.executable, "-m", "wp1.report", str(run.run_dir)]
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    made = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    page = Path(made.stdout.strip()).read_text()
    assert "> **Not recomputed**: overtaking in `collectors` is not part of wp1. Its figures" in page
    assert "## Collector overtaking" in page
    assert read_json(run.run_dir / "summary.json")["profiling"]["overtaking"] == figures
