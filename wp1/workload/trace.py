"""Recorded traffic, to be sent again as it came: when each request is due, and its prompt.

The files that traces come in, and their formats, are in `wp1.workload.trace_files`. Equal hash ids stand for equal
blocks, so that prompts share prefixes just as the recorded ones did; the tokens themselves were never published and are
random.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from wp1.core.errors import ConfigError
from wp1.workload.trace_files import FORMATS, Row, Trace, parse

LOWEST_ID = 1000  # below it models keep their special tokens


def load(workload: Any, max_len: int, encode: Callable[[str], list[int]]) -> list[Row]:
    """The rows that `read` finds, with texts as token ids. Raises ConfigError as `read` and `tokenized`."""
    return tokenized(read(workload), max_len, encode).rows


def read(workload: Any) -> Trace:
    """The first `workload.num_requests` rows by time (all, if null), with lengths scaled and times as recorded.

    Lengths are multiplied by `workload.trace_length_scale`. The format is `workload.trace_format`, or with `auto` the
    one that the file's fields, times and hash ids show.
    Raises ConfigError naming file and line of a row that is none, or that is of another format than the others; and
    the key where a file could be of several formats.
    """
    path = Path(workload.trace_path).expanduser()
    asked = FORMATS.get(getattr(workload, "trace_format", "auto"))
    found = parse(path, asked)
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
