"""Faults other than kills: disk, store, clock, hub, files, a second signal, and two runs at once."""

import contextlib
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.records import read_records
from tests.torture import watching
from tests.torture.case import E0, Case, Result, Stage, ended, kept, resumes
from tests.user_run import REPO, TINY_SHAPE
from wp1.core.paths import cache_folder
from wp1.model.models import BUNDLED_PIN

E0_PUBLISHED = (*(word for word in E0 if word != "tracking=none"), "tracking.timeout_s=3")
CLOCK = Path(__file__).with_name("clock.c")


def cases() -> list[Case]:
    return [
        Case("disk-full", "disk full while records are written (a small tmpfs, filled)", "measuring", _disk_full),
        Case("store-locked", "MLflow's store locked by another process", "publishing", _store_locked),
        Case("two-at-once", "two runs at once: one store, one cache, one root; NIXL's ports", "all", _two_at_once, 2),
        Case("clock-back", "clock set back an hour (a preloaded clock_gettime)", "measuring", _clock_back),
        Case("sigint-twice", "SIGINT twice, 0.3 s apart", "measuring", _sigint_twice),
        Case("hub-hangs-model", "a hub that accepts connections and never answers: model", "preparing", _hub_model),
        Case(
            "hub-hangs-dataset", "a hub that accepts connections and never answers: dataset", "preparing", _hub_dataset
        ),
        Case("weights-truncated", "a model folder with a truncated weights file", "preparing", _weights_truncated),
        Case(
            "dataset-unreadable", "a dataset that cannot be read: not text, a folder", "preparing", _dataset_unreadable
        ),
    ]


@contextmanager
def _small_disk() -> Iterator[Path]:
    """A file system of 1 MiB. Raises MissedError if mounting is not permitted."""
    folder = Path(tempfile.mkdtemp(prefix="wp1-torture-"))
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "wp1-torture", str(folder)]
    mounted = subprocess.run(command, check=False, capture_output=True, text=True)
    try:
        if mounted.returncode != 0:
            raise watching.MissedError(f"a small disk needs permission to mount: {mounted.stderr.strip()}")
        yield folder
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def _disk_full(stage: Stage) -> Result:
    result = Result()
    with _small_disk() as disk:
        run = stage.start(*E0, f"root={disk}")
        watching.wait_for_phase(run, "measuring", "agg", "main")
        filler = disk / "filler"
        with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
        ended(run, result, 1, r"^failed: .*(No space left on device|disk)")
        kept(run, result, 3)
        stage.end(result)
        filler.unlink()
        resumes(stage, run, result, 48)
        stage.end(result)
        for other in stage.runs:
            other.kill()
    return result


def _store_locked(stage: Stage) -> Result:
    """This process holds the database's write lock while the run tries to publish."""
    result = Result()
    with contextlib.closing(sqlite3.connect(stage.root / "mlflow.db", isolation_level=None)) as store:
        store.execute("BEGIN EXCLUSIVE")
        run = stage.start(*E0_PUBLISHED)
        ended(run, result, 0, r"^not in MLflow .*locked.*wp1\.track")
        store.execute("ROLLBACK")
    kept(run, result, 48)
    stage.end(result)
    command = [sys.executable, "-m", "wp1.track", str(watching.folder_of(run))]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=REPO)
    result.expect(done.returncode == 0, f"wp1.track ended with exit code {done.returncode}: {done.stderr[-300:]!r}")
    result.resumed = "published later by wp1.track"
    return result


def _two_at_once(stage: Stage) -> Result:
    """Two pools in each run, so that ports and sockets can collide, and one empty cache that both fill."""
    result = Result()
    overrides = (
        *TINY_SHAPE,
        "scheduler=disagg",
        "transfer=nixl_push",
        "workload.output_len=8",
        "tracking.timeout_s=30",
    )
    runs = [stage.start(*overrides, WP1_CACHE=str(stage.root / "cache")) for _ in range(2)]
    codes = []
    for run in runs:
        ended(run, result, 0, None, within_s=400)
        codes.append(result.code)
    result.code = " and ".join(codes)
    folders = sorted((stage.root / "outputs").glob("run-*"))
    counts = [len([r for r in read_records(f / "records.jsonl") if not r.warmup and r.status == "ok"]) for f in folders]
    result.kept = " and ".join(map(str, counts)) + " answered"
    result.expect(counts == [12, 12], f"answered: {counts}")
    result.expect(len(_published(stage.root)) == 2, f"MLflow has the runs {_published(stage.root)}")
    result.message = "both reports, both in MLflow"
    stage.end(result)
    return result


def _published(root: Path) -> list[str]:
    query = "SELECT DISTINCT value FROM tags WHERE key = 'run_id'"
    with contextlib.closing(sqlite3.connect(root / "mlflow.db")) as store:
        return [row[0] for row in store.execute(query)]


