"""Translation of requests and answers to and from vLLM's types, with plain objects in place of vLLM's."""

import math
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.core.records import Request
from wp1.serving import vllm_output


def _logprob(value: float) -> Any:
    return SimpleNamespace(logprob=value)


def _request(prompt: Any = None, **settings: Any) -> Request:
    return Request("r0", "agg", "cell", 0, [1, 2, 3] if prompt is None else prompt, 5, seed=0, **settings)


def _output(finished: bool = True, **changes: Any) -> Any:
    part = SimpleNamespace(token_ids=(7, 8), text="seven eight", logprobs=None, finish_reason="length")
    known = {"outputs": [part], "prompt_logprobs": None, "prompt_token_ids": [1, 2, 3], "finished": finished,
             "num_cached_tokens": None, "metrics": None, "kv_transfer_params": {"a": 1}}  # fmt: skip
    return SimpleNamespace(**(known | changes))


@pytest.mark.parametrize(
    ("prompt", "taken"),
    [
        ("a text", {"prompt": "a text"}),
        ([1, 2], {"prompt_token_ids": [1, 2]}),
        ([{"role": "user", "content": "hi"}], {"prompt_token_ids": [9, 9]}),
    ],
)
def test_a_prompt_is_a_text_token_ids_or_a_chat(prompt: Any, taken: dict[str, Any]) -> None:
    tokenizer = SimpleNamespace(apply_chat_template=lambda chat, **_: (9, 9))
    assert vllm_output.prompt_of(_request(prompt), lambda: tokenizer) == taken


def test_the_last_chunk_has_what_is_known_at_the_end_only() -> None:
    chunk = vllm_output.chunk_of(_output(finished=False), _request(), 1.5)
    assert (chunk.t, chunk.token_ids, chunk.text, chunk.finish_reason) == (1.5, [7, 8], "seven eight", None)
    assert chunk.times is None and chunk.kv_transfer_params is None
    stats = SimpleNamespace(queued_ts=1.0, scheduled_ts=2.0, first_token_ts=3.0, last_token_ts=0.0)
    last = vllm_output.chunk_of(_output(metrics=stats, num_cached_tokens=2), _request(), 1.5)
    assert (last.finish_reason, last.prompt_tokens, last.cached_tokens) == ("length", 3, 2)
    assert last.times is not None and last.kv_transfer_params == {"a": 1}
    # 0 in vLLM's statistics means that the event never happened.
    assert (last.times.queued, last.times.last_token, last.times.preemptions) == (1.0, None, 0)


def test_likelihoods_are_summed_by_window_and_the_first_token_has_none() -> None:
    logprobs = [None, {2: _logprob(-1.0)}, {3: _logprob(-2.0)}, {4: _logprob(-4.0)}]
    assert vllm_output.window_sums(logprobs, [1, 2, 3, 4], 2) == [1.0, 6.0]
    output = _output(prompt_logprobs=logprobs, prompt_token_ids=[1, 2, 3, 4])
    assert vllm_output.chunk_of(output, _request(nll_window=3), 0.0).nll == [3.0, 4.0]


def test_a_margin_is_finite() -> None:
    assert vllm_output.margin({1: _logprob(-3.0), 2: _logprob(-0.5), 3: _logprob(-1.0)}) == 0.5
    assert vllm_output.margin({1: _logprob(-0.5), 2: _logprob(-math.inf)}) == vllm_output.MOST_NATS
