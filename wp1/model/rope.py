"""How far a model's rotary positions reach, and how YaRN stretches them. Pure functions over a model's config.json.

YaRN: arXiv:2309.00071. A static factor, applied at every length, as vLLM and transformers do. YaRN changes which angles
are used, not which elements turn: every other rotary field (rope_theta, partial_rotary_factor, mrope_section, ...)
stays as the model has it.
"""

import copy
from dataclasses import asdict, dataclass
from typing import Any

from wp1.core.errors import ConfigError
from wp1.model.kinds import NAMES, WITHOUT_ROPE, WRAPPED

# Fields that belong to a type of scaling and mean nothing, or something else, to YaRN. Those of YaRN itself
# (beta_fast, mscale, ...) stay if the model has YaRN already.
OF_SCALING = (
    "type", "rope_type", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor",
    "short_factor", "long_factor", "short_mscale", "long_mscale", "alpha", "mixed_b", "max_trained_positions",
)  # fmt: skip
OF_YARN = ("beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor", "truncate")
# Types that scale nothing: mrope is how older configurations name positions of several axes.
UNSCALED = ("default", "mrope")
# Older names of separate angles for layers with a window (Gemma 3, ModernBERT).
PER_LAYER = ("rope_local_base_freq", "local_rope_theta", "global_rope_theta")
LAYERS_DIFFER = "rope: this model scales its layers differently, and wp1 cannot add YaRN to that: lower model.max_len"


@dataclass
class Rope:
    """The settings of `rope`, and of an arm that has its own."""

    type: str = "auto"  # auto, none or yarn
    factor: float | None = None
    original_max_len: int | None = None  # tokens


@dataclass(frozen=True)
class RopeChoice:
    """What is in effect: the scaling's type, its factor, the length it starts from, and where it was written."""

    type: str
    factor: float
    original_max_len: int  # tokens
    written_as: str | None = None  # None: the model's own configuration, untouched

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def scaling_of(config: dict[str, Any]) -> dict[str, Any]:
    """A model's rotary fields under any of their names; {} if it has none.

    Raises ConfigError for a model with different ones a layer type, which wp1 does not rewrite.
    """
    found: dict[str, Any] = {}
    # transformers gives rope_scaling priority if both are there.
    for key in ("rope_parameters", "rope_scaling"):
        scaling = config.get(key) or {}
        if not isinstance(scaling, dict):
            raise ConfigError(f"rope: the model's {key} is {scaling!r}, and must be a mapping or null")
        found |= scaling
    if layers_differ(config):
        raise ConfigError(f"{LAYERS_DIFFER}, or choose another model")
    return found


def layers_differ(config: dict[str, Any]) -> bool:
    """Whether layer types have rotary angles of their own, as in Gemma 3."""
    parameters = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = isinstance(parameters, dict) and any(isinstance(value, dict) for value in parameters.values())
    return nested or any(config.get(key) is not None for key in PER_LAYER)


def type_of(config: dict[str, Any]) -> str:
    """ "default" (unscaled), "yarn", "llama3", ...: `rope_type`, or `type` in older configurations."""
    scaling = scaling_of(config)
    found = scaling.get("rope_type") or scaling.get("type") or "default"
    return "default" if found in UNSCALED else str(found)


def native(config: dict[str, Any]) -> int:
    """Tokens that a configuration states as its longest context. Raises KeyError if it states none."""
    for key in ("max_position_embeddings", *NAMES["max_position_embeddings"]):
        if config.get(key) is not None:
            return int(config[key])
    raise KeyError("max_position_embeddings")


def reach(config: dict[str, Any]) -> int:
    """The longest position, in tokens, that a configuration was made for."""
    stated = native(config)
    if not layers_differ(config) and type_of(config) == "yarn":
        scaling = scaling_of(config)
        return int(scaling.get("original_max_position_embeddings", stated) * scaling.get("factor", 1.0))
    return stated


def apply(config: dict[str, Any], rope: Any, max_len: int) -> tuple[dict[str, Any], RopeChoice]:
    """The configuration to serve with, and what was chosen.

    Raises ConfigError, naming the key to change, where `max_len` (tokens) is beyond what `rope` allows.
    """
    for wrapped in WRAPPED:
        if isinstance(config.get(wrapped), dict):
            # A model of several kinds of input keeps its language model's settings one level down.
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
            f"stretch: choose rope=auto and a model.max_len of at most {longest} tokens"
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
        # Some models state YaRN and yet only the length before it, which vLLM would take for all there is.
        return (config if max_len <= native(config) else {**config, "max_position_embeddings": longest}), own
    if rope.type == "none":
        raise ConfigError(
            f"model.max_len={max_len} is beyond the model's native {longest} tokens: lower model.max_len, "
            "or choose rope=auto or rope=yarn"
        )
    if own.type != "default":
        raise ConfigError(
            f"model.max_len={max_len} is beyond {native} tokens, which this model reaches by scaling of type "
            f"{own.type}; rope=auto does not stack YaRN on that: lower model.max_len, or choose rope=yarn with "
            "rope.factor and rope.original_max_len"
        )
    factor = max_len / longest
    # The engine computes int(longest * factor): it must not fall a token short by rounding.
    while int(longest * factor) < max_len:
        factor = factor * (1 + 1e-12)
    return _with_yarn(config, factor, longest)


def _original(config: dict[str, Any]) -> int:
    return int(scaling_of(config).get("original_max_position_embeddings") or native(config))


def _with_yarn(config: dict[str, Any], factor: float, original: int) -> tuple[dict[str, Any], RopeChoice]:
    """Writes YaRN under the name that this configuration uses already, beside all that is not the old scaling's."""
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
        # transformers prefers this one to the one beside the factor, and these kinds always have it.
        config["original_max_position_embeddings"] = original
    # vLLM (from 0.27 or so) and transformers take this for the length after scaling; older vLLM computes it itself.
    config["max_position_embeddings"] = int(original * factor)
    return config, RopeChoice("yarn", factor, original, f"{name}.{key}")
