"""Kinds of models, by `model_type`: the facts that a config.json does not contain.

A configuration names its kind and a few sizes. The number of matrices in an MLP, which layers keep keys and values, and
the meaning of a missing field follow from the kind. Sources: the model classes of vLLM 0.32 and the configuration
classes of transformers 5; tests/engine/test_published_models.py compares the results with vLLM's own KV cache
specification. For a kind that is not listed here, wp1 reports no figure that depends on it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Config = Mapping[str, Any]

# Keys under which multimodal wrappers (vision, audio) keep the configuration of their language model.
WRAPPED = ("text_config", "llm_config", "language_config")
# Usual name of a size: its names in other kinds.
NAMES = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_attention_heads": ("n_head", "n_heads"),
    "max_position_embeddings": ("n_positions", "max_seq_len", "seq_length"),
}
# Layer types that keep keys and values, and those among them that see only a window.
ATTENTION = ("full_attention", "attention", "sliding_attention", "chunked_attention")
LOCAL = ("sliding_attention", "chunked_attention")


@dataclass(frozen=True)
class Kind:
    """Values for fields that a configuration lacks. The defaults here are those of a Llama-like decoder."""

    # Weight matrices of an MLP: 3 if it is gated, 2 if not; None if the FLOP formulas do not describe its layers. This
    # always applies, as configurations do not contain it.
    matrices: int | None = 3
    tied: bool = False  # whether the output layer shares the embedding's weights
    head_size: int | None = None  # None: hidden size / heads
    heads: int | None = None  # attention heads
    kv_heads: int | None = None  # None: as many as attention heads
    window: int | None = None  # tokens
    # In every group of this many layers, the last keeps all tokens and the others have a window. 1: all layers have the
    # window. None: the kind has no window, or layer_types says which layers have one.
    pattern: int | None = None


EXPERTS = Kind(matrices=None)

# Kinds with attention over keys and values in every layer.
ATTENTION_KINDS: dict[str, Kind] = {
    "llama": Kind(),
    "mistral": Kind(window=4096, pattern=1, kv_heads=8),
    "ministral": Kind(),
    "ministral3": Kind(kv_heads=8),
    "qwen2": Kind(),
    "qwen2_vl": Kind(),
    "qwen2_vl_text": Kind(),
    "qwen2_5_vl": Kind(),
    "qwen2_5_vl_text": Kind(),
    "qwen3": Kind(head_size=128),
    "qwen3_vl_text": Kind(head_size=128),
    "phi3": Kind(pattern=1),
    "granite": Kind(),
    "olmo": Kind(),
    "olmo2": Kind(),
    "olmo3": Kind(window=4096, pattern=4),
    "stablelm": Kind(),
    "glm": Kind(head_size=128, kv_heads=2),
    "glm4": Kind(head_size=128, kv_heads=2),
    "helium": Kind(head_size=128),
    "smollm3": Kind(tied=True, kv_heads=4),
    "exaone4": Kind(window=4096, pattern=4),
    "seed_oss": Kind(head_size=128, kv_heads=8),
    "ernie4_5": Kind(tied=True, head_size=128, kv_heads=2),
    "hunyuan_v1_dense": Kind(),
    "cohere": Kind(tied=True),
    "cohere2": Kind(tied=True, window=4096, pattern=4),
    "gemma": Kind(tied=True, head_size=256, kv_heads=16),
    "gemma2": Kind(tied=True, head_size=256, heads=8, kv_heads=4, window=4096, pattern=2),
    "gemma3_text": Kind(tied=True, head_size=256, heads=8, kv_heads=4, window=4096, pattern=6),
    "gpt2": Kind(2, tied=True),
    "gpt_bigcode": Kind(2, tied=True),
    "gpt_neox": Kind(2),
    "gptj": Kind(2),
    "opt": Kind(2, tied=True),
    "bloom": Kind(2, tied=True),
    "mpt": Kind(2, tied=True),
    "falcon": Kind(2, tied=True),
    "phi": Kind(2),
    "persimmon": Kind(2),
    "starcoder2": Kind(2, tied=True, kv_heads=2, pattern=1),
    "nemotron": Kind(2),
    "arcee": Kind(2),
    "apertus": Kind(2),
    "gemma3n_text": Kind(None, tied=True, head_size=256, heads=8, kv_heads=2, window=512, pattern=5),
    "mixtral": Kind(None, kv_heads=8, pattern=1),
    "qwen2_moe": EXPERTS,
    "qwen3_moe": Kind(None, kv_heads=4),
    "phimoe": Kind(None, kv_heads=8, pattern=1),
    "olmoe": EXPERTS,
    "granitemoe": EXPERTS,
    "gpt_oss": Kind(None, head_size=64, kv_heads=8, window=128, pattern=2),
    "glm4_moe": Kind(None, kv_heads=8),
    "ernie4_5_moe": Kind(None, kv_heads=4),
    "dots1": EXPERTS,
}
# One latent vector per token and layer instead of keys and values (DeepSeek-V2, arXiv:2405.04434, section 2.1).
LATENT_KINDS = ("deepseek_v2", "deepseek_v3", "kimi_k2", "glm4_moe_lite")
# Attention in some layers; other layers (or the same ones) have a state that does not grow with the context.
HYBRID_KINDS: dict[str, Kind] = {
    "lfm2": Kind(None, kv_heads=8),
    "lfm2_moe": Kind(None, kv_heads=8),
    "nemotron_h": Kind(None, head_size=128, kv_heads=8),
    "jamba": Kind(None, kv_heads=8),
    "bamba": Kind(None, kv_heads=8),
    "granitemoehybrid": EXPERTS,
    "falcon_h1": Kind(None, kv_heads=8),
    "qwen3_next": Kind(None, head_size=256, kv_heads=2),
}
# Kinds without rotary positions: they use learned positions, a bias by distance, or none at all.
WITHOUT_ROPE = (
    "gpt2", "gpt_bigcode", "opt", "bloom", "mpt", "biogpt", "xglm", "nemotron_h", "jamba", "mamba", "mamba2",
)  # fmt: skip

# Reasons why the FLOP formulas of a dense decoder do not hold, each with keys that only such models have.
QUANTISED = "quantised weights"
UNLIKE = {
    "mixture of experts": (
        "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts", "moe_intermediate_size",
        "num_experts_per_tok",
    ),
    "latent attention": ("kv_lora_rank",),
    "layers of other kinds": (
        "layers_block_type", "hybrid_override_pattern", "mamba_d_state", "mamba_d_ssm", "mamba_n_heads",
        "mamba_num_heads", "ssm_state_size", "linear_num_key_heads", "linear_conv_kernel_dim", "conv_L_cache",
        "lru_width", "attn_layer_period", "full_attn_idxs", "attn_layer_indices",
    ),
    QUANTISED: ("quantization_config", "compression_config"),
    "layers that share keys and values": ("num_kv_shared_layers",),
}  # fmt: skip
WINDOW = "a sliding window of attention"


class UnknownKindError(Exception):
    """A figure cannot be derived from the configuration; the message says why."""


def text_of(config: Config) -> Config:
    """The configuration of the language model, under the usual names. Raises TypeError if it is not a mapping."""
    text = next((config[key] for key in WRAPPED if config.get(key) is not None), config)
    if not isinstance(text, Mapping):
        raise TypeError(f"{text!r} is not a configuration of a language model")
    renamed = dict(text)
    for usual, others in NAMES.items():
        if renamed.get(usual) is None:
            value = next((text[other] for other in others if text.get(other) is not None), None)
            if value is not None:
                renamed[usual] = value
    return renamed


def kind_of(text: Config) -> Kind:
    """The kind of a model. Raises UnknownKindError if its `model_type` is in none of the tables."""
    name = text.get("model_type")
    if name in LATENT_KINDS:
        return EXPERTS
    kind = ATTENTION_KINDS.get(str(name)) or HYBRID_KINDS.get(str(name))
    if kind is None:
        raise UnknownKindError(
            f"wp1 does not know the layers of model_type {name!r}" if name else "the configuration has no model_type"
        )
    return kind


def size(text: Config, key: str) -> int:
    """A size that a configuration states.

    Raises UnknownKindError if it does not, because the default of the model's class then applies. Raises ValueError if
    the value is not a positive integer.
    """
    if key not in text:
        raise UnknownKindError(f"the configuration does not state {key}")
    value = text[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{key}={value!r} must be a whole number above 0")
    return value


def heads_of(text: Config) -> int:
    """Attention heads of a layer."""
    if text.get("num_attention_heads") is None and (default := kind_of(text).heads):
        return default
    return size(text, "num_attention_heads")


def kv_heads_of(text: Config) -> int:
    """Key-value heads of an attention layer. Raises UnknownKindError for an unknown kind."""
    kind, heads = kind_of(text), heads_of(text)
    name = text["model_type"]
    if name == "falcon":
        # The old architecture has one KV head, whatever num_kv_heads says; the new one ignores multi_query.
        if not text.get("new_decoder_architecture", False):
            return 1 if text.get("multi_query", True) else heads
        return next((int(text[key]) for key in ("num_kv_heads", "n_head_kv") if text.get(key)), heads)
    if name == "gpt_bigcode":
        return 1 if text.get("multi_query", True) else heads
    if name == "mpt":
        return int((text.get("attn_config") or {}).get("kv_n_heads") or heads)
    if text.get("num_key_value_heads") is not None:
        return size(text, "num_key_value_heads")
    return kind.kv_heads or heads


def head_size_of(text: Config) -> int:
    """Elements of one head's key or value."""
    for key in ("head_dim", "attention_head_dim"):
        if text.get(key) is not None:
            return size(text, key)
    return kind_of(text).head_size or size(text, "hidden_size") // heads_of(text)


