"""The configuration's schema.

Hydra composes `conf/` into these dataclasses, which refuse wrong types and unknown keys. `wp1.config.checks` then
refuses contradictory values, and `wp1.serving.fit` makes the checks that need the model's own configuration.
"""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from wp1.collectors import COLLECTOR
from wp1.config import local_model
from wp1.core import parts
from wp1.core.errors import ConfigError
from wp1.core.paths import CONF
from wp1.core.plan import open_loop
from wp1.model.rope import Rope
from wp1.serving.backend import BACKEND, SCHEDULER
from wp1.serving.transfer import TRANSFER
from wp1.workload import declared_keys
from wp1.workload.arrivals import process_of
from wp1.workload.prompts import class_of, source_of

# A bool, which `resolve` checks: with the type bool, OmegaConf would accept any number as true.
Truth = Any


@dataclass
class Model:
    name: str = MISSING
    source: str = MISSING  # bundled, hub, folder or random_weights
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
    # Tasks that answers are scored by (`wp1.quality`, workload.prompts=scored); None: answers are not scored.
    tasks: list[str] | None = None
    # Dotted name of a module with your own benchmark (`wp1.quality.tasks.Benchmark`).
    benchmark: str | None = None
    samples_per_task: int | None = None  # None: every row
    on_bad_row: str = "error"  # or skip
    languages: list[str] | None = None
    min_chars: int | None = None  # of the context
    max_chars: int | None = None
    # For source=hub: the repository, and either its data files or the name of its configuration, containing {task}.
    repo: str | None = None
    revision: str | None = None
    config: str | None = None
    files: str | None = None
    split: str = "test"
    prompt_lens: list[int] | None = None  # for generated tasks: tokens of prompt and answer; each length is a cell
    # For generated needle tasks: the position of the needle in percent of the context; None: random.
    depths: list[float] | None = None
    # Development files for RULER's qa_1 and qa_2.
    squad: str | None = None
    hotpot: str | None = None


@dataclass
class Workload:
    # A source of prompts and an arrival process may add keys of their own (`wp1.workload.declared_keys`).
    prompts: str = "dataset"  # dataset, scored, random, text or trace; or package.module.Class (`wp1.workload.prompts`)
    prompt_len: int | None = None  # tokens, for random and text prompts
    text_path: str | None = None  # for text prompts; None: the bundled book
    shared_prefix: float = 0.0  # share of a prompt that is common to all prompts of a cell's repeat
    trace_path: str | None = None
    trace_format: str = "auto"  # or mooncake, bailian, azure, burstgpt, wp1
    trace_speed: float = 1.0  # 2: replay in half the recorded time
    trace_length_scale: float = 1.0  # scales prompts, outputs and hash blocks
    output_len: int = 64  # maximum tokens; mean of a distribution
    output_distribution: str = "fixed"  # fixed, uniform, normal or lognormal
    output_spread: float = 0.0  # uniform: half the width / mean; else standard deviation / mean
    output_max: int | None = None  # tokens; None: the upper end of uniform, else four times the mean
    ignore_eos: Truth = False
    num_requests: int | None = None  # None: the whole dataset or trace
    num_warmup: int = 1  # minimum rounds
    max_warmup: int = 5  # maximum rounds
    warmup_once: Truth = False  # warm up only before the first cell after an engine start
    concurrency: int = 1
    request_rate: float = 0.0  # requests/s; 0: closed loop of `concurrency`
    arrivals: str = "poisson"  # constant, gamma, ramp or package.module.function; for request_rate > 0
    burstiness: float = 1.0  # shape of gamma
    ramp_from: float = 0.0  # requests/s
    ramp_s: float | None = None  # seconds; None: until the last request
    temperature: float = 0.0
    top_p: float = 1.0
    timeout_s: float = 600.0  # per request


@dataclass
class Slo:
    """Limits, each named after its metric (`wp1.analysis.base.metrics`)."""

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
    doubling_from: int | None = None  # tokens; prompt lengths double from here up to what fits in model.max_len
    request_rates: list[float] | None = None  # requests/s; None: workload.request_rate
    time_budget_s: float | None = None  # for all cells; a cell that would exceed it is skipped
    concurrencies: list[int] | None = None  # of closed loops; None: workload.concurrency
    # Minimum seconds of arrivals per repeat at a rate; None: determined by workload.num_requests.
    arrivals_s: float | None = None
    # The device's peak rates, for MFU and MBU: measured once before the engines start if no table states them.
    measure_peaks: Truth = False
    # The search for the highest rate that meets the SLO, at every prompt length, after the cells.
    goodput_budget_s: float | None = None  # seconds per prompt length; None: no search
    goodput_within: float = 0.1  # the search ends when the two nearest rates differ by at most this share
    memory: Truth = False  # engines record their memory in memory.jsonl
    # Requests of a cell that are sent again after its repeats, with the two best log-probabilities of each token, to
    # explain differing tokens (`wp1.runner.control`). They are in no figure. None: CONTROL if same_tokens is on.
    control: int | None = 0