def _clock_back(stage: Stage) -> Result:
    """A preloaded library answers calls for the wall clock, in the engines too. The real clock is not changed."""
    result = Result()
    library, flag = stage.root / "clock.so", stage.root / "back"
    compiler = shutil.which("cc")
    if compiler is None:
        raise watching.MissedError("cc is needed for a clock that can be set back")
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, CLOCK, "-ldl"], check=True)
    run = stage.start(*E0_PUBLISHED, LD_PRELOAD=str(library), WP1_TORTURE_CLOCK=str(flag))
    watching.wait_for_phase(run, "measuring", "agg", "main")
    flag.touch()
    ended(run, result, 0, None)
    result.message = "the same as without it"
    kept(run, result, 48)
    metadata = watching.metadata_of(run)
    went_back = metadata["ended"] < metadata["started"]
    result.expect(went_back, f"the clock did not go back: {metadata['started']} to {metadata['ended']}")
    rows = read_records(stage.runs[0].run_dir / "records.jsonl")
    late = [r.request_id for r in rows if not (r.t_intended <= r.t_tokens[0] <= (r.t_end or 0) < r.t_intended + 100)]
    result.expect(not late, f"the times of {late} are not from a monotonic clock")
    result.expect(len(_published(stage.root)) == 1, "the run is not in MLflow")
    stage.end(result)
    return result


def _sigint_twice(stage: Stage) -> Result:
    result = Result()
    run = stage.start(*E0)
    watching.wait_for_phase(run, "measuring", "agg", "main")
    for pause in (0.3, 0):
        # As a terminal does: to every process in the foreground.
        os.killpg(run.process.pid, signal.SIGINT)
        time.sleep(pause)
    ended(run, result, 130, r"^interrupted")
    kept(run, result, 3)
    stage.end(result)
    resumes(stage, run, result, 48)
    stage.end(result)
    return result


@contextmanager
def _silent_hub() -> Iterator[dict[str, str]]:
    """A server that accepts connections and never answers. Yields the environment variables that point to it."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server, tempfile.TemporaryDirectory() as cache:
        held = []

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    held.append(server.accept())

        threading.Thread(target=accept, daemon=True).start()
        port = server.getsockname()[1]
        yield {"HF_ENDPOINT": f"http://127.0.0.1:{port}", "HF_HOME": cache, "no_proxy": "127.0.0.1"}
        server.shutdown(socket.SHUT_RDWR)


def _hub_model(stage: Stage) -> Result:
    return _hub(stage, "model=qwen25_7b")


def _hub_dataset(stage: Stage) -> Result:
    return _hub(stage, "experiment=e4", "dataset=longbench", "dataset.tasks=[qasper]")


def _hub(stage: Stage, *overrides: str) -> Result:
    with _silent_hub() as environment:
        return _refused(stage, r"^error: the hub at .* did not answer in 10 s", *overrides, **environment)


def _weights_truncated(stage: Stage) -> Result:
    """A copy of the bundled model's folder, which `make run` unpacks, with half of the weights file."""
    source, folder = cache_folder() / "models" / BUNDLED_PIN.replace("==", "-"), stage.root / "model"
    if not source.is_dir():
        raise watching.MissedError("the bundled model is not unpacked yet: run `make run` first")
    folder.mkdir()
    for file in source.iterdir():
        shutil.copy(file, folder)
    weights = next(folder.glob("*.safetensors"))
    os.truncate(weights, weights.stat().st_size // 2)
    return _refused(stage, r"^error: .*model\.safetensors is not a complete safetensors file", f"model.path={folder}")


def _dataset_unreadable(stage: Stage) -> Result:
    """A file that is not UTF-8, and a folder in place of a file. Permissions are not tested: root may read anything."""
    binary = stage.root / "rows.jsonl"
    binary.write_bytes(b'{"question": "\xff\xfe"}\n')
    result = _refused(stage, r"^error: dataset.path=.* is not a file", "dataset=file", f"dataset.path={stage.root}")
    second = _refused(stage, r"^error: .*rows\.jsonl:1 is not UTF-8 text", "dataset=file", f"dataset.path={binary}")
    second.wrong = result.wrong + second.wrong
    return second


def _refused(stage: Stage, pattern: str, *overrides: str, **environment: str) -> Result:
    """Expects the run to be refused with a line that matches `pattern`, before it has a folder."""
    result = Result()
    run = stage.start(*overrides, "tracking=none", **environment)
    ended(run, result, 2, pattern)
    result.kept = "none: no engine was started"
    result.expect(watching.folder_of(run) is None, "it left a run folder")
    stage.end(result)
    return result
