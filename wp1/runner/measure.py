"""The measuring part of a run: engines up, every cell with its repeats, engines down."""

import asyncio
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from wp1.analysis.load import probes
from wp1.core import progress
from wp1.core.errors import WP1Error
from wp1.core.jsonl import RecordWriter
from wp1.core.plan import Arm, Block, Cell, blocks
from wp1.core.records import Done, EngineStats, Handoff, QueueLengths, RequestRecord
from wp1.core.run_files import (
    CONTROL,
    ENGINE_LOG,
    ENGINE_STATS,
    HANDOFFS,
    LOOP,
    MEMORY,
    METADATA,
    QUEUES,
    RECORDS,
    RunFile,
)
from wp1.core.run_folder import RunFolder, write_json
from wp1.runner import goodput_search, loop_lag, warmup
from wp1.runner.budget import Repeat
from wp1.runner.console import Screen, Tally
from wp1.runner.control import Control, count_of
from wp1.runner.load_generator import Sink, drive, in_flight_of
from wp1.runner.outlook import Outlook, floors
from wp1.runner.prepare import Prepared
from wp1.serving.backend import Scheduler, death_of
from wp1.serving.engines import Engines, Write, moves_kv, needs_of, places_of
from wp1.serving.memory.notes import MemoryNotes
from wp1.workload import prompts
from wp1.workload.arrivals import Schedule

# Seconds for which engines on a GPU are observed while idle, before the first request.
IDLE_S = 1.0
# Seconds to wait after the last request for blocks to be freed, including those of an aborted request whose step is
# still running.
KV_FREE_WITHIN_S = 30.0


@dataclass(frozen=True)
class _Session:
    """What every step of the measuring part needs."""

    cfg: Any
    prepared: Prepared
    run_dir: Path
    metadata: dict[str, Any]
    screen: Screen
    engines: Engines
    records: RecordWriter
    lags: RecordWriter  # of the event loop
    notes: MemoryNotes
    control: Control
    again: RecordWriter | None  # of control requests; None: the run has none
    write: Write  # for rows that are not requests
    done: list[Done]
    warm: set[Scheduler]  # those that have been warmed up
    began: float  # monotonic; shifted back by the time that earlier sessions of the run took
    outlook: Outlook

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.began

    def save(self) -> None:
        write_json(METADATA.at(self.run_dir), self.metadata)


async def measure(
    cfg: Any, prepared: Prepared, run_dir: Path, metadata: dict[str, Any], screen: Screen, engines: Engines
) -> None:
    """Measures all cells of a run that are not done yet. Each record is written as its request ends.

    metadata: entries about the engines and about skipped cells are added to it. If an engine dies, the rest of its cell
    fails quickly, and the engines are started again for the next cell.
    Raises WP1Error if engines do not start, or, at the end, if any died; CancelledError on a signal.
    """
    died: list[str] = []
    with ExitStack() as stack:
        done = [one for one in progress.read(run_dir) if one.died is None]
        took = sum(one.seconds + one.warmup_s for one in done) + sum(start["seconds"] for start in metadata["starts"])
        again = count_of(cfg)
        outlook = Outlook(
            prepared.arms,
            floors(cfg, prepared),
            lambda cell: len(prompts.measured(cfg, cell, 0, prepared.prompt_data)),
            cfg.workload.timeout_s,
            cfg.experiment.time_budget_s,
            done,
            metadata["skipped"],
            metadata["starts"],
        )
        session = _Session(
            cfg,
            prepared,
            run_dir,
            metadata,
            screen,
            engines,
            records=stack.enter_context(RecordWriter(RECORDS.at(run_dir))),
            lags=stack.enter_context(RecordWriter(LOOP.at(run_dir))),
            notes=_memory_notes(cfg, run_dir, stack),
            control=Control(again, alike=prompts.source_of(cfg.workload).repeated),
            again=stack.enter_context(RecordWriter(CONTROL.at(run_dir))) if again else None,
            write=_event_writer(prepared.arms, run_dir, stack),
            done=done,
            warm=set(),
            began=time.monotonic() - took,
            outlook=outlook,
        )
        stack.enter_context(loop_lag.garbage_left())
        gpus = sorted({gpu for arm in prepared.arms for _, place in places_of(arm) for gpu in place.gpus})
        for collector in prepared.collectors:
            collector.start(run_dir, gpus)
            stack.callback(collector.stop)
        planned = blocks(prepared.arms, cfg.experiment.repeats)
        outlook.starts_left = len(planned)
        outlook.searches_s = sum(
            len(_to_search(session, arm)) * (cfg.experiment.goodput_budget_s or 0.0) for arm in prepared.arms
        )
        _announce(session)
        for block in planned:
            outlook.starts_left -= 1
            died += await _block(session, block)
    if died:
        raise WP1Error(died[0])


