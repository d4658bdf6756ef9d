"""One process at a time writes into a folder, and a killed one holds no lock."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from wp1.core import locks

HOLD = """
import sys, time
from pathlib import Path
from wp1.core import locks
with locks.written(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Any:
    """Another process that holds the folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_folder_that_another_process_writes_is_refused_in_one_line(other: Any, tmp_path: Path) -> None:
    said = r"is being written by another process: wait for it, or end it$"
    with pytest.raises(locks.BusyError, match=said), locks.written(tmp_path, within_s=0.2):
        pass


def test_a_killed_process_holds_no_lock(other: Any, tmp_path: Path) -> None:
    os.kill(other.pid, signal.SIGKILL)
    begin = time.monotonic()
    with locks.written(tmp_path):
        assert time.monotonic() - begin < locks.WITHIN_S
    assert list(tmp_path.iterdir()) == []


def test_a_process_may_ask_again_for_what_it_holds(tmp_path: Path) -> None:
    with locks.written(tmp_path):
        with locks.written(tmp_path / "." / ""):
            pass
        with pytest.raises(BlockingIOError):
            _try(tmp_path)
    _try(tmp_path)


def test_a_commands_locks_are_released_at_its_end(tmp_path: Path) -> None:
    with locks.command():
        locks.hold(tmp_path)
        with pytest.raises(BlockingIOError):
            _try(tmp_path)
    _try(tmp_path)


def test_if_folders_cannot_be_locked_a_file_in_them_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flock = fcntl.flock

    def of_nfs(descriptor: int, how: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):  # noqa: PTH112
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", of_nfs)
    with locks.written(tmp_path), (tmp_path / locks.FILE).open() as file, pytest.raises(BlockingIOError):
        flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _try(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
