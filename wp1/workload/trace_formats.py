"""The five formats of recorded traffic, and what a trace is once it has been read. One row is one request.

mooncake  FAST 2025; github.com/kvcache-ai/Mooncake. JSON: `timestamp` (ms), `input_length` and `output_length`
          (tokens), and `hash_ids`, one for each block of 512 prompt tokens
bailian   Qwen-Bailian; github.com/alibaba-edu/qwen-bailian-usagetraces-anon. JSON: the same fields, but `timestamp` is
          in seconds and blocks have 16 tokens; also `chat_id`, `parent_chat_id`, `turn`, `type`
azure     AzurePublicDataset's LLM inference traces, 2023 and 2024. CSV: TIMESTAMP (date and time), ContextTokens,
          GeneratedTokens
burstgpt  github.com/HPMLL/BurstGPT. CSV: Timestamp (s), Request tokens, Response tokens; other columns are ignored
wp1       for traces you write yourself. JSON: `time_s`, `output_len` (tokens), and either `prompt_len` (tokens) or
          `prompt` (a text)
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BLOCK = 512  # tokens per hash id in Mooncake's traces
KEY = "workload.trace_format"


@dataclass(frozen=True)
class Format:
    """A format: the names of its fields, its unit of time, and `block`, the tokens that a hash id stands for."""

    name: str
    words: str  # whose format it is, in messages
    time: str
    prompt: str
    output: str
    unit: str = "s"
    block: int = BLOCK

    @property
    def second(self) -> float:
        """One second in the format's unit of time."""
        return 1000.0 if self.unit == "ms" else 1.0


MOONCAKE = Format("mooncake", "Mooncake's", "timestamp", "input_length", "output_length", unit="ms")
BAILIAN = Format("bailian", "Qwen-Bailian's", "timestamp", "input_length", "output_length", block=16)
AZURE = Format("azure", "Azure's", "TIMESTAMP", "ContextTokens", "GeneratedTokens", unit="date and time")
BURSTGPT = Format("burstgpt", "BurstGPT's", "Timestamp", "Request tokens", "Response tokens")
OWN = Format("wp1", "wp1's own", "time_s", "prompt_len", "output_len")
FORMATS = {format_.name: format_ for format_ in (MOONCAKE, BAILIAN, AZURE, BURSTGPT, OWN)}
CSV_FORMATS = (AZURE, BURSTGPT)


@dataclass(frozen=True, slots=True)
class Row:
    """One recorded request."""

    line: int
    time_s: float
    prompt_len: int  # tokens
    output_len: int  # tokens
    blocks: tuple[int, ...] = ()  # hash ids
    prompt: np.ndarray | None = None  # token ids of the row's text
    block: int = BLOCK  # tokens per hash id, before any scaling
    text: str | None = None  # the row's text, until it is tokenized


@dataclass(frozen=True)
class Trace:
    """A trace as read from its file.

    block: tokens per hash id, or None if no row has hash ids. left_out: rows of a CSV with 0 tokens, which failed when
    they were recorded.
    """

    path: Path
    format: Format
    rows: list[Row]
    block: int | None = None
    left_out: int = 0

    def words(self) -> str:
        """How the file was interpreted, for the screen and the report."""
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
        """The trace's entry in run_metadata.json."""
        return {
            "file": str(self.path),
            "format": self.format.name,
            "time_unit": self.format.unit,
            "block_tokens": self.block,
            "requests": len(self.rows),
            "left_out": self.left_out,
        }
