"""Recorded traffic, to be sent again as it came: one request a row, in one of five formats.

mooncake  FAST 2025; github.com/kvcache-ai/Mooncake. JSON: `timestamp` (ms), `input_length` and `output_length`
          (tokens), and `hash_ids`, one for each block of 512 prompt tokens
bailian   Qwen-Bailian; github.com/alibaba-edu/qwen-bailian-usagetraces-anon. JSON: the same names with `timestamp` in
          seconds and blocks of 16 tokens, and `chat_id`, `parent_chat_id`, `turn`, `type`
azure     AzurePublicDataset's LLM inference traces, 2023 and 2024. CSV: TIMESTAMP (date and time), ContextTokens,
          GeneratedTokens
burstgpt  github.com/HPMLL/BurstGPT. CSV: Timestamp (s), Request tokens, Response tokens, and others that are not used
wp1       one of your own. JSON: `time_s`, `output_len` (tokens), and either `prompt_len` (tokens) or `prompt` (a text)

Equal hash ids stand for equal blocks, so that prompts share prefixes just as the recorded ones did; the tokens
themselves were never published and are random.
"""

import csv
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from wp1.core.errors import ConfigError
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError

BLOCK = 512  # tokens that one of Mooncake's hash ids stands for
LOWEST_ID = 1000  # below it models keep their special tokens
KEY = "workload.trace_format"


@dataclass(frozen=True)
class Format:
    """What is known of a format. second: so many of its units of time; block: tokens that a hash id stands for."""

    name: str
    words: str
    time: str
    prompt: str
    output: str
    unit: str = "s"
    block: int = BLOCK

    @property
    def second(self) -> float:
        return 1000.0 if self.unit == "ms" else 1.0


