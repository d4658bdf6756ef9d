"""examples/: a scheduler, a collector and an experiment from outside wp1, on a real engine."""

import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.engine.conftest import completed, configuration
from tests.records import read_records
from tests.user_run import TINY_SHAPE
from wp1.core.run_folder import RunFolder
from wp1.serving.engines import Engines


def test_a_scheduler_and_a_collector_from_outside(
    engines: Engines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of the experiment's two arms: starting engines takes most of the time.

    tests/unit/flows/test_examples.py has the other arm, the command line, and the report made without the package.
    """
    monkeypatch.setattr(sys, "path", [*sys.path, str(REPO / "examples")])
    cfg = configuration(
        tmp_path, f"hydra.searchpath=[file://{REPO}/examples/conf]", "experiment=shortest_first", "~arms.arrival",
        *TINY_SHAPE, "workload.max_warmup=1", "tracking=none",
    )  # fmt: skip
    outcome = completed(cfg, engines)
    records = [record for record in read_records(outcome.run_dir / "records.jsonl") if not record.warmup]
    assert len(records) == 6
    assert all(record.status == "ok" and record.pool == "shortest_first" for record in records)
    run = RunFolder(outcome.run_dir)
    assert run.summary["profiling"]["overtaking"]["shortest"]["overtaken_share"] > 0
    assert run.metadata["arms"] == [{"arm": "shortest", "scheduler": "shortest_first", "moves_kv": False}]
    assert outcome.report is not None and "## Collector overtaking" in outcome.report.read_text()
