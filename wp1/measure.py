"""The measuring part of a run: engines up, every cell with its repeats, engines down."""

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from wp1.analysis.summary import write_json
from wp1.console import Screen, Tally
from wp1.drive import drive
from wp1.errors import WP1Error
from wp1.plan import Arm, Cell, Stint, stints
from wp1.prepare import Prepared
from wp1.records import Handoff, RecordWriter, RequestRecord
from wp1.serving.backend import Scheduler
from wp1.serving.engines import Engines, Write, places_of
from wp1.serving.placement import engine_sizes
from wp1.workload import prompts

# After the last request, for blocks that are still on their way to be freed.
KV_FREE_WITHIN_S = 5.0


async def measure(
    cfg: Any, prepared: Prepared, run_dir: Path, metadata: dict[str, Any], screen: Screen, engines: Engines
) -> None:
    """All cells of a run, each record written as its request ends.

    metadata: is given what there is to say of the engines. A cell in which an engine dies is measured to its end, which
    is soon; the engines are then started again for the next.
    Raises WP1Error where engines do not start, and at the end where any died; CancelledError on a signal.
    """
    died: list[str] = []
    with ExitStack() as stack:
        writer = stack.enter_context(RecordWriter(run_dir / "records.jsonl"))
        write = _handoff_writer(prepared.arms, run_dir, stack)
        gpus = sorted({gpu for arm in prepared.arms for _, place in places_of(arm) for gpu in place.gpus})
        for collector in prepared.collectors:
            collector.start(run_dir, gpus)
            stack.callback(collector.stop)
        for stint in stints(prepared.arms, cfg.experiment.repeats):
            clean = False
            try:
                scheduler = await _start(cfg, prepared, stint, run_dir, metadata, screen, engines, write)
                for cell in stint.arm.cells:
                    if not scheduler.alive:
                        scheduler = await _start(cfg, prepared, stint, run_dir, metadata, screen, engines, write)
                    died += await _cell(cfg, prepared, scheduler, cell, stint.repeats, writer, screen)
                held = [name for name, free in (await scheduler.kv_free(KV_FREE_WITHIN_S)).items() if not free]
                metadata["kv_held"] += [f"{stint.arm.name}/{name}" for name in held]
                clean = not held
            finally:
                await engines.leave(clean)
    if died:
        raise WP1Error(died[0])


async def _start(
    cfg: Any,
    prepared: Prepared,
    stint: Stint,
    run_dir: Path,
    metadata: dict[str, Any],
    screen: Screen,
    engines: Engines,
    write: Write,
) -> Scheduler:
    """The engines of an arm, started or taken over from the job before; run_metadata.json says which."""
    arm, model = stint.arm, prepared.model
    count = len(engine_sizes(arm.scheduler))
    with screen.step(f"starting {count} engine{'s' * (count > 1)} of {model.name}, {arm.name}") as tell:
        up, taken_over = await engines.bring_up(cfg, arm, model, run_dir / "engine.log", write, metadata["run_id"])
        if taken_over:
            tell("up from the job before")
    if arm.name not in [pool["arm"] for pool in metadata["pools"]]:
        metadata["pools"] += [{"arm": arm.name, **pool} for pool in up.scheduler.pools()]
    entry = {"arm": arm.name, "repeats": stint.repeats}
    if taken_over:
        metadata["taken_over"].append(entry | {"from": up.run_id})
    else:
        metadata["starts"].append(entry | {"seconds": up.seconds})
    write_json(run_dir / "run_metadata.json", metadata)
    return up.scheduler


def _handoff_writer(arms: list[Arm], run_dir: Path, stack: ExitStack) -> Write:
    """Where handoffs and queue lengths go; only a run that has handoffs has the files."""
    if all(arm.scheduler.mode == "agg" for arm in arms):
        return lambda _: None
    handoffs = stack.enter_context(RecordWriter(run_dir / "handoffs.jsonl"))
    queues = stack.enter_context(RecordWriter(run_dir / "queues.jsonl"))
    return lambda row: (handoffs if isinstance(row, Handoff) else queues).write(row)


async def _cell(
    cfg: Any,
    prepared: Prepared,
    scheduler: Scheduler,
    cell: Cell,
    repeats: list[int],
    writer: RecordWriter,
    screen: Screen,
) -> list[str]:
    """Some repeats of a cell, after its warm-up. Returns what there is to say of engines that died."""
    vocabulary, encode = prepared.model.vocab_size, prepared.encode
    engines = sum(len(pool["engines"]) for pool in scheduler.pools())
    for request in prompts.warmup(cfg, cell, repeats[0], vocabulary, encode, engines):
        await drive(scheduler, cell, [request], writer.write, cfg.workload.arrivals, cfg.seed)
    batches = [prompts.measured(cfg, cell, repeat, prepared.questions, vocabulary, encode) for repeat in repeats]
    died: set[str] = set()
    with screen.requests(f"{cell.arm} {cell.name}", sum(map(len, batches))) as tally:
        for repeat, requests in zip(repeats, batches, strict=True):
            seed = prompts.derive_seed(cfg.seed, cell.name, repeat, "arrivals")
            await drive(scheduler, cell, requests, _sink(writer, tally, died), cfg.workload.arrivals, seed)
    return sorted(died)


def _sink(writer: RecordWriter, tally: Tally, died: set[str]) -> Callable[[RequestRecord], None]:
    def write(record: RequestRecord) -> None:
        writer.write(record)
        tally.add(record)
        if record.cause == "engine_died":
            died.add(record.error or "an engine died")

    return write