@dataclass
class Config:
    # The keys of these groups are defined by the classes that they name: PARTS and PARTS_BY_NAME.
    backend: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    transfer: dict[str, Any] = field(default_factory=dict)
    arms: dict[str, Any] = field(default_factory=dict)
    model: Model = field(default_factory=Model)
    rope: Rope = field(default_factory=Rope)
    dataset: Dataset = field(default_factory=Dataset)
    workload: Workload = field(default_factory=Workload)
    slo: Slo = field(default_factory=Slo)
    collectors: dict[str, Any] = field(default_factory=dict)
    tracking: Tracking = field(default_factory=Tracking)
    experiment: Experiment = field(default_factory=Experiment)
    seed: int = 42
    tags: dict[str, str] = field(default_factory=dict)
    root: str = MISSING
    resume: str | None = None  # the folder of a run or sweep to resume


# Groups that are one part each, and groups of named parts with the folder of conf/ that has their options.
PARTS = {"backend": BACKEND, "scheduler": SCHEDULER, "transfer": TRANSFER}
PARTS_BY_NAME = {"arms": (SCHEDULER, "scheduler"), "collectors": (COLLECTOR, "collectors")}

TRUTHS = [
    f"{group.name}.{key.name}"
    for group in dataclasses.fields(Config)
    if dataclasses.is_dataclass(group.default_factory)
    for key in dataclasses.fields(group.default_factory)
    if isinstance(key.default, bool)
]

# The spellings of true on a command line, in Hydra's grammar and OmegaConf's.
TRUE = ("true", "yes", "y", "on", "1")

# Groups that accept arbitrary keys. Hydra requires a plus before a key that it does not know; `with_plus` adds it, as
# backend.engine.block_size=32 can mean nothing else.
FREE_FORM = re.compile(
    r"(backend\.engine|model\.architecture|tags|collectors|transfer\.environment|transfer\.extra)\.[^=]+="
)


def with_plus(argument: str) -> str:
    """A command-line override in the form that Hydra accepts."""
    return f"++{argument}" if FREE_FORM.match(argument) else argument


def doubling(first: int, last: int) -> list[int]:
    """Lengths that double from the first, up to the last: `${wp1_doubling:1024,${model.max_len}}` in conf/."""
    lengths = [int(first)]
    while 2 * lengths[-1] <= int(last):
        lengths.append(2 * lengths[-1])
    return lengths


def register() -> None:
    """Makes `schema` the first entry of conf/config.yaml's defaults.

    Hydra accepts any key of a part and of `workload`; `resolve` checks it against the class, which may have more keys
    than its file in conf/.
    """
    node = OmegaConf.structured(Config)
    for group in (*PARTS, *PARTS_BY_NAME, "workload"):
        OmegaConf.set_struct(node[group], False)
    ConfigStore.instance().store(name="schema", node=node)


# Default of experiment.control if same_tokens is on.
CONTROL = 6


def resolve(cfg: DictConfig) -> DictConfig:
    """The composed configuration, resolved and typed. Keys that are not in the schema are refused.

    Hydra lets `+key=value` past the structured schema, so the result is merged into a fresh one.
    Raises ConfigError for an unknown key, or a value that is missing or of the wrong type.
    """
    try:
        cfg = cfg.copy()
        if not cfg.get("root"):
            raise ConfigError("root is empty: name a folder for the runs, or drop it")
        # Absolute, so that paths derived from it do not depend on the current folder.
        OmegaConf.update(cfg, "root", str(Path(str(cfg.root)).expanduser().resolve()))
        local_model.complete(cfg)
        plain = OmegaConf.to_container(cfg, resolve=True)
        schema = OmegaConf.structured(Config)
        assert isinstance(plain, dict)
        own = _own_settings(plain)
        unknown = sorted(_unknown_keys(plain, schema))
        if unknown:
            raise ConfigError(unknown_key_message(unknown[0]))
        OmegaConf.set_struct(schema.workload, False)
        typed = OmegaConf.merge(schema, plain | _parts(plain), {"workload": own})
        OmegaConf.set_struct(typed.workload, None)
        missing = sorted(OmegaConf.missing_keys(typed))
        for key in TRUTHS:
            if not isinstance(value := OmegaConf.select(typed, key), bool):
                raise ConfigError(f"{key}={value} is neither true nor false: set {key}=true or {key}=false")
    except OmegaConfBaseException as error:
        raise ConfigError(parts.one_line(str(error))) from error
    if missing:
        raise ConfigError(f"{missing[0]} has no value: set {missing[0]}=...")
    assert isinstance(typed, DictConfig)
    if typed.experiment.control is None:
        typed.experiment.control = CONTROL if typed.experiment.same_tokens else 0
    if same_tokens_aside(typed) is not None:
        typed.experiment.same_tokens = False
    return typed


