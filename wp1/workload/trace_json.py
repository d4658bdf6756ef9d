"""Reads recorded traffic from JSON or JSONL files, in Mooncake's, Qwen-Bailian's or wp1's own format."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.workload import row_files
from wp1.workload.row_files import BadRowError
from wp1.workload.trace_formats import BAILIAN, KEY, MOONCAKE, OWN, Format, Row, Trace

# Only Qwen-Bailian's rows name the conversation they belong to.
CHAT_KEYS = ("chat_id", "parent_chat_id")
# The block sizes (tokens) that KV caches use. A trace's block size is looked for among them.
BLOCKS = tuple(2**n for n in range(3, 14))

Source = tuple[str, dict[str, Any]]  # FILE:LINE of a row, and its fields


def read(path: Path, requested: Format | None) -> Trace:
    """The trace in a file of JSON objects, rows in the file's order, times in seconds, lengths as recorded.

    requested: the format that the configuration names, or None to detect it from the fields, times and hash ids.
    Raises ConfigError, with file and line, for a row that is malformed or in another format than the rows before it,
    and, with the key, if the file could be in more than one format.
    """
    sources: list[Source] = []
    for where, fields in row_files.read(path):
        if isinstance(fields, BadRowError):
            prefix = "has no time: it " if str(fields) == "is not an object" else ""
            raise ConfigError(f"{where} {prefix}{fields}")
        sources.append((where, fields))
    if not sources:
        return Trace(path, requested or OWN, [])
    format_ = requested or _format_of(sources)
    rows = [_row(number, where, fields, format_) for number, (where, fields) in enumerate(sources, 1)]
    block = _block_size(path, rows, sources, format_, requested)
    rows = [replace(row, time_s=row.time_s / format_.second, block=block or format_.block) for row in rows]
    return Trace(path, format_, rows, block)


def _format_of(sources: Iterable[Source]) -> Format:
    """The format that the field names suggest. `MOONCAKE` is provisional: the rows may be Qwen-Bailian's."""
    first: tuple[Format, str] | None = None
    for where, fields in sources:
        if "time_s" in fields and "timestamp" in fields:
            raise ConfigError(
                f'{where} has both "time_s" and "timestamp": set {KEY}={OWN.name} to use the first, or '
                f"{KEY}={MOONCAKE.name} (ms) or {KEY}={BAILIAN.name} (s) to use the second"
            )
        if "time_s" in fields:
            format_ = OWN
        elif "timestamp" in fields:
            format_ = BAILIAN if any(key in fields for key in CHAT_KEYS) else MOONCAKE
        else:
            raise ConfigError(
                f"{where} has no time: add \"timestamp\" (in ms as in Mooncake's traces, or in s as in Qwen-Bailian's) "
                f'or "time_s"; its fields are {row_files.fields_of(fields)}'
            )
        if first is not None and format_ is not first[0]:
            raise ConfigError(
                f"{where} looks like {format_.words} format and {first[1]} like {first[0].words}, but a file must have "
                f"one format: split the file, or set {KEY} to {first[0].name} or {format_.name}"
            )
        first = first or (format_, where)
    assert first is not None
    return first[0]


def _row(number: int, where: str, fields: dict[str, Any], format_: Format) -> Row:
    """A row with its time still in the file's unit. number: the row's number, used if `where` names no line."""
    tail = where.rpartition(":")[2].split(" ")[0]
    line = int(tail) if tail.isdecimal() else number
    time = _number(fields, format_.time, where, least=0)
    output = _number(fields, format_.output, where, least=1)
    if format_ is OWN and "prompt" in fields:
        if not isinstance(fields["prompt"], str) or not fields["prompt"].strip():
            raise ConfigError(f'{where} has a "prompt" that is not text or is empty: write a text, or use "prompt_len"')
        return Row(line, time, 0, round(output), text=fields["prompt"])
    blocks = fields.get("hash_ids")
    blocks = [] if blocks is None else blocks
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 2**63 for block in blocks):
        raise ConfigError(f'{where} has "hash_ids" that are not a list of whole numbers (0 to 2^63 - 1)')
    return Row(line, time, round(_number(fields, format_.prompt, where, least=1)), round(output), tuple(blocks))


def _number(row: dict[str, Any], key: str, where: str, least: int) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**53:
        problem = f'has no "{key}"' if value is None else f'has "{key}" {repr(value)[:60]}'
        raise ConfigError(f"{where} {problem}: it must be a number, {least} or more")
    return value


def _block_size(
    path: Path, rows: list[Row], sources: list[Source], format_: Format, requested: Format | None
) -> int | None:
    """Tokens per hash id, worked out from all rows; None if no row has hash ids.

    Raises ConfigError, with the key, if hash ids or times contradict the format or leave it open.
    """
    fitting = _fitting_blocks(rows)
    choice = f"set {KEY}={MOONCAKE.name} (times in ms) or {KEY}={BAILIAN.name} (in s)"
    # If hash ids do not decide it, only the unit of time is open. Mooncake's times are whole milliseconds.
    fractions = any(row.time_s != int(row.time_s) for row in rows)
    if requested is None and format_ is MOONCAKE and fractions and (fitting is None or format_.block in fitting):
        raise ConfigError(f"{path} has times with fractions, unlike Mooncake's traces, and no chat_id: {choice}")
    if fitting is None:
        return None
    if format_.block in fitting:
        return format_.block
    # The unit of time is known for wp1's own format and for one that was named; the fit gives the block size.
    if requested is not None or format_ is OWN:
        if len(fitting) == 1:
            return fitting[0]
        if all(len(row.blocks) <= math.ceil(row.prompt_len / format_.block) for row in rows):
            # Some prompts have hash ids for their beginning only. The rest is shared with no other prompt.
            return format_.block
    where, misfit = _misfit(rows, sources, format_.block)
    sizes = f"blocks of {' or '.join(map(str, fitting))} tokens fit" if fitting else "no block size fits all rows"
    hint = choice if requested is None and format_ is not OWN else "correct the hash_ids, or leave them out"
    raise ConfigError(
        f"{where} has {misfit}, which does not fit {format_.words} blocks of {format_.block}; {sizes}: {hint}"
    )


def _misfit(rows: list[Row], sources: list[Source], block: int) -> tuple[str, str]:
    """FILE:LINE of the first row whose hash ids do not fit this block size, and its counts of ids and tokens."""
    number = next(n for n, row in enumerate(rows) if row.blocks and not _fits(row, block))
    row = rows[number]
    return sources[number][0], f"{len(row.blocks):,} hash_ids for {row.prompt_len:,} tokens"


def _fits(row: Row, block: int) -> bool:
    """Whether a row has an id for each of its blocks. A partial last block may go without."""
    return row.prompt_len // block <= len(row.blocks) <= math.ceil(row.prompt_len / block)


def _fitting_blocks(rows: Sequence[Row]) -> list[int] | None:
    """The block sizes (tokens, powers of two) for which every row with hash ids has one id per block of its prompt.

    None if no row has hash ids.
    """
    hashed = [row for row in rows if row.blocks]
    if not hashed:
        return None
    return [block for block in BLOCKS if all(_fits(row, block) for row in hashed)]
