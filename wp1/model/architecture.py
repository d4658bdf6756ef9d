"""The cost of a token in a dense decoder, from the model's config.json: parameters, FLOPs, bytes.

Formulas: Kaplan et al., Scaling Laws for Neural Language Models, 2020, section 2.1 (two FLOPs per parameter and token,
plus attention by context length), with grouped-query attention (Ainslie et al., 2023) for the size of the KV cache.
Attention is causal, so a prompt of n tokens has n (n + 1) / 2 query-key pairs. If its first c tokens are in the prefix
cache, the other n - c are computed, with n (n + 1) / 2 - c (c + 1) / 2 pairs. Norms, rotary positions, biases and
softmax are left out: less than one percent.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from wp1.model import kinds


@dataclass(frozen=True)
class Architecture:
    """The shape of a dense decoder whose layers are all alike, such as Llama, Qwen2, Pythia and Falcon."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocab: int
    tied: bool  # whether the output layer shares the embedding's weights
    element_bytes: int  # of a weight, and of an element of the KV cache if `kv_element_bytes` is None
    unlike: str | None = None  # why the formulas below do not hold; None if they do
    mlp_matrices: int = 3  # 3 if the MLP is gated (Llama), 2 if not (GPT-2)
    kv_element_bytes: int | None = None

    @property
    def block_parameters(self) -> int:
        """Parameters of all layers: attention (queries and output; keys and values) and the MLP's matrices."""
        attention = 2 * self.hidden * self.heads * self.head_size + 2 * self.hidden * self.kv_heads * self.head_size
        return self.layers * (attention + self.mlp_matrices * self.hidden * self.intermediate)

    @property
    def head_parameters(self) -> int:
        """Parameters of the output layer."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        return self.block_parameters + self.head_parameters * (1 if self.tied else 2)

    @property
    def kv_bytes(self) -> int:
        """KV bytes of one token: 2 (K and V) x layers x KV heads x head size x bytes per element."""
        element = self.element_bytes if self.kv_element_bytes is None else self.kv_element_bytes
        return 2 * self.layers * self.kv_heads * self.head_size * element

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that one forward pass reads, however many tokens it has; only rows of the embedding."""
        return (self.block_parameters + self.head_parameters) * self.element_bytes

    def attention_flops(self, pairs: float) -> float:
        """FLOPs of the scores and the weighted sum of values for this many query-key pairs, two per multiply-add."""
        return 4.0 * self.layers * self.heads * self.head_size * pairs

    def prefill_flops(self, tokens: int, cached: int = 0, logits: int = 1) -> float:
        """FLOPs from a prompt's first computed token to its first output token.

        cached: prompt tokens in the prefix cache; these are not computed, but the others attend to them.
        logits: number of positions with logits: 1, the last, unless the prompt's likelihood is computed.
        """
        computed = tokens - cached
        pairs = (tokens * (tokens + 1) - cached * (cached + 1)) / 2
        return 2.0 * (self.block_parameters * computed + self.head_parameters * logits) + self.attention_flops(pairs)

    def quadratic_share(self, tokens: int) -> float:
        """The share (0 to 1) of a prompt's FLOPs that grows with the square of its length, if none of it is cached."""
        return self.attention_flops(tokens * (tokens + 1) / 2) / self.prefill_flops(tokens)

    def prefill_bytes(self, tokens: int, chunk: int | None = None, cached: int = 0) -> float:
        """Bytes that a prompt's prefill moves: weights once per chunk, KV written, and KV read by later chunks.

        chunk: most tokens in one forward pass (vLLM's max_num_batched_tokens); None if all fit in one. cached: tokens
        in the prefix cache, whose KV every chunk reads.
        """
        computed = tokens - cached
        passes = -(-computed // chunk) if chunk else 1
        # The first pass reads the cached KV, the second one chunk more, and so on.
        read = passes * cached + (chunk or 0) * passes * (passes - 1) / 2
        return passes * self.step_bytes + self.kv_bytes * (computed + read)

    def decode_flops(self, contexts: float, tokens: int = 1) -> float:
        """FLOPs of `tokens` decode steps of single requests. contexts: sum of their tokens in the KV cache."""
        return 2.0 * (self.block_parameters + self.head_parameters) * tokens + self.attention_flops(contexts)

    def decode_bytes(self, contexts: float, tokens: int = 1, batch: float = 1.0) -> float:
        """Bytes of these steps: each context's KV read, one token's KV written, weights shared by `batch` requests."""
        return self.step_bytes * tokens / batch + self.kv_bytes * (contexts + tokens)


def of(config: Mapping[str, Any], element_bytes: int, kv_element_bytes: int | None = None) -> Architecture:
    """The architecture that a config.json describes. `unlike` is set if the formulas do not hold for it.

    element_bytes: of the dtype in which it is served; kv_element_bytes: of the KV cache, None if the same. Raises
    UnknownKindError if the formulas hold and a size is missing, ValueError or TypeError if a size is invalid. If the
    formulas do not hold, missing sizes are 0.
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
