"""The load generator alone on one core, against a double in its own process that costs almost nothing.

- starting: 2,000 requests/s (Poisson), answered at once, every record written: how many started, and how late.
- delay: 500 requests/s of 20 tokens each, with a double that steps every 10 ms, as an engine does.
- streaming: 256 streams at full speed, against reading the same streams and discarding them.

Run by `make bench`, or alone: `python -m tests.bench.load`. It pins itself to one core.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
from hydra import compose, initialize_config_dir

from wp1.config import schema
from wp1.core.jsonl import RecordWriter
from wp1.core.plan import Cell, plan
from wp1.core.records import LoopLag, Request, RequestRecord
from wp1.main import CONF
from wp1.runner import loop_lag
from wp1.runner.load_generator import drive
from wp1.serving.backend import Chunk, EngineTimes
from wp1.serving.schedulers.aggregated import AggregatedScheduler
from wp1.workload import prompts
from wp1.workload.prompts import PromptData

SECONDS = 5
PROMPT_LEN = 512
STREAMS, STREAM_TOKENS = 256, 400


class SteppingDouble:
    """Gives every request one token a step, all together, like an engine with continuous batching.

    step_s: seconds a step takes; 0 sends tokens immediately.
    """

    def __init__(self, step_s: float) -> None:
        self.name, self.step_s = "double", step_s
        self._waiting: list[asyncio.Future[None]] = []
        self._stepping: asyncio.Task[None] | None = None

    async def _step(self) -> None:
        while True:
            await asyncio.sleep(self.step_s)
            waiting, self._waiting = self._waiting, []
            for future in waiting:
                if not future.done():
                    future.set_result(None)

    async def generate(self, request: Request, kv_transfer_params: Any = None) -> AsyncIterator[Chunk]:
        loop = asyncio.get_running_loop()
        if self.step_s and self._stepping is None:
            self._stepping = loop.create_task(self._step())
        for n in range(request.max_tokens):
            if self.step_s:
                self._waiting.append(loop.create_future())
                await self._waiting[-1]
            elif n:
                await asyncio.sleep(0)
            chunk = Chunk(time.monotonic(), [n], "word ")
            if n == request.max_tokens - 1:
                chunk.finish_reason, chunk.prompt_tokens = "length", len(request.prompt)
                chunk.times = EngineTimes(chunk.t, chunk.t, chunk.t, chunk.t)
            yield chunk


def _scheduler(step_s: float) -> AggregatedScheduler:
    return AggregatedScheduler(
        name="agg", replicas=1, routing="round_robin", tensor_parallel=1, devices="auto",
        make_backend=lambda **_: SteppingDouble(step_s),  # type: ignore[arg-type, return-value]
    )  # fmt: skip


def _workload(rate: float, tokens: int, count: int) -> tuple[Any, Cell]:
    overrides = ["workload=poisson", f"workload.request_rate={rate}", f"workload.num_requests={count}"]
    overrides += [f"workload.prompt_len={PROMPT_LEN}", f"workload.output_len={tokens}", "experiment.same_tokens=false"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg: Any = schema.resolve(compose("config", ["root=none", *overrides]))
    return cfg, plan(cfg)[0].cells[0]


async def _open_loop(rate: float, tokens: int, step_s: float, folder: Path) -> dict[str, float]:
    """Requests/s started, their delay in ms (p50, p99), and the share of a core used."""
    cfg, cell = _workload(rate, tokens, int(rate * SECONDS))
    data = PromptData(49_152, prompts.as_token_ids)
    delays: list[float] = []
    sent: list[float] = []
    due: list[float] = []
    lags: list[LoopLag] = []
    with RecordWriter(folder / "records.jsonl") as writer:

        def sink(record: RequestRecord) -> None:
            assert record.t_sent is not None
            assert record.status == "ok", record.error
            writer.write(record)
            delays.append(record.t_sent - record.t_intended)
            sent.append(record.t_sent)
            due.append(record.t_intended)

        used = time.process_time()
        async with loop_lag.watched(cell, 0, lags.append):
            requests = prompts.measured(cfg, cell, 0, data)
            await drive(_scheduler(step_s), requests, sink, prompts.arrivals(cfg, cell, 0, data), 1)
        used = time.process_time() - used
    span = max(sent) - min(sent)
    all_lags = np.array([lag for row in lags for lag in row.lags])
    return {
        "rate": (len(sent) - 1) / span,
        # The rate of the drawn arrivals, which differs a little from the configured one.
        "due": (len(due) - 1) / (max(due) - min(due)),
        "p50": float(np.percentile(delays, 50)) * 1e3,
        "p99": float(np.percentile(delays, 99)) * 1e3,
        "lag": float(np.percentile(all_lags, 99)) * 1e3,
        "core": used / span,
    }


async def _streaming(folder: Path) -> tuple[float, float]:
    """Tokens/s through wp1 in a closed loop with records written, and read straight from the double."""
    cfg, cell = _workload(1.0, STREAM_TOKENS, STREAMS)
    requests = list(prompts.measured(cfg, cell, 0, PromptData(49_152, prompts.as_token_ids)))
    with RecordWriter(folder / "records.jsonl") as writer:
        begin = time.perf_counter()
        await drive(_scheduler(0), requests, writer.write, None, STREAMS)
        through = time.perf_counter() - begin
    double = SteppingDouble(0)

    async def straight(request: Request) -> None:
        async for _ in double.generate(request):
            pass

    begin = time.perf_counter()
    await asyncio.gather(*map(straight, requests))
    return STREAMS * STREAM_TOKENS / through, STREAMS * STREAM_TOKENS / (time.perf_counter() - begin)


def main(rounds: int = 3) -> None:
    """Prints the rows of the table with tabs between cells."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        starting = [asyncio.run(_open_loop(2000, 1, 0, folder)) for _ in range(rounds)]
        delay = [asyncio.run(_open_loop(500, 20, 0.01, folder)) for _ in range(rounds)]
        streams = [asyncio.run(_streaming(folder)) for _ in range(rounds)]
    rows = [
        _open_row("2,000 requests/s, answered at once", starting, "≥ 2,000/s on schedule"),
        _open_row("500 requests/s of 20 tokens", delay, "p99 < 5 ms"),
    ]
    ratios = sorted(a / b for a, b in streams)
    through, straight = (statistics.median(part) for part in zip(*streams, strict=True))
    rows.append(
        [
            f"tokens of {STREAMS} streams: wp1 / reading them", f"{through:,.0f}/s", f"{straight:,.0f}/s",
            f"{statistics.median(ratios):.3f}", f"{ratios[0]:.3f} to {ratios[-1]:.3f}", "≥ 50,000/s",
        ]
    )  # fmt: skip
    print("\n".join("\t".join(row) for row in rows))


def _open_row(what: str, rounds: list[dict[str, float]], goal: str) -> list[str]:
    middle = {key: statistics.median(round_[key] for round_ in rounds) for key in rounds[0]}
    return [
        f"{what}: started / due",
        f"{middle['rate']:,.0f}/s, late p50 {middle['p50']:.2f} p99 {middle['p99']:.2f} ms",
        f"{middle['due']:,.0f}/s",
        f"{middle['rate'] / middle['due']:.3f}",
        f"{middle['core']:.0%} of a core, loop lag p99 {middle['lag']:.2f} ms",
        goal,
    ]


def rows() -> list[list[str]]:
    """The rows of the table, measured in a process of its own, because it pins itself to one core."""
    done = subprocess.run([sys.executable, "-m", "tests.bench.load"], check=True, stdout=subprocess.PIPE, text=True)
    return [line.split("\t") for line in done.stdout.strip().splitlines()]


if __name__ == "__main__":
    main()
