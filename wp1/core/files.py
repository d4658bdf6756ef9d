"""Files within a folder that may come from anybody: no link is followed, and nobody ever sees half a file.

A run's folder can be sent from one person to another. A link in it could lead anywhere: what is read through it would
be published, and what is written through it would overwrite a file elsewhere. So a file is opened only if it is a
plain file itself, and it is written beside its place, under a random name that did not exist, and then moved there.
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
    return ConfigError(f"{path} is a link, and no link in a folder is followed: put there what it leads to")


def _opened(path: Path, flags: int) -> int:
    """A descriptor of a plain file. Raises ConfigError for a link, a pipe and the like, OSError for the rest."""
    try:
        # Without O_NONBLOCK, opening a pipe would wait for somebody to write into it.
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
        raise ConfigError(f"{path} is no plain file: restore it from a copy")
    return descriptor


def opened(path: Path) -> IO[bytes]:
    """The file, to be read. Raises ConfigError if it is a link or no plain file, OSError if it cannot be opened."""
    return os.fdopen(_opened(path, os.O_RDONLY), "rb")


def appended(path: Path) -> IO[bytes]:
    """The file, made if there is none, to be added to. Raises as `opened` does."""
    return os.fdopen(_opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab")


def changed(path: Path) -> IO[bytes]:
    """The file, to be read and written in place. Raises as `opened` does."""
    return os.fdopen(_opened(path, os.O_RDWR), "rb+")


def log_descriptor(path: Path) -> int:
    """A descriptor of a log to add to, made if there is none. Raises as `opened` does."""
    return _opened(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def read_bytes(path: Path) -> bytes:
    """Raises as `opened` does."""
    with opened(path) as file:
        return file.read()


def read_text(path: Path) -> str:
    """Raises as `opened` does, and UnicodeDecodeError if it is no UTF-8."""
    return read_bytes(path).decode("utf-8")


def is_plain(path: Path) -> bool:
    """Whether there is a plain file: a link to one is none."""
    with suppress(OSError, ValueError):
        return stat.S_ISREG(path.lstat().st_mode)
    return False


def plain_files(folder: Path, pattern: str) -> list[Path]:
    """The plain files of a folder that match, sorted; [] if the folder is not there, or is itself a link."""
    if folder.is_symlink() or not folder.is_dir():
        return []
    return sorted(path for path in folder.glob(pattern) if is_plain(path))


def real_folder(path: Path) -> Path:
    """The folder, made if there is none. Raises ConfigError if a link is in its place."""
    path.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        raise _no_link(path)
    return path


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to, which takes the place of `path` at the end; a link there is replaced and not followed.

    Raises OSError if the disk refuses.
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
    """Writes the file whole or not at all. Raises OSError if the disk refuses."""
    with replaced(path) as work, work.open("wb") as out:
        out.write(content)
        out.flush()


def write_text(path: Path, content: str) -> None:
    """As `write_bytes`, in UTF-8; half of a surrogate pair is written as its escape."""
    write_bytes(path, content.encode("utf-8", "backslashreplace"))


def json_text(content: Any, indent: int | None = None) -> str:
    """JSON that every reader takes: UTF-8, and no NaN or infinity, which JSON does not have.

    Such a number becomes null. Half of a surrogate pair, which UTF-8 does not have, becomes its escape as text: a
    backslash, u and four digits.
    """
    try:
        found = json.dumps(content, ensure_ascii=False, indent=indent, allow_nan=False)
        found.encode("utf-8")
    except ValueError:  # UnicodeEncodeError is one
        return json.dumps(_sound(content), ensure_ascii=False, indent=indent, allow_nan=False)
    return found


def _sound(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_sound(key) if isinstance(key, str) else key: _sound(part) for key, part in value.items()}
    return [_sound(part) for part in value] if isinstance(value, (list, tuple)) else value


def parsed(text: str | bytes) -> Any:
    """What a JSON text says. Raises ValueError for all that is wrong with it, nesting that has no end included."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
