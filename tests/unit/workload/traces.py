"""Helpers for tests of traces: example rows, and functions that write a trace and read it back."""

import json
from pathlib import Path
from typing import Any

from wp1.config.schema import Workload
from wp1.workload import prompts, trace
from wp1.workload.trace_formats import Row, Trace

MOONCAKE = [
    {"timestamp": 3000, "input_length": 1300, "output_length": 20, "hash_ids": [1, 2, 9]},
    {"timestamp": 1000, "input_length": 1100, "output_length": 10, "hash_ids": [1, 2, 3]},
    {"timestamp": 1500, "input_length": 600, "output_length": 5, "hash_ids": [4]},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes a trace in JSONL."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def load(path: Path, max_len: int = 4096, **settings: Any) -> list[Row]:
    """The rows of a trace, with texts as bytes."""
    recorded = trace.read(Workload(trace_path=str(path), **settings))
    return trace.tokenized(recorded, max_len, prompts.as_token_ids).rows


def token_ids_of(rows: list[Row], seed: int = 1, scale: float = 1.0) -> list[list[int]]:
    """The prompt of each row, for a vocabulary of 49,152 tokens."""
    return [trace.token_ids(row, n, 49152, seed, scale).tolist() for n, row in enumerate(rows)]


def read(path: Path, text: str | list[dict[str, Any]], name: str = "t.jsonl", **settings: Any) -> Trace:
    """Writes a trace into the folder `path` and reads it."""
    file = path / name
    file.write_text(text if isinstance(text, str) else "".join(json.dumps(row) + "\n" for row in text))
    return trace.read(Workload(trace_path=str(file), **settings))


def shared(a: list[int], b: list[int]) -> int:
    """The length of the common prefix."""
    return next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