def tied_of(config: Config, text: Config) -> bool:
    """Whether the output layer shares the embedding's weights."""
    for level in (text, config):
        for key in ("tie_word_embeddings", "tie_embedding"):
            if level.get(key) is not None:
                return bool(level[key])
    return kind_of(text).tied


def intermediate_of(text: Config) -> int:
    """The MLP's intermediate width."""
    hidden = size(text, "hidden_size")
    for key in ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"):
        if text.get(key) is not None:
            return size(text, key)
    if text.get("expansion_ratio"):
        return int(text["expansion_ratio"] * hidden)
    if text.get("model_type") in ("gpt2", "gpt_bigcode", "gptj", "bloom", "mpt", "falcon"):
        return 4 * hidden
    raise UnknownKindError("the configuration does not state intermediate_size")


def unlike_of(config: Config, text: Config) -> str | None:
    """Why the FLOP formulas of `wp1.model.architecture` do not hold for this model; None if they do."""
    for reason, keys in UNLIKE.items():
        # A wrapper's quantisation is stated at its top level, not in its language model.
        if any(text.get(key) or (reason == QUANTISED and config.get(key)) for key in keys):
            return reason
    if set(text.get("layer_types") or ()) - set(ATTENTION):
        return "layers of other kinds"
    if text.get("word_embed_proj_dim") not in (None, text.get("hidden_size")):
        return "an embedding whose width differs from the layers'"
    try:
        return _unlike_layers(text)
    except UnknownKindError as error:
        return f"this model: {error}"


