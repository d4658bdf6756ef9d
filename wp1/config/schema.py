"""The configuration's shape, and every check that needs no model and no engine.

The dataclasses are what Hydra composes `conf/` into: a wrong type or an unknown key does not get past them.
`check` then refuses values that contradict each other, by a message that names the key to change.
Checks that need the model's own configuration are in `wp1.serving.fit`.
"""

import dataclasses
import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wp1.core import shapes, targets
from wp1.core.errors import ConfigError
from wp1.core.plan import has_length, open_loop
from wp1.quality import settings
from wp1.serving.placement import engine_sizes
from wp1.workload.limits import TRACE_FORMATS, check_list, check_workload

# true or false, as `resolve` sees to: where the type is bool, OmegaConf takes any number for true.
Truth = Any


@dataclass
class Backend:
    _target_: str = MISSING
    engine: dict[str, Any] = field(default_factory=dict)
    kv_cache_gib: float | None = None
    startup_timeout_s: float = 900.0


@dataclass
class Rope:
    type: str = "auto"  # auto, none or yarn
    factor: float | None = None
    original_max_len: int | None = None  # tokens


@dataclass
class Scheduler:
    _target_: str = MISSING
    mode: str = MISSING
    replicas: int | None = None  # of scheduler=agg
    routing: str = "round_robin"
    tensor_parallel: int = 1
    devices: Any = "auto"  # "auto" or a list of GPU indices
    # Keys of scheduler=disagg; refused under agg.
    prefill: int | None = None
    decode: int | None = None
    decode_tensor_parallel: int | None = None
    first_token: str | None = None  # prefill or decode
    max_prefilled: int | None = None  # requests, a prefill engine
    rope: Rope | None = None  # of an arm that has its own; None: the run's


@dataclass
class Transfer:
    _target_: str = MISSING
    name: str = MISSING
    timeout_s: float = 60.0
    direction: str | None = None  # pull or push, of NIXL
    overlap: str | None = None  # on or off, of ipc
    at_once_mib: float | None = None  # of ipc
    verify: Truth = False  # of ipc
    environment: dict[str, str] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


@dataclass
class Model:
    name: str = MISSING
    source: str = MISSING  # bundled, hub or random_weights
    repo: str | None = None
    revision: str | None = None
    path: str | None = None
    max_len: int = MISSING  # tokens
    dtype: str = "auto"
    architecture: dict[str, Any] | None = None  # config.json of random weights


@dataclass
class Dataset:
    name: str = MISSING
    source: str = MISSING  # builtin, file or hub
    path: str | None = None
    limit: int | None = None  # rows
    # What answers are judged by (`wp1.quality`, workload.prompts=judged); None: questions that are not judged.
    tasks: list[str] | None = None
    samples_per_task: int | None = None  # None: every row
    on_bad_row: str = "error"  # or skip
    languages: list[str] | None = None
    min_chars: int | None = None  # of the context
    max_chars: int | None = None
    # Of source=hub: the repository, and either its data files or the name of its configuration, with {task} in them.
    repo: str | None = None
    revision: str | None = None
    config: str | None = None
    files: str | None = None
    split: str = "test"
    prompt_lens: list[int] | None = None  # of a judged set that is made: tokens of prompt and answer; each is a cell
    # Of needle tasks that are made: where the needle stands, in percent of the context; None: drawn.
    depths: list[float] | None = None
    # Development files for RULER's qa_1 and qa_2.
    squad: str | None = None
    hotpot: str | None = None


