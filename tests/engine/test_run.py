"""Whole runs as a user starts them: their results, and what is left when they are ended in various ways."""

import json
import os
import signal
import subprocess
import sys

from tests.engine.conftest import Start
from tests.user_run import REPO, TINY_SHAPE, UserRun
from wp1.core.run_folder import read_json

# More requests than any test waits for, so that a run is never complete when a test ends it.
LONG = ("workload.num_requests=5000", "tracking=none")


def test_e0_from_the_command_line(start: Start) -> None:
    run = start()
    code, output = run.finish()
    assert code == 0, output
    assert "same seed, same tokens: 6 of 6" in output
    assert "Paris" in output
    records = [record for record in run.records() if not record.warmup]
    assert [record.status for record in records] == ["ok"] * 12
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert metadata["status"] == "completed"
    # On a busy machine wp1 may send late.
    assert set(metadata["labels"]) <= {"client late"}
    assert metadata["run_id"] == run.run_dir.name
    page = (run.root / "outputs" / "reports" / f"{metadata['run_id']}.md").read_text()
    assert "Paris" in page
    device = read_json(run.run_dir / "summary.json")["profiling"]["device"]["devices"]["host"]
    # The weights are in memory, and the engine computes.
    assert device["memory_gib_peak"] > 0.5
    assert device["utilisation_percent_mean"] > 50
    _is_in_mlflow(run, "FINISHED")
    run.wait_until_gone()


def test_random_weights_serve_token_ids_and_are_labelled(start: Start) -> None:
    run = start(*TINY_SHAPE, "workload.output_len=8", "workload.temperature=0")
    code, output = run.finish()
    assert code == 0, output
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert set(metadata["labels"]) - {"client late"} == {"random weights"}
    assert "random weights" in (run.root / "outputs" / "reports" / f"{metadata['run_id']}.md").read_text()
    records = [record for record in run.records() if not record.warmup]
    assert all(record.output_tokens > 0 and record.text == "" for record in records)
    # The control requests were sent, although there is no tokenizer.
    again = [json.loads(line) for line in (run.run_dir / "control.jsonl").read_text().splitlines()]
    assert again and all(len(line["margins"]) == line["output_tokens"] for line in again)
    # The prompt is the question's bytes.
    assert records[0].prompt_tokens == len("What is the capital of France?")
    assert "random weights" in _is_in_mlflow(run, "FINISHED").data.tags["labels"]


def test_e2_with_a_search_from_the_command_line(start: Start) -> None:
    lists = ("experiment.prompt_lens=[64,256]", "experiment.concurrencies=[1,3]", "experiment.repeats=2")
    search = ("experiment.goodput_budget_s=8", "experiment.arrivals_s=1")
    run = start("experiment=e2", *TINY_SHAPE, *lists, *search, "tracking=none")
    code, output = run.finish()
    assert code == 0, output
    summary = read_json(run.run_dir / "summary.json")
    rows = summary["by_load"]["rows"]
    assert [row["cell"] for row in rows] == ["64-conc1", "64-conc3", "256-conc1", "256-conc3"]
    # The engine reports the use of its KV cache. MFU and MBU are relative to a peak measured here.
    assert all(0 < row["kv_use_peak"] < 1 and row["preemptions"] == 0 for row in rows)
    assert all(0 < row["mfu"]["value"] < 1.5 and 0 < row["mbu"]["value"] < 1.5 for row in rows)
    assert rows[1]["batch"]["value"] > 1
    assert [search["prompt_len"] for search in summary["goodput"]] == [64, 256]
    assert all(search["path"] for search in summary["goodput"])
    assert "## Goodput" in (run.root / "outputs" / "reports" / f"{run.run_dir.name}.md").read_text()


def test_an_engine_that_hangs_at_startup_is_killed_and_its_last_lines_are_shown(start: Start) -> None:
    run = start("backend.startup_timeout_s=4", "tracking=none")
    code, output = run.finish()
    assert code == 1
    assert "engine agg-0 was not up after 4 s (backend.startup_timeout_s); its last lines:" in output
    assert read_json(run.run_dir / "run_metadata.json")["status"] == "failed"
    run.wait_until_gone()


def test_unknown_engine_arguments_are_refused_before_an_engine_starts(start: Start) -> None:
    run = start("backend.engine.max_num_seq=4")
    code, output = run.finish()
    assert code == 2
    assert "error: backend.engine.max_num_seq is not an argument of vLLM's engine: did you mean max_num_seqs" in output
    assert list((run.root / "outputs").glob("run-*")) == []


def test_kill_9_of_the_run_leaves_no_engine_and_keeps_the_records(start: Start) -> None:
    run = start(*LONG)
    run.wait_for_records(3)
    assert len(run.processes()) >= 3
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait()
    run.wait_until_gone()
    before = len(run.records())
    assert before >= 3
    # The partial run can be reported and published.
    for module in ("wp1.report", "wp1.track"):
        command = [sys.executable, "-m", module, str(run.run_dir)]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPO)
        assert done.returncode == 0, done.stderr
    assert (run.root / "outputs" / "reports" / f"{run.run_dir.name}.md").exists()
    _is_in_mlflow(run, "FAILED")


def test_ctrl_c_ends_the_run_cleanly(start: Start) -> None:
    run = start(*LONG)
    run.wait_for_records(3)
    # A terminal sends it to every foreground process, including the engines.
    os.killpg(run.process.pid, signal.SIGINT)
    code, output = run.finish()
    assert code == 130, output
    assert "interrupted" in output
    run.wait_until_gone()
    records = run.records()
    assert records[-1].status == "aborted"
    assert {record.status for record in records[:-1]} == {"ok"}
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert metadata["status"] == "interrupted"
    assert (run.root / "outputs" / "reports" / f"{metadata['run_id']}.md").exists()


def test_an_engine_killed_in_the_middle_fails_the_run(start: Start) -> None:
    run = start(*LONG)
    run.wait_for_records(3)
    worker = [pid for pid, command in run.processes().items() if "Worker" in command]
    assert worker, run.processes()
    os.kill(worker[0], signal.SIGKILL)
    code, output = run.finish()
    assert code == 1, output
    # vLLM logs no exit code if it looks before the system has one. Then the cause of the worker's end may be unknown.
    log = (run.run_dir / "engine.log").read_text(errors="replace")
    how = "was killed by SIGKILL (by the system if memory ran out)" if "(exit code: -9)" in log else "ended"
    died_of = f"engine agg-0 died: its worker {how}"
    assert f"failed: {died_of}\n" in output
    run.wait_until_gone()
    records = run.records()
    assert records[2].status == "ok"
    died = [record for record in records if record.status == "error"]
    assert died
    assert {(record.cause, record.error) for record in died} == {("engine_died", died_of)}
    assert sum(record.t_sent is not None for record in died) == 1
    metadata = read_json(run.run_dir / "run_metadata.json")
    assert metadata["status"] == "failed"
    assert metadata["reason"] == died_of
    summary = json.loads((run.run_dir / "summary.json").read_text())
    assert summary["profiling"]["latency"]["overall"]["failed"] == len(died)


def _is_in_mlflow(run: UserRun, status: str):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{run.root}/mlflow.db")
    experiment = client.get_experiment_by_name("wp1-e0")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.level = 'run'")
    assert [run_.data.tags["run_id"] for run_ in runs] == [run.run_dir.name]
    assert runs[0].info.status == status
    return runs[0]
