"""Ensures that no process, shared memory or socket of an engine outlives its run, however the run ends.

vLLM spawns its engine processes, and they keep running if the process that started them is killed. A killed engine also
leaves its shared memory behind. So a run marks its processes by an environment variable that every descendant inherits,
and gives them a folder for temporary files. A small watcher process in its own session holds one end of a pipe. When
the run's process ends, even by kill -9, the pipe closes; the watcher then kills every process with the mark and removes
its shared memory and the folder. If the watcher was killed too, a later run removes the folder: the run and its watcher
both hold a lock on it while they live.

This file is also the watcher (`python guard.py TOKEN FOLDER`), so it imports only the standard library.
"""

import fcntl
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

MARK = "WP1_RUN_TOKEN"
WATCH_PERIOD_S = 2.0
# A younger folder may belong to a run that is about to lock it.
STALE_AFTER_S = 60.0

# One folder for all runs of this process, because vLLM may remember the path.
_TEMPORARY = tempfile.gettempdir()
# A socket's path may have 107 characters, and vLLM's names in this folder take 36.
_SCRATCH = Path(_TEMPORARY if len(_TEMPORARY) <= 40 else "/tmp") / f"wp1-{os.getpid()}-{secrets.token_hex(4)}"


class ProcessGuard:
    """Context in which the processes started by this one carry a mark and do not outlive it."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._watcher: subprocess.Popen[bytes] | None = None
        self._lock = -1
        self._before: dict[str, str | None] = {}

    def __enter__(self) -> "ProcessGuard":
        remove_stale(_SCRATCH.parent)
        _SCRATCH.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(_SCRATCH, os.O_RDONLY)
        fcntl.flock(self._lock, fcntl.LOCK_SH)  # shared with another guard of this process
        environment = {
            MARK: self.token,
            # Keeps setproctitle, which vLLM uses, from overwriting /proc/PID/environ.
            "SPT_NOENV": "1",
            "TMPDIR": str(_SCRATCH),
            "VLLM_RPC_BASE_PATH": str(_SCRATCH),
            "TORCHINDUCTOR_CACHE_DIR": os.environ.get("TORCHINDUCTOR_CACHE_DIR") or str(_compiled()),
        }
        self._before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.token, str(_SCRATCH)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=[self._lock],
            env={},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._watcher is not None
        assert self._watcher.stdin is not None
        # The same cleanup as after this process is killed, so that there is only one path to get right.
        self._watcher.stdin.close()
        self._watcher.wait()
        os.close(self._lock)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def kill(self) -> None:
        """Kills every marked process now."""
        kill_marked(self.token)


def _compiled() -> Path:
    """Folder in wp1's cache where torch keeps compiled code from run to run. Torch unpickles what it finds there.

    Torch's default is a predictable name in the shared temporary folder, which another user could create first.
    """
    cache = os.environ.get("WP1_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wp1"
    folder = base.expanduser() / "torchinductor"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home folder, or it cannot be written
        return _SCRATCH / "torchinductor"
    return folder


def remove_stale(folder: Path) -> None:
    """Removes folders left by this user's runs whose process and watcher were both killed."""
    for scratch in folder.glob("wp1-*-*"):
        name = re.fullmatch(r"wp1-(\d+)-[0-9a-f]{8}", scratch.name)
        # Both checks are needed. A pid that is unused here may be in use in another container, and a folder made by an
        # older version of wp1 has no lock.
        if name is None or Path("/proc", name[1]).exists():
            continue
        try:
            info = scratch.lstat()
            if info.st_uid != os.getuid() or time.time() - info.st_mtime < STALE_AFTER_S:
                continue
            lock = os.open(scratch, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:  # already removed by its own watcher, or not a folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        else:
            shutil.rmtree(scratch, ignore_errors=True)
        finally:
            os.close(lock)


def marked(token: str) -> list[int]:
    """Pids of the processes whose environment carries the mark with this token, except our own."""
    needle = f"{MARK}={token}".encode()
    pids = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    pids.append(int(entry.name))
            except OSError:  # it has ended, or belongs to another user
                continue
    return pids


def kill_marked(token: str, rounds: int = 50) -> None:
    """Sends SIGKILL to marked processes until none is left, as one may be starting another.

    Gives up after `rounds` x 0.1 s. Also removes their shared memory: the watcher looks only every WATCH_PERIOD_S and
    may have missed segments created since.
    """
    segments: set[str] = set()
    for _ in range(rounds):
        pids = marked(token)
        if not pids:
            break
        segments |= shared_memory(pids)
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)
    for segment in segments:
        Path(segment).unlink(missing_ok=True)


def shared_memory(pids: Iterable[int]) -> set[str]:
    """Paths of shared memory that these processes created or mapped: Python's segments and joblib's semaphores."""
    segments = set()
    for pid in pids:
        segments |= {str(path) for path in Path("/dev/shm").glob(f"sem.loky-{pid}-*")}
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        segments |= {line[line.index("/dev/shm/psm_") :].split()[0] for line in lines if "/dev/shm/psm_" in line}
    return segments


def watch(token: str, scratch: Path) -> None:
    """Main function of the watcher: waits until the run's process closes the pipe or ends, then cleans up after it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    segments: set[str] = set()
    running = True
    while running:
        running = not select.select([sys.stdin], [], [], WATCH_PERIOD_S)[0]
        # Collected all the time, because an engine may be dead before the cleanup begins.
        segments |= shared_memory(marked(token))
    kill_marked(token)
    for segment in segments:
        Path(segment).unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]))