@dataclass
class Workload:
    prompts: str = "dataset"  # dataset, random, text or trace
    prompt_len: int | None = None  # tokens, of random and text prompts
    text_path: str | None = None  # of text prompts; None: the bundled book
    shared_prefix: float = 0.0  # share of a prompt that all prompts of a cell's repeat begin with
    trace_path: str | None = None
    trace_format: str = "auto"  # or mooncake, bailian, azure, burstgpt, wp1
    trace_speed: float = 1.0  # 2: in half the recorded time
    trace_length_scale: float = 1.0  # of prompts, outputs and hash blocks
    output_len: int = 64  # tokens at most; of a distribution the mean
    output_distribution: str = "fixed"  # fixed, uniform, normal or lognormal
    output_spread: float = 0.0  # uniform: half the width / mean; else standard deviation / mean
    output_max: int | None = None  # tokens; None: the upper end of uniform, else four times the mean
    ignore_eos: Truth = False
    num_requests: int | None = None  # None: the whole dataset or trace
    num_warmup: int = 1  # rounds at least
    max_warmup: int = 5  # rounds at most
    warmup_once: Truth = False  # before the first cell after engines have started, and before no other
    concurrency: int = 1
    request_rate: float = 0.0  # requests/s; 0: closed loop of `concurrency`
    arrivals: str = "poisson"  # constant, gamma or ramp; for request_rate > 0
    burstiness: float = 1.0  # shape of gamma
    ramp_from: float = 0.0  # requests/s
    ramp_s: float | None = None  # seconds; None: until the last request
    temperature: float = 0.0
    top_p: float = 1.0
    timeout_s: float = 600.0  # a request


@dataclass
class Slo:
    name: str = "none"
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


@dataclass
class Tracking:
    enabled: Truth = True
    uri: str = MISSING
    timeout_s: float = 20.0


@dataclass
class Experiment:
    name: str = MISSING
    question: str = ""
    repeats: int = 1
    same_tokens: Truth = False
    prompt_lens: list[int] | None = None  # tokens; None: workload.prompt_len
    doubling_from: int | None = None  # tokens; prompt lengths from here by doubling to what model.max_len has room for
    request_rates: list[float] | None = None  # requests/s; None: workload.request_rate
    time_budget_s: float | None = None  # for the cells of a run; one that would not end within is skipped
    concurrencies: list[int] | None = None  # of closed loops; None: workload.concurrency
    # Seconds of arrivals a repeat at a rate, at least; None: what workload.num_requests gives.
    arrivals_s: float | None = None
    # What the device can do at most, for MFU and MBU: measured once before the engines start if no table states it.
    measure_peaks: Truth = False
    # The search for the highest rate that keeps the SLO, at every prompt length after the cells.
    goodput_budget_s: float | None = None  # seconds a prompt length; None: no search
    goodput_within: float = 0.1  # the search ends when the two nearest rates differ by this share
    memory: Truth = False  # engines take notes of their memory, into memory.jsonl
    # Requests of a cell that are asked again after its repeats, with the two best log-probabilities of each token, for
    # what is said where tokens part (`wp1.runner.control`). They are in no figure. None: CONTROL with same_tokens.
    control: int | None = 0


@dataclass
class Config:
    backend: Backend = field(default_factory=Backend)
    scheduler: Scheduler = field(default_factory=Scheduler)
    transfer: Transfer = field(default_factory=Transfer)
    arms: dict[str, Scheduler] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    rope: Rope = field(default_factory=Rope)
    dataset: Dataset = field(default_factory=Dataset)
    workload: Workload = field(default_factory=Workload)
    slo: Slo = field(default_factory=Slo)
    collectors: dict[str, dict[str, Any]] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    experiment: Experiment = field(default_factory=Experiment)
    seed: int = 42
    tags: dict[str, str] = field(default_factory=dict)
    root: str = MISSING
    resume: str | None = None  # the folder of a run or sweep to go on with


TRUTHS = [
    f"{group.name}.{key.name}"
    for group in dataclasses.fields(Config)
    if dataclasses.is_dataclass(group.default_factory)
    for key in dataclasses.fields(group.default_factory)
    if isinstance(key.default, bool)
]

# How a command line may say so, in Hydra's grammar and OmegaConf's.
TRUE = ("true", "yes", "y", "on", "1")

# Parts that take keys of somebody else's making. Hydra wants a plus before a key that it does not know yet; nobody who
# writes backend.engine.block_size=32 means anything else.
FREE_FORM = re.compile(
    r"(backend\.engine|model\.architecture|tags|collectors|transfer\.environment|transfer\.extra)\.[^=]+="
)


