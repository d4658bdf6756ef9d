"""KV bytes from a configuration: of published models, and calculated by hand for other cases."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.published import MODELS
from wp1.model import kv_cache
from wp1.model.kinds import UnknownKindError

LLAMA = MODELS["Llama-3.1-8B"].config


@pytest.mark.parametrize("name", MODELS)
def test_published_models(name: str) -> None:
    model = MODELS[name]
    cache = kv_cache.of(model.config, 2)
    assert (cache.token_bytes, cache.state_bytes) == (model.token_bytes, model.state_bytes)


@pytest.mark.parametrize(
    ("name", "bytes_"),
    [
        # Per layer: one latent of 512 and one rotary key of 64; 61 layers.
        ("DeepSeek-V3", 61 * (512 + 64) * 2),
        # One KV head of 64 for 71 query heads.
        ("falcon-7b", 32 * 2 * 1 * 64 * 2),
        # Four of 52 layers have attention, six of 16.
        ("Nemotron-H-8B", 4 * 2 * 8 * 128 * 2),
        ("LFM2-1.2B", 6 * 2 * 8 * 64 * 2),
        # The last ten layers use the keys and values of earlier ones.
        ("gemma-3n-E2B", 20 * 2 * 2 * 256 * 2),
        ("starcoder", 40 * 2 * 1 * 128 * 2),
    ],
)
def test_by_hand(name: str, bytes_: int) -> None:
    assert kv_cache.of(MODELS[name].config, 2).token_bytes == bytes_


def test_the_language_model_of_a_wrapper_is_read() -> None:
    for key in ("text_config", "llm_config"):
        assert kv_cache.of({"model_type": "vision", key: LLAMA}, 2) == kv_cache.of(LLAMA, 2)


def test_gemma_3_leaves_its_heads_to_its_class() -> None:
    """Its published configuration of 4 billion parameters states neither heads nor head size: 8, 4 and 256."""
    text = {"model_type": "gemma3_text", "hidden_size": 2560, "num_hidden_layers": 34, "sliding_window": 1024}
    cache = kv_cache.of({"model_type": "gemma3", "text_config": text}, 2)
    assert cache.token_bytes == 34 * 2 * 4 * 256 * 2
    # Every sixth layer keeps all tokens: 5 of 34.
    assert cache.windows == ((1024, 29 * 2 * 4 * 256 * 2),)


@pytest.mark.parametrize(
    ("changes", "dtype_bytes", "cache_dtype", "bytes_"),
    [
        ({}, 4, "auto", 262_144),
        ({}, 2, "fp8", 65_536),
        ({}, 4, "bfloat16", 131_072),
        ({"quantization_config": {"quant_method": "gptq"}}, 2, "auto", 131_072),
        ({"quantization_config": {"kv_cache_scheme": {"num_bits": 8, "type": "float"}}}, 2, "auto", 65_536),
        ({"quantization_config": {"quantization": {"kv_cache_quant_algo": "FP8"}}}, 2, "auto", 65_536),
    ],
)
def test_the_dtype_of_the_cache(changes: dict[str, Any], dtype_bytes: int, cache_dtype: str, bytes_: int) -> None:
    assert kv_cache.of(LLAMA | changes, dtype_bytes, cache_dtype).token_bytes == bytes_


@pytest.mark.parametrize(
    ("config", "cache_dtype", "why"),
    [
        (LLAMA | {"model_type": "llamoid"}, "auto", "model_type 'llamoid'"),
        ({key: value for key, value in LLAMA.items() if key != "model_type"}, "auto", "no model_type"),
        (LLAMA, "int8_per_token_head", "kv_cache_dtype=int8_per_token_head"),
        (LLAMA | {"quantization_config": {"kv_cache_quant_algo": "NVFP4"}}, "auto", "NVFP4"),
        ({"model_type": "deepseek_v3", "num_hidden_layers": 61}, "auto", "does not state kv_lora_rank"),
        (MODELS["LFM2-1.2B"].config | {"full_attn_idxs": None}, "auto", "which layers have attention"),
    ],
)
def test_unknown_sizes_are_reported_and_not_guessed(config: dict[str, Any], cache_dtype: str, why: str) -> None:
    with pytest.raises(UnknownKindError, match=why):
        kv_cache.of(config, 2, cache_dtype)


@pytest.mark.parametrize("changes", [{"num_attention_heads": 0}, {"num_key_value_heads": -1}, {"hidden_size": None}])
def test_impossible_sizes_are_refused(changes: dict[str, Any]) -> None:
    config = {key: value for key, value in (LLAMA | changes).items() if key != "head_dim"}
    with pytest.raises(ValueError, match=next(iter(changes))):
        kv_cache.of(config, 2)


def test_a_window_keeps_its_last_tokens_only() -> None:
    cache = kv_cache.of(MODELS["gemma-2-2b"].config, 2)
    half = cache.token_bytes // 2
    assert cache.windows == ((4096, half),)
    assert cache.least(4096) == cache.most(4096) == 4096 * cache.token_bytes
    assert cache.least(8192) == 8192 * half + 4096 * half
    assert cache.most(8192) == 8192 * cache.token_bytes


def test_a_recurrent_state_is_kept_for_each_request() -> None:
    cache = kv_cache.of(MODELS["LFM2-1.2B"].config, 2)
    assert cache.least(1) == 12_288 + 81_920
    assert cache.longest(81_920) == 0


@given(
    st.sampled_from(["Llama-3.1-8B", "gemma-2-2b", "Mistral-7B-v0.1", "LFM2-1.2B", "DeepSeek-V3"]),
    st.integers(1, 100_000),
)
def test_longest_is_the_longest_request_that_fits(name: str, tokens: int) -> None:
    cache = kv_cache.of(MODELS[name].config, 2)
    if cache.least(tokens) < cache.least(tokens + 1):
        assert cache.longest(cache.least(tokens)) == tokens
        assert cache.longest(cache.least(tokens + 1) - 1) == tokens


def test_latent_attention_is_not_split_across_ranks() -> None:
    assert kv_cache.of(MODELS["DeepSeek-V3"].config, 2).shards(8) == 1
    assert kv_cache.of(MODELS["falcon-7b"].config, 2).shards(2) == 1
    assert kv_cache.of(LLAMA, 2).shards(4) == 4
    assert kv_cache.of(LLAMA, 2).shards(16) == 8
