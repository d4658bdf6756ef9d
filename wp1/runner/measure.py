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

# Seconds for which engines on a GPU are watched before they have anything to do.
IDLE_S = 1.0
# After the last request: for blocks that are on their way to be freed, and for the step under way of a request that was
# given up.
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
    again: RecordWriter | None  # of requests that are asked again; None: none are
    write: Write  # of what is no request
    done: list[Done]
    warm: set[Scheduler]  # those that have been warmed up
    began: float  # monotonic; what an earlier session of the run took lies before it
    outlook: Outlook

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.began

    def save(self) -> None:
        write_json(METADATA.at(self.run_dir), self.metadata)


async def measure(
    cfg: Any, prepared: Prepared, run_dir: Path, metadata: dict[str, Any], screen: Screen, engines: Engines
) -> None:
    """All cells of a run that are not done yet, each record written as its request ends.

    metadata: is given what there is to say of the engines and of cells that are skipped. A cell in which an engine dies
    is measured to its end, which is soon; the engines are then started again for the next.
    Raises WP1Error where engines do not start, and at the end where any died; CancelledError on a signal.
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
        _say_what_it_takes(session)
        for block in planned:
            outlook.starts_left -= 1
            died += await _block(session, block)
    if died:
        raise WP1Error(died[0])


async def _block(session: _Session, block: Block) -> list[str]:
    """What is left of an arm's cells in some of its repeats, with engines started once, and again where one dies.

    Returns what there is to say of those that died.
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
                # What a dead engine did not fetch is held until its lease ends: no leak that a run fails of for good.
                session.metadata["kv_held"] += [f"{block.arm.name}/{name}" for name in held]
            for reason in set(_deaths(scheduler)) - set(died):
                session.screen.say(f"after the last request: {reason}")
            # Engines for shorter prompts than model.max_len are not what the next job asks for.
            clean = not held and all(one["kind"] != "memory" for one in session.metadata["skipped"])
    finally:
        await session.engines.leave(clean)
    return died


def _deaths(scheduler: Scheduler) -> list[str]:
    """What there is to say of engines that died."""
    return [death_of(engine) for pool in scheduler.backends().values() for engine in pool if not engine.alive]


def _to_search(session: _Session, arm: Arm) -> list[int]:
    """The prompt lengths (tokens) for a search for goodput; [] where none is asked for, or it has ended before."""
    lengths = goodput_search.lengths_of(arm, [one["cell"] for one in session.metadata["skipped"]])
    over = probes.ended(RunFolder(session.run_dir).probes, arm.name, lengths)
    return [] if session.cfg.experiment.goodput_budget_s is None or over else lengths


async def _search(session: _Session, scheduler: Scheduler, arm: Arm, lengths: list[int]) -> None:
    """The search for goodput. Raises WP1Error where an engine dies in it."""

    async def measure_one(cell: Cell, repeats: list[int]) -> None:
        if died := await _cell(session, scheduler, cell, repeats):
            raise WP1Error(died[0])

    await goodput_search.search(session.cfg, arm.name, lengths, session.run_dir, measure_one)
    session.outlook.searches_s -= len(lengths) * session.cfg.experiment.goodput_budget_s


def _say_what_it_takes(session: _Session) -> None:
    """Before the first engine starts: how much there is to do and, as far as that is known, how long it will take."""
    arms, outlook = session.prepared.arms, session.outlook
    cells = [cell for arm in arms for cell in arm.cells if cell.name not in [one["cell"] for one in outlook.skipped]]
    requests = sum(outlook.requests_of(cell) * cell.repeats for cell in cells)
    told = outlook.said(session.spent_s) or "an estimate follows the warm-up"
    count = f"{len(cells)} cell{'s' * (len(cells) > 1)}, {requests:,} request{'s' * (requests > 1)}"
    session.screen.say(f"{count}: {told}; engine starts are not counted")


def _skipped(session: _Session, arm: Arm, cell: Cell) -> bool:
    """Whether the cell is not measured, in any arm; where that is decided now, run_metadata.json says why."""
    skipped: list[dict[str, Any]] = session.metadata["skipped"]
    if cell.name in [one["cell"] for one in skipped]:
        return True
    if cell.name in [one.cell for one in session.done]:
        return False
    found = session.outlook.reason_to_skip(arm, cell, session.spent_s + session.outlook.promised())
    if found is None:
        return False
    reason, seconds = found
    skipped.append({"cell": cell.name, "kind": "time", "reason": reason, "predicted_s": round(seconds, 1)})
    session.screen.say(f"skipped {cell.name}: {reason}")
    session.save()
    return True