def with_plus(argument: str) -> str:
    """A command-line override as Hydra takes it."""
    return f"++{argument}" if FREE_FORM.match(argument) else argument


def doubling(first: int, last: int) -> list[int]:
    """Lengths that double from the first, up to the last: `${wp1_doubling:1024,${model.max_len}}` in conf/."""
    lengths = [int(first)]
    while 2 * lengths[-1] <= int(last):
        lengths.append(2 * lengths[-1])
    return lengths


def register() -> None:
    """Makes `schema` the first entry of conf/config.yaml's defaults."""
    ConfigStore.instance().store(name="schema", node=Config)


# Requests of a cell that are asked again, of an experiment that compares tokens and does not say how many.
CONTROL = 6


def resolve(cfg: DictConfig) -> DictConfig:
    """The composed configuration, resolved and typed, with keys that are not in the schema refused.

    Hydra lets `+key=value` past the structured schema, so it is merged into a fresh one once more.
    Raises ConfigError for an unknown key or a value that is missing or of the wrong type.
    """
    try:
        cfg = cfg.copy()
        if not cfg.get("root"):
            raise ConfigError("root is empty: name a folder for what runs leave, or drop it")
        # Absolute, so that what is derived from it means the same from any folder.
        OmegaConf.update(cfg, "root", str(Path(str(cfg.root)).expanduser().resolve()))
        plain = OmegaConf.to_container(cfg, resolve=True)
        schema = OmegaConf.structured(Config)
        unknown = sorted(_unknown_keys(plain, schema))
        if unknown:
            raise ConfigError(unknown_key_message(unknown[0]))
        typed = OmegaConf.merge(schema, plain)
        missing = sorted(OmegaConf.missing_keys(typed))
        for key in TRUTHS:
            if not isinstance(value := OmegaConf.select(typed, key), bool):
                raise ConfigError(f"{key}={value} is neither true nor false: set {key}=true or {key}=false")
    except OmegaConfBaseException as error:
        raise ConfigError(one_line(str(error))) from error
    if missing:
        raise ConfigError(f"{missing[0]} has no value: set {missing[0]}=...")
    assert isinstance(typed, DictConfig)
    if typed.experiment.control is None:
        typed.experiment.control = CONTROL if typed.experiment.same_tokens else 0
    if same_tokens_aside(typed) is not None:
        typed.experiment.same_tokens = False
    return typed


def same_tokens_aside(cfg: Any) -> str | None:
    """Why `experiment.same_tokens`, which is on, says nothing under this load, so that `resolve` turns it off.

    None if the check is off, or if it can be made: it needs equal prompts, computed one at a time. In a batch the
    logits depend slightly on what else is in it, which is up to chance when requests overlap.
    """
    workload = cfg.workload
    if not cfg.experiment.same_tokens:
        return None
    if workload.prompts not in ("dataset", "judged"):
        return f"{workload.prompts} prompts differ in every repeat"
    if open_loop(cfg):
        return "requests that come at a rate overlap differently in every repeat"
    if max(cfg.experiment.concurrencies or [workload.concurrency]) > 1:
        return "several requests at a time are batched differently in every repeat"
    return None


def _unknown_keys(given: Any, schema: Any, prefix: str = "") -> list[str]:
    # A free-form dict (engine arguments, tags, architecture) has no type of its own and takes any key.
    if not isinstance(given, dict) or not isinstance(schema, DictConfig):
        return []
    if schema._is_none() or OmegaConf.get_type(schema) is dict:
        return []
    found = []
    for key, value in given.items():
        if key not in schema.keys():  # noqa: SIM118 - `in` is false for a key whose value is missing
            found.append(f"{prefix}{key}")
        elif not OmegaConf.is_missing(schema, key):
            found += _unknown_keys(value, schema._get_node(key), f"{prefix}{key}.")
    return found


