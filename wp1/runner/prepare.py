"""Everything done before an engine starts: prepares model, prompts and arms, and checks that they fit."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from wp1.collectors import Collector
from wp1.collectors.making import collectors_of
from wp1.core import paths
from wp1.core.errors import ConfigError
from wp1.core.identity import as_objects
from wp1.core.labels import SHARED_GPU
from wp1.core.plan import Arm, plan
from wp1.machine import hardware, peaks
from wp1.model import models
from wp1.model.models import ServedModel
from wp1.runner import prompt_data
from wp1.serving import fit
from wp1.serving.engines import key_of, make_scheduler, make_transfer, moves_kv, places_of
from wp1.serving.placement import check_equal
from wp1.workload import prompts
from wp1.workload.limits import longest


@dataclass(frozen=True)
class Prepared:
    """The result of `prepare`."""

    models: dict[str, ServedModel]  # by arm
    prompt_data: prompts.PromptData
    collectors: list[Collector]
    arms: list[Arm]
    labels: list[str]
    transfer: dict[str, str]  # a disaggregated run's connector, and why it was chosen
    skipped: list[dict[str, Any]]  # cells that do not fit, in the form of run_metadata.json
    peaks: dict[str, Any] | None  # the device's peak rates, if known
    inputs: dict[str, Any] = field(default_factory=dict)  # question file or trace, in the form of run_metadata.json
    notes: list[str] = field(default_factory=list)  # the same as text

    @property
    def model(self) -> ServedModel:
        """The first arm's model. The other arms' models differ only in rotary scaling and length, if at all."""
        return self.models[self.arms[0].name]


def prepare(cfg: Any, engine_log: Path, tell: Callable[[str], None], up: str | None = None) -> Prepared:
    """Prepares the model and makes the checks that need it.

    up: `engines.key_of` of the engines that are still up from the previous job; their arm is known to fit.
    Raises ConfigError if memory, lengths, devices, collectors or engine arguments do not fit.
    """
    collectors = collectors_of(as_objects(cfg))
    # Memory may be compared between one device and two; speed may not.
    if cfg.arms and not cfg.experiment.memory:
        check_equal({arm.name: [place for _, place in places_of(arm)] for arm in plan(cfg)})
    # Read before the model is downloaded or unpacked, so that bad data is reported at once.
    source = prompts.source_of(cfg.workload)
    given = source.read(cfg, tell)
    try:
        served = _models(cfg, tell)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or paths.cache_folder()}: {error.strerror or error}; wp1 keeps prepared models in "
            f"{paths.cache_folder()}, set WP1_CACHE to a folder that can be written"
        ) from error
    tell("checking that it fits")
    arms = [_within_reach(arm, served[arm.name]) for arm in plan(cfg)]
    served, skipped = _cells_that_fit(cfg, served, [arm for arm in arms if key_of(cfg, arm.scheduler) != up])
    model = served[arms[0].name]
    shared_gpu = False
    for arm in arms:
        engines = places_of(arm)
        if key_of(cfg, arm.scheduler) != up:
            fit.check_memory(served[arm.name], cfg, engines)
        shared_gpu = shared_gpu or any(place.sharing > 1 for _, place in engines)
    tell("making prompts")
    made_of = prompt_data.prepare(cfg, model, arms[0].cells, tell, given)
    inputs, notes = source.inputs(cfg, given, made_of)
    transfer: dict[str, str] = {}
    for arm in arms:
        if moves_kv(arm.scheduler):
            chosen = make_transfer(cfg, arm, served[arm.name])
            transfer = {"name": chosen.name, "why": chosen.why()}
        if key_of(cfg, arm.scheduler) != up:
            scheduler = make_scheduler(cfg, arm, served[arm.name], engine_log, kill=lambda: None, write=lambda _: None)
            scheduler.check()
    labels = ["random weights"] * model.random_weights + [SHARED_GPU] * shared_gpu
    labels += ["built-in tasks"] * (made_of.examples is not None and made_of.examples.built_in)
    known = peaks.for_run(hardware.describe(), cfg.experiment.measure_peaks, tell)
    return Prepared(served, made_of, collectors, arms, labels, transfer, skipped, known, inputs, notes)


def _models(cfg: Any, tell: Callable[[str], None]) -> dict[str, ServedModel]:
    """The model of each arm, by name. All arms share one, except those with a rotary scaling of their own."""
    shared: ServedModel | None = None
    by_arm = {}
    for arm in plan(cfg):
        if arm.scheduler.rope is not None:
            by_arm[arm.name] = models.prepare_arm(cfg, arm.scheduler.rope, tell)
        else:
            shared = by_arm[arm.name] = shared or models.prepare(cfg, tell)
    return by_arm


def _within_reach(arm: Arm, model: ServedModel) -> Arm:
    """The arm without the cells whose prompts exceed the model's max_len. Raises ConfigError if none is left."""
    cells = [cell for cell in arm.cells if cell.prompt_len is None or cell.prompt_len <= model.max_len]
    if not cells:
        raise ConfigError(
            f"every prompt length exceeds the {model.max_len} tokens of arms.{arm.name}: add a shorter one"
        )
    return replace(arm, cells=cells)


def _cells_that_fit(
    cfg: Any, served: dict[str, ServedModel], arms: list[Arm]
) -> tuple[dict[str, ServedModel], list[dict[str, Any]]]:
    """The models as they are served, and the cells whose prompts are too long for the memory of one of these arms.

    If only some of several prompt lengths fit, those are measured, and max_len is lowered to the longest of them. If
    none fits, or only model.max_len itself does not, `fit.check_memory` refuses the run.
    """
    lengths = {cell.prompt_len for arm in arms for cell in arm.cells}
    if len(lengths) < 2 or None in lengths:
        return served, []
    skipped: dict[str, dict[str, Any]] = {}
    lowered = dict(served)
    for arm in arms:
        model = served[arm.name]
        cache = model.kv_cache
        if cache is None:
            continue
        room = fit.longest_request(model, cfg, places_of(arm))
        needed = {cell.name: min(model.max_len, (cell.prompt_len or 0) + longest(cfg.workload)) for cell in arm.cells}
        fitting = [tokens for tokens in needed.values() if tokens <= room]
        if not fitting or len(fitting) == len(needed):
            continue
        lowered[arm.name] = replace(model, max_len=max(fitting))
        for name, tokens in needed.items():
            if tokens > room:
                skipped[name] = {
                    "cell": name,
                    "kind": "memory",
                    "reason": (
                        f"a request of {tokens:,} tokens needs {fit.gib(cache.least(tokens))} of KV, and there is room "
                        f"for {room:,} tokens ({fit.gib(cache.least(room))})"
                    ),
                    "needed_bytes": cache.least(tokens),
                }
    return lowered, list(skipped.values())
