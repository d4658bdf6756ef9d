"""What a torture case sees of a run: which phase it is in, which of its processes is which, and what it left behind."""

import json
import os
import re
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.user_run import UserRun

POLL_S = 0.02
PHASE_WITHIN_S = 240.0
GONE_WITHIN_S = 15.0


class MissedError(Exception):
    """The case could not be brought about: says nothing about wp1."""


def until(what: str, holds: Callable[[], Any], run: UserRun, within_s: float = PHASE_WITHIN_S) -> Any:
    """Waits for it and returns it. Raises MissedError where the run ends before, or it takes too long."""
    deadline = time.monotonic() + within_s
    while not (found := holds()):
        if run.process.poll() is not None:
            code, output = run.finish()
            raise MissedError(f"the run ended with {code} before {what}: {output[-400:]!r}")
        if time.monotonic() > deadline:
            raise MissedError(f"no {what} in {within_s:g} s")
        time.sleep(POLL_S)
    return found


def folder_of(run: UserRun) -> Path | None:
    return next((run.root / "outputs").glob("run-*"), None)


def metadata_of(run: UserRun) -> dict[str, Any]:
    """run_metadata.json as it is now; {} before there is one."""
    folder = folder_of(run)
    try:
        return {} if folder is None else json.loads((folder / "run_metadata.json").read_text())
    except FileNotFoundError:
        return {}


def rows_of(run: UserRun, arm: str | None = None, warmup: bool = False) -> list[dict[str, Any]]:
    """Whole lines of records.jsonl."""
    folder = folder_of(run)
    path = None if folder is None else folder / "records.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path is not None and path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["warmup"] == warmup and arm in (None, row["arm"])]


def victims(run: UserRun, role: str) -> list[int]:
    """Processes of that role (main, core or worker), in the order in which they were started."""
    if role == "main":
        return [run.process.pid]
    title = {"core": "EngineCore", "worker": "Worker"}[role]
    return sorted(pid for pid, command in run.processes().items() if re.match(rf"VLLM::.*{title}", command))


def wait_for_phase(run: UserRun, phase: str, arm: str, role: str) -> int:
    """Until the arm is in the phase; returns the process of that role to do something to."""

    def started() -> bool:
        return arm in [start["arm"] for start in metadata_of(run).get("starts", [])]

    if phase == "starting":
        found = until("an engine that starts", lambda: victims(run, "core" if role == "main" else role), run)
        if started():
            raise MissedError("the engine was up already")
        return run.process.pid if role == "main" else found[0]
    until("engines that are up", started, run)
    if phase == "warm-up":
        until("the warm-up", lambda: rows_of(run, arm, warmup=True), run)
        if rows_of(run, arm):
            raise MissedError("the warm-up was over already")
    elif phase == "measuring":
        until("records", lambda: len(rows_of(run, arm)) >= 3, run)
        if any(json.loads(line)["arm"] == arm for line in cells_of(run)):
            raise MissedError("a repeat was measured to its end already")
    else:
        until("the report", lambda: metadata_of(run).get("ended"), run)
    # Of E3's two engines the one that prefills loses its worker, the one that decodes its core.
    return victims(run, role)[-1 if role == "core" else 0]


def cells_of(run: UserRun) -> list[str]:
    folder = folder_of(run)
    path = None if folder is None else folder / "cells.jsonl"
    return path.read_text().splitlines() if path is not None and path.exists() else []


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def shared_memory() -> set[str]:
    return {entry.name for entry in os.scandir("/dev/shm")}


def left_behind(runs: list[UserRun], shared_before: set[str]) -> list[str]:
    """What is still there of runs that have ended, once they have had time to clear up: processes, folders, memory.

    Shared memory has no owner in its name, so what another case's living processes have mapped is not counted here.
    """
    deadline = time.monotonic() + GONE_WITHIN_S
    while (found := _left(runs, shared_before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _left(runs: list[UserRun], shared_before: set[str]) -> list[str]:
    found = []
    for run in runs:
        found += [f"process {pid} {command[:60]}" for pid, command in run.processes().items()]
        scratch = f"wp1-{run.process.pid}-"
        found += [str(path) for path in Path(tempfile.gettempdir()).glob(f"{scratch}*")]
        found += [f"watcher {pid}" for pid, command in _commands().items() if scratch in command]
    new = shared_memory() - shared_before
    return found + sorted(f"/dev/shm/{name}" for name in new - (_mapped() if new else set()))


def _commands() -> dict[int, str]:
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                found[int(entry.name)] = Path(entry.path, "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return found


def _mapped() -> set[str]:
    """Names in /dev/shm that some living process has mapped or open."""
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            found |= set(re.findall(r"/dev/shm/(\S+)", Path(entry.path, "maps").read_text()))
            links = [str(link.readlink()) for link in Path(entry.path, "fd").iterdir()]
        except OSError:
            continue
        found |= {link.removeprefix("/dev/shm/") for link in links if link.startswith("/dev/shm/")}
    return found
