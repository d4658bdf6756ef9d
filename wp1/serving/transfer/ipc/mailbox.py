"""Small messages between the processes of engines on one node: Unix datagrams, JSON, in a folder only its owner enters.

A datagram arrives whole, and those to one engine in the order of their sender. A process that lives gets each, however
long it does not read (an engine reads between its steps), and no sender waits for it. A mailbox whose process has died
refuses what is sent to it. Nothing is unpickled.
"""

import base64
import errno
import json
import os
import select
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

Message = dict[str, Any]

# The kernel bounds a datagram by the sender's buffer, which is 200 kB where nobody enlarged it. What is longer goes in
# memory without a name whose descriptor is sent. 131,072 tokens in blocks of 16 are 44 kB.
MOST_BYTES = 100_000
IN_MEMORY = b"\0"
# Nothing that wp1 sends comes near; a message that says more is not ours.
MOST_IN_MEMORY = 1 << 26
# Of a socket's path, by the kernel's sockaddr_un, less the zero at its end.
MOST_PATH = 107
# What the kernel says where the mailbox, or something else that empties again, is full.
FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# Messages to an engine that wait until it reads; beyond, it is as good as dead.
MOST_WAITING = 10_000
# The kernel says of no mailbox when it has room again, and keeps as few as ten messages in one.
RETRY_S = 0.002


class Mailbox:
    """What others of the same folder send to `name`; used by one thread."""

    def __init__(self, folder: Path, name: str) -> None:
        check_private(folder)
        self._folder = folder
        self._path = folder / f"{name}.sock"
        if len(os.fsencode(self._path)) > MOST_PATH:
            raise OSError(
                f"{self._path} is longer than the {MOST_PATH} bytes that a socket's path may have: set TMPDIR to a "
                "shorter folder"
            )
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        with suppress(FileNotFoundError):
            self._path.unlink()
        self._socket.bind(str(self._path))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)

    def receive(self) -> Message:
        """Waits for a message. Raises OSError once the mailbox is closed."""
        return self._take(0)

    def wait(self, seconds: float) -> None:
        """Until there is a message, or for so long."""
        # Not select(), which takes no descriptor above 1,023.
        there = select.poll()
        there.register(self._socket, select.POLLIN)
        there.poll(seconds * 1000)

    def waiting(self) -> Iterator[Message]:
        """The messages that are there."""
        while True:
            try:
                yield self._take(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def _take(self, flags: int) -> Message:
        """The next that is a message. What is none, which nobody of wp1 sends, must not end the thread that reads."""
        while True:
            # Python's recv_fds forgets the flags, and its send_fds the address.
            data, extra, _, _ = self._socket.recvmsg(MOST_BYTES, socket.CMSG_LEN(4), flags)
            for _, _, descriptors in extra:
                [fd] = struct.unpack("i", descriptors)
                with open(fd, "rb") as memory:  # noqa: PTH123  (a descriptor has no path)
                    # Not of a pipe, say, that never ends.
                    if data == IN_MEMORY and stat.S_ISREG(os.fstat(fd).st_mode):
                        memory.seek(0)
                        data = memory.read(MOST_IN_MEMORY)
            with suppress(ValueError, RecursionError):
                message = json.loads(data)
                if isinstance(message, dict):
                    return message

    def close(self) -> None:
        self._socket.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


class Sender:
    """Sends to mailboxes of a folder; for any number of threads.

    A mailbox's name is its engine's, a dot, and whose it is there. What one does not take yet is kept, with all that
    goes to the same engine after it, and sent by a thread that lives as long as there is something.
    """

    def __init__(self, folder: Path) -> None:
        check_private(folder)
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._kept: dict[str, deque[tuple[str, bytes]]] = {}  # by engine
        self._closed = False

    def send(self, name: str, message: Message) -> bool:
        """Whether `name` has or will get the message: not where its process is gone, or long has not read. At once."""
        data = json.dumps(message, separators=(",", ":")).encode()
        engine = name.rpartition(".")[0]
        with self._lock:
            if self._closed:
                return False
            kept = self._kept.get(engine)
            if kept is None:
                sent = self._try(name, data)
                if sent is not None:
                    return sent
                if not self._kept:
                    threading.Thread(target=self._send_kept, name="wp1-mail", daemon=True).start()
                kept = self._kept[engine] = deque()
            if len(kept) >= MOST_WAITING:
                return False
            kept.append((name, data))
            return True

    def _try(self, name: str, data: bytes) -> bool | None:
        """None where the mailbox is full."""
        address = str(self._folder / f"{name}.sock")
        try:
            if len(data) <= MOST_BYTES:
                self._socket.sendto(data, address)
            else:
                with open(os.memfd_create("wp1-message"), "wb") as memory:  # noqa: PTH123
                    memory.write(data)
                    memory.flush()
                    fd = (socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", memory.fileno()))
                    self._socket.sendmsg([IN_MEMORY], [fd], 0, address)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            if error.errno in FULL:
                return None
            raise
        return True

    def _send_kept(self) -> None:
        while True:
            with self._lock:
                for engine, kept in list(self._kept.items() if not self._closed else ()):
                    while kept and self._try(*kept[0]) is not None:
                        kept.popleft()
                    if not kept:
                        del self._kept[engine]
                if not self._kept or self._closed:
                    return
            time.sleep(RETRY_S)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._socket.close()


def check_private(folder: Path) -> None:
    """Raises PermissionError where somebody else could enter the folder, or owns it."""
    found = folder.lstat()  # a link could be turned elsewhere by its owner
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user, with mode 0700, to exchange KV handles in it")


def pack(blocks: list[int]) -> str:
    """Block numbers for a message: 4 bytes each, least first, in base64.

    A request waits until its blocks' numbers are written and read, in processes that have more to do. As numbers of
    JSON, or as runs where they are not neighbours, thousands of them take milliseconds.
    """
    return base64.b64encode(np.asarray(blocks, dtype="<u4").tobytes()).decode()


def unpack(text: str) -> list[int]:
    """The reverse of `pack`. Raises ValueError where it is not that."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4").tolist()