MOONCAKE = Format("mooncake", "Mooncake's", "timestamp", "input_length", "output_length", unit="ms")
BAILIAN = Format("bailian", "Qwen-Bailian's", "timestamp", "input_length", "output_length", block=16)
AZURE = Format("azure", "Azure's", "TIMESTAMP", "ContextTokens", "GeneratedTokens", unit="date and time")
BURSTGPT = Format("burstgpt", "BurstGPT's", "Timestamp", "Request tokens", "Response tokens")
OWN = Format("wp1", "wp1's own", "time_s", "prompt_len", "output_len")
FORMATS = {format_.name: format_ for format_ in (MOONCAKE, BAILIAN, AZURE, BURSTGPT, OWN)}
CSV_FORMATS = (AZURE, BURSTGPT)
# Only Qwen-Bailian's rows say which conversation they are of.
CHAT_KEYS = ("chat_id", "parent_chat_id")
# What blocks of KV caches have; a trace's own size is looked for among them.
BLOCKS = tuple(2**n for n in range(3, 14))


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded request."""

    line: int
    time_s: float
    prompt_len: int  # tokens
    output_len: int  # tokens
    blocks: tuple[int, ...] = ()  # hash ids
    prompt: np.ndarray | None = None  # token ids of a text of its own
    block: int = BLOCK  # tokens that a hash id stands for, before any scaling
    text: str | None = None  # of its own, before it is token ids


@dataclass(frozen=True)
class Trace:
    """A trace as it was read: rows by time, lengths scaled.

    block: tokens a hash id, None where no row has any. left_out: rows of a CSV with 0 tokens, which failed when they
    were recorded.
    """

    path: Path
    format: Format
    rows: list[Row]
    block: int | None = None
    left_out: int = 0

    def words(self) -> str:
        """What the file was taken for, for the screen and the report."""
        blocks = f", hash blocks of {self.block} tokens" if self.block is not None else ""
        rows = "1 row with 0 tokens was" if self.left_out == 1 else f"{self.left_out:,} rows with 0 tokens were"
        left_out = f"; {rows} left out (failed when recorded)" if self.left_out else ""
        requests = "1 request" if len(self.rows) == 1 else f"{len(self.rows):,} requests"
        times = f"times {'as' if self.format is AZURE else 'in'} {self.format.unit}"
        return (
            f"trace {self.path.name} in {self.format.words} format ({KEY}={self.format.name}): {requests}, {times}"
            f"{blocks}{left_out}"
        )

    def summary(self) -> dict[str, Any]:
        """What run_metadata.json says of it."""
        return {
            "file": str(self.path),
            "format": self.format.name,
            "time_unit": self.format.unit,
            "block_tokens": self.block,
            "requests": len(self.rows),
            "left_out": self.left_out,
        }


def read(workload: Any) -> Trace:
    """The first `workload.num_requests` rows by time (all, if null), with lengths scaled and times as recorded.

    Lengths are multiplied by `workload.trace_length_scale`. The format is `workload.trace_format`, or with `auto` the
    one that the file's fields, times and hash ids show.
    Raises ConfigError naming file and line of a row that is none, or that is of another format than the others; and
    the key where a file could be of several formats.
    """
    path = Path(workload.trace_path).expanduser()
    asked = FORMATS.get(getattr(workload, "trace_format", "auto"))
    columns = _columns(path)
    is_csv = columns is not None or asked in CSV_FORMATS
    found = _csv(path, columns or [], asked) if is_csv else _json(path, asked)
    if not found.rows:
        raise ConfigError(f"workload.trace_path={path} has no requests: JSON objects are needed, one a line, or a CSV")
    rows = sorted(found.rows, key=lambda row: row.time_s)[: workload.num_requests]
    scale = workload.trace_length_scale
    scaled = [
        replace(row, prompt_len=_scaled(row.prompt_len, scale), output_len=_scaled(row.output_len, scale))
        for row in rows
    ]
    return replace(found, rows=scaled)


def tokenized(found: Trace, max_len: int, encode: Callable[[str], list[int]]) -> Trace:
    """The trace with texts as token ids. Raises ConfigError for a row that does not fit into `max_len` tokens."""
    rows = []
    for row in found.rows:
        if row.text is not None:
            ids = np.asarray(encode(row.text), dtype=np.int32)
            row = replace(row, prompt=ids, prompt_len=len(ids), text=None)  # noqa: PLW2901
        rows.append(row)
    fitted = replace(found, rows=rows)
    check_lengths(fitted, max_len)
    return fitted


def check_lengths(found: Trace, max_len: int) -> None:
    """Raises ConfigError, naming file and line, for a row whose tokens are known and more than `max_len`."""
    for row in found.rows:
        if row.text is None and row.prompt_len + row.output_len > max_len:
            raise ConfigError(
                f"{found.path}:{row.line} has {row.prompt_len:,} prompt and {row.output_len:,} output tokens and "
                f"exceeds model.max_len={max_len}: raise model.max_len, or lower workload.trace_length_scale"
            )


def _columns(path: Path) -> list[str] | None:
    """The columns of a CSV; None of a file that is none."""
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


def _csv(path: Path, columns: list[str], asked: Format | None) -> Trace:
    if len(set(columns)) != len(columns):
        twice = next(name for name in columns if columns.count(name) > 1)
        raise ConfigError(f'{path}:1 has the column "{twice[:60]}" twice: rename or drop one')
    if asked is not None and asked not in CSV_FORMATS:
        raise ConfigError(f"{path} is a CSV, and {KEY}={asked.name} is JSON: set {KEY}=auto")
    fitting = [format_ for format_ in CSV_FORMATS if {format_.time, format_.prompt, format_.output} <= set(columns)]
    if not fitting or (asked is not None and asked not in fitting):
        known = "; ".join(f"{f.name} has {f.time}, {f.prompt}, {f.output}" for f in CSV_FORMATS)
        of = f" of {KEY}={asked.name}" if asked is not None else ""
        shown = ", ".join(columns[:12]) if columns else "no columns"
        raise ConfigError(f"{path}:1 has not the columns{of} ({known}): it has {shown[:300]}")
    format_ = fitting[0]
    rows, left_out = [], 0
    for line, fields in _csv_rows(path):
        where = f"{path}:{line}"
        time_s = _moment(fields, format_, where)
        prompt, output = (_whole(fields, name, where) for name in (format_.prompt, format_.output))
        if not prompt or not output:
            left_out += 1
            continue
        rows.append(Row(line, time_s, prompt, output))
    if not rows and left_out:
        raise ConfigError(f"{path} has no requests: all of its {left_out:,} rows have 0 tokens")
    return Trace(path, format_, rows, left_out=left_out)


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Rows with their line, by column; blank lines are none."""
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
                    raise ConfigError(f"{path}:{line} has {len(values)} values, and there are {len(columns)} columns")
                yield line, dict(zip(columns, values, strict=True))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error.reason} near line {line + 1}") from error
    except csv.Error as error:
        raise ConfigError(f"{path}:{line + 1} is no CSV: {error}") from error


