"""One run, from a checked configuration to its folder: model, engines, cells, records, and how it ended."""

import asyncio
import functools
import logging
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from wp1 import goodput, hardware, identity, loop_lag, peaks
from wp1.analysis.report import reports_of, write_report
from wp1.analysis.summary import summarise, write_json
from wp1.collectors import Collector
from wp1.console import Screen, Tally, output_to
from wp1.drive import drive
from wp1.errors import ConfigError, WP1Error
from wp1.plan import Arm, Cell, plan, stints
from wp1.quality import asking
from wp1.records import EngineStats, Event, Handoff, QueueLengths, RecordWriter, RequestRecord
from wp1.report import collectors_of
from wp1.serving import fit, models
from wp1.serving.backend import Scheduler
from wp1.serving.guard import ProcessGuard
from wp1.serving.memory.notes import MemoryNotes
from wp1.serving.meter import Meter
from wp1.serving.models import ServedModel
from wp1.serving.placement import Place, engine_sizes, places
from wp1.serving.transfer import KVTransfer, Pools
from wp1.workload import material, prompts, warmup

log = logging.getLogger(__name__)

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# After the last request, for blocks that are still on their way to be freed.
KV_FREE_WITHIN_S = 5.0
# Seconds for which engines on a GPU are watched before they have anything to do.
IDLE_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """How a run ended and what it left."""

    status: str  # completed, failed or interrupted
    reason: str | None
    run_dir: Path
    report: Path | None
    summary: dict[str, Any] | None


def run(cfg: DictConfig, run_dir: Path, run_id: str, screen: Screen, sweep: dict[str, Any] | None = None) -> Outcome:
    """Runs an experiment that `wp1.schema.check` has passed, and leaves its folder and report.

    sweep: see `identity.run_metadata`.
    Raises ConfigError, before any engine starts, where the model or the machine does not allow it. What fails later is
    an Outcome: everything measured until then is in the folder, and in the report.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    # Engines inherit it, and libraries that print find it too.
    with output_to(run_dir / "engine.log"):
        with screen.step(f"preparing {cfg.model.name}") as tell:
            prepared = prepare(cfg, run_dir / "engine.log", tell)
        model = prepared.model
        OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
        metadata = identity.run_metadata(run_id, cfg, _hash(cfg, prepared), Path(__file__).parents[1], sweep)
        metadata["model"] = _model_metadata(model)
        if any(arm.scheduler.rope is not None for arm in prepared.arms):
            metadata["ropes"] = {
                arm: {"max_len": of_arm.max_len, **of_arm.rope.as_dict()} for arm, of_arm in prepared.models.items()
            }
        metadata["labels"] = prepared.labels
        metadata["peaks"] = prepared.peaks
        if any(arm.scheduler.mode == "disagg" for arm in prepared.arms):
            metadata["transfer"] = prepared.transfer
        asked = prepared.material.asked
        if asked is not None:
            metadata["dataset"] = asked.source
            asking.write(run_dir / asking.FILE, asked.cells)
        write_json(run_dir / "run_metadata.json", metadata)

        collectors = prepared.collectors
        status, reason = "completed", None
        try:
            with _handlers_put_back():
                asyncio.run(_measure(cfg, prepared, run_dir, metadata, screen))
        except (KeyboardInterrupt, asyncio.CancelledError):
            status, reason = "interrupted", "stopped by a signal"
        except Exception as error:
            status, reason = "failed", _why(error, run_dir)
        try:
            with screen.step("writing the report"):
                return _finish(cfg, run_dir, metadata, collectors, status, reason)
        except Exception as error:
            # A full disk, most likely, and then the run has failed of it already.
            reason = reason or _why(error, run_dir)
            with suppress(OSError):
                write_json(run_dir / "run_metadata.json", metadata | {"status": "failed", "reason": reason})
            return Outcome("failed", reason, run_dir, None, None)


def _why(error: BaseException, run_dir: Path) -> str:
    """What ended a run, in words for the user; where we did not foresee it, with its traceback in the run's log."""
    while isinstance(error, BaseExceptionGroup):
        # Requests run side by side, and the first to fail ends the others.
        error = error.exceptions[0]
    if isinstance(error, WP1Error):
        return str(error)
    log.error("the run failed", exc_info=error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or run_dir} could not be written: {error.strerror}"
    return f"{type(error).__name__}: {error} (traceback in {run_dir / 'wp1.log'})"


