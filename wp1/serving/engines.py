"""Creates the engines of this process, runs their event loop, and decides how long they stay up.

Idle engines use cores and memory too, so only one scheduler's engines are up at a time. In a sweep they outlive the job
that started them if the next job needs the same engines (`key_of`): starting them often takes longer than measuring.
"""

import asyncio
import functools
import hashlib
import json
import signal
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from omegaconf import OmegaConf

from wp1.core import parts
from wp1.core.plan import Arm
from wp1.core.records import Event
from wp1.machine import hardware
from wp1.model.models import ServedModel
from wp1.serving import fit
from wp1.serving.backend import BACKEND, SCHEDULER, EngineNeed, Scheduler
from wp1.serving.guard import ProcessGuard
from wp1.serving.meter import Meter
from wp1.serving.placement import Place, places
from wp1.serving.transfer import TRANSFER, KVTransfer, Pools

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Write = Callable[[Event], None]
T = TypeVar("T")


def class_of(scheduler: Any) -> type[Scheduler]:
    """The class that a scheduler's node of the configuration names."""
    found: Any = parts.loaded("scheduler._target_", scheduler._target_)
    return found


def moves_kv(scheduler: Any) -> bool:
    """Whether a scheduler, by its node of the configuration, hands KV from engine to engine."""
    return class_of(scheduler).moves_kv


def needs_of(scheduler: Any) -> list[EngineNeed]:
    """What each engine of a scheduler needs, in the order in which they get their places."""
    return class_of(scheduler).engines(scheduler)


def key_of(cfg: Any, scheduler: Any) -> str:
    """What is asked of the engines of a scheduler, as a digest: all that reaches them, and nothing else.

    cfg: a configuration that `wp1.config.schema.resolve` has passed. scheduler: a scheduler's node of it.
    """
    asked: dict[str, Any] = {
        name: OmegaConf.to_container(cfg[name]) for name in ("backend", "model", "rope", "transfer")
    }
    asked |= {"scheduler": OmegaConf.to_container(scheduler), "seed": cfg.seed, "memory": cfg.experiment.memory}
    asked["backend"].pop("startup_timeout_s", None)
    if moves_kv(scheduler):
        # How long a prefill engine keeps KV that nobody fetches.
        asked["lease_s"] = cfg.workload.timeout_s
    else:
        del asked["transfer"]
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()


def keys_of(cfg: Any) -> list[str]:
    """`key_of` for each arm of a run, in the order in which they start."""
    return [key_of(cfg, scheduler) for scheduler in (cfg.arms.values() if cfg.arms else [cfg.scheduler])]


@dataclass(frozen=True)
class Up:
    """A scheduler whose engines are up."""

    key: str
    model: ServedModel
    scheduler: Scheduler
    run_id: str  # of the run that started them
    seconds: float  # duration of the start


