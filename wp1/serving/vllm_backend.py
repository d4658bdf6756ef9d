"""A vLLM engine behind AsyncLLM. In wp1's own process, only this module and its `vllm_*` siblings import vllm.

The engine's processes write to the run's engine.log, because wp1 redirects its own standard output there while engines
are up (see `wp1.machine.output`). This keeps the terminal readable, and a failed start can show the engine's last
lines.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

from wp1.core.errors import ConfigError, WP1Error
from wp1.core.parts import Within
from wp1.core.records import Request
from wp1.machine import hardware
from wp1.model.models import ServedModel
from wp1.serving import kv_layout
from wp1.serving import memory as memory_of
from wp1.serving.backend import (
    END_S,
    Chunk,
    EngineDiedError,
    EngineInfo,
    EngineStartError,
)
from wp1.serving.fit import GPU_SHARE, kv_pool_bytes
from wp1.serving.liveness import SILENT_S, Liveness
from wp1.serving.placement import Place
from wp1.serving.postmortem import cause_of_death, last_lines
from wp1.serving.spawning import spawning
from wp1.serving.vllm_arguments import check_names, gist, set_environment
from wp1.serving.vllm_output import chunk_of, prompt_of, sampling_params, settings_of, stats_logger

log = logging.getLogger(__name__)

# Seconds to report the layout of the KV cache, which needs no computation.
LAYOUT_TIMEOUT_S = 60.0
# Seconds to map another engine's KV and copy one block, for which a kernel is compiled.
MEET_TIMEOUT_S = 120.0

# Errors of engines that did not start. Their frames hold vLLM's open sockets; if Python collected those, ZeroMQ would
# wait forever to deliver messages. So they are never collected, and the process exits without (`main._leave`).
_kept: list[BaseException] = []


class VLLMBackend:
    """One engine serving one model on given devices.

    engine: arguments of AsyncEngineArgs, as in the configuration.
    kv_cache_gib: size of the KV pool; None lets `fit.kv_pool_bytes` choose.
    place: devices, and how many engines share them.
    kill: ends the run's engine processes; called if a start hangs.
    kv_transfer: fields of vLLM's KVTransferConfig for an engine that sends or receives KV. worker_extension: the class
    its workers need for that. connector_arguments: engine arguments that the connector needs.
    on_kv_stats: called with the KV connector's statistics whenever there are any.
    on_stats: called after every step with the engine's name, the share of KV blocks in use, requests running, requests
    waiting, and preemptions.
    memory: whether workers track their memory use, for `memory`.
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
        self._kv: dict[str, Any] = {}  # `kv_layout.measured`, with a note if it differs from the model's configuration
        self._given_up = False
        self._life = Liveness(name, log, kill)

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
            # vLLM expects the pool's size per GPU.
            arguments["kv_cache_memory_bytes"] = self._kv_bytes // self._model.kv_shards(self._tensor_parallel)
        if hardware.device_type() == "cpu":
            # Compiling for two cores takes longer than it saves in a run.
            arguments["enforce_eager"] = True
            # vLLM's own worker crashes on a seeded request with chunked prefill.
            arguments["worker_cls"] = "wp1.serving.cpu_worker.Worker"
        if self._memory:
            arguments["worker_cls"] = memory_of.worker_class()
        if self._place.sharing > 1 and self._place.gpus:
            # vLLM only checks that this share is free; the pool's size is set above.
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
        check_names(self._engine_arguments)
        try:
            config = self._engine_config()
        except Exception as error:
            # vLLM's validation raises pydantic's errors and several of Python's.
            log.warning("vLLM refused the configuration", exc_info=True)
            raise ConfigError(
                f"vLLM refuses the engine's configuration ({gist(error)}): check backend.engine.* and model.*"
            ) from error
        if self._connector_arguments.get("disable_hybrid_kv_cache_manager") and config.model_config.is_hybrid:
            connector = (self._kv_transfer or {}).get("kv_connector", "")
            raise ConfigError(
                f"the KV connector {connector} moves only the KV of attention layers, and {self._model.name} also "
                "keeps another kind of state: use transfer=nixl_push"
            )

    async def __aenter__(self) -> Self:
        start = time.monotonic()
        self._life.log_start = self._log.stat().st_size if self._log.exists() else 0
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
            # vLLM's "above" refers to its log, whose last lines follow here.
            message = str(error).replace(" See root cause above.", "")
            cause = cause_of_death(self._log, self._life.log_start, None, None) or message
            raise EngineStartError(f"engine {self.name} did not start: {cause}" + self._last_lines()) from error
        self._startup_s = time.monotonic() - start
        self._life.begin(self._engine)
        self._check_rope()
        await self._read_kv_layout()
        self._life.watch()
        return self

    def _start(self) -> Any:
        set_environment()
        from vllm.v1.engine.async_llm import AsyncLLM

        with spawning(self._environment()):
            if self._given_up:
                raise EngineStartError("cancelled before it started")
            loggers = [stats_logger(self.name, self._on_kv_stats, self._on_stats)]
            return AsyncLLM.from_vllm_config(self._engine_config(), stat_loggers=loggers)

    def _environment(self) -> dict[str, str]:
        """Environment variables for this engine's processes only."""
        environment = {}
        if self._place.gpus:
            # vLLM uses the first ones; the others only have to be visible.
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._place.gpus + self._place.peers))
        if self._place.cores is not None:
            environment["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, self._place.cores))
        if hardware.device_type() == "cpu" and self.arguments()["enforce_eager"]:
            # `enforce_eager` covers the model only. At the first request for log-probabilities vLLM still compiles a
            # small function: about 10 s to save microseconds.
            environment["TORCHDYNAMO_DISABLE"] = "1"
        return environment

    async def _give_up(self, starting: "asyncio.Future[Any]") -> None:
        # The thread waits for the engine's process. Once that is killed, the thread ends with an error of no interest.
        self._given_up = True
        deadline = time.monotonic() + END_S
        while not starting.done() and time.monotonic() < deadline:
            self._kill()
            await asyncio.wait([starting], timeout=0.5)
        if starting.done() and (error := starting.exception()) is not None:
            _kept.append(error)

    def _last_lines(self) -> str:
        return last_lines(self._log, self._life.log_start)

    def _check_rope(self) -> None:
        """Raises EngineStartError if the engine's rotary scaling is not the configured one."""
        wanted, actual = self._model.rope, self.rope_in_effect()
        if wanted.written_as is not None and (
            actual.get("rope_type") != wanted.type or abs(actual.get("factor", 0) - wanted.factor) > 1e-6
        ):
            raise EngineStartError(f"the engine's rope is {actual}, but {wanted.as_dict()} was requested")

    async def _read_kv_layout(self) -> None:
        """Reads the engine's KV bytes per token and compares them with those of the model's configuration."""
        try:
            ranks = await asyncio.wait_for(self._engine.collective_rpc("wp1_kv_layers"), LAYOUT_TIMEOUT_S)
        except Exception as error:  # vLLM re-raises a worker's error as a type of its own
            raise EngineStartError(
                f"engine {self.name} did not report the layout of its KV cache: {error!r}" + self._last_lines()
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
        self._life.unwatch()
        if self._engine is not None:
            engine, self._engine, self._life.engine = self._engine, None, None
            ending = asyncio.ensure_future(asyncio.to_thread(engine.shutdown))
            # Half of the time a scheduler allows; the rest is for a forced shutdown.
            await asyncio.wait([ending], timeout=END_S / 2)
            if not ending.done():
                log.warning("engine %s did not shut down within %g s: killing it", self.name, END_S / 2)
                self._life.end_processes()
                await asyncio.wait([ending], timeout=END_S / 4)
            if ending.done():
                ending.result()

    @property
    def alive(self) -> bool:
        return self._life.alive

    @property
    def death(self) -> str | None:
        return self._life.death

    async def generate(
        self, request: Request, kv_transfer_params: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        from vllm.v1.engine.exceptions import EngineDeadError

        if not self.alive:
            raise await self._life.died()
        sampling = sampling_params(request, self._model.has_tokenizer, kv_transfer_params)
        ended = False
        stream = self._engine.generate(prompt_of(request, self._engine.get_tokenizer), sampling, request.request_id)
        self._life.begun[request.request_id] = time.monotonic()
        try:
            async for output in stream:
                now = self._life.heard = time.monotonic()
                yield chunk_of(output, request, now)
            ended = True
        except EngineDeadError as error:
            raise await self._life.died() from error
        except Exception as error:
            ended = True
            # vLLM's EngineGenerateError has no message of its own.
            cause = error.__cause__ or error
            message = str(error) or f"{type(cause).__name__}: {cause}"
            raise WP1Error(f"engine {self.name} refused the request: {message}") from error
        finally:
            self._life.begun.pop(request.request_id, None)
            if not ended:
                self._life.ask_if_silent(SILENT_S)
            # Closing early aborts the request in the engine.
            await stream.aclose()

    async def abort(self, request_id: str) -> None:
        await self._life.answer(self._engine.abort(request_id), "to abort a request")

    async def meet(self, peers: list[str]) -> None:
        try:
            await asyncio.wait_for(self._engine.collective_rpc("wp1_meet", args=(peers,)), MEET_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineStartError(
                f"engine {self.name} could not copy KV from {', '.join(peers)} within {MEET_TIMEOUT_S:g} s: if their "
                "GPUs cannot read each other's memory, set transfer=nixl_push" + self._last_lines()
            ) from error
        except Exception as error:  # vLLM re-raises a worker's error as a type of its own
            raise EngineStartError(f"engine {self.name} cannot take KV from {', '.join(peers)}: {error}") from error

    async def forget_peer(self, peer: str) -> None:
        await self._life.answer(self._engine.collective_rpc("wp1_peer_lost", args=(peer,)), "to forget a dead engine")

    async def let_go(self, request: str) -> None:
        await self._life.answer(self._engine.collective_rpc("wp1_let_go", args=(request,)), "to free a request's KV")

    async def kv_free(self) -> bool:
        # vLLM resets its prefix cache only if no block is in use.
        return await self._life.answer(self._engine.reset_prefix_cache(), "to check that its KV is free")

    async def memory(self, moment: memory_of.Moment) -> list[dict[str, Any]]:
        try:
            return await self._life.answer(
                self._engine.collective_rpc(f"wp1_memory_{moment}"), "to report its memory use"
            )
        except EngineDiedError:
            raise
        except Exception as error:  # vLLM re-raises a worker's error as a type of its own
            raise EngineDiedError(f"engine {self.name} did not report its memory use: {error}") from error

    def info(self) -> EngineInfo:
        return EngineInfo(
            name=self.name,
            devices=self._place.names(),
            startup_s=round(self._startup_s, 1),
            settings={
                **settings_of(self._engine.vllm_config),
                "rope": self.rope_in_effect(),
                **self._kv,
            },
        )
