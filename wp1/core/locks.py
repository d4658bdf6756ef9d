"""Lets only one process at a time write into a folder, by a lock that the kernel drops however the process ends.

Runs and sweeps hold the lock from their first file to their last, and so do commands that write into their folders. The
lock is on the folder itself. If the file system does not support that (NFS), it is on a file `wp1.lock` in the folder.
"""

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wp1.core import files
from wp1.core.errors import WP1Error

FILE = "wp1.lock"
# Time to wait for a killed process's children to exit, and for a report that another process is writing.
WITHIN_S = 10.0
# By folder: the descriptor with this process's lock, and how often it was acquired.
_held: dict[Path, tuple[int, int]] = {}
# Folders whose lock is held until the command ends.
_of_command: list[Path] = []


class BusyError(WP1Error):
    """Another process is writing into the folder; `who` names it."""

    def __init__(self, folder: Path, who: str) -> None:
        super().__init__(f"{folder} is being written by {who}: wait for it, or end it")
        self.who = who


@contextmanager
def written(folder: Path, within_s: float = WITHIN_S) -> Iterator[None]:
    """Context in which no other process writes into the folder. This process may nest it.

    within_s: seconds to wait for another process. Raises BusyError if that is not enough; OSError if the folder cannot
    be opened or its file system has no locks.
    """
    resolved = _acquire(folder, within_s)
    try:
        yield
    finally:
        _release(resolved)


def _acquire(folder: Path, within_s: float) -> Path:
    resolved = folder.resolve()
    descriptor, count = _held.get(resolved) or (_locked(resolved, folder, within_s), 0)
    _held[resolved] = descriptor, count + 1
    return resolved


def _release(resolved: Path) -> None:
    descriptor, count = _held.pop(resolved)
    if count > 1:
        _held[resolved] = descriptor, count - 1
    else:
        os.close(descriptor)


def hold(folder: Path, within_s: float = WITHIN_S) -> None:
    """Like `written`, but until the end of the surrounding `command`. Raises like `written`."""
    _of_command.append(_acquire(folder, within_s))


@contextmanager
def command() -> Iterator[None]:
    """Context at whose end all locks taken by `hold` are released."""
    try:
        yield
    finally:
        while _of_command:
            _release(_of_command.pop())


def _locked(resolved: Path, folder: Path, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    descriptor = os.open(resolved, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _lock_before(descriptor, deadline):
            return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise OSError(error.errno, "its file system has no locks", str(folder)) from error
        # NFS can lock only files that are open for writing, which a folder cannot be.
        descriptor = files.log_descriptor(resolved / FILE)
        if _lock_before(descriptor, deadline):
            return descriptor
    os.close(descriptor)
    raise BusyError(folder, _writer(resolved))


def _lock_before(descriptor: int, deadline: float) -> bool:
    """Whether the lock was acquired before `deadline` (monotonic seconds)."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _writer(folder: Path) -> str:
    pid = writer_in(folder)
    return "another process" if pid is None else f"process {pid}"


def writer_in(folder: Path) -> int | None:
    """Pid of a process on this machine with a file in the folder, except the lock's, open for writing; or None."""
    import psutil

    for process in psutil.process_iter():
        try:
            opened = [Path(file.path) for file in process.open_files() if file.mode != "r"]
            if any(path.is_relative_to(folder) and path.name != FILE for path in opened):
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None
