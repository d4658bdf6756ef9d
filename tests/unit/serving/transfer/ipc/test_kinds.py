"""Which models' KV can be moved, and the message for the others."""

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wp1.serving.transfer.ipc.kinds import KINDS, MOVED, obstacle_in_config, obstacle_in_engine


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "deepseek_v3", "kv_lora_rank": 512}, "latent attention (kv_lora_rank=512)"),
        ({"mamba_d_state": 256}, "a recurrent state (mamba_d_state=256)"),
        ({"layer_types": ["linear_attention", "full_attention"]}, "layers of another kind (layer_types has linear"),
        ({"layer_types": ["sliding_attention"] * 3}, "no layer that keeps all tokens (layer_types has sliding_att"),
        ({"text_config": {"kv_lora_rank": 64}}, "latent attention (kv_lora_rank=64)"),
        ({"model_type": "mixtral", "sliding_window": 4096}, "a sliding window in all layers (sliding_window=4096)"),
    ],
)
def test_the_unsupported_property_and_the_remedy_are_named(config: dict[str, Any], words: str) -> None:
    reason = obstacle_in_config(config)
    assert reason is not None
    assert words in reason
    assert reason.endswith(": use transfer=nixl_push")
    assert "\n" not in reason


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"model_type": "llama", "kv_lora_rank": None},
        {"model_type": "mistral", "sliding_window": None},
        # A window that is off; windows next to layers that keep all tokens, which vLLM then stores alike.
        {"model_type": "qwen2", "sliding_window": 131072, "use_sliding_window": False},
        {"model_type": "phi3", "sliding_window": 2047, "use_sliding_window": False},
        {"model_type": "gemma3_text", "sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]},
    ],
)
def test_supported_models(config: dict[str, Any]) -> None:
    assert obstacle_in_config(config) is None


def _group(*kinds: str) -> Any:
    """Like vLLM's KVCacheGroupSpec: layers of one kind share a specification; otherwise each has its own."""
    layers = {f"layers.{n}": type(kind, (), {})() for n, kind in enumerate(kinds)}
    spec = SimpleNamespace(kv_cache_specs=layers) if len(set(kinds)) > 1 else layers["layers.0"]
    return SimpleNamespace(layer_names=list(layers), kv_cache_spec=spec)


def test_full_attention_in_one_group_is_moved() -> None:
    assert obstacle_in_engine([_group(MOVED, MOVED)], 1) is None


@pytest.mark.parametrize("kind", [*KINDS, "SpecOfTomorrow"])
@pytest.mark.parametrize("beside", [(), (MOVED,)])
def test_other_kinds_are_refused_alone_and_next_to_full_attention(kind: str, beside: tuple[str, ...]) -> None:
    reason = obstacle_in_engine([_group(kind, *beside)], 1)
    assert reason is not None
    assert kind in reason
    assert KINDS.get(kind, "") in reason
    assert reason.endswith(": use transfer=nixl_push")


def test_two_groups_are_refused() -> None:
    assert "2 groups of blocks" in str(obstacle_in_engine([_group(MOVED), _group(MOVED)], 1))


def test_a_pipeline_is_refused() -> None:
    reason = str(obstacle_in_engine([_group(MOVED)], 2))
    assert "set backend.engine.pipeline_parallel_size=2 to 1, or use transfer=nixl_push" in reason


def test_the_names_are_those_of_vllm() -> None:
    found = importlib.util.find_spec("vllm")
    if found is None or found.origin is None:
        pytest.skip("vllm is not installed")
    source = (Path(found.origin).parent / "v1" / "kv_cache_interface.py").read_text()
    classes = {node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    # Older and newer versions lack some of them.
    assert {MOVED, "MLAAttentionSpec", "SlidingWindowSpec", "MambaSpec", "ChunkedLocalAttentionSpec"} <= classes
