"""How far a model's rotary positions reach, and how YaRN extends them. Pure functions over a model's config.json.

YaRN: arXiv:2309.00071. The factor is static and applies at every length, as in vLLM and transformers. YaRN changes the
rotation angles, not which elements are rotated, so every other rotary field (rope_theta, partial_rotary_factor,
mrope_section, ...) keeps the model's value.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

from wp1.core.errors import ConfigError
from wp1.model.kinds import NAMES, WITHOUT_ROPE, WRAPPED

# Fields of other scaling types, which mean nothing or something else to YaRN. YaRN's own fields (beta_fast, mscale,
# ...) are kept if the model already has YaRN.
OF_SCALING = (
    "type", "rope_type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "short_factor", "long_factor", "short_mscale", "long_mscale", "alpha", "mixed_b", "max_trained_positions",
)  # fmt: skip
OF_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
# Types without scaling: older configurations use mrope for positions on several axes.
UNSCALED = ("default", "mrope")
# Older fields for different angles in layers with a window (Gemma 3, ModernBERT).
PER_LAYER = ("rope_local_base_freq", "local_rope_theta", "global_rope_theta")
LAYERS_DIFFER = "rope: this model scales its layers differently, so wp1 cannot add YaRN: lower model.max_len"


@dataclass
class Rope:
    """The settings of `rope`, and of an arm that has its own."""

    type: str = "auto"  # auto, none or yarn
    factor: float | None = None
    original_max_len: int | None = None  # tokens


@dataclass(frozen=True)
class RopeChoice:
    """The rotary scaling in effect."""

    type: str
    factor: float
    original_max_len: int  # tokens that the factor multiplies
    written_as: str | None = None  # field of config.json that wp1 wrote; None: the model's own configuration

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scaling_of(config: dict[str, Any]) -> dict[str, Any]:
    """A model's rotary fields under any of their names; {} if it has none.

    Raises ConfigError if they differ between layer types, which wp1 does not rewrite.
    """
    fields: dict[str, Any] = {}
    # transformers prefers rope_scaling if both are present.
    for key in ("rope_parameters", "rope_scaling"):
        scaling = config.get(key) or {}
        if not isinstance(scaling, dict):
            raise ConfigError(f"rope: the model's {key} is {scaling!r}, and must be a mapping or null")
        fields |= scaling
    if layers_differ(config):
        raise ConfigError(f"{LAYERS_DIFFER}, or choose another model")
    return fields


def layers_differ(config: dict[str, Any]) -> bool:
    """Whether rotary angles differ between layer types, as in Gemma 3."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values())
    return nested or any(config.get(key) is not None for key in PER_LAYER)


def type_of(config: dict[str, Any]) -> str:
    """ "default" (unscaled), "yarn", "llama3", ...: `rope_type`, or `type` in older configurations."""
    scaling = scaling_of(config)
    name = scaling.get("rope_type") or scaling.get("type") or "default"
    return "default" if name in UNSCALED else str(name)


def native(config: dict[str, Any]) -> int:
    """The longest context, in tokens, that a configuration states. Raises KeyError if it states none."""
    for key in ("max_position_embeddings", *NAMES["max_position_embeddings"]):
        if config.get(key) is not None:
            return int(config[key])
    raise KeyError("max_position_embeddings")


def reach(config: dict[str, Any]) -> int:
    """The longest context, in tokens, that a model supports with its own scaling."""
    stated = native(config)
    if not layers_differ(config) and type_of(config) == "yarn":
        scaling = scaling_of(config)
        return int(scaling.get("original_max_position_embeddings", stated) * scaling.get("factor", 1.0))
    return stated


def apply(config: dict[str, Any], rope: Any, max_len: int) -> tuple[dict[str, Any], RopeChoice]:
    """The configuration to serve with, and the scaling that was chosen.

    Raises ConfigError, naming the key to change, if `max_len` (tokens) is beyond what `rope` allows.
    """
    for wrapped in WRAPPED:
        if isinstance(config.get(wrapped), dict):
            # A multimodal model keeps its language model's settings one level down.
            text, choice = apply(config[wrapped], rope, max_len)
            return {**config, wrapped: text}, choice
    longest = reach(config)
    if layers_differ(config):
        if rope.type == "yarn" or max_len > longest:
            raise ConfigError(f"{LAYERS_DIFFER} to {longest} tokens or less, with rope=auto")
        own = RopeChoice("per layer type", 1.0, longest)
    else:
        own = RopeChoice(type_of(config), float(scaling_of(config).get("factor") or 1.0), _original(config))
    if config.get("model_type") in WITHOUT_ROPE and (rope.type == "yarn" or max_len > longest):
        raise ConfigError(
            f"model.max_len={max_len}: models of type {config['model_type']} have no rotary positions that YaRN could "
            f"extend: choose rope=auto and a model.max_len of at most {longest} tokens"
        )
    if rope.type == "yarn":
        original = rope.original_max_len or _original(config)
        if max_len > original * rope.factor:
            raise ConfigError(
                f"model.max_len={max_len} is beyond YaRN's reach of {original} x {rope.factor:g} = "
                f"{int(original * rope.factor)} tokens: raise rope.factor or lower model.max_len"
            )
        return _with_yarn(config, float(rope.factor), original)
    if max_len <= longest:
        # Some models have YaRN but state only the length before scaling, which vLLM would take as their limit.
        return (config if max_len <= native(config) else {**config, "max_position_embeddings": longest}), own
    if rope.type == "none":
        raise ConfigError(
            f"model.max_len={max_len} is beyond the model's native {longest} tokens: lower model.max_len, "
            "or choose rope=auto or rope=yarn"
        )
    if own.type != "default":
        raise ConfigError(
            f"model.max_len={max_len} is beyond {longest} tokens, which this model reaches by scaling of type "
            f"{own.type}; rope=auto does not stack YaRN on that: lower model.max_len, or choose rope=yarn with "
            "rope.factor and rope.original_max_len"
        )
    factor = max_len / longest
    # The engine computes int(longest * factor), which rounding must not make one token too small.
    while int(longest * factor) < max_len:
        factor = factor * (1 + 1e-12)
    return _with_yarn(config, factor, longest)


def _original(config: dict[str, Any]) -> int:
    return int(scaling_of(config).get("original_max_position_embeddings") or native(config))


def _with_yarn(config: dict[str, Any], factor: float, original: int) -> tuple[dict[str, Any], RopeChoice]:
    """Writes YaRN under the name that this configuration already uses; keeps fields unrelated to the old scaling."""
    config = copy.deepcopy(config)
    old = scaling_of(config)
    dropped = OF_SCALING if type_of(config) == "yarn" else (*OF_SCALING, *OF_YARN)
    kept = {key: value for key, value in old.items() if key not in dropped}
    key = "type" if "type" in old and "rope_type" not in old else "rope_type"
    yarn = {**kept, key: "yarn", "factor": factor, "original_max_position_embeddings": original}
    name = "rope_parameters" if config.get("rope_parameters") is not None else "rope_scaling"
    config.pop("rope_parameters", None)
    config.pop("rope_scaling", None)
    config[name] = yarn
    if "original_max_position_embeddings" in config or config.get("model_type") in ("phi3", "phimoe"):
        # transformers prefers this field to the one next to the factor, and these kinds always have it.
        config["original_max_position_embeddings"] = original
    # vLLM (from about 0.27) and transformers read this as the length after scaling; older vLLM computes it itself.
    config["max_position_embeddings"] = int(original * factor)
    return config, RopeChoice("yarn", factor, original, f"{name}.{key}")
