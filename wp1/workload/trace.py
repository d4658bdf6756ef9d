"""Recorded traffic, to be sent again as it came: a JSONL file with one request a line.

Two forms are read, told apart by their keys:

- Mooncake's (FAST 2025; github.com/kvcache-ai/Mooncake): `timestamp` (ms), `input_length`, `output_length` (tokens) and
  `hash_ids`, one id for each block of 512 prompt tokens. Equal ids stand for equal blocks, so that prompts share
  prefixes just as the recorded ones did; the tokens themselves were never published and are random.
- one of your own: `time_s`, `output_len` (tokens), and either `prompt_len` (tokens; random ones) or `prompt` (a text).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wp1.errors import ConfigError

BLOCK = 512  # tokens that one of Mooncake's hash ids stands for
LOWEST_ID = 1000  # below it models keep their special tokens


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded request."""

    line: int
    time_s: float
    prompt_len: int  # tokens
    output_len: int  # tokens
    blocks: tuple[int, ...] = ()  # hash ids
    prompt: np.ndarray | None = None  # token ids of a text of its own


def load(workload: Any, max_len: int, encode: Callable[[str], list[int]]) -> list[Row]:
    """The first `workload.num_requests` rows by time (all, if null), with lengths scaled and times as recorded.

    Lengths are multiplied by `workload.trace_length_scale`, those of hash blocks too.
    Raises ConfigError naming file and line of a row that is none, or does not fit into `max_len` tokens.
    """
    path = Path(workload.trace_path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"workload.trace_path={path} cannot be read: {error}") from error
    rows = [
        _row(line, number, f"{path}:{number}", workload.trace_length_scale, encode)
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    if not rows:
        raise ConfigError(f"workload.trace_path={path} has no requests: one JSON object a line is needed")
    rows.sort(key=lambda row: row.time_s)
    rows = rows[: workload.num_requests]
    for row in rows:
        if row.prompt_len + row.output_len > max_len:
            raise ConfigError(
                f"{path}:{row.line} has {row.prompt_len:,} prompt and {row.output_len:,} output tokens and exceeds "
                f"model.max_len={max_len}: raise model.max_len, or lower workload.trace_length_scale"
            )
    return rows


def _row(line: str, number: int, where: str, scale: float, encode: Callable[[str], list[int]]) -> Row:
    try:
        given = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(given, dict) or not ("timestamp" in given or "time_s" in given):
        raise ConfigError(f'{where} has no time: write "timestamp" (ms, as Mooncake\'s traces) or "time_s"')
    mooncake = "timestamp" in given
    time_key, prompt_key, output_key = (
        ("timestamp", "input_length", "output_length") if mooncake else ("time_s", "prompt_len", "output_len")
    )
    time_s = _number(given, time_key, where, least=0) / (1000 if mooncake else 1)
    output = _scaled(_number(given, output_key, where, least=1), scale)
    if not mooncake and "prompt" in given:
        if not isinstance(given["prompt"], str) or not given["prompt"].strip():
            raise ConfigError(f'{where} has a "prompt" that is no text: write one, or "prompt_len" in its place')
        ids = np.asarray(encode(given["prompt"]), dtype=np.int32)
        return Row(number, time_s, len(ids), output, prompt=ids)
    blocks = given.get("hash_ids", [])
    if not isinstance(blocks, list) or not all(type(block) is int and 0 <= block < 2**63 for block in blocks):
        raise ConfigError(f'{where} has "hash_ids" that are no list of whole numbers')
    length = _scaled(_number(given, prompt_key, where, least=1), scale)
    return Row(number, time_s, length, output, tuple(blocks))


def _number(row: dict[str, Any], key: str, where: str, least: int) -> float:
    value = row.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < 2**53:
        raise ConfigError(f'{where} has no good "{key}": a number of {least} or more is needed, and there is {value!r}')
    return value


def _scaled(length: float, scale: float) -> int:
    return max(1, round(length * scale))


def offsets(rows: Sequence[Row], speed: float) -> np.ndarray:
    """When each request is due, in seconds from the first; `speed` 2 sends them in half the recorded time."""
    times = np.array([row.time_s for row in rows])
    return (times - times[0]) / speed


def token_ids(row: Row, index: int, vocab_size: int, seed: int, scale: float) -> np.ndarray:
    """The prompt of a row (int64 ids): equal hash ids and seed give equal blocks, what no hash covers is its own.

    index: the row's number, which tells those rests apart. The same arguments give the same ids on any machine.
    """
    if row.prompt is not None:
        return row.prompt
    block = _scaled(BLOCK, scale)
    positions = np.arange(row.prompt_len, dtype=np.uint64)
    number = (positions // np.uint64(block)).astype(np.int64)
    # Above all ids that a file may name (63 bits): one for each block of each row.
    own = np.uint64(1 << 63) + np.uint64(index) * np.uint64(1 << 20)
    keys = own + np.arange(number[-1] + 1, dtype=np.uint64)
    known = min(len(row.blocks), len(keys))
    keys[:known] = row.blocks[:known]
    # The end of a block that is cut off is another content than the whole block's, but the same as far as it goes.
    mixed = _mixed(_mixed(keys + _mixed(np.array([seed], dtype=np.uint64)))[number] + positions % np.uint64(block))
    low = min(LOWEST_ID, vocab_size // 2)
    return low + (mixed % np.uint64(vocab_size - low)).astype(np.int64)


def _mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014): 64 bits in, 64 well-mixed bits out."""
    z = values + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