class Engines:
    """Starts and ends engines. Between enter and exit it has an event loop, and a guard that ends all their processes.

    next_key: `key_of` of the next job; None if there is no next job, so that engines are not kept.
    """

    def __init__(self) -> None:
        self.next_key: str | None = None
        self._runner = asyncio.Runner()
        self._guard = ProcessGuard()
        self._up: Up | None = None
        self._write: Write = _nowhere

    def __enter__(self) -> Self:
        self._guard.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.run(self.end())
            self._runner.close()
        finally:
            # Must run even after another signal, so that no process outlives the run.
            self._guard.__exit__()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine in the engines' loop. Raises CancelledError or KeyboardInterrupt if a signal stops it."""

        async def stoppable() -> T:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            for number in STOPS:
                loop.add_signal_handler(number, task.cancel)
            try:
                return await coroutine
            finally:
                for number in STOPS:
                    loop.remove_signal_handler(number)

        with _handlers_put_back():
            return self._runner.run(stoppable())

    @property
    def key(self) -> str | None:
        """`key_of` of the engines that are up, or None."""
        return None if self._up is None else self._up.key

    def make_room(self, cfg: Any) -> None:
        """Ends engines that are still up from another job, unless this configuration's run reuses them.

        A run with several arms never does: whether its other arms fit in memory cannot be checked while engines are up.
        """
        if self._up is not None and keys_of(cfg) != [self._up.key]:
            self.run(self.end())

    async def bring_up(
        self, cfg: Any, arm: Arm, model: ServedModel, engine_log: Path, write: Write, run_id: str
    ) -> tuple[Up, bool]:
        """Returns the arm's engines and whether they were up already. write: receives their events from now on.

        Raises EngineStartError if they do not start.
        """
        key = key_of(cfg, arm.scheduler)
        self._write = write
        if self._up is not None and (self._up.key, self._up.model) == (key, model) and self._up.scheduler.alive:
            return self._up, True
        await self.end()
        self._write = write
        scheduler = make_scheduler(cfg, arm, model, engine_log, self._guard.kill, self._hand_on)
        begin = time.monotonic()
        await scheduler.__aenter__()
        self._up = Up(key, model, scheduler, run_id, round(time.monotonic() - begin, 1))
        return self._up, False

    def _hand_on(self, row: Event) -> None:
        """The engines' writer as long as they live: passes rows to the current run's."""
        self._write(row)

    async def leave(self, clean: bool) -> None:
        """A run no longer needs the engines. They stay up if the next job needs them; otherwise they are ended.

        clean: the run left no request and no KV in them.
        """
        if self._up is not None and clean and self._up.key == self.next_key and self._up.scheduler.alive:
            await self._up.scheduler.settle()
            self._write = _nowhere
        else:
            await self.end()

    async def end(self) -> None:
        """Ends the engines that are up, if any."""
        if self._up is None:
            return
        up, self._up = self._up, None
        # Shielded, because a second signal must not interrupt the engines' end.
        await asyncio.shield(up.scheduler.__aexit__(None, None, None))
        self._write = _nowhere


def _nowhere(_: Event) -> None:
    pass


@contextmanager
def _handlers_put_back() -> Iterator[None]:
    """Restores signal handlers: an event loop resets those it used to the default, which would kill us silently."""
    before = {number: signal.getsignal(number) for number in STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # None: it was not installed from Python
                signal.signal(number, handler)


def places_of(arm: Arm) -> list[tuple[int, Place]]:
    """Tensor-parallel size and place of each engine of an arm. Raises ConfigError if there are too few GPUs."""
    sizes = [need.gpus for need in needs_of(arm.scheduler)]
    devices = arm.scheduler.get("devices", "auto")
    assigned = places(
        sizes, devices if isinstance(devices, str) else list(devices), hardware.gpu_indices(), hardware.cores()
    )
    return list(zip(sizes, assigned, strict=True))


def make_transfer(cfg: Any, arm: Arm, model: ServedModel) -> KVTransfer:
    """The connector between the pools of an arm that moves KV. Raises ConfigError if it cannot be used."""
    needs = needs_of(arm.scheduler)
    pool_gib = cfg.backend.get("kv_cache_gib")
    on_host = None
    if hardware.device_type() == "cpu":
        engines = [engine for need, engine in zip(needs, places_of(arm), strict=True) if need.role == "prefill"]
        on_host = sum(fit.kv_pool_bytes(model, pool_gib, place, size) or 0 for size, place in engines)
    gpus = {need.role: need.gpus for need in needs}
    pools = Pools(gpus["prefill"], gpus["decode"], on_host, model.config)
    return parts.make("transfer", _plain(cfg.transfer), TRANSFER, pools=pools)


def make_scheduler(
    cfg: Any,
    arm: Arm,
    model: ServedModel,
    engine_log: Path,
    kill: Callable[[], None],
    write: Write,
) -> Scheduler:
    """The scheduler of an arm; its engines are not started yet."""
    make_backend = functools.partial(
        parts.make,
        "backend",
        _plain(cfg.backend),
        BACKEND,
        model=model,
        seed=cfg.seed,
        log=engine_log,
        kill=kill,
        memory=cfg.experiment.memory,
        on_stats=Meter(arm.name, write),
    )
    return parts.make(
        f"arms.{arm.name}" if cfg.arms else "scheduler",
        _plain(arm.scheduler),
        SCHEDULER,
        make_backend=make_backend,
        transfer=make_transfer(cfg, arm, model) if moves_kv(arm.scheduler) else None,
        # No request waits longer than this for its KV to be fetched.
        lease_s=cfg.workload.timeout_s,
        kv_bytes_per_token=model.kv_bytes_per_token,
        kv_shards=model.kv_shards(places_of(arm)[-1][0]),
        write=write,
    )


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}
