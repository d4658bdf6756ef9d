"""What is known before an engine starts: the model, the prompts' text, the arms, and that it all fits."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from wp1 import hardware, peaks
from wp1.collectors import Collector
from wp1.errors import ConfigError
from wp1.plan import Arm, plan
from wp1.report import collectors_of
from wp1.serving import fit, models
from wp1.serving.engines import key_of, make_scheduler, make_transfer, places_of
from wp1.serving.models import ServedModel
from wp1.workload import material, prompts
from wp1.workload.limits import longest


@dataclass(frozen=True)
class Prepared:
    """What is known before an engine starts."""

    model: ServedModel
    material: prompts.Material
    collectors: list[Collector]
    arms: list[Arm]
    labels: list[str]
    transfer: dict[str, str]  # which connector and why, of a disaggregated run
    skipped: list[dict[str, Any]]  # cells that do not fit, as run_metadata.json has them
    peaks: dict[str, Any] | None  # what the device can do at most, if that is known


def prepare(cfg: Any, engine_log: Path, tell: Callable[[str], None], up: str | None = None) -> Prepared:
    """The model, and the checks that need it.

    up: what was asked of engines that are up from the job before (`engines.key_of`): their arm fits.
    Raises ConfigError where memory, lengths, collectors or engine arguments do not fit.
    """
    collectors = collectors_of(_plain(cfg))
    try:
        model = models.prepare(cfg, tell)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or models.cache_folder()}: {error.strerror or error}; wp1 keeps prepared models in "
            f"{models.cache_folder()}, set WP1_CACHE to a folder that can be written"
        ) from error
    tell("checking that it fits")
    arms = plan(cfg)
    model, skipped = _cells_that_fit(cfg, model, [arm for arm in arms if key_of(cfg, arm.scheduler) != up])
    colocated = False
    for arm in arms:
        engines = places_of(arm)
        if key_of(cfg, arm.scheduler) != up:
            fit.check_memory(model, cfg, engines)
        colocated = colocated or any(place.sharing > 1 for _, place in engines)
    tell("making prompts")
    made_of = material.prepare(cfg, model, arms[0].cells, tell)
    transfer: dict[str, str] = {}
    for arm in arms:
        if arm.scheduler.mode == "disagg":
            chosen = make_transfer(cfg, arm, model)
            transfer = {"name": chosen.name, "why": chosen.why()}
        if key_of(cfg, arm.scheduler) != up:
            make_scheduler(cfg, arm, model, engine_log, kill=lambda: None, write=lambda _: None).check()
    labels = ["random weights"] * model.random_weights + ["colocated"] * colocated
    known = peaks.for_run(hardware.describe(), cfg.experiment.measure_peaks, tell)
    return Prepared(model, made_of, collectors, arms, labels, transfer, skipped, known)


def _cells_that_fit(cfg: Any, model: ServedModel, arms: list[Arm]) -> tuple[ServedModel, list[dict[str, Any]]]:
    """The model as it is served, and the cells whose prompts are too long for these arms' memory.

    Of several prompt lengths those that have room are measured, with engines for the longest of these; where none has,
    or only model.max_len itself has none, it is `fit.check_memory`'s to refuse.
    """
    lengths = {cell.prompt_len for arm in arms for cell in arm.cells}
    if len(lengths) < 2 or None in lengths:
        return model, []
    room = min(fit.longest_request(model, cfg, places_of(arm)) for arm in arms)
    needed = {length: (length or 0) + longest(cfg.workload) for length in lengths}
    fitting = [tokens for tokens in needed.values() if tokens <= room]
    if not fitting or len(fitting) == len(needed):
        return model, []
    skipped = [
        {
            "cell": cell.name,
            "kind": "memory",
            "reason": (
                f"a request of {tokens:,} tokens needs {fit.gib(tokens * model.kv_bytes_per_token)} of KV, and there "
                f"is room for {room:,} tokens ({fit.gib(room * model.kv_bytes_per_token)})"
            ),
            "needed_bytes": tokens * model.kv_bytes_per_token,
        }
        for cell in arms[0].cells
        if (tokens := needed[cell.prompt_len]) > room
    ]
    return replace(model, max_len=max(fitting)), skipped


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
