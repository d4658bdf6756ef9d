"""One real vLLM engine behind AsyncLLM: the only module that imports vllm in wp1's own process.

The engine's processes write to the run's engine.log, because wp1 points its own standard output there while engines
live (see `wp1.machine.output`); the terminal stays readable, and a start-up that fails can show the engine's last
lines.
"""

import asyncio
import dataclasses
import difflib
import logging
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self, TypeVar

import psutil

from wp1.core.errors import ConfigError, WP1Error
from wp1.core.parts import Within
from wp1.core.records import Request
from wp1.machine import hardware
from wp1.model.models import ServedModel
from wp1.serving import kv_layout
from wp1.serving import memory as memory_of
from wp1.serving.backend import (
    ANSWER_S,
    END_S,
    Chunk,
    EngineDiedError,
    EngineInfo,
    EngineStartError,
    EngineTimes,
)
from wp1.serving.fit import GPU_SHARE, kv_pool_bytes
from wp1.serving.placement import Place
from wp1.serving.postmortem import cause_of_death
from wp1.serving.spawning import spawning

log = logging.getLogger(__name__)
T = TypeVar("T")

# What wp1 decides itself, and the key that decides it.
OWN_ARGUMENTS = {
    "model": "model",
    "tokenizer": "model",
    "revision": "model.revision",
    "max_model_len": "model.max_len",
    "dtype": "model.dtype",
    "hf_overrides": "rope",
    "load_format": "model.source",
    "skip_tokenizer_init": "model.source",
    "seed": "seed",
    "tensor_parallel_size": "scheduler.tensor_parallel",
    "kv_cache_memory_bytes": "backend.kv_cache_gib",
    "kv_transfer_config": "transfer",
    "worker_extension_cls": "transfer",
    "worker_cls": "experiment.memory",
}


# To tell what its KV cache is made of, which takes no work.
LAYOUT_TIMEOUT_S = 60.0
# How often an engine that owes an answer is looked at, in seconds. If its processes have hardly computed since the last
# time, it is stopped or deadlocked. If they have, it may be in a long step, and has `ANSWER_S`.
LOOK_S = 20.0
COMPUTES = 0.02  # of a core
# Seconds without any output after which an engine is asked whether it still answers: once a request is given up, and
# while requests are in flight.
SILENT_S, LONG_SILENT_S = 2.0, 30.0
# To map another engine's KV and copy one block, for which a kernel is compiled: seconds.
MEET_TIMEOUT_S = 120.0

# The difference of two log-probabilities is not written as more than that.
MOST_NATS = 1000.0

# Errors of engines that did not start. Their frames hold what vLLM had opened; when Python collects that, ZeroMQ waits
# for ever for messages that nobody will take. So it is never collected, and the process leaves without (`main._leave`).
_kept: list[BaseException] = []


def set_environment() -> None:
    """What must be in the environment before vllm is imported; children inherit it."""
    os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "spawn"
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    # NVML's order, in which `wp1.machine.hardware` counts GPUs.
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