def resolve_job(composed: DictConfig) -> DictConfig:
    """`resolve` for a job of a sweep as Hydra's loader composes it, which has Hydra's own settings too."""
    return resolve(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))


def _parts(plain: Mapping[Any, Any]) -> dict[str, Any]:
    """The groups of PARTS and PARTS_BY_NAME, complete. Raises ConfigError as `parts.typed` does."""
    typed: dict[str, Any] = {
        group: parts.typed(group, plain.get(group) or {}, kind, functools.partial(_not_taken, group))
        for group, kind in PARTS.items()
    }
    for group, (kind, options) in PARTS_BY_NAME.items():
        named = plain.get(group) or {}
        known = [f"{group}.{name}" for name, one in named.items() if isinstance(one, dict) and "_target_" in one]
        for name, one in named.items():
            if isinstance(one, dict) and "_target_" not in one:
                # To Hydra, a misspelt name is a new object.
                raise ConfigError(parts.unknown_key(f"{group}.{name}", known))
        message = functools.partial(_not_taken, options)
        typed[group] = {str(name): parts.typed(f"{group}.{name}", one, kind, message) for name, one in named.items()}
    return typed


def _own_settings(plain: Mapping[Any, Any]) -> dict[str, Any]:
    """The keys that the source of prompts and the arrival process add to `workload`, converted to their types.

    Raises ConfigError for a source or process that cannot be used, and as `declared_keys.typed` does.
    """
    workload = plain.get("workload") or {}
    common = {key.name: key.default for key in dataclasses.fields(Workload)}
    source = class_of(workload.get("prompts", Workload.prompts))
    process = process_of(workload.get("arrivals", Workload.arrivals))
    settings = [*declared_keys.declared(source).values(), *process.settings().values()]
    return declared_keys.typed(workload, common, settings)


def _not_taken(options: str, key: str, known: list[str]) -> str:
    """`parts.unknown_key`; for a key of another option of the group, it names that option, such as scheduler=disagg."""
    name = key.rpartition(".")[2]
    for file in sorted((CONF / options).glob("*.yaml")):
        if re.search(rf"^{re.escape(name)}:", file.read_text(encoding="utf-8"), re.MULTILINE):
            has = ", ".join(one.rpartition(".")[2] for one in known)
            return f"unknown key {key}: it is a key of {options}={file.stem}; the chosen one has {has}"
    return parts.unknown_key(key, known)


def same_tokens_aside(cfg: Any) -> str | None:
    """The reason why `experiment.same_tokens` is on but meaningless under this load, so that `resolve` turns it off.

    None if it is off or meaningful. It needs equal prompts, computed one at a time: the logits depend slightly on the
    rest of the batch, which varies from run to run if requests overlap.
    """
    workload = cfg.workload
    if not cfg.experiment.same_tokens:
        return None
    if not source_of(workload).repeated:
        return f"{workload.prompts} prompts differ in every repeat"
    if open_loop(cfg):
        return "requests that come at a rate overlap differently in every repeat"
    if max(cfg.experiment.concurrencies or [workload.concurrency]) > 1:
        return "several requests at a time are batched differently in every repeat"
    return None


def _unknown_keys(given: Any, schema: Any, prefix: str = "") -> list[str]:
    # A free-form dict (engine arguments, tags, architecture) has no schema and accepts any key.
    if not isinstance(given, dict) or not isinstance(schema, DictConfig):
        return []
    if schema._is_none() or OmegaConf.get_type(schema) is dict:
        return []
    unknown = []
    for key, value in given.items():
        if key not in schema.keys():  # noqa: SIM118 - `in` is false for a key whose value is missing
            # `_own_settings` refuses those of workload.
            unknown += [f"{prefix}{key}"] if prefix != "workload." else []
        elif not OmegaConf.is_missing(schema, key):
            unknown += _unknown_keys(value, schema._get_node(key), f"{prefix}{key}.")
    return unknown


def unknown_key_message(key: str) -> str:
    """A one-line message for an unknown key, suggesting the closest known ones."""
    group, _, _ = key.rpartition(".")
    node = OmegaConf.select(OmegaConf.structured(Config), group) if group else OmegaConf.structured(Config)
    known = [f"{group}.{name}" if group else str(name) for name in node] if isinstance(node, DictConfig) else []
    return parts.unknown_key(key, known)
