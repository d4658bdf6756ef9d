"""Sweeps with launchers other than wp1's own: the exit codes are the same, and each failed job reports its reason."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.double import TINY, DoubleBackend
from tests.unit.conftest import Command
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.run_folder import write_json
from wp1.sweep import callbacks

QUIET = ("tracking=none", "experiment.repeats=1", "experiment.same_tokens=false")


def _elsewhere(root: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A sweep whose jobs each run in a process of their own."""
    path = os.pathsep.join(map(str, (REPO, REPO / "tests" / "plugins")))
    return subprocess.run(
        [sys.executable, "-m", "wp1", "-m", "hydra/launcher=elsewhere", f"root={root}", *TINY, *QUIET, *words],
        check=False, capture_output=True, text=True, cwd=REPO, timeout=300,
        env=os.environ | {"PYTHONPATH": path, "WP1_CACHE": str(root / "cache")} | environment,
    )  # fmt: skip


def test_refused_in_other_processes(tmp_path: Path) -> None:
    done = _elsewhere(tmp_path, "workload.concurrency=0,-1")
    assert done.returncode == 2, done.stderr
    assert "error: job 0: workload.concurrency=0 is too small" in done.stderr
    assert "error: job 1: workload.concurrency=-1 is too small" in done.stderr


def test_failed_and_killed_in_other_processes(tmp_path: Path) -> None:
    done = _elsewhere(tmp_path, "seed=1,2", WP1_TEST_DIES_AT="3", WP1_TEST_KILLED="1")
    assert done.returncode == 1, done.stderr
    assert "failed: job 0: engine agg-0 died: killed by the test" in done.stderr
    assert "failed: job 1: ended without a result" in done.stderr


def test_all_fine_in_other_processes(tmp_path: Path) -> None:
    done = _elsewhere(tmp_path, "seed=1")
    assert done.returncode == 0, done.stderr
    assert "failed" not in done.stderr


@pytest.mark.parametrize(("dies_at", "words", "code"), [(None, "1,2", 0), (3, "1,2", 1), (None, "-1,-2", 2)])
def test_exit_codes_under_hydras_own_launcher(
    command: Command, double: type[DoubleBackend], tmp_path: Path, dies_at: int | None, words: str, code: int
) -> None:
    double.dies_at = dies_at
    basic = ("-m", "hydra/launcher=basic", f"root={tmp_path}", *TINY, *QUIET)
    found, said, _ = command(*basic, f"seed={words}")
    assert found == code, said
    told = {0: [], 1: ["failed: job 0: engine agg-0 died", "failed: job 1: engine agg-0 died"]}
    for line in told.get(code, ["error: job 0: seed=-1 is too small", "error: job 1: seed=-2 is too small"]):
        assert line in said


def test_a_launcher_that_fails_itself_is_no_bad_input(tmp_path: Path) -> None:
    done = _elsewhere(tmp_path, "seed=1,2", WP1_TEST_KILLED="0", WP1_TEST_RAISES="1")
    assert done.returncode == 1, done.stderr
    assert "failed: job 0: ended without a result" in done.stderr
    assert "failed: RuntimeError: a worker was killed (in hydra/launcher or hydra/sweeper)" in done.stderr


def test_what_jobs_left_says_how_they_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = tmp_path.name
    for number, status in enumerate(("completed", "failed", "running", "interrupted", "completed")):
        (tmp_path / str(number)).mkdir()
        left = {"status": status, "reason": "no memory", "sweep": {"job": number, "name": name}}
        write_json(tmp_path / str(number) / "run_metadata.json", left)
    refused = {"job": 4, "overrides": [], "status": "refused", "reason": "seed=-1 is too small"}
    write_json(tmp_path / "4" / "job.json", refused)
    (tmp_path / "1" / "job.json").write_text("{")
    begun = callbacks._Begun(os.getpid(), tmp_path, 7, ended_here={6})
    monkeypatch.setattr(callbacks, "_begun", [begun])
    found = callbacks.failed_elsewhere()
    assert [type(error) for error in found] == [WP1Error, WP1Error, KeyboardInterrupt, ConfigError, WP1Error]
    assert [str(error) for error in found[:2]] == ["job 1: no memory", "job 2: killed before it ended"]
    assert str(found[3]) == "job 4: seed=-1 is too small"
    assert str(found[4]).startswith("job 5: ended without a result")


def test_a_sweeper_of_another_kind_that_left_nothing_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(callbacks, "_begun", [callbacks._Begun(os.getpid(), tmp_path, None)])
    (error,) = callbacks.failed_elsewhere()
    assert "no job left anything" in str(error)