class VLLMBackend:
    """One engine of one model on named devices.

    engine: arguments of AsyncEngineArgs, as in the configuration.
    kv_cache_gib: the KV pool, None for `fit.kv_pool_bytes`'s choice.
    place: devices, and how many engines share them.
    kill: ends the run's engine processes, called when a start-up hangs.
    kv_transfer: fields of vLLM's KVTransferConfig, of an engine that hands KV on or takes it; worker_extension: the
    class that its workers need for that; connector_arguments: engine arguments that the connector needs.
    on_kv_stats: called with what the engine's KV connector counted, whenever it has counted something.
    on_stats: called after every step with the engine's name, the share of KV blocks in use, requests running, requests
    waiting, and preemptions.
    memory: workers take notes of the memory they use, for `memory`.
    """

    def __init__(
        self,
        *,
        name: str,
        model: ServedModel,
        engine: dict[str, Any],
        kv_cache_gib: Annotated[float, Within(0.001)] | None = None,
        startup_timeout_s: Annotated[float, Within(1)] = 900.0,
        tensor_parallel: int,
        place: Place,
        seed: int,
        log: Path,
        kill: Callable[[], None],
        kv_transfer: dict[str, Any] | None = None,
        worker_extension: str = "",
        connector_arguments: dict[str, Any] | None = None,
        on_kv_stats: Callable[[dict[str, Any]], None] | None = None,
        on_stats: Callable[[str, float, int, int, int], None] | None = None,
        memory: bool = False,
    ) -> None:
        self.name = name
        self._model = model
        self._engine_arguments = engine
        self._kv_bytes = kv_pool_bytes(model, kv_cache_gib, place, tensor_parallel)
        self._timeout = startup_timeout_s
        self._tensor_parallel = tensor_parallel
        self._place = place
        self._seed = seed
        self._log = log
        self._kill = kill
        self._kv_transfer = kv_transfer
        self._worker_extension = worker_extension
        self._connector_arguments = connector_arguments or {}
        self._on_kv_stats = on_kv_stats
        self._on_stats = on_stats
        self._memory = memory
        self._engine: Any = None
        self._startup_s = 0.0
        self._kv: dict[str, Any] = {}  # `kv_layout.measured`, and what to note of it
        self._given_up = False
        self._log_start = 0
        self._processes: list[psutil.Process] = []  # the engine's core and its workers
        self._cause: str | None = None  # of its death
        self._heard = 0.0  # when it last streamed something; monotonic
        self._begun: dict[str, float] = {}  # requests in flight, and when they were sent; monotonic
        self._asking: asyncio.Task[None] | None = None  # whether it still answers
        self._watching: asyncio.Task[None] | None = None

    def arguments(self) -> dict[str, Any]:
        """The engine arguments as passed to vLLM."""
        arguments: dict[str, Any] = {
            "model": str(self._model.folder),
            "max_model_len": self._model.max_len,
            "dtype": self._model.dtype,
            "seed": self._seed,
            "tensor_parallel_size": self._tensor_parallel,
            "trust_remote_code": False,
        }
        if self._model.random_weights:
            arguments |= {"load_format": "dummy", "skip_tokenizer_init": True}
        if self._kv_bytes is not None:
            # vLLM counts a GPU's share of the pool.
            arguments["kv_cache_memory_bytes"] = self._kv_bytes // self._model.kv_shards(self._tensor_parallel)
        if hardware.device_type() == "cpu":
            # Compiling for two cores takes longer than it saves in a run.
            arguments["enforce_eager"] = True
            # Without it, a seeded request whose prompt is computed in pieces ends the engine.
            arguments["worker_cls"] = "wp1.serving.cpu_worker.Worker"
        if self._memory:
            arguments["worker_cls"] = memory_of.worker_class()
        if self._place.sharing > 1 and self._place.gpus:
            # vLLM looks whether that much is free, and takes what the pool is given above.
            arguments["gpu_memory_utilization"] = GPU_SHARE / self._place.sharing
        return arguments | self._connector_arguments | self._engine_arguments

    def _engine_config(self) -> Any:
        from vllm.config import KVTransferConfig
        from vllm.engine.arg_utils import AsyncEngineArgs

        arguments = AsyncEngineArgs(**self.arguments())
        arguments.worker_extension_cls = "wp1.serving.kv_layout.WorkerExtension"
        if self._kv_transfer is not None:
            arguments.kv_transfer_config = KVTransferConfig(**self._kv_transfer)
            arguments.worker_extension_cls = self._worker_extension
        return arguments.create_engine_config()

    def check(self) -> None:
        set_environment()
        from vllm.engine.arg_utils import AsyncEngineArgs

        known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
        for name in self._engine_arguments:
            if name in OWN_ARGUMENTS:
                raise ConfigError(f"backend.engine.{name} is decided by {OWN_ARGUMENTS[name]}: set that instead")
            if name not in known:
                near = difflib.get_close_matches(str(name), sorted(known), n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else "see vLLM's engine arguments for the names"
                raise ConfigError(f"backend.engine.{name} is no argument of vLLM's engine: {hint}")
        try:
            config = self._engine_config()
        except Exception as error:
            # vLLM's own checks of the values: pydantic's errors, and several of Python's.
            log.warning("vLLM refused the configuration", exc_info=True)
            raise ConfigError(
                f"vLLM refuses the engine's configuration ({_gist(error)}): check backend.engine.* and model.*"
            ) from error
        if self._connector_arguments.get("disable_hybrid_kv_cache_manager") and config.model_config.is_hybrid:
            raise ConfigError(
                f"transfer=ipc moves the KV of attention, and {self._model.name} keeps a state of another kind beside "
                "it: use transfer=nixl_push"
            )

    async def __aenter__(self) -> Self:
        start = time.monotonic()
        self._log_start = self._log.stat().st_size if self._log.exists() else 0
        starting = asyncio.ensure_future(asyncio.to_thread(self._start))
        try:
            self._engine = await asyncio.wait_for(asyncio.shield(starting), self._timeout)
        except TimeoutError as error:
            await self._give_up(starting)
            raise EngineStartError(
                f"engine {self.name} was not up after {self._timeout:g} s (backend.startup_timeout_s)"
                + self._last_lines()
            ) from error
        except asyncio.CancelledError:
            await self._give_up(starting)
            raise
        except Exception as error:
            self._kill()
            _kept.append(error)
            # vLLM means its own log, where the cause is, and whose last lines follow.
            told = str(error).replace(" See root cause above.", "")
            cause = cause_of_death(self._log, self._log_start, None, None) or told
            raise EngineStartError(f"engine {self.name} did not start: {cause}" + self._last_lines()) from error
        self._startup_s = time.monotonic() - start
        self._processes = _tree(core.pid for core in self._cores())
        self._check_rope()
        await self._read_kv_layout()
        self._watching = asyncio.create_task(self._watch())
        return self

    def _start(self) -> Any:
        set_environment()
        from vllm.v1.engine.async_llm import AsyncLLM

        with spawning(self._environment()):
            if self._given_up:
                raise EngineStartError("given up before it began")
            loggers = [_stats_logger(self.name, self._on_kv_stats, self._on_stats)]
            return AsyncLLM.from_vllm_config(self._engine_config(), stat_loggers=loggers)

    def _environment(self) -> dict[str, str]:
        """Variables of this engine's processes alone."""
        environment = {}
        if self._place.gpus:
            # vLLM takes the first ones; the others are only to be seen.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._place.gpus + self._place.peers))
        if self._place.cores is not None:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, self._place.cores))
        if hardware.device_type() == "cpu" and self.arguments()["enforce_eager"]:
            # `enforce_eager` is about the model. vLLM compiles a small function for log-probabilities all the same, at
            # the first request that asks for them: about 10 s to save microseconds.
            environment["TORCHDYNAMO_DISABLE"] = "1"
        return environment

    async def _give_up(self, starting: "asyncio.Future[Any]") -> None:
        # The thread waits on the engine's process; with that gone it ends by an error that nobody needs.
        self._given_up = True
        deadline = time.monotonic() + END_S
        while not starting.done() and time.monotonic() < deadline:
            self._kill()
            await asyncio.wait([starting], timeout=0.5)
        if starting.done() and (error := starting.exception()) is not None:
            _kept.append(error)

    def _last_lines(self, count: int = 12) -> str:
        try:
            lines = self._log.read_bytes()[self._log_start :].decode(errors="replace").splitlines()
        except OSError:
            return ""
        said = [line for line in lines if line.strip()]
        return "; its last lines:" + "".join(f"\n  {line}" for line in said[-count:]) if said else ""

    def _check_rope(self) -> None:
        """What the engine says it does with positions must be what was asked for."""
        wanted, there = self._model.rope, self.rope_in_effect()
        if wanted.written_as is not None and (
            there.get("rope_type") != wanted.type or abs(there.get("factor", 0) - wanted.factor) > 1e-6
        ):
            raise EngineStartError(f"the engine's rope is {there}, asked for was {wanted.as_dict()}")

    async def _read_kv_layout(self) -> None:
        """The engine's own bytes of KV a token, held against those of the model's configuration."""
        try:
            ranks = await asyncio.wait_for(self._engine.collective_rpc("wp1_kv_layers"), LAYOUT_TIMEOUT_S)
        except Exception as error:  # vLLM gives what its worker raised as one of its own
            raise EngineStartError(
                f"engine {self.name} did not say what its KV cache is made of: {error!r}" + self._last_lines()
            ) from error
        self._kv = kv_layout.measured(ranks, self._model.kv_shards(self._tensor_parallel))
        self._kv["kv_note"] = kv_layout.difference(self._kv, self._model)
        if self._kv["kv_note"]:
            log.warning("engine %s: %s", self.name, self._kv["kv_note"])

    def rope_in_effect(self) -> dict[str, Any]:
        """The rotary scaling, read back from the engine's own configuration."""
        config = self._engine.vllm_config.model_config.hf_text_config
        scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        return dict(scaling)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for task in (self._asking, self._watching):
            if task is not None:
                task.cancel()
        if self._engine is not None:
            engine, self._engine = self._engine, None
            ending = asyncio.ensure_future(asyncio.to_thread(engine.shutdown))
            # Half of what a scheduler allows for it: the rest is for the end by force.
            await asyncio.wait([ending], timeout=END_S / 2)
            if not ending.done():
                log.warning("engine %s did not end within %g s and is killed", self.name, END_S / 2)
                self._end_processes()
                await asyncio.wait([ending], timeout=END_S / 4)
            if ending.done():
                ending.result()

    @property
    def alive(self) -> bool:
        return self._engine is not None and not self._engine.errored and self._cause is None

    @property
    def death(self) -> str | None:
        if self._engine is None or self.alive:
            return None
        if self._cause is None:
            pids = {process.pid for process in self._processes} or None
            exit_code = next((core.exitcode for core in self._cores() if core.exitcode), None)
            self._cause = cause_of_death(self._log, self._log_start, pids, exit_code)
        return f"engine {self.name} died: {self._cause or f'why is in {self._log}'}"

    async def _died(self) -> EngineDiedError:
        """The error of whoever asked an engine that died; waits a moment for its processes to have ended."""
        for _ in range(20):
            if self.death is None or self._cause is not None:
                break
            await asyncio.sleep(0.05)
        return EngineDiedError(self.death or f"engine {self.name} died")

    def _cores(self) -> list[Any]:
        """The processes of the engine's core; [] if this version of vLLM keeps them elsewhere."""
        resources = getattr(getattr(self._engine, "engine_core", None), "resources", None)
        return list(getattr(getattr(resources, "engine_manager", None), "processes", ()))

    def _end_processes(self) -> None:
        """Ends this engine by force; all of the run's, if this version of vLLM does not say which are its own."""
        if not self._processes:
            self._kill()
        for process in self._processes:
            with suppress(psutil.Error):
                process.kill()

    async def _answer(self, call: Coroutine[Any, Any, T], what: str, within_s: float | None = None) -> T:
        """What the engine answers to something that is not a request; what: it was asked for, in words.

        within_s: None is ANSWER_S.
        Raises EngineDiedError if the engine died or hangs: then it is ended, and what it serves fails.
        """
        asked = asyncio.ensure_future(call)
        begin = looked = time.monotonic()
        computed = _computed_s(self._processes)
        try:
            while not (await asyncio.wait([asked], timeout=min(1.0, LOOK_S)))[0]:
                if not self.alive:  # vLLM leaves the question open when its engine dies
                    raise await self._died()
                now = time.monotonic()
                if now - looked < LOOK_S:
                    continue
                before, computed = computed, _computed_s(self._processes)
                stands_still = bool(self._processes) and computed - before < COMPUTES * (now - looked)
                looked = now
                if stands_still or now - begin >= (within_s or ANSWER_S):
                    self._cause = f"it did not answer within {now - begin:.0f} s ({what}), and was ended"
                    self._end_processes()
                    raise await self._died()
            return asked.result()
        except Exception as error:
            # vLLM's EngineDeadError among others, which it raises once it has noticed.
            if isinstance(error, EngineDiedError) or self.alive:
                raise
            raise await self._died() from error
        finally:
            asked.cancel()

    async def _watch(self) -> None:
        """Finds an engine that hangs while requests wait for it, long before they time out."""
        while True:
            await asyncio.sleep(1)
            if self._begun:
                self._ask_if_silent(LONG_SILENT_S, min(self._begun.values()))

    def _ask_if_silent(self, seconds: float, since: float = 0.0) -> None:
        """Asks the engine whether it still answers, if it has streamed nothing for so long, nor since that moment."""
        if time.monotonic() - max(self._heard, since) < seconds or not self.alive:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._still_answers())

    async def _still_answers(self) -> None:
        # As long as it computes it may: one step over a whole long prompt on a CPU takes its time.
        with suppress(Exception):
            await self._answer(self._engine.is_sleeping(), "whether it is there", within_s=math.inf)

    async def generate(
        self, request: Request, kv_transfer_params: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        from vllm.v1.engine.exceptions import EngineDeadError

        if not self.alive:
            raise await self._died()
        sampling = self._sampling(request, kv_transfer_params)
        ended = False
        stream = self._engine.generate(self._prompt(request), sampling, request.request_id)
        self._begun[request.request_id] = time.monotonic()
        try:
            async for output in stream:
                now = self._heard = time.monotonic()
                part = output.outputs[0]
                chunk = Chunk(now, list(part.token_ids), part.text)
                if request.nll_window is not None and output.prompt_logprobs:
                    chunk.nll = window_sums(output.prompt_logprobs, output.prompt_token_ids, request.nll_window)
                if request.margins and part.logprobs is not None:
                    chunk.margins = [margin(of_token) for of_token in part.logprobs]
                if output.finished:
                    chunk.finish_reason = part.finish_reason
                    chunk.prompt_tokens = len(output.prompt_token_ids or ())
                    chunk.cached_tokens = output.num_cached_tokens or 0
                    chunk.times = _times(output.metrics)
                    chunk.kv_transfer_params = output.kv_transfer_params
                yield chunk
            ended = True
        except EngineDeadError as error:
            raise await self._died() from error
        except Exception as error:
            ended = True
            # vLLM's EngineGenerateError has no words of its own.
            cause = error.__cause__ or error
            told = str(error) or f"{type(cause).__name__}: {cause}"
            raise WP1Error(f"engine {self.name} refused the request: {told}") from error
        finally:
            self._begun.pop(request.request_id, None)
            if not ended:
                self._ask_if_silent(SILENT_S)
            # Closing early aborts the request in the engine.
            await stream.aclose()

    def _prompt(self, request: Request) -> dict[str, Any]:
        if isinstance(request.prompt, str):
            return {"prompt": request.prompt}
        if request.prompt and isinstance(request.prompt[0], dict):
            return {"prompt_token_ids": chat_token_ids(self._engine.get_tokenizer(), request.prompt)}
        return {"prompt_token_ids": request.prompt}

    def _sampling(self, request: Request, kv_transfer_params: dict[str, Any] | None = None) -> Any:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            ignore_eos=request.ignore_eos,
            detokenize=self._model.has_tokenizer,
            stop=request.stop or None,
            # They are taken beside the choice of a token, and change none.
            logprobs=2 if request.margins else None,
            # 0: of the prompt's own tokens, and of no others.
            prompt_logprobs=None if request.nll_window is None else 0,
            output_kind=RequestOutputKind.DELTA,
            extra_args=None if kv_transfer_params is None else {"kv_transfer_params": kv_transfer_params},
        )

    async def abort(self, request_id: str) -> None:
        await self._answer(self._engine.abort(request_id), "to abort a request")

    async def meet(self, peers: list[str]) -> None:
        try:
            await asyncio.wait_for(self._engine.collective_rpc("wp1_meet", args=(peers,)), MEET_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineStartError(
                f"engine {self.name} could not copy KV from {', '.join(peers)} within {MEET_TIMEOUT_S:g} s; where its "
                "GPUs cannot read each other's memory, transfer=nixl_push is the way" + self._last_lines()
            ) from error
        except Exception as error:  # vLLM gives what its worker raised as one of its own
            raise EngineStartError(f"engine {self.name} cannot take KV from {', '.join(peers)}: {error}") from error

    async def forget_peer(self, peer: str) -> None:
        await self._answer(self._engine.collective_rpc("wp1_peer_lost", args=(peer,)), "to forget an engine that died")

    async def let_go(self, request: str) -> None:
        await self._answer(self._engine.collective_rpc("wp1_let_go", args=(request,)), "to let KV go")

    async def kv_free(self) -> bool:
        # vLLM resets its prefix cache only while no block is in use.
        return await self._answer(self._engine.reset_prefix_cache(), "whether its KV is free")

    async def memory(self, moment: memory_of.Moment) -> list[dict[str, Any]]:
        try:
            return await self._answer(
                self._engine.collective_rpc(f"wp1_memory_{moment}"), "what its memory is taken by"
            )
        except EngineDiedError:
            raise
        except Exception as error:  # vLLM gives what its worker raised as one of its own
            raise EngineDiedError(f"engine {self.name} did not say what its memory is taken by: {error}") from error

    def info(self) -> EngineInfo:
        config = self._engine.vllm_config
        cache = config.cache_config
        return EngineInfo(
            name=self.name,
            devices=self._place.names(),
            startup_s=round(self._startup_s, 1),
            settings={
                "block_size": cache.block_size,
                "kv_blocks": cache.num_gpu_blocks,
                "prefix_caching": bool(cache.enable_prefix_caching),
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
                "enforce_eager": config.model_config.enforce_eager,
                "dtype": str(config.model_config.dtype).removeprefix("torch."),
                "rope": self.rope_in_effect(),
                "kv_cache_dtype": cache.cache_dtype,
                **self._kv,
            },
        )


def _tree(pids: Iterable[int]) -> list[psutil.Process]:
    """These processes and all that they have started."""
    found = []
    for pid in pids:
        with suppress(psutil.Error):
            parent = psutil.Process(pid)
            found += [parent, *parent.children(recursive=True)]
    return found


def _computed_s(processes: Iterable[psutil.Process]) -> float:
    """Seconds of a core that these processes have used by now."""
    used = 0.0
    for process in processes:
        with suppress(psutil.Error):
            times = process.cpu_times()
            used += times.user + times.system
    return used


def _stats_logger(
    name: str,
    on_kv_stats: Callable[[dict[str, Any]], None] | None,
    on_stats: Callable[[str, float, int, int, int], None] | None,
) -> Any:
    """A stat logger class for AsyncLLM that hands on what the KV connector and the engine's scheduler counted.

    It takes the place of vLLM's logger for Prometheus, which nobody reads here, and whose metrics have one registry in
    a process: of two engines that start at the same time, one could fail to register its own.
    """
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    class StatsLogger(PrometheusStatLogger):
        def __init__(self, vllm_config: Any, engine_indexes: list[int] | None = None) -> None:
            pass

        def record(self, scheduler_stats: Any, iteration_stats: Any = None, *_: Any, **__: Any) -> None:
            if scheduler_stats is None:
                return
            if on_kv_stats is not None and scheduler_stats.kv_connector_stats:
                on_kv_stats(scheduler_stats.kv_connector_stats)
            if on_stats is not None:
                # Requests that wait for something else than a place are counted apart from vLLM 0.30 or so.
                waiting = scheduler_stats.num_waiting_reqs + getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
                preempted = getattr(iteration_stats, "num_preempted_reqs", 0)  # None where nothing came out
                on_stats(name, scheduler_stats.kv_cache_usage, scheduler_stats.num_running_reqs, waiting, preempted)

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, *_: Any, **__: Any) -> None:
            pass

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:
            pass

    return StatsLogger


