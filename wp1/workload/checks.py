"""Checks of a workload's settings that need no model. Every message names the key to change.

`wp1.config.checks` refuses values that are wrong by themselves; this module refuses those that contradict each other.
"""

from typing import Any

from wp1.core.errors import ConfigError
from wp1.core.plan import open_loop, prompt_lens
from wp1.workload.arrivals import PROCESSES, process_of, schedule
from wp1.workload.limits import longest
from wp1.workload.prompts import OWN, PromptSource, class_of, source_of


def check_workload(cfg: Any) -> None:
    """Raises ConfigError if settings of `workload` contradict each other, the experiment or model.max_len."""
    workload, source = cfg.workload, source_of(cfg.workload)
    if source.made_to_length:
        _check_lengths(cfg)
    elif workload.prompt_len is not None:
        raise ConfigError(
            f"workload.prompt_len has no effect on {workload.prompts} prompts: drop it or choose workload=random"
        )
    source.check(cfg)
    _refuse_unused(workload, source)
    _check_outputs(workload)
    _check_arrivals(cfg, source)
    if not source.recorded and longest(workload) >= cfg.model.max_len:
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
            f"workload.shared_prefix={workload.shared_prefix:g} would make all prompts the same: set it below 1"
        )


def _outputs(workload: Any) -> str:
    if workload.output_distribution == "fixed":
        return f"workload.output_len={workload.output_len}"
    return f"outputs of up to {longest(workload)} tokens ({workload.output_distribution}, workload.output_max)"


def _refuse_unused(workload: Any, source: PromptSource) -> None:
    for name in OWN:
        for key, default in class_of(name).keys.items():
            if workload[key] != default and key not in source.keys:
                raise ConfigError(f"workload.{key} has no effect on {workload.prompts} prompts: choose workload={name}")
    if workload.shared_prefix and not source.made_to_length:
        raise ConfigError(
            f"workload.shared_prefix has no effect on {workload.prompts} prompts: choose workload=random or text"
        )


def _check_outputs(workload: Any) -> None:
    fixed = workload.output_distribution == "fixed"
    for key, default in (("output_spread", 0), ("output_max", None)):
        if fixed and workload[key] != default:
            raise ConfigError(
                f"workload.{key}={workload[key]} has no effect on fixed lengths: set workload.output_distribution to "
                "uniform, normal or lognormal"
            )
    if not fixed and not workload.output_spread:
        raise ConfigError(
            "workload.output_spread=0 gives all outputs the same length: set it above 0, or drop "
            f"workload.output_distribution={workload.output_distribution}"
        )
    if workload.output_distribution == "uniform" and workload.output_spread > 1:
        raise ConfigError(
            f"workload.output_spread={workload.output_spread:g} would give negative output lengths: "
            "set it to at most 1 for uniform lengths"
        )
    if workload.output_max is not None and workload.output_max < workload.output_len:
        raise ConfigError(
            f"workload.output_max={workload.output_max} is below the mean: raise it or lower workload.output_len="
            f"{workload.output_len}"
        )


def _check_arrivals(cfg: Any, source: PromptSource) -> None:
    workload = cfg.workload
    rates = open_loop(cfg) or cfg.experiment.goodput_budget_s is not None
    for name, process in PROCESSES.items():
        for key, default in process.keys.items():
            if workload[key] != default and workload.arrivals != name:
                raise ConfigError(
                    f"workload.{key}={workload[key]:g} has no effect on {workload.arrivals} arrivals: "
                    f"set workload.arrivals={name}"
                )
    process = process_of(workload.arrivals)
    if (process.keys or process.function) and not rates and not source.recorded:
        raise ConfigError(
            f"workload.arrivals={workload.arrivals} has no effect in a closed loop: set workload.request_rate, in "
            "requests/s"
        )
    if process.function is not None and rates:
        # Once now, so that one that does not work is refused before an engine starts.
        highest = max([*(cfg.experiment.request_rates or ()), workload.request_rate])
        schedule(workload, workload.num_requests or 2, highest or 1.0, cfg.seed)
    if workload.num_warmup > workload.max_warmup:
        raise ConfigError(
            f"workload.num_warmup={workload.num_warmup} exceeds workload.max_warmup={workload.max_warmup}: "
            "raise workload.max_warmup"
        )