async def _block(session: _Session, block: Block) -> list[str]:
    """Measures an arm's cells in some of their repeats, except those already done, with one start of the engines.

    If an engine dies, the engines are started again for the next cell. Returns a message for each engine that died.
    """
    died: list[str] = []
    scheduler: Scheduler | None = None
    clean = False
    try:
        for cell in block.arm.cells:
            repeats = [n for n in block.repeats if (cell.arm, cell.name, n) not in {one.unit for one in session.done}]
            if not repeats or _skipped(session, block.arm, cell):
                continue
            if scheduler is None or not scheduler.alive:
                scheduler = await _start(session, block)
            died += await _cell(session, scheduler, cell, repeats)
            died += await _control(session, scheduler, cell, repeats)
        if 0 in block.repeats and (lengths := _to_search(session, block.arm)):
            if scheduler is None or not scheduler.alive:
                scheduler = await _start(session, block)
            await _search(session, scheduler, block.arm, lengths)
        if scheduler is not None:
            held = [name for name, free in (await scheduler.kv_free(KV_FREE_WITHIN_S)).items() if not free]
            if scheduler.alive:
                # A dead engine's unfetched KV is held until its lease ends: that is no leak and must not fail the run.
                session.metadata["kv_held"] += [f"{block.arm.name}/{name}" for name in held]
            for reason in set(_deaths(scheduler)) - set(died):
                session.screen.say(f"after the last request: {reason}")
            # Engines started for less than model.max_len do not fit the next job's request.
            clean = not held and all(one["kind"] != "memory" for one in session.metadata["skipped"])
    finally:
        await session.engines.leave(clean)
    return died


def _deaths(scheduler: Scheduler) -> list[str]:
    """A message for each engine that died."""
    return [death_of(engine) for pool in scheduler.backends().values() for engine in pool if not engine.alive]


def _to_search(session: _Session, arm: Arm) -> list[int]:
    """The prompt lengths (tokens) to search goodput at; [] if no search is configured or it has ended already."""
    lengths = goodput_search.lengths_of(arm, [one["cell"] for one in session.metadata["skipped"]])
    over = probes.ended(RunFolder(session.run_dir).probes, arm.name, lengths)
    return [] if session.cfg.experiment.goodput_budget_s is None or over else lengths


async def _search(session: _Session, scheduler: Scheduler, arm: Arm, lengths: list[int]) -> None:
    """Runs the search for goodput. Raises WP1Error if an engine dies during it."""

    async def measure_one(cell: Cell, repeats: list[int]) -> None:
        if died := await _cell(session, scheduler, cell, repeats):
            raise WP1Error(died[0])

    await goodput_search.search(session.cfg, arm.name, lengths, session.run_dir, measure_one)
    session.outlook.searches_s -= len(lengths) * session.cfg.experiment.goodput_budget_s


def _announce(session: _Session) -> None:
    """Prints, before the first engine starts, the amount of work and an estimate of its time if there is one."""
    arms, outlook = session.prepared.arms, session.outlook
    cells = [cell for arm in arms for cell in arm.cells if cell.name not in [one["cell"] for one in outlook.skipped]]
    requests = sum(outlook.requests_of(cell) * cell.repeats for cell in cells)
    estimate = outlook.said(session.spent_s) or "an estimate follows the warm-up"
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}, {requests:,} request{'s' * (requests > 1)}"
    session.screen.say(f"{count}: {estimate}; engine starts are not counted")