def window_sums(logprobs: Any, token_ids: Any, window: int) -> list[float]:
    """Negative log-likelihoods (nats) of a prompt's tokens, summed over windows of so many tokens.

    logprobs: for each token vLLM's mapping of token ids to log-probabilities, None for the first.
    """
    sums = [0.0] * -(-len(token_ids) // window)
    for place, (token, of_token) in enumerate(zip(token_ids, logprobs, strict=True)):
        if of_token is not None:
            sums[place // window] -= of_token[token].logprob
    return sums


def margin(of_token: Any) -> float:
    """By how much the best token is more likely than the second best: the difference of their log-probabilities, nats.

    of_token: vLLM's mapping of token ids to log-probabilities at one place of an answer, the two best among them.
    """
    best, second = sorted((found.logprob for found in of_token.values()), reverse=True)[:2]
    # A token that is ruled out has minus infinity, which no file can hold.
    return min(best - second, MOST_NATS)


def chat_token_ids(tokenizer: Any, chat: Any) -> list[int]:
    """A chat as token ids by the model's own template, with the opening of the assistant's turn."""
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def _gist(error: Exception, most: int = 300) -> str:
    """What vLLM says, in a line: pydantic's head and foot around the reason left out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line.partition(" [type=")[0] for line in lines if "validation error" not in line and "pydantic" not in line]
    text = "; ".join(told) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"


def _times(stats: Any) -> EngineTimes:
    """vLLM's RequestStateStats; a zero there means that it did not come to that."""
    if stats is None:
        return EngineTimes()
    return EngineTimes(
        queued=stats.queued_ts or None,
        scheduled=stats.scheduled_ts or None,
        first_token=stats.first_token_ts or None,
        last_token=stats.last_token_ts or None,
        preemptions=getattr(stats, "num_preemptions", 0),  # from vLLM 0.27 or so
    )
