"""Overhead of two pools: the broker without engines, and a handoff with engines."""

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from wp1.config import schema
from wp1.core.plan import plan
from wp1.core.records import Event, Handoff, Request, RequestRecord, new_record
from wp1.main import CONF
from wp1.model import models
from wp1.runner.console import Screen
from wp1.serving.engines import make_scheduler
from wp1.serving.guard import ProcessGuard
from wp1.serving.schedulers.broker import EngineRoom, KVBroker
from wp1.workload.prompts import random_token_ids
from wp1.workload.seeds import derive_seed

IN_FLIGHT = 10_000
LENGTHS = (256, 1024)  # tokens
REQUESTS = 12  # of each length


def broker_row(pairs: int) -> list[str]:
    """CPU µs per request with all requests in flight, against tasks that only yield as often."""
    times = [(asyncio.run(_through_the_broker()), asyncio.run(_through_nothing())) for _ in range(pairs)]
    with_, without = (statistics.median(side) / IN_FLIGHT * 1e6 for side in zip(*times, strict=True))
    own = sorted((a - b) / IN_FLIGHT * 1e6 for a, b in times)
    low, _, high = statistics.quantiles(own, n=4)
    return [
        f"broker, {IN_FLIGHT:,} requests in flight: its own time per request",
        f"{with_:.1f} µs",
        f"{without:.1f} µs",
        f"{statistics.median(own):.1f} µs",
        f"{low:.1f} to {high:.1f} µs",
        "",
    ]


async def _through_the_broker() -> float:
    rooms = [EngineRoom(f"{phase}-{n}", 64, 100_000, 16) for phase in ("prefill", "decode") for n in range(4)]
    broker = KVBroker(rooms[:4], rooms[4:], "least_loaded")

    async def one(tokens: int) -> None:
        ticket = await broker.prefill(tokens, tokens + 64)
        await asyncio.sleep(0)
        broker.prefilled(ticket)
        await broker.decode(ticket)
        await asyncio.sleep(0)
        broker.moved(ticket)
        await asyncio.sleep(0)
        broker.end(ticket)

    start = time.process_time()
    await asyncio.gather(*(one(100 + n % 1000) for n in range(IN_FLIGHT)))
    return time.process_time() - start


async def _through_nothing() -> float:
    async def one() -> None:
        # As often as above: the broker's two waits and three sleeps.
        for _ in range(5):
            await asyncio.sleep(0)

    start = time.process_time()
    await asyncio.gather(*(one() for _ in range(IN_FLIGHT)))
    return time.process_time() - start


async def handoff_rows(folder: Path, screen: Screen) -> list[list[str]]:
    """TTFT minus prefill and transfer in ms, one request at a time. The first token comes from the decode pool."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"root={folder}", "scheduler=disagg", "scheduler.first_token=decode", "model.max_len=2048"]
        cfg: Any = schema.resolve(compose("config", overrides))
    model = models.prepare(cfg)
    handoffs: dict[str, Handoff] = {}

    def write(row: Event) -> None:
        if isinstance(row, Handoff):
            handoffs[row.request_id] = row

    with ProcessGuard() as guard:
        scheduler = make_scheduler(cfg, plan(cfg)[0], model, folder / "engine.log", guard.kill, write)
        with screen.step("starting two engines"):
            await scheduler.__aenter__()
        records: list[tuple[int, RequestRecord]] = []
        try:
            with screen.step(f"{len(LENGTHS) * REQUESTS} handoffs"):
                for n in range(2 + len(LENGTHS) * REQUESTS):
                    length = LENGTHS[n % len(LENGTHS)]
                    prompt = random_token_ids(length, model.vocab_size, derive_seed("bench", n))
                    request = Request(f"{n}", "disagg", f"{length}", 0, prompt, 4, seed=n, ignore_eos=True)
                    record = new_record(request, time.monotonic())
                    await scheduler.serve(request, record)
                    # The first request of each length is a warm-up.
                    if n >= len(LENGTHS):
                        records.append((length, record))
        finally:
            await scheduler.__aexit__(None, None, None)
    return [
        _handoff_row(
            length, cfg.transfer.name, [(record, handoffs[record.request_id]) for n, record in records if n == length]
        )
        for length in LENGTHS
    ]


def _handoff_row(length: int, transfer: str, pairs: list[tuple[RequestRecord, Handoff]]) -> list[str]:
    ttft = [record.t_tokens[0] - record.t_intended for record, _ in pairs]
    parts = [_prefill(record) + _transfer(handoff) for record, handoff in pairs]
    rest = [(a - b) * 1e3 for a, b in zip(ttft, parts, strict=True)]
    low, _, high = statistics.quantiles(rest, n=4)
    return [
        f"{transfer}, {length:,} tokens: TTFT / prefill + transfer",
        f"{statistics.median(ttft) * 1e3:.1f} ms",
        f"{statistics.median(parts) * 1e3:.1f} ms",
        f"{statistics.median(rest):.1f} ms more",
        f"{low:.1f} to {high:.1f} ms",
        "",
    ]


def _prefill(record: RequestRecord) -> float:
    assert record.t_engine_first_token is not None
    assert record.t_scheduled is not None
    return record.t_engine_first_token - record.t_scheduled


def _transfer(handoff: Handoff) -> float:
    assert handoff.t_transfer_end is not None
    assert handoff.t_transfer_begin is not None
    return handoff.t_transfer_end - handoff.t_transfer_begin
