"""No engine outlives its run, however the run ends.

vLLM starts its engine processes by spawning, and they keep running when the process that asked for them is killed.
So a run marks them by an environment variable that every descendant inherits, and a small watcher process, in a session
of its own, holds one end of a pipe: when the run's process ends, even by kill -9, the pipe closes and the watcher kills
whatever still carries the mark.

This file is also the watcher (`python guard.py TOKEN`), so it imports nothing but the standard library.
"""

import os
import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

MARK = "WP1_RUN_TOKEN"


class ProcessGuard:
    """Between enter and exit, processes started by this one carry a mark and do not outlive it."""

    def __init__(self) -> None:
        self.token = secrets.token_hex(16)
        self._watcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "ProcessGuard":
        os.environ[MARK] = self.token
        # setproctitle, which vLLM uses, writes over /proc/PID/environ unless told not to.
        os.environ["SPT_NOENV"] = "1"
        self._watcher = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__, self.token],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env={},
        )
        return self

    def __exit__(self, *_: object) -> None:
        kill_marked(self.token)
        os.environ.pop(MARK, None)
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.wait()

    def pids(self) -> list[int]:
        """The marked processes that are alive."""
        return marked(self.token)

    def kill(self) -> None:
        """Ends every marked process now."""
        kill_marked(self.token)


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
    """SIGKILLs marked processes until none is left, as one may be starting another; gives up after `rounds` x 0.1 s."""
    for _ in range(rounds):
        pids = marked(token)
        if not pids:
            return
        for pid in pids:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        time.sleep(0.1)


def watch(token: str) -> None:
    """The watcher's whole life: waits until the run's process has ended, then clears up after it."""
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)
    while os.read(sys.stdin.fileno(), 1):
        pass
    kill_marked(token)


if __name__ == "__main__":
    watch(sys.argv[1])
