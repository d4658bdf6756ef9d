"""The checks of a configuration that need neither model nor engine."""

import re
from typing import Any

from omegaconf import ListConfig, OmegaConf

from wp1.config import local_model
from wp1.config.schema import TRUE, same_tokens_aside
from wp1.core import shapes
from wp1.core.errors import ConfigError
from wp1.core.parts import MOST, Within, check_within
from wp1.core.plan import open_loop
from wp1.quality import settings
from wp1.serving.engines import needs_of
from wp1.workload.arrivals import process_of
from wp1.workload.checks import check_workload
from wp1.workload.limits import TRACE_FORMATS, check_list
from wp1.workload.prompts import source_of

MOST_OF = {
    # Tokens. Far more than any model supports; an engine's table of positions would not fit in memory beyond it.
    "model.max_len": 2**24,
}


def check(cfg: Any) -> None:
    """Refuses a configuration that cannot run on any machine. Raises ConfigError, naming the key to change."""
    _check_values(cfg)
    _check_schedulers(cfg)
    _check_model(cfg.model)
    _check_rope(cfg.rope)
    _check_workload(cfg)


def _check_values(cfg: Any) -> None:
    _one_of("model.source", cfg.model.source, "bundled", "hub", "folder", "random_weights")
    _one_of("rope.type", cfg.rope.type, "auto", "none", "yarn")
    _one_of("dataset.source", cfg.dataset.source, "builtin", "file", "hub")
    _one_of("dataset.on_bad_row", cfg.dataset.on_bad_row, "error", "skip")
    source_of(cfg.workload)
    _one_of("workload.trace_format", cfg.workload.trace_format, "auto", *TRACE_FORMATS)
    process_of(cfg.workload.arrivals)
    _one_of("workload.output_distribution", cfg.workload.output_distribution, "fixed", "uniform", "normal", "lognormal")
    for key in ("model", "dataset", "experiment", "slo", "transfer", "scheduler"):
        # Files and folders are named after them.
        if not re.fullmatch(r"[\w][\w.-]*", cfg[key].get("name") or ""):
            raise ConfigError(
                f"{key}.name={cfg[key].get('name')} is not a valid name: use letters, digits, '_', '-' and '.'"
            )
    at_least = [
        ("model.max_len", cfg.model.max_len, 2),
        ("rope.factor", cfg.rope.factor, 1),
        ("rope.original_max_len", cfg.rope.original_max_len, 1),
        ("dataset.limit", cfg.dataset.limit, 1),
        ("dataset.samples_per_task", cfg.dataset.samples_per_task, 1),
        ("dataset.min_chars", cfg.dataset.min_chars, 0),
        ("dataset.max_chars", cfg.dataset.max_chars, 1),
        ("workload.prompt_len", cfg.workload.prompt_len, 1),
        ("workload.output_len", cfg.workload.output_len, 1),
        ("workload.num_requests", cfg.workload.num_requests, 1),
        ("workload.num_warmup", cfg.workload.num_warmup, 0),
        ("workload.max_warmup", cfg.workload.max_warmup, 0),
        ("workload.output_spread", cfg.workload.output_spread, 0),
        ("workload.output_max", cfg.workload.output_max, 1),
        ("workload.shared_prefix", cfg.workload.shared_prefix, 0),
        ("workload.trace_speed", cfg.workload.trace_speed, 1e-6),
        ("workload.trace_length_scale", cfg.workload.trace_length_scale, 1e-6),
        ("workload.burstiness", cfg.workload.burstiness, 0.01),
        ("workload.ramp_from", cfg.workload.ramp_from, 0),
        ("workload.ramp_s", cfg.workload.ramp_s, 0.001),
        ("workload.concurrency", cfg.workload.concurrency, 1),
        ("workload.request_rate", cfg.workload.request_rate, 0),
        ("workload.temperature", cfg.workload.temperature, 0),
        ("workload.timeout_s", cfg.workload.timeout_s, 0.001),
        *((f"slo.{key}", limit, 0.001) for key, limit in cfg.slo.items() if key != "name"),
        ("tracking.timeout_s", cfg.tracking.timeout_s, 1),
        ("experiment.repeats", cfg.experiment.repeats, 1),
        ("experiment.time_budget_s", cfg.experiment.time_budget_s, 1),
        ("experiment.goodput_budget_s", cfg.experiment.goodput_budget_s, 1),
        ("experiment.arrivals_s", cfg.experiment.arrivals_s, 0.001),
        ("experiment.control", cfg.experiment.control, 0),
        ("experiment.goodput_within", cfg.experiment.goodput_within, 0.001),
        ("seed", cfg.seed, 0),
    ]
    for key, value, least in at_least:
        check_within(key, value, Within(least, MOST_OF.get(key, MOST)))
    if not 0 < cfg.workload.top_p <= 1:
        raise ConfigError(f"workload.top_p={cfg.workload.top_p} must be in (0, 1]")


