"""Request tables with times by formula, for figures that must come out as the formula says."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import polars as pl

from wp1.analysis.base import tables
from wp1.model.architecture import Architecture

LLAMA_8B = Architecture(
    layers=32, hidden=4096, heads=32, kv_heads=8, head_size=128, intermediate=14336, vocab=128256, tied=False,
    element_bytes=2,
)  # fmt: skip


def request(
    cell: str, repeat: int, n: int, begin: float, prompt: int, output: int, prefill_s: float, step_s: float,
    arm: str = "agg", engine: str = "agg-0", queue_s: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """One answered request as a row of `tables.RECORD_SCHEMA`; the client adds nothing."""
    scheduled = begin + queue_s
    first = scheduled + prefill_s
    tokens = [first + k * step_s for k in range(output)]
    return {
        "request_id": f"{arm}/{cell}/r{repeat}/{n}", "arm": arm, "cell": cell, "repeat": repeat, "warmup": False,
        "status": "ok", "t_intended": begin, "t_sent": begin, "t_queued": begin, "t_scheduled": scheduled,
        "t_engine_first_token": first, "t_engine_last_token": tokens[-1], "t_tokens": tokens, "t_end": tokens[-1],
        "prompt_tokens": prompt, "output_tokens": output, "prefill_engine": engine, "decode_engine": engine,
    }  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> pl.DataFrame:
    return tables.with_latencies(pl.DataFrame(list(rows), schema=tables.RECORD_SCHEMA))


def alone(
    prefill_s: Callable[[int], float], lengths: Sequence[int], repeats: int = 3, count: int = 2, noise: float = 0.0,
    output: int = 9, step_s: float = 0.01,
) -> pl.DataFrame:  # fmt: skip
    """One request at a time at each length."""
    rng, clock, rows = np.random.default_rng(0), 1000.0, []
    for length in lengths:
        for repeat in range(repeats):
            for n in range(count):
                took = prefill_s(length) * float(np.exp(noise * rng.standard_normal()))
                rows.append(request(f"{length}-conc1", repeat, n, clock, length, output, took, step_s))
                clock = rows[-1]["t_end"] + 0.5
    return table(rows)


def together(
    length: int,
    concurrency: int,
    prefill_s: float,
    step_s: float,
    repeats: int = 3,
    output: int = 9,
    start: float = 0.0,
) -> list[dict[str, Any]]:
    """`concurrency` requests whose prefills follow each other, and which then decode side by side."""
    rows = []
    for repeat in range(repeats):
        begin = start + repeat * 1000.0
        for n in range(concurrency):
            waits = n * prefill_s
            row = request(
                f"{length}-conc{concurrency}", repeat, n, begin, length, output, prefill_s, step_s, queue_s=waits
            )
            rows.append(row)
    return rows


def metadata(flops: float = 1e15, bytes_per_s: float = 3e12, engines: int = 1, shape: Any = LLAMA_8B) -> dict[str, Any]:
    """The parts of run_metadata.json that figures need: one arm on as many GPUs as engines."""
    from dataclasses import asdict

    return {
        "model": {"shape": asdict(shape)},
        "peaks": {
            "device": "a test", "flops": flops, "bytes_per_s": bytes_per_s, "kind": "stated", "source": "a test"
        },
        "pools": [
            {
                "arm": "agg", "pool": "agg", "phases": ["prefill", "decode"],
                "engines": [{"name": f"agg-{n}", "devices": [f"cuda:{n}"], "settings": {}} for n in range(engines)],
            }
        ],
    }  # fmt: skip
