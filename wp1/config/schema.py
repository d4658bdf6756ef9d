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
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wp1.core.errors import ConfigError
from wp1.core.plan import open_loop

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
    """Limits, each of the metric that has its name (`wp1.analysis.base.metric_table`)."""

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