def _one_of(key: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not known: set {key} to {' or '.join(allowed)}")


def _check_schedulers(cfg: Any) -> None:
    _check_scheduler("scheduler", cfg.scheduler)
    if cfg.scheduler.rope is not None:
        raise ConfigError("scheduler.rope is only for arms that differ in it: choose rope=... instead")
    for name, scheduler in cfg.arms.items():
        if not shapes.NAME.fullmatch(str(name)):
            raise ConfigError(f"arms.{name} is not a valid name: use letters, digits, '_', '-' and '.'")
        _check_scheduler(f"arms.{name}", scheduler)
        if scheduler.rope is not None:
            _one_of(f"arms.{name}.rope.type", scheduler.rope.type, "auto", "none", "yarn")
            _check_rope(scheduler.rope, f"arms.{name}.rope")


def _check_scheduler(key: str, scheduler: Any) -> None:
    """Checks that `devices` matches the scheduler's engines, which its class does not check itself."""
    devices = scheduler.get("devices", "auto")
    if isinstance(devices, ListConfig):
        sizes = [need.gpus for need in needs_of(scheduler)]
        own = [devices[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
        fits = len(devices) == sum(sizes) and all(len(set(gpus)) == len(gpus) for gpus in own)
        if not fits or not all(type(d) is int and d >= 0 for d in devices):
            raise ConfigError(
                f"{key}.devices={list(devices)} does not fit: give {sum(sizes)} GPU indices, engine by engine (no GPU "
                "twice for one engine), or auto"
            )
    elif devices != "auto":
        raise ConfigError(f"{key}.devices={devices} is not known: set auto or a list like [0,1]")


def _check_cells(cfg: Any) -> None:
    """Checks the lists that an experiment makes its cells from."""
    lengths, rates = cfg.experiment.prompt_lens, cfg.experiment.request_rates
    _check_doubling(cfg)
    if lengths is not None:
        if not source_of(cfg.workload).made_to_length:
            raise ConfigError(
                "experiment.prompt_lens needs prompts with a configurable length: choose workload=random or text"
            )
        if cfg.workload.prompt_len is not None:
            raise ConfigError(
                f"workload.prompt_len={cfg.workload.prompt_len} has no effect beside experiment.prompt_lens: set "
                f"experiment.prompt_lens=[{cfg.workload.prompt_len}]"
            )
        check_list("experiment.prompt_lens", lengths, "lengths in tokens, as [512,1024]", 1, MOST)
    if rates is not None:
        check_list("experiment.request_rates", rates, "requests/s, as [0,1,2], 0 being one at a time", 0, MOST)
    if cfg.experiment.concurrencies is not None:
        content = "numbers of requests at a time, as [1,8]"
        check_list("experiment.concurrencies", cfg.experiment.concurrencies, content, 1, MOST)
    limits = [limit for key, limit in cfg.slo.items() if key != "name"]
    if cfg.experiment.goodput_budget_s is not None:
        if not any(limit is not None for limit in limits):
            raise ConfigError(
                "experiment.goodput_budget_s has no effect without limits: choose slo=interactive or set slo.ttft_ms"
            )
        if not source_of(cfg.workload).made_to_length:
            raise ConfigError(
                "experiment.goodput_budget_s needs prompts with a configurable length: choose workload=random or text"
            )


def _check_doubling(cfg: Any) -> None:
    first = cfg.experiment.doubling_from
    if first is None or cfg.experiment.prompt_lens is not None:
        return
    workload = cfg.workload
    if not source_of(workload).made_to_length or workload.prompt_len is not None:
        raise ConfigError(
            "experiment.doubling_from needs prompts with a configurable length: choose workload=random or text, and "
            "workload.prompt_len=null"
        )
    if workload.output_distribution != "fixed":
        raise ConfigError(
            "experiment.doubling_from needs outputs of one length: set workload.output_distribution=fixed"
        )
    room = cfg.model.max_len - workload.output_len
    if room < 1:
        raise ConfigError(
            f"workload.output_len={workload.output_len} leaves no room for a prompt in model.max_len="
            f"{cfg.model.max_len}: lower it or raise model.max_len"
        )
    if first < 1:
        raise ConfigError(f"experiment.doubling_from={first} is too small: set it to 1 or more")
    if first > room:
        raise ConfigError(
            f"experiment.doubling_from={first} does not fit in model.max_len={cfg.model.max_len} with "
            f"workload.output_len={workload.output_len}: set it to {room:,} or less, or raise model.max_len"
        )


def check_overrides(cfg: Any, overrides: list[str]) -> None:
    """Refuses command-line settings that would have no effect. Raises ConfigError."""
    for override in overrides:
        if re.match(r"\+*experiment\.same_tokens=", override) and override.partition("=")[2].lower() in TRUE:
            asked = OmegaConf.merge(cfg, {"experiment": {"same_tokens": True}})
            if (why := same_tokens_aside(asked)) is not None:
                raise ConfigError(f"experiment.same_tokens=true compares repeats of a prompt, and {why}: drop it")
        if cfg.workload.prompts == "scored" and re.match(r"\+*workload\.(output_\w+|ignore_eos)=", override):
            raise ConfigError(
                f"{override.lstrip('+')} has no effect on a scored dataset, whose tasks set the output length: drop it"
            )
        if cfg.arms and re.match(r"\+*scheduler[.=]", override):
            arms = " and ".join(f"arms.{name}" for name in cfg.arms)
            key = override.lstrip("+").partition("=")[0].removeprefix("scheduler").lstrip(".") or "replicas"
            raise ConfigError(
                f"{override.lstrip('+')} has no effect with experiment={cfg.experiment.name}, which compares {arms}: "
                f"set arms.{next(iter(cfg.arms))}.{key}=... and the like"
            )
        if cfg.experiment.request_rates is not None and override.lstrip("+").startswith("workload.request_rate="):
            raise ConfigError(
                f"{override.lstrip('+')} has no effect beside experiment.request_rates: "
                f"set experiment.request_rates=[{cfg.workload.request_rate:g}]"
            )
        if cfg.workload.temperature > 0 and re.match(r"\+*experiment\.control=[1-9]", override):
            raise ConfigError(
                f"{override.lstrip('+')} has no effect with workload.temperature={cfg.workload.temperature:g}: sampled "
                "tokens differ by chance, and are not compared. Set workload.temperature=0, or drop it"
            )
        if override.lstrip("+").startswith("workload.concurrency="):
            _check_concurrency(cfg, override.lstrip("+"))
        if open_loop(cfg) and override.lstrip("+").startswith("experiment.concurrencies="):
            raise ConfigError(
                f"{override.lstrip('+')} has no effect if requests arrive at a rate: drop it, or drop "
                "experiment.request_rates and choose workload=random"
            )


def _check_concurrency(cfg: Any, given: str) -> None:
    """Refuses workload.concurrency next to a request rate: it could be mistaken for a cap, which does not exist."""
    experiment, workload = cfg.experiment, cfg.workload
    if source_of(workload).recorded:
        raise ConfigError(f"{given} has no effect on a trace, which has its own times and no cap: drop it")
    if experiment.request_rates is not None:
        if 0 not in experiment.request_rates:
            raise ConfigError(
                f"{given} has no effect beside experiment.request_rates, and does not cap the requests in flight: drop "
                "one of the two"
            )
    elif workload.request_rate > 0:
        raise ConfigError(
            f"{given} has no effect beside workload.request_rate={workload.request_rate:g}, and does not cap the "
            "requests in flight: drop it, or set workload.request_rate=0 for a closed loop"
        )
    elif experiment.concurrencies is not None:
        raise ConfigError(
            f"{given} has no effect beside experiment.concurrencies: set "
            f"experiment.concurrencies=[{workload.concurrency}]"
        )


def _check_model(model: Any) -> None:
    if model.source == "random_weights" and model.architecture is None:
        raise ConfigError(
            "model.architecture is empty: model.source=random_weights needs it, see model=llama31_8b_shape"
        )
    if model.source == "random_weights" and model.path is not None:
        raise ConfigError("model.path has no effect with random weights: drop it, or set model=llama31_8b or qwen25_7b")
    if model.source == "hub" and model.path is None and model.repo is None:
        raise ConfigError("model.repo is empty: set model.repo=owner/name or model.path=FOLDER")
    if model.source == "folder" and model.path is None:
        raise ConfigError("model.path is not set: model.source=folder needs model.path=FOLDER")
    if model.path is not None:
        local_model.check_folder(model.path)


def _check_rope(rope: Any, name: str = "rope") -> None:
    if rope.type == "yarn" and rope.factor is None:
        raise ConfigError(f"{name}.factor is empty: rope=yarn needs it, as in {name}.factor=4")
    if rope.type != "yarn":
        for key in ("factor", "original_max_len"):
            if rope[key] is not None:
                raise ConfigError(f"{name}.{key} has no effect with {name}.type={rope.type}: drop it or choose yarn")


def _check_workload(cfg: Any) -> None:
    settings.check(cfg)
    _check_cells(cfg)
    check_workload(cfg)
    if cfg.experiment.same_tokens and cfg.experiment.repeats < 2:
        raise ConfigError("experiment.same_tokens needs two repeats: raise experiment.repeats, or set it to false")
