"""One real vLLM engine behind AsyncLLM: the only module that imports vllm in wp1's own process.

The engine's processes write to the run's engine.log, because wp1 points its own standard output there while engines
live (see `wp1.console`); the terminal stays readable, and a start-up that fails can show the engine's last lines.
"""

import asyncio
import dataclasses
import difflib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from wp1 import hardware
from wp1.errors import ConfigError, WP1Error
from wp1.records import Request
from wp1.serving import memory as memory_of
from wp1.serving.backend import Chunk, EngineDiedError, EngineInfo, EngineStartError, EngineTimes
from wp1.serving.fit import GPU_SHARE, kv_pool_bytes
from wp1.serving.models import ServedModel
from wp1.serving.placement import Place
from wp1.serving.spawning import spawning

log = logging.getLogger(__name__)

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


# Notes of memory are ready at once, when the step under way has ended.
MEMORY_TIMEOUT_S = 120.0
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
    # NVML's order, in which `wp1.hardware` counts GPUs.
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
        kv_cache_gib: float | None,
        startup_timeout_s: float,
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
        self._given_up = False
        self._log_start = 0

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
        if self._kv_transfer is not None:
            arguments.kv_transfer_config = KVTransferConfig(**self._kv_transfer)
            arguments.worker_extension_cls = self._worker_extension
        return arguments.create_engine_config()

    def check(self, longest_sampled: int) -> None:
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
        chunk = config.scheduler_config.max_num_batched_tokens
        if longest_sampled > chunk and config.device_config.device_type == "cpu":
            # Between chunks vLLM turns a request's generator back, which torch has on GPUs only.
            raise ConfigError(
                f"workload.temperature: on a CPU vLLM samples no prompt of more than {chunk} tokens, which it computes "
                f"in pieces, and the longest has {longest_sampled}: set workload.temperature=0 or "
                f"backend.engine.max_num_batched_tokens={longest_sampled}"
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
            # vLLM means its own log, whose last lines follow.
            told = str(error).replace(" See root cause above.", "")
            raise EngineStartError(f"engine {self.name} did not start: {told}" + self._last_lines()) from error
        self._startup_s = time.monotonic() - start
        self._check_rope()
        return self

    def _start(self) -> Any:
        set_environment()
        from vllm.v1.engine.async_llm import AsyncLLM

        devices = {}
        if self._place.gpus:
            # vLLM takes the first ones; the others are only to be seen.
            devices["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, self._place.gpus + self._place.peers))
        if self._place.cores is not None:
            devices["VLLM_CPU_OMP_THREADS_BIND"] = ",".join(map(str, self._place.cores))
        with spawning(devices):
            if self._given_up:
                raise EngineStartError("given up before it began")
            loggers = [_stats_logger(self.name, self._on_kv_stats, self._on_stats)]
            return AsyncLLM.from_vllm_config(self._engine_config(), stat_loggers=loggers)

    async def _give_up(self, starting: "asyncio.Future[Any]") -> None:
        # The thread waits on the engine's process; with that gone it ends by an error that nobody needs.
        self._given_up = True
        while not starting.done():
            self._kill()
            await asyncio.wait([starting], timeout=0.5)
        error = starting.exception()
        if error is not None:
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

    def rope_in_effect(self) -> dict[str, Any]:
        """The rotary scaling, read back from the engine's own configuration."""
        config = self._engine.vllm_config.model_config.hf_text_config
        scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
        return dict(scaling)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._engine is not None:
            engine, self._engine = self._engine, None
            await asyncio.to_thread(engine.shutdown)

    @property
    def alive(self) -> bool:
        return self._engine is not None and not self._engine.errored

    async def generate(
        self, request: Request, kv_transfer_params: dict[str, Any] | None = None
    ) -> AsyncIterator[Chunk]:
        from vllm.v1.engine.exceptions import EngineDeadError

        sampling = self._sampling(request, kv_transfer_params)
        stream = self._engine.generate(self._prompt(request), sampling, request.request_id)
        try:
            async for output in stream:
                now = time.monotonic()
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
        except EngineDeadError as error:
            raise EngineDiedError(f"engine {self.name} died; why is in {self._log}") from error
        except (ValueError, RuntimeError) as error:
            raise WP1Error(f"engine {self.name} refused the request: {error}") from error
        finally:
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
        await self._engine.abort(request_id)

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
        await self._engine.collective_rpc("wp1_peer_lost", args=(peer,))

    async def kv_free(self) -> bool:
        # vLLM resets its prefix cache only while no block is in use.
        return await self._engine.reset_prefix_cache()

    async def memory(self, moment: memory_of.Moment) -> list[dict[str, Any]]:
        try:
            return await self._engine.collective_rpc(f"wp1_memory_{moment}", timeout=MEMORY_TIMEOUT_S)
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
                "max_num_seqs": config.scheduler_config.max_num_seqs,
                "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
                "enforce_eager": config.model_config.enforce_eager,
                "dtype": str(config.model_config.dtype).removeprefix("torch."),
                "rope": self.rope_in_effect(),
            },
        )


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