def _unlike_layers(text: Config) -> str | None:
    """Like `unlike_of`, for the layers. Raises UnknownKindError if the kind, or where its windows are, is unknown."""
    if kind_of(text).matrices is None:
        return f"layers of model_type {text['model_type']!r}"
    reach = text.get("max_position_embeddings") or float("inf")
    # A window as long as the longest context has no effect.
    return WINDOW if any(window is not None and window < reach for window in windows_of(text)) else None


def windows_of(text: Config) -> list[int | None]:
    """The window of each layer in tokens, None for all tokens, for a kind with attention in every layer."""
    kind, layers = kind_of(text), size(text, "num_hidden_layers")
    window = text.get("sliding_window", kind.window)
    # Qwen models use their window only if use_sliding_window is set.
    used = text.get("use_sliding_window", not str(text.get("model_type")).startswith("qwen"))
    if not window or not used:
        return [None] * layers
    types = text.get("layer_types")
    if types:
        return [int(window) if name in LOCAL else None for name in types]
    if str(text.get("model_type")).startswith("qwen"):
        first = text.get("max_window_layers")
        return [int(window) if first is None or layer >= first else None for layer in range(layers)]
    pattern = text.get("sliding_window_pattern") or text.get("_sliding_window_pattern") or kind.pattern
    if pattern is None:
        raise UnknownKindError("the configuration has a sliding_window and does not state which layers use it")
    every = len(pattern) if isinstance(pattern, str) else int(pattern)
    return [int(window) if every == 1 or (layer + 1) % every else None for layer in range(layers)]