def _moment(fields: dict[str, str | None], format_: Format, where: str) -> float:
    """When a row of a CSV was due, in seconds from any moment."""
    said = (fields[format_.time] or "").strip()
    if format_ is AZURE:
        # Seven decimals in 2023, a time zone in 2024.
        found = re.fullmatch(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)?", said)
        try:
            if found is not None:
                day, clock, part, zone = found.groups()
                moment = datetime.fromisoformat(f"{day}T{clock}{'' if zone in (None, 'Z') else zone}")
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                return moment.timestamp() + float(part or 0)
        except ValueError:
            pass
        raise ConfigError(
            f'{where} has no good "{format_.time}": a date and time as 2023-11-16 18:15:46.68 is needed, and there is '
            f"{said[:60]!r}"
        )
    if not re.fullmatch(r"\d{1,15}(\.\d{1,15})?", said):
        raise ConfigError(
            f'{where} has no good "{format_.time}": seconds from 0 on are needed, and there is {said[:60]!r}'
        )
    return float(said)


def _whole(fields: dict[str, str | None], name: str, where: str) -> int:
    said = (fields[name] or "").strip()
    if not re.fullmatch(r"\d{1,15}(\.0+)?", said):
        raise ConfigError(f'{where} has no good "{name}": a number of tokens is needed, and there is {said[:60]!r}')
    return int(float(said))


def _json(path: Path, asked: Format | None) -> Trace:
    """A trace of JSON objects: what each row's fields show, and what is told by all of them together."""
    rows: list[tuple[str, dict[str, Any]]] = []
    for where, fields in row_files.read(path):
        if isinstance(fields, BadRowError):
            none = "has no time: it " if str(fields) == "is not an object" else ""
            raise ConfigError(f"{where} {none}{fields}")
        rows.append((where, fields))
    if not rows:
        return Trace(path, asked or OWN, [])
    shown = asked or _format_of(rows)
    read_rows = [_row(number, where, fields, shown) for number, (where, fields) in enumerate(rows, 1)]
    format_, block = _told(path, read_rows, rows, shown, asked)
    second = format_.second
    made = [replace(row, time_s=row.time_s / second, block=block or format_.block) for row in read_rows]
    return Trace(path, format_, made, block)


def _format_of(rows: Iterable[tuple[str, dict[str, Any]]]) -> Format:
    """The format that the names of the fields show: wp1's, Qwen-Bailian's, or what may yet be either of two."""
    found: tuple[Format, str] | None = None
    for where, fields in rows:
        if "time_s" in fields and "timestamp" in fields:
            raise ConfigError(
                f'{where} has both "time_s" and "timestamp": set {KEY}={OWN.name} for the first, or for the second '
                f"{MOONCAKE.name} (ms) or {BAILIAN.name} (s)"
            )
        if "time_s" in fields:
            format_ = OWN
        elif "timestamp" in fields:
            format_ = BAILIAN if any(key in fields for key in CHAT_KEYS) else MOONCAKE
        else:
            raise ConfigError(
                f"{where} has no time: write \"timestamp\" (ms, as Mooncake's traces; s, as Qwen-Bailian's) or "
                f'"time_s"; it has the fields {row_files.fields_of(fields)}'
            )
        if found is not None and format_ is not found[0]:
            raise ConfigError(
                f"{where} looks like {format_.words} format and {found[1]} like {found[0].words}: one file is of one "
                f"format, so split it, or set {KEY} to {found[0].name} or {format_.name}"
            )
        found = found or (format_, where)
    assert found is not None
    return found[0]


def _row(number: int, where: str, given: dict[str, Any], format_: Format) -> Row:
    """A row with its time in the file's own unit."""
    tail = where.rpartition(":")[2].split(" ")[0]
    line = int(tail) if tail.isdecimal() else number
    time = _number(given, format_.time, where, least=0)
    output = _number(given, format_.output, where, least=1)
    if format_ is OWN and "prompt" in given:
        if not isinstance(given["prompt"], str) or not given["prompt"].strip():
            raise ConfigError(f'{where} has a "prompt" that is no text: write one, or "prompt_len" in its place')
        return Row(line, time, 0, round(output), text=given["prompt"])
    blocks = given.get("hash_ids")
    blocks = [] if blocks is None else blocks
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 2**63 for block in blocks):
        raise ConfigError(f'{where} has "hash_ids" that are no list of whole numbers (0 to 2^63 - 1)')
    return Row(line, time, round(_number(given, format_.prompt, where, least=1)), round(output), tuple(blocks))


