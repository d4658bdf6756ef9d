"""Reads recorded traffic from CSV files, in Azure's or BurstGPT's format."""

import csv
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from wp1.core.errors import ConfigError
from wp1.workload.trace_formats import AZURE, CSV_FORMATS, KEY, Format, Row, Trace


def columns_of(path: Path) -> list[str] | None:
    """The columns of a CSV, or None for a file in another format. Raises ConfigError if the file cannot be read."""
    try:
        with path.open("rb") as file:
            head = file.read(1 << 16)
    except OSError as error:
        raise ConfigError(f"workload.trace_path={path} cannot be read: {error.strerror or error}") from error
    text = head.removeprefix(b"\xef\xbb\xbf").decode(errors="replace").lstrip()
    if text[:1] in ("{", "[", ""):
        return None
    columns = next(csv.reader([text.splitlines()[0].replace("\x00", "")]), [])
    columns = [column.strip() for column in columns]
    known = any({format_.time, format_.output} <= set(columns) for format_ in CSV_FORMATS)
    return columns if known or path.suffix.lower() == ".csv" else None


def read(path: Path, columns: list[str], requested: Format | None) -> Trace:
    """The trace in a CSV with these columns, rows in the file's order, lengths and times as recorded.

    requested: the format that the configuration names, or None to detect it.
    Raises ConfigError, with file and line, if the columns or a row's values are not those of the format.
    """
    format_ = _format_of(path, columns, requested)
    rows, left_out = [], 0
    for line, fields in _rows(path):
        where = f"{path}:{line}"
        time_s = _time(fields, format_, where)
        prompt, output = (_token_count(fields, name, where) for name in (format_.prompt, format_.output))
        if not prompt or not output:
            left_out += 1
            continue
        rows.append(Row(line, time_s, prompt, output))
    if not rows and left_out:
        raise ConfigError(f"{path} has no requests: all of its {left_out:,} rows have 0 tokens")
    return Trace(path, format_, rows, left_out=left_out)


def _format_of(path: Path, columns: list[str], requested: Format | None) -> Format:
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ConfigError(f'{path}:1 has the column "{twice[:60]}" twice: rename or drop one')
    if requested is not None and requested not in CSV_FORMATS:
        raise ConfigError(f"{path} is a CSV, but {KEY}={requested.name} is JSON: set {KEY}=auto")
    matching = [format_ for format_ in CSV_FORMATS if {format_.time, format_.prompt, format_.output} <= set(columns)]
    if not matching or (requested is not None and requested not in matching):
        known = "; ".join(f"{f.name} has {f.time}, {f.prompt}, {f.output}" for f in CSV_FORMATS)
        of = f" of {KEY}={requested.name}" if requested is not None else ""
        shown = ", ".join(columns[:12]) if columns else "no columns"
        raise ConfigError(f"{path}:1 does not have the columns{of} ({known}): it has {shown[:300]}")
    return matching[0]


def _rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Each row's line number and its values by column, without blank lines."""
    line = 0
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            columns: list[str] | None = None
            for values in reader:
                line = reader.line_num
                if not any(value.strip() for value in values):
                    continue
                if columns is None:
                    columns = [value.strip() for value in values]
                    continue
                if len(values) != len(columns):
                    raise ConfigError(f"{path}:{line} has {len(values)} values for {len(columns)} columns")
                yield line, dict(zip(columns, values, strict=True))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error.reason} near line {line + 1}") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{line + 1} is not a CSV: {error}") from error


def _time(fields: dict[str, str | None], format_: Format, where: str) -> float:
    """A row's recorded time in seconds, from an arbitrary origin."""
    value = (fields[format_.time] or "").strip()
    if format_ is AZURE:
        # Seven decimals in 2023, a time zone in 2024.
        match = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", value)
        try:
            if match is not None:
                day, clock, fraction, zone = match.groups()
                moment = datetime.fromisoformat(f"{day}T{clock}{'' if zone in (None, 'Z') else zone}")
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                return moment.timestamp() + float(fraction or 0)
        except ValueError:
            pass
        raise ConfigError(
            f'{where} has "{format_.time}" {value[:60]!r}: it must be a date and time such as 2023-11-16 18:15:46.68'
        )
    if not re.fullmatch(r"\d{1,15}(\.\d{1,15})?", value):
        raise ConfigError(f'{where} has "{format_.time}" {value[:60]!r}: it must be a number of seconds, 0 or more')
    return float(value)


def _token_count(fields: dict[str, str | None], name: str, where: str) -> int:
    value = (fields[name] or "").strip()
    if not re.fullmatch(r"\d{1,15}(\.0+)?", value):
        raise ConfigError(f'{where} has "{name}" {value[:60]!r}: it must be a number of tokens')
    return int(float(value))
