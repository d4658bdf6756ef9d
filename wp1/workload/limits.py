"""What a workload may say: every check that needs no model, each refusal naming the key to change.

Values that are wrong on their own are refused by `wp1.config.schema`; here are those that contradict each other.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.plan import has_length, open_loop, prompt_lens

# Where the long end of a distribution is cut, unless workload.output_max says: four times the mean.
CUT = 4
# Of recorded traffic; `wp1.workload.trace` says what each is.
TRACE_FORMATS = ("mooncake", "bailian", "azure", "burstgpt", "wp1")


def longest(workload: Any) -> int:
    """Tokens of the longest answer that can be asked for; a trace says its own lengths."""
    if workload.output_distribution == "fixed":
        return workload.output_len
    cut = workload.output_max
    if workload.output_distribution == "uniform":
        most = math.ceil(workload.output_len * (1 + workload.output_spread))
        return most if cut is None else min(most, cut)
    return CUT * workload.output_len if cut is None else cut


def check_list(key: str, values: Sequence[float], of_what: str, least: float, most: float) -> None:
    """Raises ConfigError where a list that cells are made of is empty, or names a value twice or one out of bounds."""
    given = f"{key}=[{','.join(f'{value:.12g}' for value in values)}]"
    if not values:
        raise ConfigError(f"{given} is empty: name {of_what}")
    for value in values:
        # Written so that nan is refused too.
        if not least <= value <= most:
            raise ConfigError(f"{given} has {value:.12g}: name {of_what}, from {least:.12g} to {most:.12g}")
        if list(values).count(value) > 1:
            raise ConfigError(f"{given} has {value:.12g} twice, which would be one cell: name each once")


def check_workload(cfg: Any) -> None:
    """Raises ConfigError where settings of `workload` contradict each other, the experiment or model.max_len."""
    workload = cfg.workload
    if has_length(workload.prompts):
        _check_lengths(cfg)
    elif workload.prompt_len is not None:
        raise ConfigError(
            f"workload.prompt_len has no effect on a {workload.prompts}'s prompts: drop it or choose workload=random"
        )
    if workload.prompts == "trace":
        _check_trace(cfg)
    _refuse_unused(workload)
    if workload.text_path is not None and not Path(workload.text_path).expanduser().is_file():
        raise ConfigError(f"workload.text_path={workload.text_path} is not a file: name a text in UTF-8")
    _check_outputs(workload)
    _check_arrivals(cfg)
    if workload.prompts != "trace" and longest(workload) >= cfg.model.max_len:
        raise ConfigError(
            f"{_outputs(workload)} leaves no room for a prompt in model.max_len={cfg.model.max_len}: "
            "lower workload.output_len or raise model.max_len"
        )


def _check_lengths(cfg: Any) -> None:
    workload = cfg.workload
    lengths = [length for length in prompt_lens(cfg) if length is not None]
    if not lengths:
        raise ConfigError(f"workload.prompt_len is empty: workload.prompts={workload.prompts} needs it, in tokens")
    if workload.num_requests is None:
        raise ConfigError(f"workload.num_requests is empty: workload.prompts={workload.prompts} needs it")
    if max(lengths) + longest(workload) > cfg.model.max_len:
        key = "experiment.prompt_lens" if cfg.experiment.prompt_lens else "workload.prompt_len"
        raise ConfigError(
            f"{key}={max(lengths)} and {_outputs(workload)} exceed "
            f"model.max_len={cfg.model.max_len}: lower one of them or raise model.max_len"
        )
    if not workload.shared_prefix < 1:
        raise ConfigError(
            f"workload.shared_prefix={workload.shared_prefix:g} leaves nothing of a prompt's own: set it below 1"
        )


def _outputs(workload: Any) -> str:
    if workload.output_distribution == "fixed":
        return f"workload.output_len={workload.output_len}"
    return f"outputs of up to {longest(workload)} tokens ({workload.output_distribution}, workload.output_max)"


def _check_trace(cfg: Any) -> None:
    workload = cfg.workload
    if workload.trace_path is None:
        raise ConfigError("workload.trace_path is empty: set workload.trace_path=FILE, see conf/workload/trace.yaml")
    if not Path(workload.trace_path).expanduser().is_file():
        raise ConfigError(f"workload.trace_path={workload.trace_path} is not a file: name a trace, JSON or CSV")
    if workload.request_rate or cfg.experiment.request_rates is not None:
        key = "workload.request_rate" if workload.request_rate else "experiment.request_rates"
        raise ConfigError(f"{key} has no effect on a trace, which has its own times: set workload.trace_speed")
    if workload.output_distribution != "fixed":
        raise ConfigError("workload.output_distribution has no effect on a trace, which has its own lengths: drop it")


# Keys that only say something about one kind of prompts, with what they are when nothing was said.
ONLY = {
    "text_path": ("text", None),
    "trace_path": ("trace", None),
    "trace_format": ("trace", "auto"),
    "trace_speed": ("trace", 1.0),
    "trace_length_scale": ("trace", 1.0),
}


def _refuse_unused(workload: Any) -> None:
    for key, (prompts, nothing) in ONLY.items():
        if workload[key] != nothing and workload.prompts != prompts:
            raise ConfigError(f"workload.{key} has no effect on {workload.prompts} prompts: choose workload={prompts}")
    if workload.shared_prefix and not has_length(workload.prompts):
        raise ConfigError(
            f"workload.shared_prefix has no effect on {workload.prompts} prompts: choose workload=random or text"
        )


def _check_outputs(workload: Any) -> None:
    fixed = workload.output_distribution == "fixed"
    for key, nothing in (("output_spread", 0), ("output_max", None)):
        if fixed and workload[key] != nothing:
            raise ConfigError(
                f"workload.{key}={workload[key]} has no effect on fixed lengths: set workload.output_distribution to "
                "uniform, normal or lognormal"
            )
    if not fixed and not workload.output_spread:
        raise ConfigError(
            f"workload.output_spread=0 makes all outputs alike: set it above 0, or drop workload.output_distribution="
            f"{workload.output_distribution}"
        )
    if workload.output_distribution == "uniform" and workload.output_spread > 1:
        raise ConfigError(
            f"workload.output_spread={workload.output_spread:g} would make outputs shorter than nothing: "
            "set it to at most 1 for uniform lengths"
        )
    if workload.output_max is not None and workload.output_max < workload.output_len:
        raise ConfigError(
            f"workload.output_max={workload.output_max} is below the mean: raise it or lower workload.output_len="
            f"{workload.output_len}"
        )


def _check_arrivals(cfg: Any) -> None:
    workload = cfg.workload
    rates = open_loop(cfg) or cfg.experiment.goodput_budget_s is not None
    for key, process, nothing in (("burstiness", "gamma", 1.0), ("ramp_from", "ramp", 0.0), ("ramp_s", "ramp", None)):
        if workload[key] != nothing and workload.arrivals != process:
            raise ConfigError(
                f"workload.{key}={workload[key]:g} has no effect on {workload.arrivals} arrivals: "
                f"set workload.arrivals={process}"
            )
    if workload.arrivals in ("gamma", "ramp") and not rates and workload.prompts != "trace":
        raise ConfigError(
            f"workload.arrivals={workload.arrivals} has no effect in a closed loop: set workload.request_rate, in "
            "requests/s"
        )
    if workload.num_warmup > workload.max_warmup:
        raise ConfigError(
            f"workload.num_warmup={workload.num_warmup} is more than workload.max_warmup={workload.max_warmup}: "
            "raise the second"
        )