async def _start(session: _Session, block: Block) -> Scheduler:
    """The engines of an arm, started or taken over from the job before; run_metadata.json says which."""
    arm, metadata = block.arm, session.metadata
    model = session.prepared.models[arm.name]
    count = len(needs_of(arm.scheduler))
    with session.screen.step(f"starting {count} engine{'s' * (count > 1)} of {model.name}, {arm.name}") as tell:
        up, taken_over = await session.engines.bring_up(
            session.cfg, arm, model, ENGINE_LOG.at(session.run_dir), session.write, metadata["run_id"]
        )
        if taken_over:
            tell("up from the job before")
    if arm.name not in [pool["arm"] for pool in metadata["pools"]]:
        metadata["pools"] += [{"arm": arm.name, **pool} for pool in up.scheduler.pools()]
    entry: dict[str, Any] = {"arm": arm.name, "repeats": block.repeats}
    if any(place.gpus for _, place in places_of(arm)):
        # What the engines draw when they have nothing to do, apart from what requests cost.
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
    """Where what is no request goes; only a run that has handoffs has the files of these and of queue lengths."""
    into: dict[type, RunFile] = {EngineStats: ENGINE_STATS}
    if any(moves_kv(arm.scheduler) for arm in arms):
        into |= {Handoff: HANDOFFS, QueueLengths: QUEUES}
    writers = {kind: stack.enter_context(RecordWriter(file.at(run_dir))) for kind, file in into.items()}
    return lambda row: writers[type(row)].write(row)


def _memory_notes(cfg: Any, run_dir: Path, stack: ExitStack) -> MemoryNotes:
    """Only a run that asks for them has the file."""
    if not cfg.experiment.memory:
        return MemoryNotes(None)
    return MemoryNotes(stack.enter_context(RecordWriter(MEMORY.at(run_dir))).write)


async def _cell(session: _Session, scheduler: Scheduler, cell: Cell, repeats: list[int]) -> list[str]:
    """Some repeats of a cell, after its warm-up. Returns what there is to say of engines that died."""
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
    if not session.done and (told := session.outlook.said(session.spent_s)) is not None:
        session.screen.say(told)
    batches = {repeat: prompts.measured(cfg, cell, repeat, data) for repeat in repeats}
    with session.screen.requests(f"{cell.arm} {cell.name}", sum(map(len, batches.values()))) as tally:
        for number, (repeat, requests) in enumerate(batches.items()):
            arrivals = prompts.arrivals(cfg, cell, repeat, data)
            _expect(session, tally, cell, len(requests), arrivals, len(batches) - number)
            begin = time.monotonic()
            # One that died while nobody asked it anything; the engines that are left are not what the cell is about.
            died.update([] if died else _deaths(scheduler))
            async with (
                session.notes.around(scheduler, cell, repeat),
                loop_lag.watched(cell, repeat, session.lags.write),
            ):
                sink = _noting(lambda record: _keep(record, session, tally), died)
                dead = min(died, default=None)
                await drive(scheduler, requests, sink, arrivals, cell.concurrency, bounds, dead)
            seconds = round(time.monotonic() - begin, 3)
            found = Done(
                cell.arm, cell.name, repeat, len(requests), seconds, round(warmup_s, 3), min(died, default=None)
            )
            progress.note(session.run_dir, found)
            session.done.append(found)
            warmup_s = 0.0
    return sorted(died)


async def _control(session: _Session, scheduler: Scheduler, cell: Cell, repeats: list[int]) -> list[str]:
    """Asks some of a cell's requests again. Returns what there is to say of engines that died."""
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
    """Tells the progress line how long what follows will take: this repeat, the others of its cell, the whole run.

    repeats: of the cell that are still to come in one go, this one included.
    """
    arm = next(arm for arm in session.prepared.arms if arm.name == cell.arm)
    one = session.outlook.one_repeat(arm, cell)
    rest = session.outlook.left(session.spent_s, (cell.arm, cell.name, repeats))
    span = float(arrivals.offsets[-1]) if arrivals is not None and len(arrivals) else 0.0
    tally.expect(requests, span, one, None if one is None or rest is None else (repeats - 1) * one + rest)


def _timing(session: _Session, cell: Cell, sink: Sink) -> Sink:
    """The sink of a warm-up; its last request in each arm is what a run is first predicted from."""

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
    """The sink, noting what requests were told of engines that died."""

    def note(record: RequestRecord) -> None:
        sink(record)
        if record.cause == "engine_died":
            died.add(record.error or "an engine died")

    return note