def _told(
    path: Path, rows: list[Row], given: list[tuple[str, dict[str, Any]]], shown: Format, asked: Format | None
) -> tuple[Format, int | None]:
    """The format and the tokens of a block, as hash ids and times of all rows tell them.

    Raises ConfigError, naming the key, where they contradict the format or leave it open.
    """
    fitting = fitting_blocks(rows)
    either = f"set {KEY}={MOONCAKE.name} (times in ms) or {KEY}={BAILIAN.name} (in s)"
    # Where hash ids do not tell, only the time is open. Mooncake's are whole milliseconds.
    fractions = any(row.time_s != int(row.time_s) for row in rows)
    if asked is None and shown is MOONCAKE and fractions and (fitting is None or shown.block in fitting):
        raise ConfigError(f"{path} has times with fractions, which Mooncake's has not, and no chat_id: {either}")
    if fitting is None:
        return shown, None
    if shown.block in fitting:
        return shown, shown.block
    # Of wp1's own rows and of a format that is said the time is known, and the size is told by the fit.
    if asked is not None or shown is OWN:
        if len(fitting) == 1:
            return shown, fitting[0]
        if all(len(row.blocks) <= math.ceil(row.prompt_len / shown.block) for row in rows):
            # Some prompts have ids for their beginning only; what follows is their own.
            return shown, shown.block
    where, told = _misfit(rows, given, shown.block)
    sizes = f"blocks of {' or '.join(map(str, fitting))} tokens fit" if fitting else "no block size fits all rows"
    hint = either if asked is None and shown is not OWN else "mend the hash_ids, or leave them out"
    raise ConfigError(f"{where} has {told}, which does not fit {shown.words} blocks of {shown.block}; {sizes}: {hint}")


def _misfit(rows: list[Row], given: list[tuple[str, dict[str, Any]]], block: int) -> tuple[str, str]:
    """Where the first row stands whose hash ids do not fit blocks of that size, and what it has."""
    number = next(n for n, row in enumerate(rows) if row.blocks and not _fits(row, block))
    row = rows[number]
    return given[number][0], f"{len(row.blocks):,} hash_ids for {row.prompt_len:,} tokens"


def _fits(row: Row, block: int) -> bool:
    """Whether a row has an id for each of its blocks; the last may be cut off, and then may have none."""
    return row.prompt_len // block <= len(row.blocks) <= math.ceil(row.prompt_len / block)


def fitting_blocks(rows: Sequence[Row]) -> list[int] | None:
    """The block sizes (tokens, powers of two) that fit prompt length and number of hash ids in every row that has any.

    None where no row has hash ids.
    """
    hashed = [row for row in rows if row.blocks]
    if not hashed:
        return None
    return [block for block in BLOCKS if all(_fits(row, block) for row in hashed)]


def _number(row: dict[str, Any], key: str, where: str, least: int) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**53:
        said = repr(value)[:60]
        raise ConfigError(f'{where} has no good "{key}": a number of {least} or more is needed, and there is {said}')
    return value


def _scaled(length: float, scale: float) -> int:
    return max(1, round(length * scale))


def offsets(rows: Sequence[Row], speed: float) -> np.ndarray:
    """When each request is due, in seconds from the first; `speed` 2 sends them in half the recorded time."""
    times = np.array([row.time_s for row in rows])
    return (times - times[0]) / speed


def token_ids(row: Row, index: int, vocab_size: int, seed: int, scale: float) -> np.ndarray:
    """The prompt of a row (int64 ids): equal hash ids and seed give equal blocks, what no hash covers is its own.

    index: the row's number, which tells those rests apart. scale: what the row's length was multiplied by; blocks are
    as well, each to the token below. The same arguments give the same ids on any machine.
    """
    if row.prompt is not None:
        return row.prompt
    count = max(1, math.ceil((row.prompt_len + 1) / (row.block * scale)))
    begins = np.floor(np.arange(count + 1) * (row.block * scale)).astype(np.int64)
    positions = np.arange(row.prompt_len, dtype=np.int64)
    number = np.searchsorted(begins, positions, side="right") - 1
    within = (positions - begins[number]).astype(np.uint64)
    # Above all ids that a file may name (63 bits): one for each block of each row.
    own = np.uint64(1 << 63) + np.uint64(index) * np.uint64(1 << 20)
    keys = own + np.arange(number[-1] + 1, dtype=np.uint64)
    known = min(len(row.blocks), len(keys))
    keys[:known] = row.blocks[:known]
    # The end of a block that is cut off is another content than the whole block's, but the same as far as it goes.
    mixed = _mixed(_mixed(keys + _mixed(np.array([seed], dtype=np.uint64)))[number] + within)
    low = min(LOWEST_ID, vocab_size // 2)
    return low + (mixed % np.uint64(vocab_size - low)).astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): 64 bits in, 64 well-mixed bits out."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