def prepare(cfg: Any, engine_log: Path, tell: Callable[[str], None]) -> "Prepared":
    """The model, and the checks that need it.

    Raises ConfigError where memory, lengths, collectors or engine arguments do not fit.
    """
    collectors = collectors_of(_plain(cfg))
    try:
        served = _models(cfg, tell)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or models.cache_folder()}: {error.strerror or error}; wp1 keeps prepared models in "
            f"{models.cache_folder()}, set WP1_CACHE to a folder that can be written"
        ) from error
    tell("checking that it fits")
    arms = [_within_reach(arm, served[arm.name]) for arm in plan(cfg)]
    model = served[arms[0].name]
    colocated = False
    for arm in arms:
        engines = places_of(arm)
        fit.check_memory(served[arm.name], cfg, engines)
        colocated = colocated or any(place.sharing > 1 for _, place in engines)
    tell("making prompts")
    made_of = material.prepare(cfg, model, arms[0].cells, tell)
    transfer: dict[str, str] = {}
    for arm in arms:
        if arm.scheduler.mode == "disagg":
            chosen = make_transfer(cfg, arm, served[arm.name])
            transfer = {"name": chosen.name, "why": chosen.why()}
        make_scheduler(cfg, arm, served[arm.name], engine_log, kill=lambda: None, write=lambda _: None).check()
    labels = ["random weights"] * model.random_weights + ["colocated"] * colocated
    known = peaks.for_run(hardware.describe(), cfg.experiment.measure_peaks, tell)
    return Prepared(served, made_of, collectors, arms, labels, transfer, known)


def _models(cfg: Any, tell: Callable[[str], None]) -> dict[str, ServedModel]:
    """The model of each arm: one for all, but for arms with a rotary scaling of their own."""
    shared: ServedModel | None = None
    found = {}
    for arm in plan(cfg):
        if arm.scheduler.rope is not None:
            found[arm.name] = models.prepare_arm(cfg, arm.scheduler.rope, tell)
        else:
            shared = found[arm.name] = shared or models.prepare(cfg, tell)
    return found


def _within_reach(arm: Arm, model: ServedModel) -> Arm:
    """The arm without the cells whose prompts are beyond what its model is served with."""
    cells = [cell for cell in arm.cells if cell.prompt_len is None or cell.prompt_len <= model.max_len]
    if not cells:
        raise ConfigError(
            f"every prompt length is beyond the {model.max_len} tokens of arms.{arm.name}: add a shorter one"
        )
    return replace(arm, cells=cells)


def places_of(arm: Arm) -> list[tuple[int, Place]]:
    """Tensor-parallel size and place of each engine of an arm. Raises ConfigError where there are too few GPUs."""
    sizes = engine_sizes(arm.scheduler)
    devices = arm.scheduler.devices
    found = places(
        sizes, devices if isinstance(devices, str) else list(devices), hardware.gpu_indices(), hardware.cores()
    )
    return list(zip(sizes, found, strict=True))


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


@dataclass(frozen=True)
class Prepared:
    """What is known before an engine starts."""

    models: dict[str, ServedModel]  # by arm
    material: prompts.Material
    collectors: list[Collector]
    arms: list[Arm]
    labels: list[str]
    transfer: dict[str, str]  # which connector and why, of a disaggregated run
    peaks: dict[str, Any] | None  # what the device can do at most, if that is known

    @property
    def model(self) -> ServedModel:
        """Of the first arm; the others' differ in their rotary scaling and length at most."""
        return self.models[self.arms[0].name]


def _hash(cfg: DictConfig, prepared: Prepared) -> str:
    contents = {}
    if cfg.model.path is not None:
        contents["model.path"] = prepared.model.digest
    if prepared.material.asked is not None:
        contents["dataset"] = prepared.material.asked.source["digest"]
    contents |= {name: identity.file_digest(path) for name, path in material.files(cfg).items()}
    return identity.config_hash(cfg, contents)