def unknown_key_message(key: str) -> str:
    """One line for a key that does not exist: the nearest that do, where there are any."""
    group, _, _ = key.rpartition(".")
    node = OmegaConf.select(OmegaConf.structured(Config), group) if group else OmegaConf.structured(Config)
    known = [f"{group}.{name}" if group else str(name) for name in node] if isinstance(node, DictConfig) else []
    known = [name for name in known if not name.endswith("_target_")]
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.6)
    if near:
        return f"unknown key {key}: did you mean {' or '.join(near)}?"
    if known:
        return f"unknown key {key}: {group or 'the top level'} has {', '.join(known)}"
    return f"unknown key {key}: see `python -m wp1 --cfg job` for those there are"


def one_line(message: str) -> str:
    """A library's message of several lines as one."""
    return "; ".join(part.strip() for part in message.splitlines() if part.strip())


# Of any number: engines keep seeds in 32 bits, and nothing else comes near.
MOST = 2**31 - 1
MOST_OF = {
    # Tokens. Far beyond any model, and an engine keeps a table of all positions, for which memory would not do.
    "model.max_len": 2**24,
}


def check(cfg: Any) -> None:
    """Refuses a configuration that cannot run, whatever the machine. Raises ConfigError, naming the key to change."""
    _check_values(cfg)
    _check_schedulers(cfg)
    _check_model(cfg.model)
    _check_rope(cfg.rope)
    _check_workload(cfg)


