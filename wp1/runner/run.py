"""One run, from a checked configuration to its folder: model, engines, cells, records, and how it ended."""

import asyncio
import logging
from contextlib import nullcontext, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from wp1.analysis import completeness
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.quality import answers
from wp1.analysis.report import write_report
from wp1.analysis.summary import summarise
from wp1.collectors import Collector
from wp1.core import files, identity, locks, paths, redaction
from wp1.core.errors import WP1Error
from wp1.core.paths import reports_of
from wp1.core.run_files import CONFIG, ENGINE_LOG, EXAMPLES, LOG, METADATA
from wp1.core.run_folder import write_json
from wp1.machine.output import output_to
from wp1.model.models import ServedModel
from wp1.quality import benchmarks, examples
from wp1.runner import resume
from wp1.runner.console import Screen
from wp1.runner.measure import measure
from wp1.runner.metadata import run_metadata
from wp1.runner.outcome import Outcome
from wp1.runner.prepare import Prepared, prepare
from wp1.serving.engines import Engines, moves_kv
from wp1.workload import prompts

log = logging.getLogger(__name__)


def run(
    cfg: DictConfig,
    run_dir: Path,
    run_id: str,
    screen: Screen,
    sweep: dict[str, Any] | None = None,
    engines: Engines | None = None,
    resuming: bool = False,
) -> Outcome:
    """Runs an experiment that `wp1.config.checks.check` has accepted, and writes its folder and report.

    sweep: see `metadata.run_metadata`. engines: those of a sweep, which may still be up from the previous job; None:
    the run starts its own. resuming: the folder has an unfinished run of this configuration, which is continued.
    Raises ConfigError, before any engine starts, if the model or the machine does not allow the run. A later failure is
    returned as an Outcome: everything measured so far is in the folder and in the report.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    # Registers the secrets for redaction before anything can print them.
    _shown(cfg)
    # Engines inherit this redirection, and it catches what libraries print.
    with locks.written(run_dir), output_to(ENGINE_LOG.at(run_dir)):
        if engines is not None:
            engines.make_room(cfg)
        with screen.step(f"preparing {cfg.model.name}") as tell:
            prepared = prepare(cfg, ENGINE_LOG.at(run_dir), tell, engines.key if engines is not None else None)
        metadata = run_metadata(run_id, cfg, _hash(cfg, prepared), paths.PACKAGE.parent, sweep)
        metadata |= _prepared_metadata(prepared)
        for note in prepared.notes:
            screen.say(note)
        of_cells = prepared.prompt_data.examples
        if resuming:
            metadata = resume.take_up(run_dir, metadata, prepared.arms)
        else:
            if of_cells is not None:
                examples.write(EXAMPLES.at(run_dir), of_cells.cells)
            files.write_text(CONFIG.at(run_dir), yaml.safe_dump(_shown(cfg), sort_keys=False, allow_unicode=True))
        write_json(METADATA.at(run_dir), metadata)

        collectors = prepared.collectors
        status, reason = "completed", None
        try:
            with nullcontext(engines) if engines is not None else Engines() as used:
                used.run(measure(cfg, prepared, run_dir, metadata, screen, used))
        except (KeyboardInterrupt, asyncio.CancelledError):
            status, reason = "interrupted", "stopped by a signal"
        except Exception as error:
            status, reason = "failed", _why(error, run_dir)
        try:
            with screen.step("writing the report"):
                return _finish(cfg, run_dir, metadata, collectors, status, reason)
        except Exception as error:
            # Most likely a full disk, in which case the run has failed already.
            reason = reason or _why(error, run_dir)
            with suppress(OSError):
                write_json(METADATA.at(run_dir), metadata | {"status": "failed", "reason": reason})
            return Outcome("failed", reason, RunTables(run_dir), None, None)


def _prepared_metadata(prepared: Prepared) -> dict[str, Any]:
    """The entries of run_metadata.json about what was prepared: models, arms, labels, skipped cells, inputs."""
    entries: dict[str, Any] = {"model": _model_metadata(prepared.model)}
    if any(arm.scheduler.rope is not None for arm in prepared.arms):
        entries["ropes"] = {
            arm: {"max_len": model.max_len, **model.rope.as_dict()} for arm, model in prepared.models.items()
        }
    entries["arms"] = [
        {"arm": arm.name, "scheduler": arm.scheduler.name, "moves_kv": moves_kv(arm.scheduler)} for arm in prepared.arms
    ]
    entries["labels"] = prepared.labels
    entries["skipped"] = prepared.skipped
    entries["inputs"] = prepared.inputs
    entries["notes"] = prepared.notes
    entries["peaks"] = prepared.peaks
    if any(moves_kv(arm.scheduler) for arm in prepared.arms):
        entries["transfer"] = prepared.transfer
    if prepared.prompt_data.examples is not None:
        entries["dataset"] = prepared.prompt_data.examples.source
    return entries


def _shown(cfg: DictConfig) -> dict[str, Any]:
    """The configuration as written to the run's folder: resolved, without secrets."""
    return redaction.config(identity.as_objects(cfg))


