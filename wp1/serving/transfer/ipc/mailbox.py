"""Small messages between engine processes on one node: JSON in Unix datagrams, in a folder only its owner can enter.

A datagram arrives whole, and one sender's messages to an engine arrive in order. A live process gets every message, no
matter how long it does not read (an engine reads between its steps), and senders never wait for it. A dead process's
mailbox refuses messages. Nothing is unpickled.
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

# The kernel limits a datagram to the sender's buffer, 200 kB by default. A longer message goes into anonymous memory,
# and the datagram carries its descriptor. The block numbers of 131,072 tokens, 16 to a block, take 44 kB.
MOST_BYTES = 100_000
IN_MEMORY = b"\0"
# Upper bound on such memory: wp1's own messages stay far below it.
MOST_IN_MEMORY = 1 << 26
# Longest path of a socket: the kernel's sockaddr_un without the terminating zero.
MOST_PATH = 107
# Errors of a send if the mailbox, or another resource that frees up again, is full.
FULL = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
# Unread messages that are kept for an engine; with more, it counts as dead.
MOST_WAITING = 10_000
# Pause between attempts: the kernel does not signal when a mailbox has room again, and one may hold only ten messages.
RETRY_S = 0.002


class Mailbox:
    """Receives the messages sent to `name` in a folder. Use it from one thread only."""

    def __init__(self, folder: Path, name: str) -> None:
        check_private(folder)
        self._folder = folder
        self._path = folder / f"{name}.sock"
        if len(os.fsencode(self._path)) > MOST_PATH:
            raise OSError(
                f"{self._path} is longer than the {MOST_PATH} bytes that a socket's path may have: set TMPDIR to a "
                "folder with a shorter path"
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
        """Waits until there is a message, but no longer than this."""
        # select() cannot handle descriptors above 1,023.
        incoming = select.poll()
        incoming.register(self._socket, select.POLLIN)
        incoming.poll(seconds * 1000)

    def waiting(self) -> Iterator[Message]:
        """The messages that have arrived; does not wait."""
        while True:
            try:
                yield self._take(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return

    def _take(self, flags: int) -> Message:
        """The next valid message. Anything else is skipped: wp1 does not send it, and it must not end the reader."""
        while True:
            # socket.recv_fds ignores its flags, and socket.send_fds ignores its address.
            data, extra, _, _ = self._socket.recvmsg(MOST_BYTES, socket.CMSG_LEN(4), flags)
            for _, _, descriptors in extra:
                [fd] = struct.unpack("i", descriptors)
                with open(fd, "rb") as memory:  # noqa: PTH123  (a descriptor has no path)
                    # Only regular files: reading a pipe, for example, might never end.
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
    """Sends to the mailboxes of a folder; any number of threads may use it.

    A mailbox is named ENGINE.OWNER. If one is full, the message is queued, as are all later messages to the same
    engine. A thread sends the queues and ends when they are empty.
    """

    def __init__(self, folder: Path) -> None:
        check_private(folder)
        self._folder = folder
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 22)
        self._socket.setblocking(False)
        self._lock = threading.Lock()
        self._queues: dict[str, deque[tuple[str, bytes]]] = {}  # by engine
        self._closed = False

    def send(self, name: str, message: Message) -> bool:
        """Sends without waiting. False if the receiving process is gone, or has not read for too long."""
        data = json.dumps(message, separators=(",", ":")).encode()
        engine = name.rpartition(".")[0]
        with self._lock:
            if self._closed:
                return False
            queue = self._queues.get(engine)
            if queue is None:
                sent = self._try(name, data)
                if sent is not None:
                    return sent
                if not self._queues:
                    threading.Thread(target=self._send_queued, name="wp1-mail", daemon=True).start()
                queue = self._queues[engine] = deque()
            if len(queue) >= MOST_WAITING:
                return False
            queue.append((name, data))
            return True

    def _try(self, name: str, data: bytes) -> bool | None:
        """True if sent, False if the receiver is gone, None if its mailbox is full."""
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

    def _send_queued(self) -> None:
        while True:
            with self._lock:
                for engine, queue in list(self._queues.items() if not self._closed else ()):
                    while queue and self._try(*queue[0]) is not None:
                        queue.popleft()
                    if not queue:
                        del self._queues[engine]
                if not self._queues or self._closed:
                    return
            time.sleep(RETRY_S)

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._socket.close()


def check_private(folder: Path) -> None:
    """Raises PermissionError if another user owns the folder or could enter it."""
    info = folder.lstat()  # does not follow links: a link's owner could redirect it
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or stat.S_IMODE(info.st_mode) & 0o077:
        raise PermissionError(f"{folder} must be a folder of this user, with mode 0700, to exchange KV handles in it")


def pack(blocks: list[int]) -> str:
    """Block numbers for a message: 4 little-endian bytes each, in base64.

    A request waits while its block numbers are written and read, in processes that are busy with other work. As JSON
    numbers, or as runs if they are not adjacent, thousands of them would take milliseconds.
    """
    return base64.b64encode(np.asarray(blocks, dtype="<u4").tobytes()).decode()


def unpack(text: str) -> list[int]:
    """The inverse of `pack`. Raises ValueError for any other text."""
    return np.frombuffer(base64.b64decode(text, validate=True), dtype="<u4").tolist()
