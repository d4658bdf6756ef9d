"""Reads files of rows: one JSON object a line, an array of objects, or Parquet. Refuses what would end a run later.

JSONL and arrays are distinguished by content, not by file name. A byte-order mark, Windows line ends and blank lines
are accepted. A row is bad if it is not an object, is too long, is nested too deeply, or holds something that is not
JSON or cannot be sent: NaN, infinity, a number of more than 30 digits, half of a surrogate pair.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError

# Bytes. No known dataset has longer rows, and a longer line could fill the memory.
MAX_LINE = 64 << 20
# No benchmark, trace or chat has longer numbers. Python's own limit is 4,300 digits.
MAX_DIGITS = 30
# Characters in an id, which becomes part of a request's name.
MAX_ID = 1000

BLANK = re.compile(r"[ \t\r\n]*")
HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


class BadRowError(ValueError):
    """A row that cannot be used. The message says what is wrong with it; the caller adds the file and line."""


Place = tuple[str, dict[str, Any] | BadRowError]


def read(path: Path, max_line: int = MAX_LINE) -> Iterator[Place]:
    """Every row, or what is wrong with it, with its position (`FILE:LINE`). JSONL and Parquet are read row by row.

    Raises ConfigError, naming the file, if it cannot be opened, is UTF-16, or is an array that is not JSON.
    """
    try:
        if path.suffix == ".parquet":
            yield from _parquet(path)
            return
        with path.open("rb") as file:
            head = file.read(1 << 16)
        if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ConfigError(f"{path} cannot be read: it is UTF-16, save it as UTF-8")
        start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
        if start[:1] == b"[":
            yield from _array(path, max_line)
        elif path.suffix == ".json" and (rows := _single_object(path, start)) is not None:
            yield from rows
        else:
            yield from _lines(path, max_line)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """A JSON decoder that notes unusable constants and numbers and reads on, so that the next row can be read."""

    def __init__(self) -> None:
        self._problems: list[str] = []
        self._decoder = json.JSONDecoder(parse_constant=self._constant, parse_float=self._float, parse_int=self._int)

    def row(self, text: str) -> dict[str, Any] | BadRowError:
        """The row that makes up the whole text."""
        try:
            row, end = self.value(text, _past_blanks(text, 0))
            rest = text[end:].strip()
        except RecursionError:
            return BadRowError("is nested too deeply")
        except ValueError as error:
            return BadRowError(f"is not JSON: {error}")
        return BadRowError(f"is not JSON: there is more after its end: {rest[:20]!r}") if rest else row

    def value(self, text: str, start: int) -> tuple[dict[str, Any] | BadRowError, int]:
        """The row that begins at `start`, and its end. Raises ValueError or RecursionError if it is not JSON."""
        self._problems.clear()
        row, end = self._decoder.raw_decode(text, start)
        if self._problems:
            return BadRowError(f"has {self._problems[0]}"), end
        if not isinstance(row, dict):
            return BadRowError("is not an object"), end
        if HALF_PAIR.search(text, start, end) and (half := half_character(row)) is not None:
            return BadRowError(half), end
        return row, end

    def _constant(self, name: str) -> None:
        self._problems.append(f"{name}, which is not a number in JSON")

    def _float(self, digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            self._problems.append(f"a number that is too large ({digits[:20]})")
        return value

    def _int(self, digits: str) -> int:
        if len(digits) > MAX_DIGITS:
            self._problems.append(f"a number of {len(digits):,} digits")
            return 0
        return int(digits)


def _past_blanks(text: str, at: int) -> int:
    blanks = BLANK.match(text, at)
    return blanks.end() if blanks else at


def half_character(fields: dict[str, Any]) -> str | None:
    """The problem of a row with half of a surrogate pair anywhere in it, or None."""
    for name, value in fields.items():
        unchecked: list[Any] = [name, value]
        while unchecked:
            part = unchecked.pop()
            if isinstance(part, dict):
                unchecked += [*part.keys(), *part.values()]
            elif isinstance(part, list):
                unchecked += part
            elif isinstance(part, str) and not whole(part):
                shown = name if whole(name) else ascii(name)[1:-1]
                return f'has half a character (a lone surrogate) in "{shown}"'
    return None


def whole(text: str) -> bool:
    """Whether a text can be written as UTF-8. It cannot if it has half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def id_of(value: Any, name: str) -> str:
    """An id as text. Raises BadRowError if it is neither text nor a number, or cannot be part of a request's name."""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise BadRowError(f'has "{name}" that is neither text nor a number')
    text = str(value)
    if len(text) > MAX_ID:
        raise BadRowError(f'has a "{name}" of {len(text):,} characters: the limit is {MAX_ID:,}')
    if CONTROL.search(text):
        raise BadRowError(f'has a "{name}" with control characters')
    return text


