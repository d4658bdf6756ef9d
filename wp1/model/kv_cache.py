"""The size of a model's KV cache in bytes, from its config.json, in vLLM's layout.

An attention layer keeps 2 (keys and values) x KV heads x head size x bytes per element for each token. Latent attention
(DeepSeek-V2, arXiv:2405.04434) keeps one vector of kv_lora_rank + qk_rope_head_dim elements, which is not split across
tensor-parallel ranks. A sliding window keeps only its last tokens. A recurrent layer keeps a state for each request,
independent of its length: convolution inputs in the model's dtype, and the state itself in float32, as in vLLM 0.32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wp1.model.kinds import (
    ATTENTION,
    HYBRID_KINDS,
    LATENT_KINDS,
    Config,
    UnknownKindError,
    head_size_of,
    kv_heads_of,
    size,
    text_of,
    windows_of,
)

# Bytes per element for vLLM's `kv_cache_dtype`. Other dtypes store scales with the elements, or pack several elements
# into a byte: only the engine knows their size.
CACHE_BYTES = {"float16": 2, "bfloat16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1, "fp8_inc": 1}
STATE_BYTES = 4  # an element of a recurrent state


@dataclass(frozen=True)
class KVCache:
    """Sizes in bytes over all tensor-parallel ranks, with each head counted once."""

    token_bytes: int  # one token in all layers that keep it
    heads: int  # number over which tensor parallelism can split the cache; 1 for latent attention
    # The part of `token_bytes` in layers with a window, as (window in tokens, bytes per token).
    windows: tuple[tuple[int, int], ...] = ()
    state_bytes: int | None = 0  # recurrent state of a request; None: there is one, of unknown size

    def least(self, tokens: int) -> int:
        """Bytes of a request of this length if windows keep only their last tokens."""
        beyond = sum(max(0, tokens - window) * per_token for window, per_token in self.windows)
        return self.token_bytes * tokens - beyond + (self.state_bytes or 0)

    def most(self, tokens: int) -> int:
        """Bytes of a request of this length if windows keep every token (vLLM's disable_hybrid_kv_cache_manager)."""
        return self.token_bytes * tokens + (self.state_bytes or 0)

    def longest(self, room: int) -> int:
        """Tokens of the longest request whose `least` bytes fit in `room` bytes."""
        if self.least(1) > room:
            return 0
        low, high = 1, max(1, room // self.token_bytes)
        while self.windows and self.least(high) <= room and high < 1 << 40:
            low, high = high, 2 * high
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.least(middle) <= room else (low, middle - 1)
        return low

    def shards(self, ranks: int) -> int:
        """Ranks with different heads: each rank has at least one head, so with fewer heads than ranks, heads repeat."""
        return min(ranks, self.heads)


def of(config: Config, element_bytes: int, cache_dtype: str = "auto") -> KVCache:
    """The KV cache of a model.

    element_bytes: of the dtype in which the model is served. cache_dtype: vLLM's kv_cache_dtype; "auto" is the model's
    dtype, or the one named by its quantisation. Raises UnknownKindError, with the reason, if the configuration does not
    determine the size.
    """
    text = text_of(config)
    element = _cache_element(config, text, element_bytes, cache_dtype)
    name = text.get("model_type")
    if name in LATENT_KINDS:
        layer_bytes = (size(text, "kv_lora_rank") + size(text, "qk_rope_head_dim")) * element
        return KVCache(size(text, "num_hidden_layers") * layer_bytes, heads=1)
    heads = kv_heads_of(text)
    layer_bytes = 2 * heads * head_size_of(text) * element
    if name in HYBRID_KINDS:
        layers = _attention_layers(text)
        if not layers:
            raise UnknownKindError("no layer keeps keys and values")
        return KVCache(layers * layer_bytes, heads, state_bytes=_state_bytes(text, layers, element_bytes))
    windows = windows_of(text)
    shared = int(text.get("num_kv_shared_layers") or 0)
    windows = windows[: len(windows) - shared] if shared else windows
    spans = tuple((window, windows.count(window) * layer_bytes) for window in sorted({w for w in windows if w}))
    return KVCache(len(windows) * layer_bytes, heads, spans)


def _cache_element(config: Config, text: Config, element_bytes: int, cache_dtype: str) -> int:
    if cache_dtype != "auto":
        if cache_dtype not in CACHE_BYTES:
            raise UnknownKindError(f"elements of kv_cache_dtype={cache_dtype} have no fixed size")
        return CACHE_BYTES[cache_dtype]
    quantised = config.get("quantization_config") or text.get("quantization_config") or {}
    if not isinstance(quantised, Mapping):
        return element_bytes
    # compressed-tensors has a mapping, ModelOpt has a name, at the top or one level down.
    inner = quantised.get("quantization")
    inner = inner if isinstance(inner, Mapping) else quantised
    keys = ("kv_cache_scheme", "kv_cache_quant_algo")
    scheme: Any = next((level[key] for level in (quantised, inner) for key in keys if level.get(key)), None)
    if scheme is None:
        return element_bytes
    if (isinstance(scheme, Mapping) and scheme.get("num_bits") == 8) or str(scheme).lower() == "fp8":
        return 1
    raise UnknownKindError(f"elements of the KV cache are quantised as {scheme!r}")


def _attention_layers(text: Config) -> int:
    """Number of a hybrid model's layers that keep keys and values."""
    layers, name = size(text, "num_hidden_layers"), text["model_type"]
    if name == "falcon_h1":
        return layers
    if (pattern := text.get("hybrid_override_pattern")) is not None:
        return str(pattern).count("*")
    for key in ("layer_types", "layers_block_type"):
        if text.get(key):
            return sum(kind in ATTENTION for kind in text[key])
    for key in ("full_attn_idxs", "attn_layer_indices"):
        if text.get(key) is not None:
            return len(text[key])
    if name == "jamba":
        period, offset = text.get("attn_layer_period", 8), text.get("attn_layer_offset", 4)
        return sum(layer % period == offset for layer in range(layers))
    if name == "qwen3_next":
        return layers // int(text.get("full_attention_interval", 4))
    raise UnknownKindError("the configuration does not state which layers have attention")


def _state_bytes(text: Config, attention: int, element: int) -> int | None:
    """Bytes of one request's state in all recurrent layers; None if the configuration lacks a size."""
    try:
        layers = _recurrent_layers(text, attention)
        return layers * _STATES[text["model_type"]](text, element)
    except (UnknownKindError, KeyError):
        return None


def _recurrent_layers(text: Config, attention: int) -> int:
    if text["model_type"] == "falcon_h1":
        return attention
    if (pattern := text.get("hybrid_override_pattern")) is not None:
        return str(pattern).count("M")
    kinds = text.get("layers_block_type") or text.get("layer_types")
    if kinds and text["model_type"] == "nemotron_h":
        return sum(kind in ("mamba", "mamba2", "linear_attention") for kind in kinds)
    return size(text, "num_hidden_layers") - attention


def _mamba2(inner: int, heads: int, head: int, groups: int, state: int, kernel: int, element: int) -> int:
    """Bytes in one layer: the convolution's inputs and a state per head (Dao and Gu, Mamba-2, arXiv:2405.21060)."""
    return (inner + 2 * groups * state) * (kernel - 1) * element + heads * head * state * STATE_BYTES


def _nemotron_h(text: Config, element: int) -> int:
    heads, head = size(text, "mamba_num_heads"), size(text, "mamba_head_dim")
    groups, state, kernel = size(text, "n_groups"), size(text, "ssm_state_size"), size(text, "conv_kernel")
    return _mamba2(heads * head, heads, head, groups, state, kernel, element)


def _bamba(text: Config, element: int) -> int:
    heads, head, state = size(text, "mamba_n_heads"), size(text, "mamba_d_head"), size(text, "mamba_d_state")
    inner = text.get("mamba_d_ssm") or size(text, "mamba_expand") * size(text, "hidden_size")
    return _mamba2(inner, heads, head, size(text, "mamba_n_groups"), state, size(text, "mamba_d_conv"), element)


def _jamba(text: Config, element: int) -> int:
    """Gu and Dao, Mamba (arXiv:2312.00752)."""
    inner = size(text, "mamba_expand") * size(text, "hidden_size")
    return inner * (size(text, "mamba_d_conv") - 1) * element + inner * size(text, "mamba_d_state") * STATE_BYTES


def _lfm2(text: Config, element: int) -> int:
    return size(text, "hidden_size") * (size(text, "conv_L_cache") - 1) * element


def _qwen3_next(text: Config, element: int) -> int:
    """Gated DeltaNet (arXiv:2412.06464): convolution inputs of queries, keys and values; a matrix per value head."""
    key_heads, value_heads = size(text, "linear_num_key_heads"), size(text, "linear_num_value_heads")
    key, value = size(text, "linear_key_head_dim"), size(text, "linear_value_head_dim")
    inputs = 2 * key_heads * key + value_heads * value
    return inputs * (size(text, "linear_conv_kernel_dim") - 1) * element + value_heads * key * value * STATE_BYTES


_STATES = {
    "nemotron_h": _nemotron_h,
    "bamba": _bamba,
    "granitemoehybrid": _bamba,
    "falcon_h1": _bamba,
    "jamba": _jamba,
    "lfm2": _lfm2,
    "lfm2_moe": _lfm2,
    "qwen3_next": _qwen3_next,
}
