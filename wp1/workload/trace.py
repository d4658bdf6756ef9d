"""Recorded traffic, replayed as it arrived: which rows of a trace are sent, when, and with which prompts.

`trace_formats` describes the formats. Equal hash ids stand for equal blocks of tokens, so prompts share prefixes just
as the recorded ones did. The tokens themselves were never published and are random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wp1.core.errors import ConfigError
from wp1.workload import trace_csv, trace_json
from wp1.workload.trace_formats import CSV_FORMATS, FORMATS, Row, Trace

LOWEST_ID = 1000  # models keep their special tokens below it


def read(workload: Any) -> Trace:
    """The first `workload.num_requests` rows by time (all, if null), times as recorded.

    Lengths are multiplied by `workload.trace_length_scale`. The format is `workload.trace_format`; `auto` detects it
    from the file's fields, times and hash ids.
    Raises ConfigError, with file and line, for a row that is malformed or in another format than the rows before it,
    and, with the key, if the file could be in more than one format.
    """
    path = Path(workload.trace_path).expanduser()
    requested = FORMATS.get(getattr(workload, "trace_format", "auto"))
    columns = trace_csv.columns_of(path)
    is_csv = columns is not None or requested in CSV_FORMATS
    whole = trace_csv.read(path, columns or [], requested) if is_csv else trace_json.read(path, requested)
    if not whole.rows:
        raise ConfigError(f"workload.trace_path={path} has no requests: it must hold one JSON object a line, or a CSV")
    rows = sorted(whole.rows, key=lambda row: row.time_s)[: workload.num_requests]
    scale = workload.trace_length_scale
    scaled = [
        replace(row, prompt_len=_scaled(row.prompt_len, scale), output_len=_scaled(row.output_len, scale))
        for row in rows
    ]
    return replace(whole, rows=scaled)


def _scaled(length: float, scale: float) -> int:
    return max(1, round(length * scale))


def tokenized(trace: Trace, max_len: int, encode: Callable[[str], list[int]]) -> Trace:
    """The trace with texts as token ids. Raises ConfigError for a row that does not fit into `max_len` tokens."""
    rows = []
    for row in trace.rows:
        if row.text is not None:
            ids = np.asarray(encode(row.text), dtype=np.int32)
            row = replace(row, prompt=ids, prompt_len=len(ids), text=None)  # noqa: PLW2901
        rows.append(row)
    result = replace(trace, rows=rows)
    check_lengths(result, max_len)
    return result


def check_lengths(trace: Trace, max_len: int) -> None:
    """Raises ConfigError, with file and line, for a row longer than `max_len` tokens. Skips texts not yet tokenized."""
    for row in trace.rows:
        if row.text is None and row.prompt_len + row.output_len > max_len:
            raise ConfigError(
                f"{trace.path}:{row.line} has {row.prompt_len:,} prompt and {row.output_len:,} output tokens, more "
                f"than model.max_len={max_len}: raise model.max_len, or lower workload.trace_length_scale"
            )


def offsets(rows: Sequence[Row], speed: float) -> np.ndarray:
    """Each request's arrival in seconds after the first. `speed` 2 sends them in half the recorded time."""
    times = np.array([row.time_s for row in rows])
    return (times - times[0]) / speed


def token_ids(row: Row, index: int, vocab_size: int, seed: int, scale: float) -> np.ndarray:
    """The prompt of a row (int64 ids). Equal hash ids and seed give equal blocks; the rest differs from row to row.

    index: the row's number, which makes the tokens without a hash id differ. scale: the factor the row's length was
    multiplied by; blocks are scaled too, each rounded down to a whole token. The same arguments give the same ids on
    any machine.
    """
    if row.prompt is not None:
        return row.prompt
    count = max(1, math.ceil((row.prompt_len + 1) / (row.block * scale)))
    begins = np.floor(np.arange(count + 1) * (row.block * scale)).astype(np.int64)
    positions = np.arange(row.prompt_len, dtype=np.int64)
    number = np.searchsorted(begins, positions, side="right") - 1
    within = (positions - begins[number]).astype(np.uint64)
    # One key for each block of each row, above every id that a file may use (63 bits).
    own = np.uint64(1 << 63) + np.uint64(index) * np.uint64(1 << 20)
    keys = own + np.arange(number[-1] + 1, dtype=np.uint64)
    hashed = min(len(row.blocks), len(keys))
    keys[:hashed] = row.blocks[:hashed]
    # Each token depends on its key and its position in the block, so a partial block is a prefix of the whole one.
    mixed = _mixed(_mixed(keys + _mixed(np.array([seed], dtype=np.uint64)))[number] + within)
    low = min(LOWEST_ID, vocab_size // 2)
    return low + (mixed % np.uint64(vocab_size - low)).astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): 64 bits in, 64 well-mixed bits out."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
