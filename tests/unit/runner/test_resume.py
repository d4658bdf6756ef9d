"""Resuming runs and sweeps that were interrupted at any point: the result equals that of an uninterrupted one."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig

from tests import REPO
from tests.conftest import Compose
from tests.double import TINY
from tests.records import read_records
from tests.unit.conftest import Command
from wp1.core import progress
from wp1.core.errors import ConfigError
from wp1.core.run_folder import read_config, read_json
from wp1.runner import resume
from wp1.runner.console import Screen
from wp1.runner.outcome import Outcome
from wp1.runner.run import run

RUN_ID = "run-20260101T000000Z-00000000"
E3 = (
    "experiment=e3",
    "experiment.prompt_lens=[32,64]",
    "experiment.request_rates=[0,200]",
    "experiment.repeats=2",
    "workload.num_requests=3",
    "workload.num_warmup=1",
    "workload.output_len=4",
)
Answers = dict[str, tuple[Any, ...]]


def answers(run_dir: Path) -> Answers:
    """The results that an uninterrupted run would leave too: everything but times and paths."""
    found = [record for record in read_records(run_dir / "records.jsonl") if not record.warmup]
    rows = {r.request_id: (r.status, r.seed, r.prompt_tokens, r.output_tokens, *r.token_ids) for r in found}
    assert len(rows) == len(found), "a request is there twice"
    return rows


def go(cfg: DictConfig, run_dir: Path, resuming: bool = False) -> Outcome:
    with Screen() as screen:
        return run(cfg, run_dir, RUN_ID, screen, resuming=resuming)


# The command line of another process, whose engines are doubles. Of the line WP1_TEST_KILL_AT it writes a half.
CHILD = """
import os, signal, sys
from tests.double import fresh, unpainted
from wp1.analysis.base import style
from wp1.core.jsonl import RecordWriter
from wp1.serving import vllm_backend
backend = fresh()
backend.gap_s = 0.01
vllm_backend.VLLMBackend = backend
style.save = unpainted
write, lines = RecordWriter.write, []
def write_or_die(self, record):
    lines.append(record)
    if len(lines) == int(os.environ.get("WP1_TEST_KILL_AT", 0)):
        self._file.write('{"request_id": "half')
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, record)
RecordWriter.write = write_or_die
from tests import REPO
from wp1.main import main
sys.argv = ["wp1", *sys.argv[1:]]
main()
"""


def child(*words: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *words],
        cwd=REPO,
        env=os.environ | environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def unbroken() -> Answers:
    """The results of an uninterrupted run; filled by the first test that makes one."""
    return {}


@pytest.mark.parametrize("count", [2, pytest.param(40, marks=pytest.mark.painted), 90])
def test_a_run_killed_anywhere_ends_as_an_unbroken_one(
    config: Compose, double: Any, tmp_path: Path, unbroken: Answers, count: int
) -> None:
    words = (*TINY, *E3, "tracking=none", "tracking.uri=")
    process = child(f"root={tmp_path}", *words, WP1_TEST_KILL_AT=str(count))
    said, _ = process.communicate(timeout=200)
    assert process.returncode == -signal.SIGKILL, said
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    assert read_json(run_dir / "run_metadata.json")["status"] == "running"
    before = len(progress.read(run_dir))

    outcome = go(config(*words), run_dir, resuming=True)
    assert (outcome.status, outcome.reason) == ("completed", None)
    if not unbroken:
        unbroken |= answers(go(config(*words), tmp_path / "outputs" / "whole").run_dir)
    assert answers(run_dir) == unbroken
    assert (run_dir / "artifacts" / "e3_mode_comparison.csv").is_file()
    metadata = read_json(run_dir / "run_metadata.json")
    (resumed,) = metadata["resumed"]
    # Completed repeats were not measured again.
    assert (resumed["was"], resumed["kept"]) == ("running", before)
    assert len((run_dir / "cells.jsonl").read_text().splitlines()) == 2 * 4 * 2


def test_a_complete_run_that_lost_what_says_so_keeps_its_records(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY, "experiment.same_tokens=false")
    run_dir = tmp_path / "outputs" / RUN_ID
    go(cfg, run_dir)
    records = (run_dir / "records.jsonl").read_bytes()
    (run_dir / "cells.jsonl").unlink()
    with pytest.raises(
        ConfigError, match=r"is complete but has no cells\.jsonl, .* restore that file from a copy, or make"
    ):
        go(cfg, run_dir, resuming=True)
    assert (run_dir / "records.jsonl").read_bytes() == records


def test_a_repeat_that_was_cut_short_is_put_apart_and_measured_again(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    cfg = config(*TINY, "experiment.same_tokens=false")
    run_dir = tmp_path / "outputs" / RUN_ID
    go(cfg, run_dir)
    lines = (run_dir / "records.jsonl").read_text().splitlines(keepends=True)
    cells = (run_dir / "cells.jsonl").read_text().splitlines(keepends=True)
    # As killed after three requests of the second repeat, with half of a fourth on disk.
    (run_dir / "records.jsonl").write_text("".join(lines[:-3]) + lines[-3][:50])
    (run_dir / "cells.jsonl").write_text("".join(cells[:-1]))
    mark(run_dir, "running")
    assert go(cfg, run_dir, resuming=True).status == "completed"
    apart = (run_dir / "records.apart.jsonl").read_text().splitlines()
    assert len(apart) == 4
    assert {json.loads(line)["repeat"] for line in apart[:-1]} == {1}
    assert len(answers(run_dir)) == 12


def mark(run_dir: Path, status: str) -> None:
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps(read_json(path) | {"status": status, "ended": None}))


def test_a_cell_in_which_an_engine_died_is_measured_again(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY, "experiment.same_tokens=false", "experiment.repeats=1")
    double.dies_at = 5
    run_dir = tmp_path / "outputs" / RUN_ID
    assert go(cfg, run_dir).status == "failed"
    double.dies_at = None
    outcome = go(cfg, run_dir, resuming=True)
    assert (outcome.status, outcome.reason) == ("completed", None)
    assert {row[0] for row in answers(run_dir).values()} == {"ok"}
    assert "engine agg-0 died" in (run_dir / "records.apart.jsonl").read_text()


def test_kv_that_a_dead_engine_did_not_fetch_does_not_fail_the_run_that_goes_on(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def kv_free(self: Any) -> bool:
        return all(engine.alive for engine in self.peers.values())

    monkeypatch.setattr(double, "kv_free", kv_free)
    monkeypatch.setattr("wp1.runner.measure.KV_FREE_WITHIN_S", 0.0)
    cfg = config(*TINY, "scheduler=disagg", "experiment.same_tokens=false", "experiment.repeats=1")
    double.dies_at = 5
    run_dir = tmp_path / "outputs" / RUN_ID
    assert go(cfg, run_dir).status == "failed"
    double.dies_at = None
    outcome = go(cfg, run_dir, resuming=True)
    assert (outcome.status, outcome.reason) == ("completed", None)


def test_a_run_with_nothing_left_starts_no_engine(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY)
    run_dir = tmp_path / "outputs" / RUN_ID
    go(cfg, run_dir)
    mark(run_dir, "running")
    (run_dir / "summary.json").unlink()
    assert go(cfg, run_dir, resuming=True).status == "completed"
    assert double.started == ["agg-0"]
    assert (run_dir / "summary.json").is_file()


def test_a_run_that_was_killed_while_its_report_was_written_is_not_complete(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    cfg = config(*TINY)
    run_dir = tmp_path / "outputs" / RUN_ID
    outcome = go(cfg, run_dir)
    assert outcome.report is not None
    assert resume.is_complete(run_dir, outcome.report.parent)
    outcome.report.unlink()
    assert not resume.is_complete(run_dir, outcome.report.parent)
    assert go(cfg, run_dir, resuming=True).report == outcome.report
    assert resume.is_complete(run_dir, outcome.report.parent)


def test_moments_of_another_boot_lie_before_those_of_this_one(config: Compose, double: Any, tmp_path: Path) -> None:
    cfg = config(*TINY, "experiment.same_tokens=false")
    run_dir = tmp_path / "outputs" / RUN_ID
    go(cfg, run_dir)
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps(read_json(path) | {"status": "failed", "boot": "another"}))
    (run_dir / "device.jsonl").write_text('{"t": 1.0, "device": "host"}\n{"t": 2')
    kept = len(answers(run_dir))
    assert go(cfg, run_dir, resuming=True).status == "completed"
    assert len(answers(run_dir)) == kept
    (moved,) = read_json(path)["boots"]
    assert moved["boot"] == "another"
    first = json.loads((run_dir / "device.jsonl").read_text().splitlines()[0])
    assert first["t"] == pytest.approx(1.0 + moved["moved_s"])
    # No time of the first boot is one that this boot's clock can have.
    assert all(record.t_intended < 0 for record in read_records(run_dir / "records.jsonl"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m | {"config_hash": "0" * 64}, "another model or other data"),
        (lambda m: m | {"versions": m["versions"] | {"torch": "1.0"}}, "torch was 1.0"),
        (lambda m: m | {"hardware": m["hardware"] | {"cpu": "abacus"}}, "hardware was abacus"),
    ],
)
def test_another_machine_or_other_data_is_refused(
    config: Compose, double: Any, tmp_path: Path, change: Any, message: str
) -> None:
    cfg = config(*TINY)
    run_dir = tmp_path / "outputs" / RUN_ID
    go(cfg, run_dir)
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps(change(read_json(path)) | {"status": "failed"}))
    records = (run_dir / "records.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=message):
        go(cfg, run_dir, resuming=True)
    assert (run_dir / "records.jsonl").read_bytes() == records


def test_another_configuration_is_refused_and_says_how(config: Compose, double: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    resume.check_same(config(*TINY, "++tags.a=b", "tracking.timeout_s=3", "backend.startup_timeout_s=5"), run_dir)
    with pytest.raises(ConfigError, match=r"seed was 42 and is 7; workload\.output_len was 4 and is 9\. Put that back"):
        resume.check_same(config(*TINY, "seed=7", "workload.output_len=9"), run_dir)
    with pytest.raises(ConfigError, match=r"slo\.ttft_ms was not set and is "):
        resume.check_same(config(*TINY, "slo=interactive"), run_dir)


def test_a_sweep_killed_in_the_middle_goes_on(command: Command, tmp_path: Path) -> None:
    words = [
        f"root={tmp_path}", *TINY, "experiment.same_tokens=false", "workload.output_len=3,4,5", "workload.num_warmup=1",
        f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
    ]  # fmt: skip
    process = child("-m", *words)
    deadline = time.monotonic() + 120
    while len(list(tmp_path.glob("multirun/*/1/cells.jsonl"))) < 1:
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    (folder,) = (tmp_path / "multirun").iterdir()
    assert read_json(folder / "sweep.json")["status"] == "running"
    records = (folder / "0" / "records.jsonl").read_bytes()
    parent = read_json(folder / "sweep.json")["parent_run_id"]

    code, said, _ = command(f"resume={folder}", "seed=3")
    assert code == 2, said
    assert "seed was 42 and is 3" in said

    code, said, _ = command(f"resume={folder}")
    assert code == 0, said
    assert f"{folder}/0 is complete" in said
    assert (folder / "0" / "records.jsonl").read_bytes() == records
    assert read_json(folder / "sweep.json")["status"] == "completed"
    done = [read_json(folder / str(n) / "run_metadata.json") for n in range(3)]
    assert {job["status"] for job in done} == {"completed"}
    assert [len(job["resumed"]) for job in done] == [0, 1, 0]
    assert set(done[2]["sweep"]["overrides"]) == {
        word.replace("output_len=3", "output_len=5") for word in done[0]["sweep"]["overrides"]
    }

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert read_json(folder / "sweep.json")["parent_run_id"] == parent
    assert client.get_run(parent).info.status == "FINISHED"
    _, said, _ = command(f"resume={folder}")
    assert said.count("is complete") == 3


MANIFEST: dict[str, Any] = {
    "command": ["wp1", "-m", "seed=1,2"], "root": "/somewhere", "jobs": [["seed=1"], ["seed=2"]], "status": "running",
    "tracking": {"enabled": False}, "parent_run_id": None,
}  # fmt: skip


def test_an_empty_word_names_no_folder() -> None:
    """It would mean the current folder."""
    for word in ("resume=", "resume=''"):
        with pytest.raises(ConfigError, match="resume= is empty"):
            resume.arguments([word])


def test_a_folder_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    told = {
        tmp_path: "has no run_metadata.json",
        tmp_path / "file": "is not a folder",
        tmp_path / "none": "does not exist",
    }
    for folder, why in told.items():
        with pytest.raises(ConfigError, match=rf"^resume={folder} {why}.*: name the folder of a run, .* sweep"):
            resume.arguments([f"resume={folder}"])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({key: value for key, value in MANIFEST.items() if key != "root"}, "sweep.json has no root: restore"),
        ({key: value for key, value in MANIFEST.items() if key != "jobs"}, "sweep.json has no jobs: restore"),
        (MANIFEST | {"root": 5}, "sweep.json: root=5 must be a folder"),
        (MANIFEST | {"command": "wp1 -m"}, "sweep.json: command must be a list of strings"),
        ([], "sweep.json cannot be read (it is not an object)"),
    ],
)
def test_what_a_sweep_s_file_lacks_is_named(tmp_path: Path, content: Any, said: str) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError) as refused:
        resume.arguments([f"resume={tmp_path}"])
    assert f"{tmp_path}/{said}" in str(refused.value)


@pytest.mark.parametrize(
    ("file", "key", "said"),
    [
        ("config.yaml", "root", "config.yaml has no root"),
        ("config.yaml", "workload.prompts", "config.yaml has no workload.prompts"),
        ("run_metadata.json", "command", "run_metadata.json has no command"),
        ("run_metadata.json", "status", "run_metadata.json has no status"),
    ],
)
def test_what_a_run_s_file_lacks_is_named(
    config: Compose, double: Any, tmp_path: Path, file: str, key: str, said: str
) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    # JSON is YAML.
    content = read_config(run_dir) if file == "config.yaml" else read_json(run_dir / file)
    group, _, name = key.rpartition(".")
    del (content[group] if group else content)[name]
    (run_dir / file).write_text(json.dumps(content))
    # Refused before anything is composed, or when the configuration is compared with a completed run's records.
    with pytest.raises(ConfigError, match=re.escape(f"{run_dir}/{said}: restore it from a copy")):
        resume.arguments([f"resume={run_dir}"])
        resume.check_same(config(*TINY), run_dir)


@pytest.mark.parametrize("method", ["is_file", "open"])
def test_a_folder_that_may_not_be_read_is_one_line(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    """As root, whom tests may run as, everything may be read."""
    run_dir = tmp_path / "outputs" / RUN_ID
    cfg = config(*TINY)
    go(cfg, run_dir)

    opened = os.open

    def refuse(path: Any, flags: int = 0, *rest: Any, **more: Any) -> int:
        if flags & os.O_DIRECTORY:  # of the lock
            return opened(path, flags, *rest, **more)
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as shut:
        shut.setattr(*((Path, "is_file") if method == "is_file" else (os, "open")), refuse)
        with pytest.raises(ConfigError, match=rf"^(resume=)?{run_dir}\S* cannot be read \(Permission denied\): "):
            resume.arguments([f"resume={run_dir}"])
        if method != "is_file":
            with pytest.raises(ConfigError, match=rf"^{run_dir}/\S+ cannot be read \(Permission denied\): "):
                resume.check_same(cfg, run_dir)


def test_a_run_that_has_lost_lines_does_not_go_on(config: Compose, double: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    records = run_dir / "records.jsonl"
    records.write_text("".join(records.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match=r"records\.jsonl has \d+ of the \d+ measured requests that cells\.jsonl has"):
        resume.check_same(config(*TINY), run_dir)


def test_metadata_that_a_run_would_add_to_is_there_before_an_engine_starts(
    config: Compose, double: Any, tmp_path: Path
) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    path = run_dir / "run_metadata.json"
    path.write_text(json.dumps({key: value for key, value in read_json(path).items() if key != "kv_held"}))
    started = list(double.started)
    with pytest.raises(ConfigError, match=r"run_metadata\.json has no kv_held"):
        go(config(*TINY), run_dir, resuming=True)
    assert double.started == started


def test_the_folder_speaks_for_itself(config: Compose, double: Any, tmp_path: Path) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    path = run_dir / "run_metadata.json"
    command = ["wp1", f"root={tmp_path}", "workload.output_len=4", "hydra.run.dir=x", "model=llama31_8b_shape"]
    path.write_text(json.dumps(read_json(path) | {"command": command}))
    assert resume.arguments([f"resume={run_dir}", "model=qwen25_7b_shape"]) == [
        f"root={tmp_path}",
        "workload.output_len=4",
        "model=qwen25_7b_shape",
        f"resume='{run_dir}'",
        f"hydra.run.dir='{run_dir}'",
    ]


def test_options_may_have_been_typed_last(tmp_path: Path) -> None:
    manifest = MANIFEST | {"command": ["wp1", "seed=1,2", "-m"], "root": str(tmp_path)}
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    words = resume.arguments([f"root={tmp_path}", f"resume={tmp_path}"])
    assert words[:3] == ["-m", "seed=1,2", f"root={tmp_path}"]


def test_a_folder_that_is_being_written_is_refused(
    config: Compose, double: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "outputs" / RUN_ID
    go(config(*TINY), run_dir)
    monkeypatch.setattr(resume, "GONE_WITHIN_S", 0.1)
    with subprocess.Popen(["sleep", "30"], stdout=(run_dir / "records.jsonl").open("a")) as process:
        with pytest.raises(ConfigError, match=f"is still running in process {process.pid}"):
            resume.arguments([f"resume={run_dir}"])
        process.kill()


def test_of_two_that_go_on_at_once_one_is_refused(tmp_path: Path) -> None:
    process = child(f"root={tmp_path}", *TINY, *E3, "tracking=none", "tracking.uri=", WP1_TEST_KILL_AT="40")
    process.communicate(timeout=200)
    (run_dir,) = (tmp_path / "outputs").glob("run-*")
    both = [child(f"resume={run_dir}") for _ in range(2)]
    said = [process.communicate(timeout=300)[0] for process in both]
    codes = [process.returncode for process in both]
    # If the first process had finished before the second one started, nothing is left for the second.
    assert sorted(codes) == [0, 2] or "is complete: nothing is left" in "".join(said), said
    for code, words in zip(codes, said, strict=True):
        if code == 2:
            assert re.search(rf"error: resume={run_dir} is still running in (another )?process.*: wait for it", words)
    assert len(answers(run_dir)) == 2 * 4 * 2 * 3
    assert len((run_dir / "cells.jsonl").read_text().splitlines()) == 2 * 4 * 2
    assert len(read_json(run_dir / "run_metadata.json")["resumed"]) == 1


@pytest.mark.parametrize(
    "word",
    [
        "hydra.launcher._target_=os.system",
        "+hydra.callbacks.x._target_=os.system",
        "hydra/launcher=evil",
        "hydra.searchpath=[file:///tmp]",
        "--config-dir=evil",
        "-cd",
        "--experimental-rerun=x.pickle",
        "++tags.x=${oc.env:HOME}",
        "workload.output_len=${oc.env:HOME}",
        "backend.engine.trust_remote_code=true",
        "++backend.engine.worker_cls=evil.Worker",
        "++backend.engine.kv_transfer_config={kv_connector_module_path: evil}",
        "backend.engine={worker_cls: evil.Worker}",
        "scheduler._target_=evil.Scheduler",
        "+collectors.x._target_=evil.Collector",
        "+collectors.x={_target_: evil.Collector}",
        "collectors={x: {_target_: evil.Collector}}",
        "scheduler={_target_: evil.Scheduler}",
        "+arms.x={_target_: evil.Scheduler}",
        "transfer.environment.LD_PRELOAD=/tmp/evil.so",
        "++transfer.extra.backends=[evil]",
        "tracking.uri=http://evil.example",
        "tracking.uri=sqlite:////home/somebody/mlflow.db",
        "+tracking={uri: http://evil.example}",
        "experiment=../../evil",
        "experiment@_global_=evil",
        "backend.engine.hf_token=REDACTED",
    ],
)
def test_what_of_a_folder_s_command_could_run_code_or_send_secrets_has_to_be_typed(tmp_path: Path, word: str) -> None:
    folder = tmp_path / "multirun" / "x"
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(
        json.dumps(MANIFEST | {"command": ["wp1", "-m", "seed=1,2", word], "root": str(tmp_path)})
    )
    with pytest.raises(ConfigError, match=r"its command has .*(beside resume=|Start a new run)$"):
        resume.arguments([f"resume={folder}"])
    if "=" in word and not word.startswith("-"):
        # Typed beside resume=, it is its user's.
        typed = f"{word.lstrip('+').partition('=')[0]}=mine"
        assert typed in resume.arguments([f"resume={folder}", typed])


def test_what_a_folder_s_command_sets_of_wp1_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "multirun" / "x"
    folder.mkdir(parents=True)
    words = [
        "scheduler=agg,disagg", "backend.engine.max_num_seqs=32", "~collectors.device", "model.path=/models/a",
        "experiment.prompt_lens=[32,64]", "tracking=none", "tracking.uri=", f"tracking.uri=sqlite:///{tmp_path}/mlflow.db",
        "transfer.timeout_s=5", "++tags.note=a b", "arms.agg.replicas=2", "slo=interactive",
    ]  # fmt: skip
    (folder / "sweep.json").write_text(json.dumps(MANIFEST | {"command": ["wp1", "-m", *words], "root": str(tmp_path)}))
    taken = resume.arguments([f"resume={folder}"])
    assert taken[: len(words) + 1] == ["-m", *words]


def test_a_folder_from_elsewhere_does_not_say_where_things_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WP1_ROOT", str(tmp_path / "mine"))
    manifest = MANIFEST | {"command": ["wp1", "-m", "root=/somewhere", "seed=1,2"], "root": "/somewhere"}
    (tmp_path / "sweep.json").write_text(json.dumps(manifest))
    assert "root=/somewhere" not in resume.arguments([f"resume={tmp_path}"])
    assert os.environ["WP1_ROOT"] == str(tmp_path / "mine")


def test_a_folder_with_a_link_in_it_does_not_go_on(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps(MANIFEST))
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "engine.log").symlink_to("/tmp/elsewhere")
    with pytest.raises(ConfigError, match=r"0/engine\.log is a link"):
        resume.arguments([f"resume={tmp_path}"])
