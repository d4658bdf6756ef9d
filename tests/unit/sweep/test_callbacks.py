"""Whole sweeps through the command line, with the engine double as backend."""

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.double import DoubleBackend
from tests.unit.conftest import Sweep
from wp1 import track as track_command
from wp1.analysis.sweep import figures as sweep_tables
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.identity import PARENT_VARIABLE
from wp1.core.run_folder import read_json
from wp1.runner.reports import make_comparison
from wp1.track import track, track_sweep
from wp1.tracking import mlflow_store


def artifacts_of(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


@pytest.mark.painted
def test_a_sweep_of_two_schedulers_is_one_run_with_its_comparison(sweep: Sweep) -> None:
    done = sweep("scheduler=agg,disagg")
    assert done.code == 0
    assert done.table["scheduler"].to_list() == ["agg", "disagg"]
    assert done.table["requests_ok"].to_list() == [12, 12]

    parent, children = done.parent, done.children()
    assert parent.info.status == "FINISHED"
    # A busy machine makes wp1 late.
    assert set(parent.data.tags["labels"].split(", ")) - {"client late"} == {"random weights"}
    assert parent.data.tags["overrides"].endswith("scheduler=agg,disagg")
    assert parent.data.tags["command"].startswith("python -m wp1 -m ")
    assert sorted(child.data.tags["job"] for child in children) == ["0", "1"]
    names = {path.name for path in artifacts_of(parent).iterdir()}
    assert names == {
        "comparison.md", "comparison.html", "comparison.csv", "comparison_pairs.csv", "comparison.png", "sweep.json",
    }  # fmt: skip
    assert "data:image/png;base64," in (artifacts_of(parent) / "comparison.html").read_text()
    description = parent.data.tags["mlflow.note.content"]
    assert "2 of 2 jobs completed" in description and "artifacts/comparison.html" in description
    assert all(f"/runs/{child.info.run_id}" in description for child in children)

    page = (done.folder / "comparison.md").read_text()
    assert "## scheduler=disagg against scheduler=agg" in page
    assert "random weights" in page
    report = done.folder.parents[1] / "outputs" / "reports" / f"{done.table['run_id'][0]}.md"
    assert "scheduler=agg\n" in report.read_text()
    assert re.search(r"^compared .*/comparison\.md$", done.said, re.MULTILINE)
    assert re.search(r"^mlflow   wp1-e0/e0 sweep scheduler=agg,disagg \d\d:\d\d in ", done.said, re.MULTILINE)
    assert done.manifest["status"] == "completed"

    # Made again, it is the same; of jobs that have lost records none is made.
    assert make_comparison(done.folder).read_text() == page
    records = done.folder / "1" / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"1/records\.jsonl has 11 of the 12 measured requests"):
        make_comparison(done.folder)
    assert (done.folder / "comparison.md").read_text() == page


def test_the_parent_is_known_to_a_run_that_is_published_later(sweep: Sweep) -> None:
    done = sweep("seed=1,2")
    run_dir = done.folder / "0"
    assert read_json(run_dir / "run_metadata.json")["parent_run_id"] == done.parent.info.run_id
    assert read_json(run_dir / "run_metadata.json")["sweep"]["overrides"][-1] == "seed=1"
    track(run_dir, done.store)
    assert len(done.children()) == 2


UNTRACKED = ("tracking=none", "tracking.uri=", "experiment.repeats=1", "experiment.same_tokens=false")


def test_a_sweep_can_be_published_later_and_again(sweep: Sweep) -> None:
    done = sweep("scheduler=agg,disagg", *UNTRACKED)
    assert done.folder.name not in done.runs()
    first = list(track_sweep(done.folder, done.store))
    assert [re.sub(r" \d\d:\d\d.*", "", place) for place in first] == [
        "wp1-e0/e0 agg llama31_8b_shape job 0",
        "wp1-e0/e0 disagg llama31_8b_shape job 1",
        "wp1-e0/e0 sweep scheduler=agg,disagg",
    ]
    assert {*done.table["run_id"], done.folder.name} <= set(done.runs())
    parent = done.parent
    names = {path.name for path in artifacts_of(parent).iterdir()}
    assert {"comparison.html", "comparison.png", "sweep.json"} <= names
    before = {run.info.run_id for run in done.children()}
    assert list(track_sweep(done.folder, done.store)) == first
    assert (done.parent.info.run_id, done.parent.info.status) == (parent.info.run_id, "FINISHED")
    after = {run.info.run_id for run in done.children()}
    assert len(after) == 2 and not after & before
    description = done.parent.data.tags["mlflow.note.content"]
    assert all(f"/runs/{run}" in description for run in after)


