"""Reads and writes JSONL files: rows are appended as they occur, and reading names the first malformed one."""

import dataclasses
import io
import math
from pathlib import Path
from typing import IO, Any, TypeVar

from wp1.core import files, shapes
from wp1.core.errors import ConfigError
from wp1.core.records import ControlRecord, Handoff, RequestRecord, Row

Of = TypeVar("Of")


class RecordWriter:
    """Appends dataclasses to a JSONL file and flushes each, so that a crash can lose only a torn last line.

    Times are rounded to the microsecond. Lines are strict JSON (`files.json_text`); a request with NaN or infinity
    becomes a failed one (`without_nan`). Raises OSError if the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: IO[str] | None = None

    def __enter__(self) -> "RecordWriter":
        self._file = io.TextIOWrapper(files.appended(self.path), encoding="utf-8", newline="")
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def write(self, record: Row) -> None:
        assert self._file is not None
        if isinstance(record, RequestRecord | Handoff):
            without_nan(record)
        self._file.write(f"{files.json_text(_rounded(record))}\n")
        self._file.flush()


def without_nan(record: "RequestRecord | Handoff") -> None:
    """Turns a record with NaN or infinity, which an engine's arithmetic may produce, into a failed one.

    The number is removed, or its whole list, which is useless without it; the error names the field.
    """
    broken = []
    for field_ in dataclasses.fields(record):
        value = getattr(record, field_.name)
        if isinstance(value, list):
            if not all(map(math.isfinite, value)):
                broken.append(field_.name)
                setattr(record, field_.name, [])
        elif isinstance(value, float) and not math.isfinite(value):
            broken.append(field_.name)
            setattr(record, field_.name, 0.0 if field_.name == "t_intended" else None)
    if not broken:
        return
    message = f"not a finite number in {', '.join(broken)}"
    record.error = message if record.error is None else f"{record.error}; {message}"
    if isinstance(record, Handoff):
        record.status = "failed"
    elif record.status == "ok":
        record.status, record.cause, record.phase = "error", "engine_error", record.phase or "decode"


def _rounded(record: Row) -> dict[str, Any]:
    # dataclasses.asdict copies deeply, which costs more than the rest for long outputs.
    row = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    for key, value in row.items():
        if isinstance(value, float):
            row[key] = round(value, 6)
    if isinstance(record, RequestRecord):
        row["t_tokens"] = [round(t, 6) for t in record.t_tokens]
        row["nll"] = [round(sum_, 4) for sum_ in record.nll]
    if isinstance(record, ControlRecord):
        row["margins"] = [round(margin, 5) for margin in record.margins]
    return row


def object_on(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line; None if there is none, as on a torn line."""
    try:
        row = files.parsed(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def read_rows(path: Path, content: str, *needed: str, shape: Any = shapes.OBJECT) -> list[dict[str, Any]]:
    """The objects of a JSONL file in order; [] if there is no file. A last line torn by a crash is left out.

    content: a line's name for messages; needed: required keys; shape: the required shape, from `shapes`.
    Raises ConfigError with the file and line of the first malformed row.
    """
    # Bytes: a text may contain what splitlines() takes for a line end.
    lines = files.read_bytes(path).split(b"\n")[:-1] if path.is_file() else []
    rows = []
    for number, line in enumerate(lines, start=1):
        row = object_on(line)
        if row is None or not row.keys() >= set(needed):
            raise ConfigError(f"{path}:{number} is not a valid {content}: restore the file from a copy")
        if (wrong := shapes.unlike(row, shape)) is not None:
            raise ConfigError(f"{path}:{number} is not a valid {content} ({wrong}): restore the file from a copy")
        rows.append(row)
    return rows


def read_as(kind: type[Of], path: Path, content: str) -> list[Of]:
    """`read_rows` as objects of a dataclass; unknown keys are left out. Raises the same errors."""
    fields = dataclasses.fields(kind)  # pyright: ignore[reportArgumentType]
    needed = [f.name for f in fields if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING]
    names = {f.name for f in fields}
    rows = read_rows(path, content, *needed, shape=shapes.of_fields(kind))
    return [kind(**{key: value for key, value in row.items() if key in names}) for row in rows]
