"""One process at a time writes into a folder, by a lock that the kernel drops when the process ends, however it does.

Runs and sweeps hold it from their first file to their last, and so do the commands that write into their folders. The
lock is on the folder itself. Where the file system refuses that, as NFS does, it is on a file `wp1.lock` in it.
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
# For what a killed process has started to be gone, and for a report that somebody else is making.
WITHIN_S = 10.0
# Descriptors that this process holds a lock by, and how often it has asked for each.
_held: dict[Path, tuple[int, int]] = {}
# Those that are held until the command ends.
_of_command: list[Path] = []


class BusyError(WP1Error):
    """Another process writes into the folder; `who` says which."""

    def __init__(self, folder: Path, who: str) -> None:
        super().__init__(f"{folder} is being written by {who}: wait for it, or end it")
        self.who = who


@contextmanager
def written(folder: Path, within_s: float = WITHIN_S) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile. This process may ask again for what it holds.

    within_s: seconds to wait for another process. Raises BusyError, in one line, if it writes for longer; OSError if
    the folder cannot be opened or has no locks.
    """
    here = _take(folder, within_s)
    try:
        yield
    finally:
        _give(here)


def _take(folder: Path, within_s: float) -> Path:
    here = folder.resolve()
    descriptor, count = _held.get(here) or (_locked(here, folder, within_s), 0)
    _held[here] = descriptor, count + 1
    return here


def _give(here: Path) -> None:
    descriptor, count = _held.pop(here)
    if count > 1:
        _held[here] = descriptor, count - 1
    else:
        os.close(descriptor)


def hold(folder: Path, within_s: float = WITHIN_S) -> None:
    """As `written`, until the command ends that is within `command`. Raises as `written` does."""
    _of_command.append(_take(folder, within_s))


@contextmanager
def command() -> Iterator[None]:
    """What `hold` has locked is free again at the end."""
    try:
        yield
    finally:
        while _of_command:
            _give(_of_command.pop())


def _locked(here: Path, named: Path, within_s: float) -> int:
    deadline = time.monotonic() + within_s
    descriptor = os.open(here, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _taken(descriptor, deadline):
            return descriptor
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EBADF, errno.EINVAL):
            raise OSError(error.errno, "its file system has no locks", str(named)) from error
        # NFS locks only what is open for writing, which a folder cannot be.
        descriptor = files.log_descriptor(here / FILE)
        if _taken(descriptor, deadline):
            return descriptor
    os.close(descriptor)
    raise BusyError(named, _writer(here))


def _taken(descriptor: int, deadline: float) -> bool:
    """Whether the lock could be had by a moment of the monotonic clock."""
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.1)


def _writer(folder: Path) -> str:
    found = writer_in(folder)
    return "another process" if found is None else f"process {found}"


def writer_in(folder: Path) -> int | None:
    """The process on this machine that has a file in the folder open for writing, other than for its lock."""
    import psutil

    for process in psutil.process_iter():
        try:
            opened = [Path(file.path) for file in process.open_files() if file.mode != "r"]
            if any(path.is_relative_to(folder) and path.name != FILE for path in opened):
                return process.pid
        except (psutil.Error, OSError):
            continue
    return None
