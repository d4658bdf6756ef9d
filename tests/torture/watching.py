"""What a torture case observes of a run: its phase, the roles of its processes, and what it leaves behind."""

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
    """The case could not be set up, which says nothing about wp1."""


def until(what: str, holds: Callable[[], Any], run: UserRun, within_s: float = PHASE_WITHIN_S) -> Any:
    """Waits until `holds` returns something true, and returns that.

    Raises MissedError, naming `what`, if the run ends first or `within_s` has passed.
    """
    deadline = time.monotonic() + within_s
    while not (value := holds()):
        if run.process.poll() is not None:
            code, output = run.finish()
            raise MissedError(f"the run ended with {code} before {what}: {output[-400:]!r}")
        if time.monotonic() > deadline:
            raise MissedError(f"no {what} in {within_s:g} s")
        time.sleep(POLL_S)
    return value


def folder_of(run: UserRun) -> Path | None:
    return next((run.root / "outputs").glob("run-*"), None)


def metadata_of(run: UserRun) -> dict[str, Any]:
    """run_metadata.json as it is now, or {} if it does not exist yet."""
    folder = folder_of(run)
    try:
        return {} if folder is None else json.loads((folder / "run_metadata.json").read_text())
    except FileNotFoundError:
        return {}


def rows_of(run: UserRun, arm: str | None = None, warmup: bool = False) -> list[dict[str, Any]]:
    """Rows of records.jsonl, without a torn last line."""
    folder = folder_of(run)
    path = None if folder is None else folder / "records.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path is not None and path.exists() else []
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if row["warmup"] == warmup and arm in (None, row["arm"])]


def victims(run: UserRun, role: str) -> list[int]:
    """Ids of the processes with that role (main, core or worker), in the order in which they were started."""
    if role == "main":
        return [run.process.pid]
    title = {"core": "EngineCore", "worker": "Worker"}[role]
    return sorted(pid for pid, command in run.processes().items() if re.match(rf"VLLM::.*{title}", command))


def wait_for_phase(run: UserRun, phase: str, arm: str, role: str) -> int:
    """Waits until the arm is in the phase. Returns the id of the process with that role, to be killed."""

    def started() -> bool:
        return arm in [start["arm"] for start in metadata_of(run).get("starts", [])]

    if phase == "starting":
        starting = until("an engine that starts", lambda: victims(run, "core" if role == "main" else role), run)
        if started():
            raise MissedError("the engine had already started")
        return run.process.pid if role == "main" else starting[0]
    until("engines that have started", started, run)
    if phase == "warm-up":
        until("the warm-up", lambda: rows_of(run, arm, warmup=True), run)
        if rows_of(run, arm):
            raise MissedError("the warm-up had already ended")
    elif phase == "measuring":
        until("records", lambda: len(rows_of(run, arm)) >= 3, run)
        if any(json.loads(line)["arm"] == arm for line in cells_of(run)):
            raise MissedError("a repeat had already been measured completely")
    else:
        until("the report", lambda: metadata_of(run).get("ended"), run)
    # In E3 the prefill engine loses its worker, and the decode engine its core.
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
    """Processes, folders and shared memory that ended runs have left, after a wait for them to clean up.

    The name of shared memory does not show its owner, so memory that any living process has mapped is not counted.
    """
    deadline = time.monotonic() + GONE_WITHIN_S
    while (leftovers := _left(runs, shared_before)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return leftovers


def _left(runs: list[UserRun], shared_before: set[str]) -> list[str]:
    leftovers = []
    for run in runs:
        leftovers += [f"process {pid} {command[:60]}" for pid, command in run.processes().items()]
        scratch = f"wp1-{run.process.pid}-"
        leftovers += [str(path) for path in Path(tempfile.gettempdir()).glob(f"{scratch}*")]
        leftovers += [f"watcher {pid}" for pid, command in _commands().items() if scratch in command]
    new = shared_memory() - shared_before
    return leftovers + sorted(f"/dev/shm/{name}" for name in new - (_mapped() if new else set()))


def _commands() -> dict[int, str]:
    commands = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                commands[int(entry.name)] = Path(entry.path, "cmdline").read_text().replace("\0", " ")
            except OSError:
                continue
    return commands


def _mapped() -> set[str]:
    """Names in /dev/shm that any living process has mapped or open."""
    names = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            names |= set(re.findall(r"/dev/shm/(\S+)", Path(entry.path, "maps").read_text()))
            links = [str(link.readlink()) for link in Path(entry.path, "fd").iterdir()]
        except OSError:
            continue
        names |= {link.removeprefix("/dev/shm/") for link in links if link.startswith("/dev/shm/")}
    return names
