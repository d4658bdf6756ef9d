"""Synthetic records of a large run, for measuring the analysis."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import yaml

from wp1.analysis.base import tables

RATES, REPEATS = (1000, 2000), 5
TEXT = "In the beginning God created the heaven and the earth. " * 6


def write_run(folder: Path, requests: int, tokens: int, chunk: int = 50_000) -> Path:
    """Writes a run folder of `requests` records with `tokens` output tokens each: two open-loop cells, five repeats."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    each = requests // (len(RATES) * REPEATS)
    with (folder / "records.jsonl").open("wb") as file:
        start = 100_000.0  # a monotonic clock's value after about a day
        for rate in RATES:
            for repeat in range(REPEATS):
                due = start + np.cumsum(rng.exponential(1 / rate, each))
                for begin in range(0, each, chunk):
                    _write(file, rng, due[begin : begin + chunk], f"512-rate{rate}", repeat, begin, tokens)
                start = due[-1] + 10
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(folder)))
    engine = {
        "name": "agg-0",
        "devices": ["cuda:0"],
        "startup_s": 30.0,
        "settings": {"max_num_batched_tokens": 8192, "dtype": "bfloat16", "kv_blocks": 100, "block_size": 16},
    }
    metadata = {
        "run_id": folder.name, "experiment": "e2", "config_hash": "0" * 64, "labels": ["synthetic"],
        "status": "completed", "reason": None, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:08:00+00:00", "question": "", "seed": 42, "command": ["wp1"], "git": None, "tags": {},
        "model": {"name": "none", "digest": "0" * 6, "max_len": 8192, "kv_bytes_per_token": 0,
                  "rope": {"type": "default", "factor": 1.0, "original_max_len": 8192, "written_as": None}},
        "hardware": {"gpus": [], "driver": None, "cpu": "none", "cores": 1, "memory_gib": 1},
        "versions": {"python": "3"}, "transfer": None, "starts": [],
        "pools": [{"arm": "agg", "pool": "agg", "phases": ["prefill", "decode"], "engines": [engine]}],
    }  # fmt: skip
    (folder / "run_metadata.json").write_text(json.dumps(metadata))
    return folder


def _write(
    file: object, rng: np.random.Generator, due: np.ndarray, cell: str, repeat: int, begin: int, tokens: int
) -> None:
    n = len(due)
    ttft = rng.lognormal(-2.5, 0.4, n)
    times = (due + ttft)[:, None] + np.cumsum(rng.lognormal(-4, 0.3, (n, tokens)), axis=1).round(6)
    sent, scheduled = due + 0.0002, due + ttft * 0.2
    lit = pl.lit
    frame = pl.DataFrame({"n": np.arange(begin, begin + n), "t_intended": due.round(6)})
    frame = frame.with_columns(
        request_id=pl.format("agg/{}/r{}/{}", lit(cell), lit(repeat), "n"),
        arm=lit("agg"), cell=lit(cell), repeat=lit(repeat), label=lit("512 random tokens"), warmup=lit(False),
        seed=lit(12345), status=lit("ok"), ramp=lit(False),
        t_sent=pl.Series(sent.round(6)), t_queued=pl.Series((sent + 1e-4).round(6)),
        t_scheduled=pl.Series(scheduled.round(6)), t_engine_first_token=pl.Series((times[:, 0] - 2e-4).round(6)),
        t_engine_last_token=pl.Series((times[:, -1] - 2e-4).round(6)),
        t_tokens=pl.Series(times.round(6), dtype=pl.Array(pl.Float64, tokens)).arr.to_list(),
        t_end=pl.Series((times[:, -1] + 1e-5).round(6)),
        prompt_tokens=lit(512), output_tokens=lit(tokens), cached_tokens=lit(0), preemptions=lit(0),
        finish_reason=lit("length"), text=lit(TEXT),
        token_ids=pl.Series(rng.integers(1000, 49152, (n, tokens)), dtype=pl.Array(pl.Int64, tokens)).arr.to_list(),
        pool=lit("agg"), prefill_engine=lit("agg-0"), decode_engine=lit("agg-0"),
    )  # fmt: skip
    absent = [name for name in tables.RECORD_SCHEMA if name not in frame.columns]
    frame.with_columns(pl.lit(None).alias(name) for name in absent).drop("n").write_ndjson(file)  # type: ignore[arg-type]


def _config(folder: Path) -> dict[str, object]:
    return {
        "experiment": {"name": "e2", "question": "", "same_tokens": False, "repeats": REPEATS},
        "backend": {"engine": {"enable_prefix_caching": False}},
        "workload": {"prompts": "random", "temperature": 0.0},
        "arms": {},
        "slo": {"name": "interactive", "ttft_ms": 2000, "tpot_ms": 200},
        "collectors": {
            "latency": {"_target_": "wp1.collectors.latency.LatencyStatsCollector"},
            "load": {"_target_": "wp1.collectors.load.LoadStatsCollector"},
        },
        "root": str(folder),
    }
