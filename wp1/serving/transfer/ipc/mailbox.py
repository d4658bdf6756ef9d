"""Small messages between the processes of engines on one node: Unix datagrams, JSON, in a folder only its owner enters.

A datagram arrives whole, in the order of its sender, or the sender is told; and a mailbox whose process has died
refuses what is sent to it. Nothing is unpickled.
"""

import json
import os
import select
import socket
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

Message = dict[str, Any]

# The kernel's own bound on a datagram is a little above 200 kB. 131,072 tokens in blocks of 16 with no two blocks side
# by side are 65 kB.
MOST_BYTES = 200_000


class Mailbox:
    """What others of the same folder send to `name`; used by one thread."""

    def __init__(self, folder: Path, name: str) -> None:
        check_private(folder)
        self._folder = folder
        self._path = folder / f"{name}.sock"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._socket.bind(str(self._path))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

    def receive(self) -> Message:
        """Waits for a message."""
        return json.loads(self._socket.recv(MOST_BYTES))

    def wait(self, seconds: float) -> None:
        """Until there is a message, or for so long."""
        select.select([self._socket], [], [], seconds)

    def waiting(self) -> Iterator[Message]:
        """The messages that are there."""
        while True:
            try:
                yield json.loads(self._socket.recv(MOST_BYTES, socket.MSG_DONTWAIT))
            except BlockingIOError:
                return

    def close(self) -> None:
        self._socket.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


class Sender:
    """Sends to mailboxes of a folder; for any number of threads."""

    def __init__(self, folder: Path) -> None:
        check_private(folder)
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        # A reader that does not read for that long is as good as dead.
        self._socket.settimeout(1.0)

    def send(self, name: str, message: Message) -> bool:
        """Whether `name` has got the message; not where its process is gone, or does not read any more."""
        data = json.dumps(message, separators=(",", ":")).encode()
        try:
            self._socket.sendto(data, str(self._folder / f"{name}.sock"))
        except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
            return False
        return True

    def close(self) -> None:
        self._socket.close()


def check_private(folder: Path) -> None:
    """Raises PermissionError where somebody else could enter the folder, or owns it."""
    found = folder.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must belong to this user, with mode 0700, to exchange KV handles in it")


def to_runs(numbers: list[int]) -> list[list[int]]:
    """Ascending neighbours as [first, count]: [4, 5, 6, 9] is [[4, 3], [9, 1]]."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][0] + runs[-1][1] == number:
            runs[-1][1] += 1
        else:
            runs.append([number, 1])
    return runs


def from_runs(runs: list[list[int]]) -> list[int]:
    """The reverse of `to_runs`."""
    return [first + n for first, count in runs for n in range(count)]