def _skipped(session: _Session, arm: Arm, cell: Cell) -> bool:
    """Whether the cell is skipped, in every arm. If that is decided now, run_metadata.json records the reason."""
    skipped: list[dict[str, Any]] = session.metadata["skipped"]
    if cell.name in [one["cell"] for one in skipped]:
        return True
    if cell.name in [one.cell for one in session.done]:
        return False
    reason_and_time = session.outlook.reason_to_skip(arm, cell, session.spent_s + session.outlook.promised())
    if reason_and_time is None:
        return False
    reason, seconds = reason_and_time
    skipped.append({"cell": cell.name, "kind": "time", "reason": reason, "predicted_s": round(seconds, 1)})
    session.screen.say(f"skipped {cell.name}: {reason}")
    session.save()
    return True


async def _start(session: _Session, block: Block) -> Scheduler:
    """Starts an arm's engines, or takes them over from the previous job; run_metadata.json records which."""
    arm, metadata = block.arm, session.metadata
    model = session.prepared.models[arm.name]
    count = len(needs_of(arm.scheduler))
    with session.screen.step(f"starting {count} engine{'s' * (count > 1)} of {model.name}, {arm.name}") as tell:
        up, taken_over = await session.engines.bring_up(
            session.cfg, arm, model, ENGINE_LOG.at(session.run_dir), session.write, metadata["run_id"]
        )
        if taken_over:
            tell("reused from the previous job")
    if arm.name not in [pool["arm"] for pool in metadata["pools"]]:
        metadata["pools"] += [{"arm": arm.name, **pool} for pool in up.scheduler.pools()]
    entry: dict[str, Any] = {"arm": arm.name, "repeats": block.repeats}
    if any(place.gpus for _, place in places_of(arm)):
        # The idle power of the engines, to be separated from what requests cost.
        begin = time.monotonic()
        await asyncio.sleep(IDLE_S)
        entry["idle"] = [round(begin, 3), round(time.monotonic(), 3)]
    if taken_over:
        metadata["taken_over"].append(entry | {"from": up.run_id})
    else:
        metadata["starts"].append(entry | {"seconds": up.seconds})
    session.save()
    await session.notes.started(up.scheduler, arm.name)
    return up.scheduler


def _event_writer(arms: list[Arm], run_dir: Path, stack: ExitStack) -> Write:
    """Writes rows that are not requests, by type. Only a run that moves KV has files for handoffs and queue lengths."""
    into: dict[type, RunFile] = {EngineStats: ENGINE_STATS}
    if any(moves_kv(arm.scheduler) for arm in arms):
        into |= {Handoff: HANDOFFS, QueueLengths: QUEUES}
    writers = {kind: stack.enter_context(RecordWriter(file.at(run_dir))) for kind, file in into.items()}
    return lambda row: writers[type(row)].write(row)


def _memory_notes(cfg: Any, run_dir: Path, stack: ExitStack) -> MemoryNotes:
    """The memory notes of a run; only a run with experiment.memory has the file."""
    if not cfg.experiment.memory:
        return MemoryNotes(None)
    return MemoryNotes(stack.enter_context(RecordWriter(MEMORY.at(run_dir))).write)