def fields_of(fields: dict[str, Any], most: int = 12) -> str:
    """The names of a row's fields, for a message about a row of unknown form."""
    names = [name if len(name) <= 40 else f"{name[:40]}…" for name in map(str, fields)]
    shown = ", ".join(ascii(name)[1:-1] if not whole(name) else name for name in names[:most])
    return (shown + (f" and {len(names) - most} more" if len(names) > most else "")) or "none"


def _text(line: bytes) -> str | BadRowError:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        return BadRowError(f"is not UTF-8 text: {error.reason} at byte {error.start}")


def _lines(path: Path, max_line: int) -> Iterator[Place]:
    reader = _Reader()
    with path.open("rb") as lines:
        number = 0
        while line := lines.readline(max_line + 1):
            number += 1
            where = f"{path}:{number}"
            if len(line) > max_line:
                while line and not line.endswith(b"\n"):
                    line = lines.readline(max_line)
                yield where, BadRowError(f"is longer than {_size(max_line)}")
                continue
            text = _text(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)
            if isinstance(text, BadRowError):
                yield where, text
            elif text.strip():
                yield where, reader.row(text)


def _size(size: int) -> str:
    return f"{size >> 20} MiB" if size >= 1 << 20 else f"{size:,} bytes"


def _whole_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _array(path: Path, max_line: int) -> Iterator[Place]:
    """The elements of a JSON array, decoded one at a time, each with the line on which it begins.

    Raises ConfigError if the array is not JSON, because the start of its next element is then unknown.
    """
    text, reader = _whole_text(path), _Reader()
    at = _past_blanks(text, 0) + 1
    line, counted, number, last = 1, 0, 0, 0
    while True:
        at = _past_blanks(text, at)
        line, counted = line + text.count("\n", counted, at), at
        if text[at : at + 1] == "]" and not number:
            at += 1
            break
        number += 1
        # Several rows may be on one line.
        where = f"{path}:{line}" if line != last else f"{path}:{line} (row {number})"
        last = line
        try:
            row, end = reader.value(text, at)
        except RecursionError as error:
            raise ConfigError(f"{where} is nested too deeply") from error
        except ValueError as error:
            problem = error.msg if isinstance(error, json.JSONDecodeError) else error
            raise ConfigError(f"{where} is not JSON: {problem}") from error
        yield where, BadRowError(f"is longer than {_size(max_line)}") if end - at > max_line else row
        at = _past_blanks(text, end)
        after = text[at : at + 1]
        at += 1
        if after == "]":
            break
        if after != ",":
            line += text.count("\n", counted, at)
            raise ConfigError(
                f"{path}:{line} is not JSON: a comma or the end of the array is missing after row {number}"
            )
    at = _past_blanks(text, at)
    if at < len(text):
        line += text.count("\n", counted, at)
        raise ConfigError(f"{path}:{line} is not JSON: there is more after the array's end: {text[at : at + 20]!r}")


def _single_object(path: Path, start: bytes) -> Iterator[Place] | None:
    """The rows of a file that is one JSON object: those under "data", or the object itself. None if it is JSONL."""
    if start[:1] != b"{":
        return None
    text, reader = _whole_text(path), _Reader()
    try:
        content, end = reader.value(text, _past_blanks(text, 0))
    except (ValueError, RecursionError):
        # Read it as JSONL: its errors name a line.
        return None
    if text[end:].strip():
        return None
    rows = content.get("data") if isinstance(content, dict) else None
    if not isinstance(rows, list):
        return iter([(f"{path}:1", content)])
    return (
        (f"{path} (row {number})", row if isinstance(row, dict) else BadRowError("is not an object"))
        for number, row in enumerate(rows, 1)
    )


def _parquet(path: Path) -> Iterator[Place]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(batch_size=16):
                for fields in batch.to_pylist():
                    yield f"{path} row {number}", fields
                    number += 1
    except pyarrow.ArrowException as error:
        raise ConfigError(f"{path} is not a Parquet file ({str(error).splitlines()[0]})") from error
