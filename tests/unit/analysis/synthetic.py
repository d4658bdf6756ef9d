"""A run's folder with two arms, as a disaggregated experiment leaves it, without any engine.

Latencies follow from a few numbers a test can set, plus seeded noise: the same call writes the same bytes.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from wp1.core.jsonl import RecordWriter
from wp1.core.records import Handoff, QueueLengths, Request, RequestRecord, new_record

RUN_ID = "run-20260101T000000Z-00000000"
KV_BYTES_PER_TOKEN, BLOCK_TOKENS = 23_040, 16
BLOCK_BYTES = KV_BYTES_PER_TOKEN * BLOCK_TOKENS


@dataclass
class Shape:
    """What the run was like; times in seconds."""

    lengths: tuple[int, ...] = (256, 1024)
    rates: tuple[float, ...] = (0, 0.5)
    repeats: int = 3
    count: int = 8
    output_len: int = 16
    first_token: str = "prefill"
    arms: tuple[str, ...] = ("agg", "disagg")
    prefill_s_per_token: float = 1e-3
    step_s: float = 0.03
    # Of the second arm, beside the first: what it adds, and by what its steps differ.
    queue_factor: float = 1.0
    step_factor: float = 1.0
    gb_per_s: float = 0.5
    noise: float = 0.1
    overlap: bool = False  # transfers begin with their prefill
    copy_gb_per_s: float | None = None  # by the connector's own clock, where it has one
    handoffs: bool = True  # whether the second arm is disaggregated
    fail: set[str] = field(default_factory=set)  # ids of requests that fail
    other_tokens: set[str] = field(default_factory=set)  # ids of requests of the second arm that part at token 5
    byte_factor: float | None = 1.0  # of what is expected; None: the connector says nothing
    slo: dict[str, Any] = field(default_factory=lambda: {"name": "interactive", "ttft_ms": 2000, "tpot_ms": 200})
    labels: tuple[str, ...] = ()
    shared_gpu: bool = False
    prompts: str = "random"


def make_run(root: Path, shape: Shape | None = None) -> Path:
    """Writes config.yaml, run_metadata.json, records.jsonl, handoffs.jsonl and queues.jsonl; returns the folder."""
    shape = shape or Shape()
    folder = root / "outputs" / RUN_ID
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(_config(root, shape)))
    (folder / "run_metadata.json").write_text(json.dumps(_metadata(shape)))
    clock = 1000.0
    with (
        RecordWriter(folder / "records.jsonl") as records,
        RecordWriter(folder / "handoffs.jsonl") as handoffs,
        RecordWriter(folder / "queues.jsonl") as queues,
    ):
        for length in shape.lengths:
            for rate in shape.rates:
                cell = f"{length}-rate{rate:g}" if rate else f"{length}-conc1"
                for repeat in range(-1, shape.repeats):  # the first is the warm-up
                    order = shape.arms if repeat % 2 == 0 else shape.arms[::-1]
                    for arm in order:
                        clock = _batch(shape, arm, cell, length, rate, repeat, clock, records, handoffs, queues) + 2.0
    if not shape.handoffs:
        (folder / "handoffs.jsonl").unlink()
        (folder / "queues.jsonl").unlink()
    return folder


def _batch(
    shape: Shape, arm: str, cell: str, length: int, rate: float, repeat: int, start: float,
    records: RecordWriter, handoffs: RecordWriter, queues: RecordWriter,
) -> float:  # fmt: skip
    """One repeat; returns when its last request ended."""
    warmup = repeat < 0
    # Prompts and arrivals are the same in both arms, and so is what they have in common.
    shared = np.random.default_rng([length, int(rate * 1000), repeat + 1])
    own = np.random.default_rng([length, int(rate * 1000), repeat + 1, shape.arms.index(arm)])
    count = 1 if warmup else shape.count
    due, free, end = start, start, start
    second = arm != shape.arms[0]
    done: list[RequestRecord] = []
    for n in range(count):
        name = f"warm-up-{n}" if warmup else str(n)
        request = Request(
            f"{arm}/{cell}/r{max(repeat, 0)}/{name}", arm, cell, max(repeat, 0), [1] * length, shape.output_len,
            seed=n, label="warm-up" if warmup else f"{length} random tokens", warmup=warmup,
        )  # fmt: skip
        due = (start if n == 0 else due + shared.exponential(1 / rate)) if rate else end
        slow = float(np.exp(shape.noise * shared.standard_normal()))
        jitter = float(np.exp(shape.noise / 3 * own.standard_normal()))
        queue = max(0.0, free - due) * (shape.queue_factor if second else 1.0) + 0.002 * slow * jitter
        prefill = length * shape.prefill_s_per_token * slow * jitter
        step = shape.step_s * (1 + length / 20_000) * slow * jitter * (shape.step_factor if second else 1.0)
        record = _record(shape, request, due, queue, prefill, step, second and shape.handoffs, handoffs)
        free = due + queue + prefill
        records.write(record)
        done.append(record)
        end = record.t_end or end
    end = max(record.t_end or start for record in done)
    if second and shape.handoffs:
        _sample(queues, arm, done, start, end)
    return end


def _record(
    shape: Shape, request: Request, due: float, queue: float, prefill: float, step: float, split: bool,
    handoffs: RecordWriter,
) -> RequestRecord:  # fmt: skip
    record = new_record(request, due)
    arm, length = request.arm, len(request.prompt)
    record.t_sent = record.t_queued = due + 0.0001
    record.t_scheduled = due + queue
    prefilled = due + queue + prefill
    record.t_engine_first_token = prefilled
    record.pool, record.prefill_engine = ("prefill", "prefill-0") if split else (arm, f"{arm}-0")
    record.decode_engine = "decode-0" if split else f"{arm}-0"
    decodable = prefilled
    if split:
        blocks = -(-length // BLOCK_TOKENS)
        expected = blocks * BLOCK_BYTES
        handoff = Handoff(
            f"h-{request.request_id}", request.request_id, arm, request.cell, request.repeat, request.warmup,
            "prefill-0", "decode-0", "nixl_push", status="ok", tokens=length, blocks=blocks,
            bytes=None if shape.byte_factor is None else int(expected * shape.byte_factor), bytes_expected=expected,
            block_bytes=BLOCK_BYTES, t_prefill_done=prefilled, t_decode_sent=prefilled + 0.001,
        )  # fmt: skip
        handoff.t_transfer_begin = due + queue if shape.overlap else prefilled + 0.002
        handoff.t_transfer_end = prefilled + 0.002 + expected / shape.gb_per_s / 1e9
        if shape.copy_gb_per_s is not None:
            handoff.copy_s, handoff.wait_s, handoff.runs = expected / shape.copy_gb_per_s / 1e9, 0.0005, 2
        decodable = handoff.t_transfer_end + 0.001
        record.handoff_id, record.t_decode_sent = handoff.handoff_id, handoff.t_decode_sent
        if request.request_id in shape.fail:
            handoff.status, handoff.error, handoff.phase = "failed", "no answer in 60 s", "handoff"
            handoff.t_transfer_end = None
        else:
            handoff.t_decode_scheduled = record.t_decode_scheduled = decodable
            handoff.t_decode_first_token = record.t_decode_first_token = decodable + step
        handoffs.write(handoff)
    if request.request_id in shape.fail:
        record.status, record.error, record.phase = "error", "no answer in 60 s", "handoff" if split else "prefill"
        record.cause = "transfer" if split else "engine_error"
        record.t_end = prefilled + 1
        return record
    delivery = 0.0003
    first = decodable + step if split and shape.first_token == "decode" else prefilled
    second = first + step if split and shape.first_token == "decode" else decodable + step
    record.t_tokens = [first + delivery, *(second + delivery + n * step for n in range(shape.output_len - 1))]
    record.t_tokens = record.t_tokens[: shape.output_len]
    record.t_end = record.t_engine_last_token = record.t_tokens[-1]
    record.status, record.finish_reason = "ok", "length"
    record.prompt_tokens, record.output_tokens = length, shape.output_len
    record.token_ids = [n + 1 for n in range(shape.output_len)]
    if request.request_id in shape.other_tokens:
        record.token_ids[4] = 99
    return record


def _sample(queues: RecordWriter, arm: str, done: list[RequestRecord], start: float, end: float) -> None:
    """Where the requests of a batch were, ten times a second."""
    for t in np.arange(start, end + 0.1, 0.1):
        where = dict.fromkeys(("prefill_waiting", "prefilling", "decode_waiting", "transferring", "decoding"), 0)
        for r in done:
            times = (
                r.t_intended,
                r.t_scheduled,
                r.t_engine_first_token,
                r.t_decode_sent,
                r.t_decode_scheduled,
                r.t_end,
            )
            if any(time is None for time in times):
                continue
            for place, begin, until in zip(where, times, times[1:], strict=False):
                where[place] += int(begin <= t < until)  # type: ignore[operator]
        queues.write(QueueLengths(float(t), arm, **where))


def _config(root: Path, shape: Shape) -> dict[str, Any]:
    scheduler = {
        "agg": {"mode": "agg", "replicas": 2},
        "disagg": {"mode": "disagg", "prefill": 1, "decode": 1, "first_token": shape.first_token},
    }
    return {
        "experiment": {"name": "e3", "question": "When does it pay?", "same_tokens": False, "repeats": shape.repeats},
        "backend": {"engine": {"enable_prefix_caching": False}},
        "workload": {"prompts": shape.prompts, "temperature": 0.0, "output_len": shape.output_len},
        "arms": {arm: scheduler.get(arm, {"mode": arm}) for arm in shape.arms} if len(shape.arms) > 1 else {},
        "transfer": {"name": "nixl_push"},
        "seed": 42,
        "model": {"name": "none"},
        "dataset": {"name": "none"},
        "tracking": {"enabled": False, "uri": "", "timeout_s": 20.0},
        "slo": shape.slo,
        "collectors": {
            "latency": {"_target_": "wp1.collectors.latency.LatencyStatsCollector"},
            "kv_transfer": {"_target_": "wp1.collectors.kv_transfer.KVTransferStatsCollector"},
        },
        "root": str(root),
    }


def _metadata(shape: Shape) -> dict[str, Any]:
    def engine(name: str, device: str) -> dict[str, Any]:
        settings = {"dtype": "bfloat16", "kv_blocks": 100, "block_size": 16}
        return {"name": name, "devices": [device], "startup_s": 30.1, "settings": settings}

    second = "cuda:0" if shape.shared_gpu else "cuda:1"
    pools = []
    for arm in shape.arms:
        if arm == shape.arms[0] or not shape.handoffs:
            engines = [engine(f"{arm}-0", "cuda:0"), engine(f"{arm}-1", second)]
            pools.append({"arm": arm, "pool": arm, "phases": ["prefill", "decode"], "engines": engines})
        else:
            pools.append(
                {"arm": arm, "pool": "prefill", "phases": ["prefill"], "engines": [engine("prefill-0", "cuda:0")]}
            )
            pools.append({"arm": arm, "pool": "decode", "phases": ["decode"], "engines": [engine("decode-0", second)]})
    for pool in pools:
        pool["shared_gpu"] = shape.shared_gpu
    return {
        "run_id": RUN_ID, "status": "completed", "reason": None, "started": "2026-01-01T00:00:00+00:00",
        "ended": "2026-01-01T00:08:00+00:00", "experiment": "e3", "question": "When does it pay?",
        "config_hash": "ab" * 32, "seed": 42, "command": ["wp1", "experiment=e3"], "git": None,
        "hardware": {"gpus": [], "driver": None, "cpu": "EPYC", "cores": 2, "memory_gib": 8},
        "versions": {"python": "3.11.7"}, "tags": {}, "labels": list(shape.labels),
        "model": {
            "name": "tiny", "digest": "d16e57", "max_len": 8192, "kv_bytes_per_token": KV_BYTES_PER_TOKEN,
            "rope": {"type": "default", "factor": 1.0, "original_max_len": 8192, "written_as": None},
        },
        "pools": pools,
        "transfer": {"name": "nixl_push", "why": "the default"},
        "starts": [
            {"arm": "agg", "repeats": [0], "seconds": 50.0}, {"arm": "disagg", "repeats": [0, 1], "seconds": 60.0},
        ],
    }  # fmt: skip