def _why(error: BaseException, run_dir: Path) -> str:
    """Why a run failed, as a message for the user. The traceback of an unexpected error goes to the run's log."""
    while isinstance(error, BaseExceptionGroup):
        # Requests run concurrently, and the first to fail cancels the others.
        error = error.exceptions[0]
    if isinstance(error, WP1Error):
        return redaction.text(str(error))
    log.error("the run failed", exc_info=error)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{error.filename or run_dir} could not be written: {error.strerror}"
    return redaction.text(f"{type(error).__name__}: {error} (traceback in {LOG.at(run_dir)})")


def _hash(cfg: DictConfig, prepared: Prepared) -> str:
    contents = {}
    if cfg.model.path is not None:
        contents["model.path"] = prepared.model.digest
    if prepared.prompt_data.examples is not None:
        contents["dataset"] = prepared.prompt_data.examples.source["digest"]
    contents |= {name: identity.file_digest(path) for name, path in prompts.source_of(cfg.workload).files(cfg).items()}
    return identity.config_hash(cfg, contents)


def _model_metadata(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "max_len": model.max_len,
        "digest": model.digest,
        "random_weights": model.random_weights,
        "rope": model.rope.as_dict(),
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_cache": None if model.kv_cache is None else asdict(model.kv_cache),
        "why_no_kv_cache": model.why_no_kv_cache,
        "weight_bytes": model.weight_bytes,
        "shape": None if model.shape is None else asdict(model.shape),
        "why_no_shape": model.why_no_shape,
    }


def _finish(
    cfg: Any, run_dir: Path, metadata: dict[str, Any], collectors: list[Collector], status: str, reason: str | None
) -> Outcome:
    """Records how the run ended, evaluates its checks, and writes summary and report.

    The report of an interrupted run has no plots: they take seconds, and the user is waiting.
    """

    def mark() -> None:
        metadata.update(status=status, reason=reason, ended=datetime.now(UTC).isoformat(timespec="seconds"))
        write_json(METADATA.at(run_dir), metadata)

    run = RunTables(run_dir)
    if (benchmark := cfg["dataset"]["benchmark"]) is not None:
        answers.save(run, benchmarks.known(benchmark))
    metadata["lines"] = completeness.lines_of(run_dir)
    mark()
    summary = summarise(run, collectors)
    metadata["labels"] = summary["labels"]
    mark()
    broken = [f"{check['name']}: {check['detail']}" for check in summary["checks"] if not check["passed"]]
    if status == "completed" and broken:
        status, reason = "failed", "; ".join(broken)
        mark()
    page = write_report(run, reports_of(run_dir, cfg), metadata, summary, with_plots=status != "interrupted")
    return Outcome(status, reason, run, page, summary)
