"""What a token costs, by hand and against what models state."""

from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import Compose
from tests.unit.analysis.timed import LLAMA_8B
from wp1 import architecture


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
    # A step's weights are shared by the batch, the KV is everyone's own: one token of context 7 and its own KV.
    assert one_layer.decode_bytes(7, 1, batch=2) == (576 + 80) * 2 / 2 + 8 * 16


def test_a_prompt_in_chunks_reads_weights_and_earlier_kv_again() -> None:
    shape = LLAMA_8B
    whole, chunked = shape.prefill_bytes(4096), shape.prefill_bytes(4096, 1024)
    assert whole == shape.step_bytes + 4096 * shape.kv_bytes
    assert chunked == 4 * shape.step_bytes + (4096 + 1024 + 2048 + 3072) * shape.kv_bytes


def test_the_quadratic_share_grows_with_length() -> None:
    shares = [LLAMA_8B.quadratic_share(n) for n in (1024, 8192, 131_072)]
    assert shares == sorted(shares)
    # 4 x 32 x 4096 x n / 2 FLOPs a token against 2 x 6.98e9.
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
def test_models_of_another_kind_are_told_apart(config: Compose, key: str, value: object, reason: str) -> None:
    described: Any = OmegaConf.to_container(config("model=qwen25_7b_shape").model.architecture)
    assert architecture.of(described, 2).unlike is None
    assert architecture.of(described | {key: value, "use_sliding_window": True}, 2).unlike == reason
