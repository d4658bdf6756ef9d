"""What a token costs in a dense decoder, from the model's config.json: parameters, FLOPs, bytes.

Formulas: Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1 (two FLOPs a parameter and token,
and attention by context length), with grouped-query attention (Ainslie et al., 2023) for the size of the KV cache.
Attention is causal, so a prompt of n tokens has n (n + 1) / 2 pairs of query and key. Norms, rotary positions, biases
and softmax are left out: less than one percent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys of a config.json that say that a token does not pass all weights, or attention is of another kind.
UNLIKE = {
    "mixture of experts": ("num_local_experts", "num_experts", "n_routed_experts"),
    "latent attention": ("kv_lora_rank",),
    "layers of other kinds": ("layers_block_type", "mamba_d_state", "linear_num_key_heads"),
    "quantised weights": ("quantization_config",),
}


@dataclass(frozen=True)
class Architecture:
    """The shape of a dense decoder with a gated MLP, as Llama, Mistral, Qwen2 and SmolLM2 are."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool  # whether the output layer's weights are the embedding's
    element_bytes: int  # of a weight, and of an element of the KV cache
    unlike: str | None = None  # why the formulas below do not hold for it; None: they do

    @property
    def block_parameters(self) -> int:
        """Of all layers: attention (queries and output; keys and values) and the three matrices of the MLP."""
        attention = 2 * self.hidden * self.heads * self.head_size + 2 * self.hidden * self.kv_heads * self.head_size
        return self.layers * (attention + 3 * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Of the output layer."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.head_parameters * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """Of one token: 2 (K and V) x layers x KV heads x head size x bytes an element."""
        return 2 * self.layers * self.kv_heads * self.head_size * self.element_bytes

    @property
    def step_bytes(self) -> int:
        """Weights that one forward pass reads, however many tokens are in it; of the embedding only rows are read."""
        return (self.block_parameters + self.head_parameters) * self.element_bytes

    def attention_flops(self, pairs: float) -> float:
        """Scores and their weighted sum, two FLOPs a multiplication and addition, of so many query-key pairs."""
        return 4.0 * self.layers * self.heads * self.head_size * pairs

    def prefill_flops(self, tokens: int) -> float:
        """FLOPs of a prompt from nothing to its first output token: logits are computed at its last position only."""
        pairs = tokens * (tokens + 1) / 2
        return 2.0 * self.block_parameters * tokens + 2.0 * self.head_parameters + self.attention_flops(pairs)

    def quadratic_share(self, tokens: int) -> float:
        """The share of a prompt's FLOPs that grows with the square of its length."""
        return self.attention_flops(tokens * (tokens + 1) / 2) / self.prefill_flops(tokens)

    def prefill_bytes(self, tokens: int, chunk: int | None = None) -> float:
        """Bytes that a prompt's prefill has to move: the weights once a chunk, KV written, and read by later chunks.

        chunk: tokens a forward pass at most (vLLM's max_num_batched_tokens); None: all in one.
        """
        passes = -(-tokens // chunk) if chunk else 1
        # The second pass reads one chunk, the third two, and so on.
        read = (chunk or 0) * passes * (passes - 1) / 2
        return passes * self.step_bytes + self.kv_bytes * (tokens + read)

    def decode_flops(self, contexts: float, tokens: int = 1) -> float:
        """FLOPs of `tokens` single steps whose contexts (tokens in the KV cache) sum up to `contexts`."""
        return 2.0 * (self.block_parameters + self.head_parameters) * tokens + self.attention_flops(contexts)

    def decode_bytes(self, contexts: float, tokens: int = 1, batch: float = 1.0) -> float:
        """Bytes of those steps: KV of each context read, one token's written, weights shared by `batch` requests."""
        return self.step_bytes * tokens / batch + self.kv_bytes * (contexts + tokens)


def of(config: Mapping[str, Any], element_bytes: int) -> Architecture:
    """The architecture that a config.json describes. Raises KeyError, TypeError or ValueError where it does not."""
    text = config.get("text_config", config)
    heads = int(text["num_attention_heads"])
    kv_heads = text.get("num_key_value_heads") or heads
    return Architecture(
        layers=int(text["num_hidden_layers"]),
        hidden=int(text["hidden_size"]),
        heads=heads,
        kv_heads=int(kv_heads),
        head_size=int(text.get("head_dim") or text["hidden_size"] // heads),
        intermediate=int(text["intermediate_size"]),
        vocab=int(text["vocab_size"]),
        tied=bool(text.get("tie_word_embeddings", False)),
        element_bytes=element_bytes,
        unlike=_unlike(text),
    )


def _unlike(text: Mapping[str, Any]) -> str | None:
    for reason, keys in UNLIKE.items():
        if any(text.get(key) for key in keys):
            return reason
    # Qwen2 names a window that it does not use.
    if text.get("sliding_window") and text.get("use_sliding_window", True):
        return "a sliding window of attention"
    return None
