"""Safe access to files in a folder that may come from someone else: links are not followed, writes are atomic.

A run's folder can be sent from one person to another. A link in it could lead anywhere: a file read through it would be
published, and a file written through it would overwrite something elsewhere. So only regular files are opened. A file
is written under a new random name in the same folder and then renamed.
"""

import errno
import json
import math
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from wp1.core.errors import ConfigError


def _no_link(path: Path) -> ConfigError:
    return ConfigError(f"{path} is a link, and links in a folder are not followed: replace it by its target")


def _opened(path: Path, flags: int) -> int:
    """A descriptor of a regular file. Raises ConfigError for a link, a pipe and the like, OSError for other errors."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for a writer.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK):
            raise _no_link(path) from error
        raise
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise ConfigError(f"{path} is not a regular file: restore it from a copy")
    return descriptor


def opened(path: Path) -> IO[bytes]:
    """The file, for reading. Raises ConfigError if it is a link or not a regular file, OSError if it does not open."""
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def appended(path: Path) -> IO[bytes]:
    """The file, for appending; created if it does not exist. Raises like `opened`."""
    return os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def changed(path: Path) -> IO[bytes]:
    """The file, for reading and writing in place. Raises like `opened`."""
    return os.fdopen(_opened(path, os.O_RDWR), "rb+")


def log_descriptor(path: Path) -> int:
    """A descriptor of a log, for appending; created if it does not exist. Raises like `opened`."""
    return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def read_bytes(path: Path) -> bytes:
    """The file's content. Raises like `opened`."""
    with opened(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """The file's text. Raises like `opened`, and UnicodeDecodeError if it is not UTF-8."""
    return read_bytes(path).decode("utf-8")


def is_plain(path: Path) -> bool:
    """Whether the path is a regular file, and not a link to one."""
    with suppress(OSError, ValueError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def plain_files(folder: Path, pattern: str) -> list[Path]:
    """The regular files in a folder that match, sorted; [] if the folder does not exist or is itself a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(pattern) if is_plain(path))


def real_folder(path: Path) -> Path:
    """The folder, created if it does not exist. Raises ConfigError if it is a link."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise _no_link(path)
    return path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Context with a temporary path to write to, which replaces `path` at its end. A link at `path` is replaced too.

    Raises OSError if the file cannot be written.
    """
    work = path.with_name(f".{path.stem[:80]}.{secrets.token_hex(8)}{path.suffix}")
    os.close(os.open(work, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666))
    try:
        yield work
        work.replace(path)
    except BaseException:
        with suppress(OSError):
            work.unlink()
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Writes the whole file or nothing. Raises OSError if it cannot be written."""
    with replaced(path) as work, work.open("wb") as out:
        out.write(content)
        out.flush()


def write_text(path: Path, content: str) -> None:
    """Like `write_bytes`, in UTF-8; a lone surrogate is written as its escape."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that every reader accepts: UTF-8, without NaN and infinity, which are not valid JSON and become null.

    A lone surrogate, which UTF-8 cannot encode, becomes its escape as text: a backslash, u and four digits.
    """
    try:
        text = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False)
        text.encode("utf-8")
    except ValueError:  # includes UnicodeEncodeError
        return json.dumps(_encodable(content), ensure_ascii=False, indent=indent, allow_nan=False)
    return text


def _encodable(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_encodable(key) if isinstance(key, str) else key: _encodable(part) for key, part in value.items()}
    return [_encodable(part) for part in value] if isinstance(value, (list, tuple)) else value


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError for anything that is wrong with it, including too deep nesting."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