def _model_metadata(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "max_len": model.max_len,
        "digest": model.digest,
        "random_weights": model.random_weights,
        "rope": model.rope.as_dict(),
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "weight_bytes": model.weight_bytes,
        "shape": None if model.shape is None else asdict(model.shape),
    }


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    """Closing, an event loop leaves the signals that it had at their default, which would end us without a word."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # not Python's own
                signal.signal(number, handler)


async def _measure(cfg: Any, prepared: Prepared, run_dir: Path, metadata: dict[str, Any], screen: Screen) -> None:
    """Engines up, all cells, engines down. Raises WP1Error where an engine fails, CancelledError on a signal."""
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in STOPS:
        loop.add_signal_handler(number, task.cancel)
    with ExitStack() as stack:
        guard = stack.enter_context(ProcessGuard())
        writer = stack.enter_context(RecordWriter(run_dir / "records.jsonl"))
        lags = stack.enter_context(RecordWriter(run_dir / "loop.jsonl"))
        write = _event_writer(prepared.arms, run_dir, stack)
        notes = _memory_notes(cfg, run_dir, stack)
        gpus = sorted({gpu for arm in prepared.arms for _, place in places_of(arm) for gpu in place.gpus})
        for collector in prepared.collectors:
            collector.start(run_dir, gpus)
            stack.callback(collector.stop)
        for stint in stints(prepared.arms, cfg.experiment.repeats):
            arm = stint.arm
            scheduler = make_scheduler(cfg, arm, prepared.models[arm.name], run_dir / "engine.log", guard.kill, write)
            count = len(engine_sizes(arm.scheduler))
            with screen.step(f"starting {count} engine{'s' * (count > 1)} of {prepared.model.name}, {arm.name}"):
                begin = time.monotonic()
                await scheduler.__aenter__()
            try:
                if arm.name not in [pool["arm"] for pool in metadata["pools"]]:
                    metadata["pools"] += [{"arm": arm.name, **pool} for pool in scheduler.pools()]
                metadata["starts"].append(
                    {"arm": arm.name, "repeats": stint.repeats, "seconds": round(time.monotonic() - begin, 1)}
                )
                if gpus:
                    # What the engines draw when they have nothing to do, apart from what requests cost.
                    begin = time.monotonic()
                    await asyncio.sleep(IDLE_S)
                    metadata["starts"][-1]["idle"] = [round(begin, 3), round(time.monotonic(), 3)]
                write_json(run_dir / "run_metadata.json", metadata)
                await notes.started(scheduler, arm.name)
                for cell in arm.cells:
                    await _cell(cfg, prepared, scheduler, cell, stint.repeats, writer, lags, notes, screen)
                if cfg.experiment.goodput_budget_s is not None and 0 in stint.repeats:

                    async def measure(cell: Cell, repeats: list[int], scheduler: Scheduler = scheduler) -> None:
                        await _cell(cfg, prepared, scheduler, cell, repeats, writer, lags, notes, screen)

                    await goodput.search(cfg, arm.name, run_dir, measure)
                held = [name for name, free in (await scheduler.kv_free(KV_FREE_WITHIN_S)).items() if not free]
                metadata["kv_held"] += [f"{arm.name}/{name}" for name in held]
            finally:
                # Not stopped by a second signal: the engines' end is what matters now.
                await asyncio.shield(scheduler.__aexit__(None, None, None))


def _event_writer(arms: list[Arm], run_dir: Path, stack: ExitStack) -> Callable[[Event], None]:
    """Where what is no request goes; only a run that has handoffs has the files of these and of queue lengths."""
    names: dict[type, str] = {EngineStats: "engine_stats.jsonl"}
    if any(arm.scheduler.mode == "disagg" for arm in arms):
        names |= {Handoff: "handoffs.jsonl", QueueLengths: "queues.jsonl"}
    writers = {kind: stack.enter_context(RecordWriter(run_dir / name)) for kind, name in names.items()}
    return lambda row: writers[type(row)].write(row)


def _memory_notes(cfg: Any, run_dir: Path, stack: ExitStack) -> MemoryNotes:
    """Only a run that asks for them has the file."""
    if not cfg.experiment.memory:
        return MemoryNotes(None)
    return MemoryNotes(stack.enter_context(RecordWriter(run_dir / "memory.jsonl")).write)


def make_transfer(cfg: Any, arm: Arm, model: ServedModel) -> KVTransfer:
    """The connector between the pools of a disaggregated arm. Raises ConfigError where it cannot be used."""
    engines = places_of(arm)
    prefill = engines[: arm.scheduler.prefill]
    on_host = None
    if hardware.device_type() == "cpu":
        on_host = sum(fit.kv_pool_bytes(model, cfg.backend.kv_cache_gib, place, size) or 0 for size, place in prefill)
    pools = Pools(engines[0][0], engines[-1][0], on_host)
    return instantiate(cfg.transfer, _partial_=True, _convert_="all")(pools=pools)


def make_scheduler(
    cfg: Any,
    arm: Arm,
    model: ServedModel,
    engine_log: Path,
    kill: Callable[[], None],
    write: Callable[[Event], None],
) -> Scheduler:
    """The scheduler of an arm, with its engines not yet started."""
    # Hydra turns objects among its arguments into plain dicts, so it makes the constructor and we pass them.
    make_backend = functools.partial(
        instantiate(cfg.backend, _partial_=True, _convert_="all"),
        model=model,
        seed=cfg.seed,
        log=engine_log,
        kill=kill,
        memory=cfg.experiment.memory,
        on_stats=Meter(arm.name, write),
    )
    # An arm's own scaling has gone into its model.
    scheduler = OmegaConf.masked_copy(arm.scheduler, [str(key) for key in arm.scheduler if key != "rope"])
    return instantiate(scheduler, _partial_=True, _convert_="all")(
        make_backend=make_backend,
        transfer=make_transfer(cfg, arm, model) if arm.scheduler.mode == "disagg" else None,
        # No request waits longer than this for its KV to be fetched.
        lease_s=cfg.workload.timeout_s,
        kv_bytes_per_token=model.kv_bytes_per_token,
        write=write,
    )


async def _cell(
    cfg: Any,
    prepared: Prepared,
    scheduler: Scheduler,
    cell: Cell,
    repeats: list[int],
    writer: RecordWriter,
    lags: RecordWriter,
    notes: MemoryNotes,
    screen: Screen,
) -> None:
    engines = sum(len(pool["engines"]) for pool in scheduler.pools())
    await warmup.warm_up(cfg, cell, repeats[0], prepared.material, scheduler, engines, writer.write)
    batches = {repeat: prompts.measured(cfg, cell, repeat, prepared.material) for repeat in repeats}
    died: set[str] = set()
    with screen.requests(f"{cell.arm} {cell.name}", sum(map(len, batches.values()))) as tally:
        for repeat, requests in batches.items():
            arrivals = prompts.arrivals(cfg, cell, repeat, prepared.material)
            async with notes.around(scheduler, cell, repeat), loop_lag.watched(cell, repeat, lags.write):
                await drive(scheduler, requests, _sink(writer, tally, died), arrivals, cell.concurrency)
    if died:
        raise WP1Error(sorted(died)[0])


def _sink(writer: RecordWriter, tally: Tally, died: set[str]) -> Callable[[RequestRecord], None]:
    def write(record: RequestRecord) -> None:
        writer.write(record)
        tally.add(record)
        if record.cause == "engine_died":
            died.add(record.error or "an engine died")

    return write


def _finish(
    cfg: Any, run_dir: Path, metadata: dict[str, Any], collectors: list[Collector], status: str, reason: str | None
) -> Outcome:
    """Marks how the run ended, judges its checks, and writes summary and report."""

    def mark() -> None:
        metadata.update(status=status, reason=reason, ended=datetime.now(UTC).isoformat(timespec="seconds"))
        write_json(run_dir / "run_metadata.json", metadata)

    mark()
    summary = summarise(run_dir, collectors)
    metadata["labels"] = summary["labels"]
    mark()
    broken = [f"{check['name']}: {check['detail']}" for check in summary["checks"] if not check["passed"]]
    if status == "completed" and broken:
        status, reason = "failed", "; ".join(broken)
        mark()
    page = write_report(run_dir, reports_of(cfg), metadata, summary)
    return Outcome(status, reason, run_dir, page, summary)
