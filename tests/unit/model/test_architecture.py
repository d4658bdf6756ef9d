"""The cost of a token, calculated by hand and compared with published figures."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import Compose
from tests.published import MODELS
from tests.unit.analysis.timed import LLAMA_8B
from wp1.model import architecture


def test_llama_8b_has_the_parameters_that_meta_states(config: Compose) -> None:
    described = OmegaConf.to_container(config("model=llama31_8b_shape").model.architecture)
    shape = architecture.of(described, 2)  # type: ignore[arg-type]
    assert shape == LLAMA_8B
    # 8.03 billion, with norms.
    assert shape.parameters == pytest.approx(8.03e9, rel=1e-3)
    assert shape.kv_bytes == 131_072


def test_the_flops_of_a_prompt_by_hand() -> None:
    one_layer = architecture.Architecture(1, 8, 2, 1, 4, 16, 10, True, 2)
    # Attention: q and o 8x8 each, k and v 8x4 each; MLP 3 x 8x16.
    assert one_layer.block_parameters == 64 + 64 + 32 + 32 + 384
    assert one_layer.parameters == one_layer.block_parameters + 80
    # Three tokens: six pairs, each 2 heads x 4 wide x 2 products x 2 FLOPs; logits once.
    assert one_layer.prefill_flops(3) == 2 * 576 * 3 + 2 * 80 + 6 * 2 * 4 * 4
    assert one_layer.decode_flops(7) == 2 * (576 + 80) + 7 * 2 * 4 * 4
    assert one_layer.kv_bytes == 2 * 1 * 4 * 2
    # The batch shares a step's weights, but each request has its own KV: a context of 7 tokens plus the new token.
    assert one_layer.decode_bytes(7, 1, batch=2) == (576 + 80) * 2 / 2 + 8 * 16


def test_a_prompt_in_chunks_reads_weights_and_earlier_kv_again() -> None:
    shape = LLAMA_8B
    whole, chunked = shape.prefill_bytes(4096), shape.prefill_bytes(4096, 1024)
    assert whole == shape.step_bytes + 4096 * shape.kv_bytes
    assert chunked == 4 * shape.step_bytes + (4096 + 1024 + 2048 + 3072) * shape.kv_bytes


def test_the_quadratic_share_grows_with_length() -> None:
    shares = [LLAMA_8B.quadratic_share(n) for n in (1024, 8192, 131_072)]
    assert shares == sorted(shares)
    # 4 x 32 x 4096 x n / 2 FLOPs per token, compared with 2 x 6.98e9.
    assert shares[-1] == pytest.approx(262_144 * 131_072 / (262_144 * 131_072 + 2 * 6.98e9), rel=1e-2)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("num_local_experts", 8, "mixture of experts"),
        ("kv_lora_rank", 512, "latent attention"),
        ("sliding_window", 4096, "a sliding window of attention"),
        ("quantization_config", {"bits": 4}, "quantised weights"),
    ],
)
def test_models_that_the_formulas_do_not_describe_are_recognised(
    config: Compose, key: str, value: object, reason: str
) -> None:
    described: Any = OmegaConf.to_container(config("model=qwen25_7b_shape").model.architecture)
    assert architecture.of(described, 2).unlike is None
    assert architecture.of(described | {key: value, "use_sliding_window": True}, 2).unlike == reason


@pytest.mark.parametrize("name", [name for name, model in MODELS.items() if model.config["model_type"] != "opt"])
def test_dense_models_have_their_stated_parameters(name: str) -> None:
    """Gated and ungated, tied and not, one KV head or many: with norms and biases left out, within 1 %."""
    model = MODELS[name]
    shape = architecture.of(model.config, 2)
    if shape.unlike in (None, "a sliding window of attention"):
        assert shape.parameters / 1e9 == pytest.approx(model.billions, rel=0.01)


@pytest.mark.parametrize("name", ["pythia-6.9b", "falcon-7b", "phi-2", "gpt2", "opt-6.7b", "Minitron-4B", "bloom-7b1"])
def test_an_mlp_without_a_gate_has_two_matrices(name: str) -> None:
    shape = architecture.of(MODELS[name].config, 2)
    assert (shape.mlp_matrices, shape.unlike) == (2, None)


def test_the_flops_of_pythia_by_hand() -> None:
    """12 x layers x hidden^2 parameters in the blocks (Kaplan et al.); three matrices would be 1.32 times as much."""
    shape, n = architecture.of(MODELS["pythia-6.9b"].config, 2), 2048
    blocks, attention = 12 * 32 * 4096**2, 4 * 32 * 4096 * n * (n + 1) / 2
    assert shape.prefill_flops(n) == 2 * blocks * n + 2 * 50432 * 4096 + attention


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Mixtral-8x7B", "mixture of experts"),
        ("ERNIE-4.5-21B-A3B", "mixture of experts"),
        ("DeepSeek-V3", "mixture of experts"),
        ("LFM2-1.2B", "layers of other kinds"),
        ("Nemotron-H-8B", "layers of other kinds"),
        ("Falcon-H1-0.5B", "layers of other kinds"),
        ("gemma-3n-E2B", "layers that share keys and values"),
        ("gemma-2-2b", "a sliding window of attention"),
        ("Mistral-7B-v0.1", "a sliding window of attention"),
    ],
)
def test_published_models_that_the_formulas_do_not_describe(name: str, reason: str) -> None:
    assert architecture.of(MODELS[name].config, 2).unlike == reason


def test_an_unknown_kind_is_reported_as_unknown() -> None:
    config = MODELS["Llama-3.1-8B"].config
    assert "model_type 'llamoid'" in (architecture.of(config | {"model_type": "llamoid"}, 2).unlike or "")
    assert "no model_type" in (architecture.of(config | {"model_type": None}, 2).unlike or "")


def test_a_wrapper_states_that_its_language_model_is_quantised() -> None:
    config = {"model_type": "mistral3", "text_config": MODELS["Mistral-Nemo-12B"].config}
    assert architecture.of(config, 2).unlike is None
    assert architecture.of(config | {"quantization_config": {"bits": 4}}, 2).unlike == "quantised weights"


def test_cached_tokens_are_attended_to_and_not_computed() -> None:
    n, c = 4096, 3584
    attention = 4 * 32 * 4096 * (n * (n + 1) - c * (c + 1)) / 2
    by_hand = 2 * LLAMA_8B.block_parameters * (n - c) + 2 * LLAMA_8B.head_parameters + attention
    assert LLAMA_8B.prefill_flops(n, c) == by_hand
    # Both parts of a prompt add up to the whole, except for logits, which each computes once.
    assert LLAMA_8B.prefill_flops(c) + by_hand - 2 * LLAMA_8B.head_parameters == LLAMA_8B.prefill_flops(n)
    # Its KV is read once per chunk, and not written.
    assert LLAMA_8B.prefill_bytes(n, 256, c) == 2 * LLAMA_8B.step_bytes + LLAMA_8B.kv_bytes * (512 + 2 * c + 256)


def test_an_fp8_cache_halves_the_kv_bytes_that_decoding_reads() -> None:
    shape = architecture.of(MODELS["Llama-3.1-8B"].config, 2, kv_element_bytes=1)
    assert shape.kv_bytes == LLAMA_8B.kv_bytes // 2
    assert shape.step_bytes == LLAMA_8B.step_bytes