async def _cell(session: _Session, scheduler: Scheduler, cell: Cell, repeats: list[int]) -> list[str]:
    """Measures some repeats of a cell, after its warm-up. Returns a message for each engine that died."""
    cfg, data, write = session.cfg, session.prepared.prompt_data, session.records.write
    engines = [engine for pool in scheduler.pools() for engine in pool["engines"]]
    bounds = in_flight_of(sum(engine["settings"]["max_num_seqs"] for engine in engines))
    died: set[str] = set()
    begin = time.monotonic()
    if not (cfg.workload.warmup_once and scheduler in session.warm):
        with session.screen.step(f"warming up {cell.arm} {cell.name}", kept=False):
            sink = _timing(session, cell, _noting(write, died))
            await warmup.warm_up(cfg, cell, repeats[0], data, scheduler, len(engines), sink)
        session.warm.add(scheduler)
    warmup_s = time.monotonic() - begin
    if not session.done and (estimate := session.outlook.said(session.spent_s)) is not None:
        session.screen.say(estimate)
    batches = {repeat: prompts.measured(cfg, cell, repeat, data) for repeat in repeats}
    with session.screen.requests(f"{cell.arm} {cell.name}", sum(map(len, batches.values()))) as tally:
        for number, (repeat, requests) in enumerate(batches.items()):
            arrivals = prompts.arrivals(cfg, cell, repeat, data)
            _expect(session, tally, cell, len(requests), arrivals, len(batches) - number)
            begin = time.monotonic()
            # An engine may have died while idle. The remaining engines alone would not be what the cell measures.
            died.update([] if died else _deaths(scheduler))
            async with (
                session.notes.around(scheduler, cell, repeat),
                loop_lag.watched(cell, repeat, session.lags.write),
            ):
                sink = _noting(lambda record: _keep(record, session, tally), died)
                dead = min(died, default=None)
                await drive(scheduler, requests, sink, arrivals, cell.concurrency, bounds, dead)
            seconds = round(time.monotonic() - begin, 3)
            done = Done(
                cell.arm, cell.name, repeat, len(requests), seconds, round(warmup_s, 3), min(died, default=None)
            )
            progress.note(session.run_dir, done)
            session.done.append(done)
            warmup_s = 0.0
    return sorted(died)


async def _control(session: _Session, scheduler: Scheduler, cell: Cell, repeats: list[int]) -> list[str]:
    """Sends some of a cell's requests again. Returns a message for each engine that died."""
    died: set[str] = set()
    if session.again is not None and scheduler.alive:
        batches = {
            repeat: prompts.measured(session.cfg, cell, repeat, session.prepared.prompt_data) for repeat in repeats
        }
        with session.screen.step(f"{cell.arm} {cell.name}: asking some requests again to compare tokens"):
            await session.control.ask(scheduler, batches, _noting(session.again.write, died))
    return sorted(died)


def _expect(
    session: _Session, tally: Tally, cell: Cell, requests: int, arrivals: Schedule | None, repeats: int
) -> None:
    """Gives the progress line the expected time of this repeat and of the rest of the run.

    repeats: how many of the cell's repeats are measured in this go, counting from this one.
    """
    arm = next(arm for arm in session.prepared.arms if arm.name == cell.arm)
    one = session.outlook.one_repeat(arm, cell)
    rest = session.outlook.left(session.spent_s, (cell.arm, cell.name, repeats))
    span = float(arrivals.offsets[-1]) if arrivals is not None and len(arrivals) else 0.0
    tally.expect(requests, span, one, None if one is None or rest is None else (repeats - 1) * one + rest)


def _timing(session: _Session, cell: Cell, sink: Sink) -> Sink:
    """The sink of a warm-up. The last warm-up request of each arm is the basis for the run's first estimate."""

    def note(record: RequestRecord) -> None:
        sink(record)
        if record.t_tokens:
            seconds = record.t_tokens[-1] - record.t_intended
            session.outlook.warmups[cell.arm] = [Repeat(cell.prompt_len, 1, 0.0, 1, seconds)]

    return note


def _keep(record: RequestRecord, session: _Session, tally: Tally) -> None:
    session.records.write(record)
    tally.add(record)
    session.control.note(record)


def _noting(sink: Sink, died: set[str]) -> Sink:
    """Wraps the sink to collect the messages of engines that died."""

    def note(record: RequestRecord) -> None:
        sink(record)
        if record.cause == "engine_died":
            died.add(record.error or "an engine died")

    return note
