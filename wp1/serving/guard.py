"""Nothing of an engine outlives its run, however the run ends: no process, no shared memory, no socket.

vLLM starts its engine processes by spawning, and they keep running when the process that asked for them is killed; a
killed engine also leaves its shared memory behind. So a run marks what it starts by an environment variable that every
descendant inherits, and gives it a folder for temporary files. A small watcher process, in a session of its own, holds
one end of a pipe: when the run's process ends, even by kill -9, the pipe closes, and the watcher kills whatever still
carries the mark and removes what it left. Where that was killed too, the next run removes the folder: both hold a lock
on it for as long as they live.

This file is also the watcher (`python guard.py TOKEN FOLDER`), so it imports nothing but the standard library.
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
# A younger folder may be a run's that is just about to lock it.
STALE_AFTER_S = 60.0

# One for all runs of this process, as vLLM may remember it.
_TEMPORARY = tempfile.gettempdir()
# A socket's path may have 107 characters, and vLLM's names in here have 36.
_SCRATCH = Path(_TEMPORARY if len(_TEMPORARY) <= 40 else "/tmp") / f"wp1-{os.getpid()}-{secrets.token_hex(4)}"


class ProcessGuard:
    """Between enter and exit, processes started by this one carry a mark and do not outlive it."""

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
            # setproctitle, which vLLM uses, writes over /proc/PID/environ unless told not to.
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
        # The same way out as when this process is killed: there is only one to get right.
        self._watcher.stdin.close()
        self._watcher.wait()
        os.close(self._lock)
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def kill(self) -> None:
        """Ends every marked process now."""
        kill_marked(self.token)


def _compiled() -> Path:
    """Where torch keeps compiled code from run to run, which it reads as pickles: beside wp1's models.

    Torch's own choice is a name in the common folder for temporary files, which anybody could take before us.
    """
    cache = os.environ.get("WP1_CACHE")
    base = Path(cache) if cache else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "wp1"
    folder = base.expanduser() / "torchinductor"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # no home, or none that can be written
        return _SCRATCH / "torchinductor"
    return folder


def remove_stale(folder: Path) -> None:
    """Removes the folders of runs of this user that ended without anybody left to clear up after them."""
    for scratch in folder.glob("wp1-*-*"):
        named = re.fullmatch(r"wp1-(\d+)-[0-9a-f]{8}", scratch.name)
        # A process of that number may be another container's, so a dead one is not enough to go by, nor is a free lock:
        # a folder may have been made by a version of wp1 that took none.
        if named is None or Path("/proc", named[1]).exists():
            continue
        try:
            found = scratch.lstat()
            if found.st_uid != os.getuid() or time.time() - found.st_mtime < STALE_AFTER_S:
                continue
            lock = os.open(scratch, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
        except OSError:  # removed by its own watcher, or no folder
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
    """Processes whose environment carries the mark with this token; our own process never does."""
    needle = f"{MARK}={token}".encode()
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if needle in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:  # gone, or somebody else's
                continue
    return found


def kill_marked(token: str, rounds: int = 50) -> None:
    """SIGKILLs marked processes until none is left, as one may be starting another; gives up after `rounds` x 0.1 s.

    Removes their shared memory too: the watcher, which looks now and then, may not have seen what is younger.
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
    """Shared memory that these processes have made or mapped: Python's segments, and joblib's semaphores."""
    found = set()
    for pid in pids:
        found |= {str(path) for path in Path("/dev/shm").glob(f"sem.loky-{pid}-*")}
        try:
            lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        except OSError:
            continue
        found |= {line[line.index("/dev/shm/psm_") :].split()[0] for line in lines if "/dev/shm/psm_" in line}
    return found


def watch(token: str, scratch: Path) -> None:
    """The watcher's whole life: waits until the run's process closes the pipe or ends, then clears up after it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    segments: set[str] = set()
    running = True
    while running:
        running = not select.select([sys.stdin], [], [], WATCH_PERIOD_S)[0]
        # Looked up again and again, as an engine may be dead by the time that we are to clear up after it.
        segments |= shared_memory(marked(token))
    kill_marked(token)
    for segment in segments:
        Path(segment).unlink(missing_ok=True)
    shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    watch(sys.argv[1], Path(sys.argv[2]))