def test_a_sweep_that_was_killed_and_copied_is_published_from_where_it_lies(sweep: Sweep, tmp_path: Path) -> None:
    done = sweep("seed=1,2", *UNTRACKED)
    copied = Path(shutil.copytree(done.folder, tmp_path / "elsewhere" / "sweep"))
    for name in ("comparison.md", "comparison.png"):
        (copied / name).unlink()
    for path in (copied / "sweep.json", copied / "1" / "run_metadata.json"):
        path.write_text(json.dumps(read_json(path) | {"status": "running", "ended": None}))
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if "elsewhere" not in path.parts}
    with (copied / "1" / "records.jsonl").open("a"), pytest.raises(WP1Error, match="a sweep still running in process"):
        next(track_sweep(copied, done.store))
    places = list(track_sweep(copied, done.store))
    assert len(places) == 3
    assert (done.parent.info.status, read_json(copied / "sweep.json")["status"]) == ("FAILED", "failed")
    assert sorted(run.info.status for run in done.children()) == ["FAILED", "FINISHED"]
    text = (artifacts_of(done.parent) / "comparison.md").read_text()
    assert "1 of 2 jobs completed" in text
    assert f"0/reports/{read_json(copied / '0' / 'run_metadata.json')['run_id']}.md" in text
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_cannot_be_published_does_not_keep_the_others_from_it(
    sweep: Sweep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    done = sweep("seed=1,2", *UNTRACKED)
    folders = [tmp_path / "none", done.folder / "1", done.folder / "0"]
    monkeypatch.setattr(sys, "argv", ["wp1.track", *map(str, folders), "--uri", done.store])
    with pytest.raises(SystemExit) as left:
        track_command.main()
    assert left.value.code == 2
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 2
    errors = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and str(tmp_path / "none") in errors[0]
    assert set(done.table["run_id"]) <= set(done.runs())


def test_a_job_that_is_refused_or_fails_is_a_row_and_fails_the_sweep(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = double.__aenter__

    async def sometimes(self: DoubleBackend) -> DoubleBackend:
        if self.settings["seed"] == 2:
            raise RuntimeError("no such device")
        return await start(self)

    monkeypatch.setattr(double, "__aenter__", sometimes)
    done = sweep("seed=1,2,-3")
    assert done.code == 1
    assert done.table["status"].to_list() == ["completed", "failed", "refused"]
    reasons = done.table["reason"].to_list()
    assert "no such device" in reasons[1] and "seed=-3" in reasons[2] and "job 2" not in reasons[2]
    assert done.parent.info.status == "FAILED"
    assert sorted(child.info.status for child in done.children()) == ["FAILED", "FINISHED"]
    assert "1 of 3 jobs completed" in (done.folder / "comparison.md").read_text()


def interrupt(double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Ctrl-C while the job with this seed starts its engine."""
    start = double.__aenter__

    async def press(self: DoubleBackend) -> DoubleBackend:
        if self.settings["seed"] == seed:
            os.kill(os.getpid(), signal.SIGINT)
        return await start(self)

    monkeypatch.setattr(double, "__aenter__", press)


def test_ctrl_c_in_the_middle_ends_the_sweep_and_its_run(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(double, monkeypatch, seed=2)
    done = sweep("seed=1,2,3")
    assert done.code == 130
    assert done.table["status"].to_list() == ["completed", "interrupted", "not started"]
    assert (done.parent.info.status, done.manifest["status"]) == ("KILLED", "interrupted")
    assert (
        "**Without a plot**, as the sweep was interrupted" in (artifacts_of(done.parent) / "comparison.md").read_text()
    )
    assert not (done.folder / "comparison.png").exists()


def test_a_second_ctrl_c_leaves_no_run_open(
    sweep: Sweep, double: type[DoubleBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    def pressed(folder: Path, with_plot: bool) -> Path:
        raise KeyboardInterrupt

    interrupt(double, monkeypatch, seed=1)
    monkeypatch.setattr("wp1.analysis.sweep.report.write_comparison", pressed)
    done = sweep("seed=1,2")
    assert done.code == 130
    assert done.parent.info.status == "KILLED"


def test_a_termination_between_engines_ends_the_sweep_and_its_run(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives while no event loop handles it: a job manager may send it at any moment."""
    publish = mlflow_store.publish_or_say

    def ended(*words: Any) -> str | None:
        os.kill(os.getpid(), signal.SIGTERM)
        return publish(*words)

    monkeypatch.setattr(mlflow_store, "publish_or_say", ended)
    done = sweep("seed=1,2")
    assert done.code == 130
    assert done.parent.info.status == "KILLED"
    assert done.table["status"].to_list() == ["completed", "not started"]


def test_a_comparison_that_cannot_be_made_is_one_line(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(folder: Path, with_plot: bool) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("wp1.analysis.sweep.report.write_comparison", full)
    done = sweep("seed=1,2")
    assert done.code == 0
    assert len(re.findall("no comparison of the jobs: OSError: .*No space left", done.said)) == 1
    assert "Traceback" not in done.said
    assert done.parent.info.status == "FINISHED"


def test_a_full_disk_leaves_no_run_open(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    write = sweep_tables.write_manifest

    def full(folder: Path, manifest: dict[str, Any]) -> None:
        if manifest["status"] != "running":
            raise OSError(28, "No space left on device")
        write(folder, manifest)

    monkeypatch.setattr(sweep_tables, "write_manifest", full)
    assert sweep("seed=1,2").parent.info.status == "FINISHED"


def test_a_parent_of_the_users_own_is_not_closed_as_the_sweeps(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PARENT_VARIABLE, "0" * 32)
    done = sweep("seed=1,2", "tracking=none", "tracking.uri=")
    assert "mlflow" not in done.said.lower()
    assert read_json(done.folder / "0" / "run_metadata.json")["parent_run_id"] == "0" * 32


def test_a_server_that_is_down_costs_one_line_and_no_run(sweep: Sweep) -> None:
    done = sweep("seed=1,2", "tracking.uri=http://127.0.0.1:9", "tracking.timeout_s=2")
    assert done.code == 0
    assert len(re.findall("not in MLflow .*The sweep continues", done.said)) == 1
    assert done.table["status"].to_list() == ["completed", "completed"]
    assert done.manifest["parent_run_id"] is None


def test_without_tracking_there_is_a_comparison_all_the_same(sweep: Sweep) -> None:
    done = sweep("seed=1,2", "tracking=none", "tracking.uri=")
    assert done.code == 0
    assert done.table["status"].to_list() == ["completed", "completed"]
    assert not {done.folder.name} & set(done.runs())


def test_a_bad_uri_is_refused_by_each_job(sweep: Sweep) -> None:
    done = sweep("seed=1,2", "tracking.uri=nonsense")
    assert done.code == 2
    assert done.said.count("tracking.uri=nonsense: not a store") == 2


def test_a_sweep_of_bad_jobs_alone_opens_nothing(sweep: Sweep) -> None:
    done = sweep("seed=-1,-2")
    assert done.code == 2
    assert [path.name for path in done.folder.iterdir()] == ["multirun.yaml"]


def test_a_sweep_that_leaves_no_run_leaves_none_in_mlflow(sweep: Sweep) -> None:
    """Refused after the configuration's own check, where the model is known."""
    done = sweep("seed=1,2", "model.max_len=300")
    assert done.code == 2
    assert done.folder.name not in done.runs()
    assert done.runs("all")[done.folder.name].info.lifecycle_stage == "deleted"
    assert not (done.folder / "comparison.md").exists()


def test_a_job_that_cannot_be_composed_stops_the_sweep_before_it_begins(sweep: Sweep) -> None:
    done = sweep("model=llama31_8b_shape,nonsense")
    assert done.code == 2
    assert "model=nonsense does not exist" in done.said
    assert done.folder.name not in done.runs()


def test_what_hydra_cannot_compose_is_left_to_hydra_to_say(sweep: Sweep, recwarn: pytest.WarningsRecorder) -> None:
    """The bundled model has no architecture in its configuration, and Hydra asserts where one is to have a key."""
    done = sweep("model=smollm2_135m,llama31_8b_shape")
    assert done.code == 2
    assert not [warning for warning in recwarn if "SweepCallback" in str(warning.message)]


def test_the_parent_lives_in_the_experiment_of_the_first_job(sweep: Sweep) -> None:
    done = sweep("experiment.name=first,second")
    experiments = {run.data.tags.get("job"): run.info.experiment_id for run in [done.parent, *done.children()]}
    assert len(done.children()) == 2
    assert experiments[None] == experiments["0"] != experiments["1"]
    description = done.parent.data.tags["mlflow.note.content"]
    assert all(f"/runs/{child.info.run_id}" in description for child in done.children())


def test_an_outer_mlflow_run_catches_neither_parent_nor_jobs(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    done = sweep("seed=1,2")
    assert (done.code, len(done.children())) == (0, 2)
