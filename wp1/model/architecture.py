"""What a token costs in a dense decoder, from the model's config.json: parameters, FLOPs, bytes.

Formulas: Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1 (two FLOPs a parameter and token,
and attention by context length), with grouped-query attention (Ainslie et al., 2023) for the size of the KV cache.
Attention is causal, so a prompt of n tokens has n (n + 1) / 2 pairs of query and key. If its first c tokens are in the
prefix cache, the other n - c are computed, and their pairs are n (n + 1) / 2 - c (c + 1) / 2. Norms, rotary positions,
biases and softmax are left out: less than one percent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wp1.model import kinds


@dataclass(frozen=True)
class Architecture:
    """The shape of a dense decoder whose layers are alike, as those of Llama, Qwen2, Pythia and Falcon are."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool  # whether the output layer's weights are the embedding's
    element_bytes: int  # of a weight, and of an element of the KV cache if `kv_element_bytes` is None
    unlike: str | None = None  # why the formulas below do not hold for it; None: they do
    mlp_matrices: int = 3  # 3 if the MLP is gated, as Llama's is; 2 if not, as GPT-2's is
    kv_element_bytes: int | None = None

    @property
    def block_parameters(self) -> int:
        """Of all layers: attention (queries and output; keys and values) and the matrices of the MLP."""
        attention = 2 * self.hidden * self.heads * self.head_size + 2 * self.hidden * self.kv_heads * self.head_size
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.intermediate)

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
        element = self.element_bytes if self.kv_element_bytes is None else self.kv_element_bytes
        return 2 * self.layers * self.kv_heads * self.head_size * element

    @property
    def step_bytes(self) -> int:
        """Weights that one forward pass reads, however many tokens are in it; of the embedding only rows are read."""
        return (self.block_parameters + self.head_parameters) * self.element_bytes

    def attention_flops(self, pairs: float) -> float:
        """Scores and their weighted sum, two FLOPs a multiplication and addition, of so many query-key pairs."""
        return 4.0 * self.layers * self.heads * self.head_size * pairs

    def prefill_flops(self, tokens: int, cached: int = 0, logits: int = 1) -> float:
        """FLOPs from a prompt's first computed token to its first output token.

        cached: how many of the prompt's tokens the prefix cache held; these are not computed, but the others attend to
        them. logits: positions at which logits are computed, the last one unless the prompt's likelihood is asked for.
        """
        computed = tokens - cached
        pairs = (tokens * (tokens + 1) - cached * (cached + 1)) / 2
        return 2.0 * (self.block_parameters * computed + self.head_parameters * logits) + self.attention_flops(pairs)

    def quadratic_share(self, tokens: int) -> float:
        """The share of a prompt's FLOPs that grows with the square of its length; nothing of it is cached."""
        return self.attention_flops(tokens * (tokens + 1) / 2) / self.prefill_flops(tokens)

    def prefill_bytes(self, tokens: int, chunk: int | None = None, cached: int = 0) -> float:
        """Bytes that a prompt's prefill moves: the weights once a chunk, KV written, and read by later chunks.

        chunk: tokens a forward pass at most (vLLM's max_num_batched_tokens); None: all in one. cached: tokens in the
        prefix cache, whose KV every chunk reads.
        """
        computed = tokens - cached
        passes = -(-computed // chunk) if chunk else 1
        # The first pass reads what was cached, the second a chunk more, and so on.
        read = passes * cached + (chunk or 0) * passes * (passes - 1) / 2
        return passes * self.step_bytes + self.kv_bytes * (computed + read)

    def decode_flops(self, contexts: float, tokens: int = 1) -> float:
        """FLOPs of `tokens` single steps whose contexts (tokens in the KV cache) sum up to `contexts`."""
        return 2.0 * (self.block_parameters + self.head_parameters) * tokens + self.attention_flops(contexts)

    def decode_bytes(self, contexts: float, tokens: int = 1, batch: float = 1.0) -> float:
        """Bytes of those steps: KV of each context read, one token's written, weights shared by `batch` requests."""
        return self.step_bytes * tokens / batch + self.kv_bytes * (contexts + tokens)


def of(config: Mapping[str, Any], element_bytes: int, kv_element_bytes: int | None = None) -> Architecture:
    """The architecture that a config.json describes; `unlike` says if the formulas do not hold for it.

    element_bytes: of the dtype in which it is served; kv_element_bytes: of the KV cache, None for the same. Raises
    UnknownKindError if the formulas hold and a size is not stated, ValueError and TypeError for sizes that are none.
    If the formulas do not hold, a size that is not known is 0.
    """
    text = kinds.text_of(config)
    unlike = kinds.unlike_of(config, text)

    def known(read: Callable[[], int]) -> int:
        try:
            return read()
        except (kinds.UnknownKindError, ValueError):
            if unlike is None:
                raise
            return 0

    return Architecture(
        layers=known(lambda: kinds.size(text, "num_hidden_layers")),
        hidden=known(lambda: kinds.size(text, "hidden_size")),
        heads=known(lambda: kinds.heads_of(text)),
        kv_heads=known(lambda: kinds.kv_heads_of(text)),
        head_size=known(lambda: kinds.head_size_of(text)),
        intermediate=known(lambda: kinds.intermediate_of(text)),
        vocab=known(lambda: kinds.size(text, "vocab_size")),
        tied=bool(known(lambda: kinds.tied_of(config, text))),
        element_bytes=element_bytes,
        unlike=unlike,
        mlp_matrices=known(lambda: kinds.kind_of(text).matrices or 0),
        kv_element_bytes=kv_element_bytes,
    )