def _check_values(cfg: Any) -> None:
    for group, known in (("backend", targets.BACKENDS), ("transfer", targets.TRANSFERS)):
        if cfg[group]._target_ not in known:
            raise ConfigError(f"{group}._target_={cfg[group]._target_} is not wp1's: choose {group}=... instead")
    _check_collectors(cfg.collectors)
    if cfg.transfer.direction is not None:
        _one_of("transfer.direction", cfg.transfer.direction, "pull", "push")
    if cfg.transfer.overlap is not None:
        _one_of("transfer.overlap", cfg.transfer.overlap, "on", "off")
    _one_of("model.source", cfg.model.source, "bundled", "hub", "random_weights")
    _one_of("rope.type", cfg.rope.type, "auto", "none", "yarn")
    _one_of("dataset.source", cfg.dataset.source, "builtin", "file", "hub")
    _one_of("dataset.on_bad_row", cfg.dataset.on_bad_row, "error", "skip")
    _one_of("workload.prompts", cfg.workload.prompts, "dataset", "judged", "random", "text", "trace")
    _one_of("workload.trace_format", cfg.workload.trace_format, "auto", *TRACE_FORMATS)
    _one_of("workload.arrivals", cfg.workload.arrivals, "poisson", "constant", "gamma", "ramp")
    _one_of("workload.output_distribution", cfg.workload.output_distribution, "fixed", "uniform", "normal", "lognormal")
    for key in ("model", "dataset", "experiment", "slo", "transfer"):
        # Names become names of files and folders.
        if not re.fullmatch(r"[\w][\w.-]*", cfg[key].name):
            raise ConfigError(f"{key}.name={cfg[key].name} is no name: use letters, digits, '_', '-' and '.'")
    at_least = [
        ("backend.kv_cache_gib", cfg.backend.kv_cache_gib, 0.001),
        ("backend.startup_timeout_s", cfg.backend.startup_timeout_s, 1),
        ("transfer.timeout_s", cfg.transfer.timeout_s, 0.001),
        ("transfer.at_once_mib", cfg.transfer.at_once_mib, 0),
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
        ("slo.ttft_ms", cfg.slo.ttft_ms, 0.001),
        ("slo.tpot_ms", cfg.slo.tpot_ms, 0.001),
        ("slo.e2e_ms", cfg.slo.e2e_ms, 0.001),
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
        # Written so that nan is refused too.
        if value is not None and not value >= least:
            raise ConfigError(f"{key}={value} is too small: set {key} to {least} or more")
        most = MOST_OF.get(key, MOST)
        if value is not None and value > most:
            raise ConfigError(f"{key}={value} is too large: set {key} to {most} or less")
    if not 0 < cfg.workload.top_p <= 1:
        raise ConfigError(f"workload.top_p={cfg.workload.top_p} is no share: set workload.top_p above 0, at most 1")


def _check_collectors(collectors: Any) -> None:
    for name, part in collectors.items():
        plain = OmegaConf.to_container(part) if isinstance(part, DictConfig) else part
        if (wrong := targets.wrong_collector(plain)) is not None:
            raise ConfigError(f"collectors.{name} {wrong}: set it as in conf/collectors/, or drop it")


def _one_of(key: str, value: str, *allowed: str) -> None:
    if value not in allowed:
        raise ConfigError(f"{key}={value} is not known: set {key} to {' or '.join(allowed)}")


def _check_schedulers(cfg: Any) -> None:
    _check_scheduler("scheduler", cfg.scheduler)
    if cfg.scheduler.rope is not None:
        raise ConfigError("scheduler.rope is of arms that differ in it: choose rope=... instead")
    for name, scheduler in cfg.arms.items():
        if not shapes.NAME.fullmatch(str(name)):
            raise ConfigError(f"arms.{name} is no name: use letters, digits, '_', '-' and '.'")
        _check_scheduler(f"arms.{name}", scheduler)
        if scheduler.rope is not None:
            _one_of(f"arms.{name}.rope.type", scheduler.rope.type, "auto", "none", "yarn")
            _check_rope(scheduler.rope, f"arms.{name}.rope")


DISAGG_KEYS = {
    "prefill": "replicas sets the number of engines",
    "decode": "replicas sets the number of engines",
    "decode_tensor_parallel": "tensor_parallel is for all engines",
    "first_token": "there is one pool only",
    "max_prefilled": "there is no handoff",
}


def _check_scheduler(key: str, scheduler: Any) -> None:
    if scheduler._target_ not in targets.SCHEDULERS:
        raise ConfigError(f"{key}._target_={scheduler._target_} is not wp1's: choose scheduler=agg or disagg instead")
    _one_of(f"{key}.mode", scheduler.mode, "agg", "disagg")
    _one_of(f"{key}.routing", scheduler.routing, "round_robin", "least_loaded")
    if scheduler.mode == "agg":
        needed = ("replicas", "tensor_parallel")
        for name, instead in DISAGG_KEYS.items():
            if scheduler[name] is not None:
                raise ConfigError(f"{key}.{name} is a key of disaggregated serving: drop it, under agg {instead}")
    else:
        needed = ("prefill", "decode", "tensor_parallel", "max_prefilled")
        if scheduler.replicas is not None:
            raise ConfigError(f"{key}.replicas is a key of aggregated serving: set {key}.prefill and {key}.decode")
        _one_of(f"{key}.first_token", scheduler.first_token, "prefill", "decode")
    for name in (*needed, "decode_tensor_parallel"):
        value = scheduler[name]
        if (value is None and name in needed) or (value is not None and not 1 <= value <= MOST):
            raise ConfigError(f"{key}.{name}={value} does not do: set {key}.{name} to 1 or more")
    devices = scheduler.devices
    if isinstance(devices, ListConfig):
        sizes = engine_sizes(scheduler)
        own = [devices[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(len(sizes))]
        fits = len(devices) == sum(sizes) and all(len(set(gpus)) == len(gpus) for gpus in own)
        if not fits or not all(type(d) is int and d >= 0 for d in devices):
            raise ConfigError(
                f"{key}.devices={list(devices)} does not fit: name {sum(sizes)} GPU indices, those of each engine "
                "in turn (no GPU twice for one engine), or auto"
            )
    elif devices != "auto":
        raise ConfigError(f"{key}.devices={devices} is not known: set auto or a list like [0,1]")


def _check_cells(cfg: Any) -> None:
    """The lists that an experiment makes its cells of."""
    lengths, rates = cfg.experiment.prompt_lens, cfg.experiment.request_rates
    _check_doubling(cfg)
    if lengths is not None:
        if not has_length(cfg.workload.prompts):
            raise ConfigError("experiment.prompt_lens needs prompts of a length: choose workload=random or text")
        if cfg.workload.prompt_len is not None:
            raise ConfigError(
                f"workload.prompt_len={cfg.workload.prompt_len} has no effect beside experiment.prompt_lens: set "
                f"experiment.prompt_lens=[{cfg.workload.prompt_len}]"
            )
        check_list("experiment.prompt_lens", lengths, "lengths in tokens, as [512,1024]", 1, MOST)
    if rates is not None:
        check_list("experiment.request_rates", rates, "requests/s, as [0,1,2], 0 being one at a time", 0, MOST)
    if cfg.experiment.concurrencies is not None:
        of_what = "numbers of requests at a time, as [1,8]"
        check_list("experiment.concurrencies", cfg.experiment.concurrencies, of_what, 1, MOST)
    limits = (cfg.slo.ttft_ms, cfg.slo.tpot_ms, cfg.slo.e2e_ms)
    if cfg.experiment.goodput_budget_s is not None:
        if not any(limit is not None for limit in limits):
            raise ConfigError(
                "experiment.goodput_budget_s has no effect without limits: choose slo=interactive or set slo.ttft_ms"
            )
        if not has_length(cfg.workload.prompts):
            raise ConfigError("experiment.goodput_budget_s needs prompts of a length: choose workload=random or text")


def _check_doubling(cfg: Any) -> None:
    first = cfg.experiment.doubling_from
    if first is None or cfg.experiment.prompt_lens is not None:
        return
    workload = cfg.workload
    if not has_length(workload.prompts) or workload.prompt_len is not None:
        raise ConfigError(
            "experiment.doubling_from makes prompts of a length: choose workload=random or text, and "
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
            f"experiment.doubling_from={first} is more than model.max_len={cfg.model.max_len} has room for beside "
            f"workload.output_len={workload.output_len}: prompts of 1 to {room:,} tokens fit, so lower it or raise "
            "model.max_len"
        )


def check_overrides(cfg: Any, overrides: list[str]) -> None:
    """Refuses what was said on the command line and would have no effect. Raises ConfigError."""
    for override in overrides:
        if re.match(r"\+*experiment\.same_tokens=", override) and override.partition("=")[2].lower() in TRUE:
            asked = OmegaConf.merge(cfg, {"experiment": {"same_tokens": True}})
            if (why := same_tokens_aside(asked)) is not None:
                raise ConfigError(f"experiment.same_tokens=true compares repeats of a prompt, and {why}: drop it")
        if cfg.workload.prompts == "judged" and re.match(r"\+*workload\.(output_\w+|ignore_eos)=", override):
            raise ConfigError(
                f"{override.lstrip('+')} has no effect on a judged dataset, whose tasks say how long an answer may be: "
                "drop it"
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
                f"{override.lstrip('+')} has no effect where requests come at a rate: drop it, or drop "
                "experiment.request_rates and choose workload=random"
            )


def _check_concurrency(cfg: Any, given: str) -> None:
    """Refuses a number of requests at a time beside a rate, where it could be taken for a cap, which there is not."""
    experiment, workload = cfg.experiment, cfg.workload
    if workload.prompts == "trace":
        raise ConfigError(f"{given} has no effect on a trace, which has its own times and no cap: drop it")
    if experiment.request_rates is not None:
        if 0 not in experiment.request_rates:
            raise ConfigError(
                f"{given} has no effect beside experiment.request_rates, and is no cap on requests in flight: drop one "
                "of the two"
            )
    elif workload.request_rate > 0:
        raise ConfigError(
            f"{given} has no effect beside workload.request_rate={workload.request_rate:g}, and is no cap on requests "
            "in flight: drop it, or set workload.request_rate=0 for a closed loop"
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
        raise ConfigError("model.path has no use with random weights: drop it, or choose model=llama31_8b or qwen25_7b")
    if model.source == "hub" and model.path is None and model.repo is None:
        raise ConfigError("model.repo is empty: set model.repo=owner/name or model.path=FOLDER")
    if model.path == "":
        raise ConfigError("model.path is empty: name a folder with config.json and *.safetensors, or drop it")
    if model.path is not None:
        folder = Path(model.path).expanduser()
        if not folder.is_dir():
            raise ConfigError(f"model.path={model.path} is not a folder: name one with config.json and *.safetensors")
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path={model.path} holds no config.json: name the folder of a model")


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
