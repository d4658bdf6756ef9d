"""Translates requests into vLLM's types, and vLLM's outputs and statistics into wp1's."""

from collections.abc import Callable
from typing import Any

from wp1.core.records import Request
from wp1.serving.backend import Chunk, EngineTimes

# Upper bound for a margin: a token that is ruled out has log-probability minus infinity, which JSON cannot hold.
MOST_NATS = 1000.0


def sampling_params(request: Request, detokenize: bool, kv_transfer_params: dict[str, Any] | None = None) -> Any:
    """vLLM's SamplingParams of a request. kv_transfer_params: for the engine's KV connector."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        seed=request.seed,
        ignore_eos=request.ignore_eos,
        detokenize=detokenize,
        stop=request.stop or None,
        # Log-probabilities are computed in addition to sampling and do not change it.
        logprobs=2 if request.margins else None,
        # 0: for the prompt's own tokens only.
        prompt_logprobs=None if request.nll_window is None else 0,
        output_kind=RequestOutputKind.DELTA,
        extra_args=None if kv_transfer_params is None else {"kv_transfer_params": kv_transfer_params},
    )


def prompt_of(request: Request, tokenizer: Callable[[], Any]) -> dict[str, Any]:
    """A request's prompt in vLLM's format. tokenizer: returns the engine's tokenizer; called for chats only."""
    if isinstance(request.prompt, str):
        return {"prompt": request.prompt}
    if request.prompt and isinstance(request.prompt[0], dict):
        return {"prompt_token_ids": chat_token_ids(tokenizer(), request.prompt)}
    return {"prompt_token_ids": request.prompt}


def chat_token_ids(tokenizer: Any, chat: Any) -> list[int]:
    """A chat as token ids under the model's chat template, ending with the opening of the assistant's turn."""
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def chunk_of(output: Any, request: Request, now: float) -> Chunk:
    """The Chunk for one of vLLM's RequestOutputs. now: when it arrived, on the monotonic clock."""
    delta = output.outputs[0]
    chunk = Chunk(now, list(delta.token_ids), delta.text)
    if request.nll_window is not None and output.prompt_logprobs:
        chunk.nll = window_sums(output.prompt_logprobs, output.prompt_token_ids, request.nll_window)
    if request.margins and delta.logprobs is not None:
        chunk.margins = [margin(candidates) for candidates in delta.logprobs]
    if output.finished:
        chunk.finish_reason = delta.finish_reason
        chunk.prompt_tokens = len(output.prompt_token_ids or ())
        chunk.cached_tokens = output.num_cached_tokens or 0
        chunk.times = _times(output.metrics)
        chunk.kv_transfer_params = output.kv_transfer_params
    return chunk


def _times(stats: Any) -> EngineTimes:
    """EngineTimes from vLLM's RequestStateStats, in which 0 means that the event never happened."""
    if stats is None:
        return EngineTimes()
    return EngineTimes(
        queued=stats.queued_ts or None,
        scheduled=stats.scheduled_ts or None,
        first_token=stats.first_token_ts or None,
        last_token=stats.last_token_ts or None,
        preemptions=getattr(stats, "num_preemptions", 0),  # since about vLLM 0.27
    )


def window_sums(logprobs: Any, token_ids: Any, window: int) -> list[float]:
    """Negative log-likelihoods (nats) of a prompt's tokens, summed over windows of `window` tokens.

    logprobs: vLLM's mapping of token ids to log-probabilities for each token, None for the first.
    """
    sums = [0.0] * -(-len(token_ids) // window)
    for position, (token, candidates) in enumerate(zip(token_ids, logprobs, strict=True)):
        if candidates is not None:
            sums[position // window] -= candidates[token].logprob
    return sums


def margin(candidates: Any) -> float:
    """Difference between the log-probabilities of the best and the second-best token, in nats, at most MOST_NATS.

    candidates: vLLM's mapping of token ids to log-probabilities at one position of an answer, with at least the two
    best tokens.
    """
    best, second = sorted((candidate.logprob for candidate in candidates.values()), reverse=True)[:2]
    return min(best - second, MOST_NATS)


def settings_of(config: Any) -> dict[str, Any]:
    """An engine's effective settings, from its VllmConfig; blocks are KV-cache blocks."""
    cache = config.cache_config
    return {
        "block_size": cache.block_size,
        "kv_blocks": cache.num_gpu_blocks,
        "prefix_caching": bool(cache.enable_prefix_caching),
        "max_num_seqs": config.scheduler_config.max_num_seqs,
        "max_num_batched_tokens": config.scheduler_config.max_num_batched_tokens,
        "enforce_eager": config.model_config.enforce_eager,
        "dtype": str(config.model_config.dtype).removeprefix("torch."),
        "kv_cache_dtype": cache.cache_dtype,
    }


def stats_logger(
    name: str,
    on_kv_stats: Callable[[dict[str, Any]], None] | None,
    on_stats: Callable[[str, float, int, int, int], None] | None,
) -> Any:
    """A stat-logger class for AsyncLLM that passes on the statistics of the KV connector and the engine's scheduler.

    It replaces vLLM's Prometheus logger, whose metrics are unused here and share one registry per process: if two
    engines start at the same time, one may fail to register its metrics.
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
                # Since about vLLM 0.30, requests that wait for something other than a slot are counted separately.
                waiting = scheduler_stats.num_waiting_reqs + getattr(scheduler_stats, "num_skipped_waiting_reqs", 0)
                preempted = getattr(iteration_stats, "num_preempted_reqs", 0)  # None if the step had no output
                on_stats(name, scheduler_stats.kv_cache_usage, scheduler_stats.num_running_reqs, waiting, preempted)

        def log_engine_initialized(self) -> None:
            pass

        def record_sleep_state(self, *_: Any, **__: Any) -> None:
            pass

        def record_admission_rejection(self, *_: Any, **__: Any) -> None:
            pass

    return StatsLogger
