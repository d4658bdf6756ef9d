"""Requests in vLLM's words, and what vLLM answers and counts in ours."""

from collections.abc import Callable
from typing import Any

from wp1.core.records import Request
from wp1.serving.backend import Chunk, EngineTimes

# The difference of two log-probabilities is not written as more than that.
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
        # They are taken beside the choice of a token, and change none.
        logprobs=2 if request.margins else None,
        # 0: of the prompt's own tokens, and of no others.
        prompt_logprobs=None if request.nll_window is None else 0,
        output_kind=RequestOutputKind.DELTA,
        extra_args=None if kv_transfer_params is None else {"kv_transfer_params": kv_transfer_params},
    )


def prompt_of(request: Request, tokenizer: Callable[[], Any]) -> dict[str, Any]:
    """A request's prompt as vLLM takes it. tokenizer: gives the engine's, which only a chat needs."""
    if isinstance(request.prompt, str):
        return {"prompt": request.prompt}
    if request.prompt and isinstance(request.prompt[0], dict):
        return {"prompt_token_ids": chat_token_ids(tokenizer(), request.prompt)}
    return {"prompt_token_ids": request.prompt}


def chat_token_ids(tokenizer: Any, chat: Any) -> list[int]:
    """A chat as token ids by the model's own template, with the opening of the assistant's turn."""
    return list(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False))


def chunk_of(output: Any, request: Request, now: float) -> Chunk:
    """What vLLM's RequestOutput adds to an answer. now: when it came, on the monotonic clock."""
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
    return chunk


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


def settings_of(config: Any) -> dict[str, Any]:
    """What vLLM decided for an engine, from its VllmConfig; blocks are of the KV cache."""
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
