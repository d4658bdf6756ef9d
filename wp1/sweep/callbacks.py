"""A Hydra callback for sweeps (`python -m wp1 -m ...`): makes the parent run in MLflow and compares the jobs.

It also finds out how jobs in other processes ended, such as under joblib's launcher: `failed_elsewhere`. Hydra turns an
exception from a callback into a warning, so errors here are reported on a line of their own. Everything needed at the
end of a sweep is in its folder: `sweep.json`, the jobs' folders, and a `job.json` for each job without a run.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from wp1.config import checks, schema
from wp1.core import files, locks, parts, redaction
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.identity import PARENT_VARIABLE, as_objects
from wp1.core.paths import JOB, MANIFEST
from wp1.core.run_files import METADATA

log = logging.getLogger(__name__)

# Folder and manifest of the sweep that this process has begun but not ended yet.
_open: list[tuple[Path, dict[str, Any]]] = []


@dataclass(frozen=True)
class _Begun:
    """A sweep that a process has begun."""

    process: int
    folder: Path
    jobs: int | None  # None if the sweeper decides as it proceeds
    ended_here: set[int] = field(default_factory=set)  # numbers of jobs


_begun: list[_Begun] = []


class SweepCallback(Callback):
    """Opens a sweep before its first job, records jobs that left no run, and closes the sweep after its last job."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        _begun[:] = [_Begun(os.getpid(), Path(config.hydra.sweep.dir).absolute(), _number_of_jobs(config))]
        if config.get("resume") is not None:
            _take_up(Path(config.hydra.sweep.dir).absolute(), config)
            return
        try:
            folder = Path(config.hydra.sweep.dir).absolute()
            jobs = planned_jobs(config)
            cfg = _first_that_can_run(config, jobs)
        except Exception:  # composing may raise anything; Hydra composes next and will report it
            return
        if cfg is None:
            # Nothing will run, and each job will report its reason.
            return
        with suppress(OSError):  # Hydra will fail to make the folder too, and report it
            folder.mkdir(parents=True, exist_ok=True)
            _begin(folder, cfg, jobs, list(config.hydra.overrides.task))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        _without_secrets(Path(config.hydra.sweep.dir) / "multirun.yaml")
        if _elsewhere():
            # In a resumed sweep, it is the job's previous result.
            (Path(config.hydra.runtime.output_dir) / JOB).unlink(missing_ok=True)

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        error, run_dir = job_return.return_value, Path(config.hydra.runtime.output_dir)
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        elsewhere = _elsewhere()
        if not elsewhere:
            _begun[0].ended_here.add(config.hydra.job.num)
        if error is None or (not elsewhere and METADATA.at(run_dir).is_file()):
            return
        from wp1.core.run_folder import write_json

        # A sweep in which no job could run leaves nothing. A job in another process can report its error only through
        # the folder.
        if not elsewhere and not (Path(config.hydra.sweep.dir) / MANIFEST).is_file():
            return
        status = "refused" if isinstance(error, ConfigError) else "failed"
        job = {"job": config.hydra.job.num, "overrides": redaction.words(config.hydra.overrides.task)}
        with suppress(OSError):  # the job's own error is reported anyway
            run_dir.mkdir(parents=True, exist_ok=True)
            write_json(run_dir / JOB, job | {"status": status, "reason": redaction.text(str(error))})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        end_sweep(stopped=False)


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each planned job, in order; with a sweeper other than Hydra's, one list without swept ones."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    words = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        words = [word for word in words if not word.is_sweep_override()]
    return BasicSweeper.split_arguments(words, max_batch_size=None)[0]


def _number_of_jobs(config: DictConfig) -> int | None:
    """The number of jobs; None if the sweeper is not Hydra's, or the overrides are invalid, which Hydra reports."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        return None
    try:
        return len(planned_jobs(config))
    except Exception:
        return None


def _elsewhere() -> bool:
    """Whether this process is not the one that began the sweep."""
    return not _begun or _begun[0].process != os.getpid()


def sweep_began() -> bool:
    """Whether this process has begun a sweep."""
    return not _elsewhere()


def failed_elsewhere() -> list[BaseException]:
    """The errors of this sweep's jobs that ran in other processes, read from the sweep's folder.

    A job that a signal stopped gives KeyboardInterrupt. A job that left no trace counts as failed.
    """
    if _elsewhere():
        return []
    from wp1.core.run_folder import read_json

    sweep = _begun[0]
    errors: dict[int, BaseException | None] = {}
    for path in (*sweep.folder.rglob(METADATA.name), *sweep.folder.rglob(JOB)):
        try:
            left = read_json(path)
            job = left if path.name == JOB else left["sweep"]
            # job.json is newer than run_metadata.json, so it is read last and overrides it.
            errors[int(job["job"])] = _error_of(int(job["job"]), left["status"], left["reason"])
        except (WP1Error, KeyError, TypeError, ValueError):
            # The file cannot be read, or belongs to an unrelated run that was put there.
            continue
    numbers = range(sweep.jobs) if sweep.jobs is not None else sorted(errors)
    if not numbers and not sweep.ended_here:
        return [WP1Error(f"no job left anything in {sweep.folder}: see the launcher's own output")]
    missing = {
        n: WP1Error(f"job {n}: ended without a result; see {sweep.folder / str(n)} and the launcher's output")
        for n in numbers
    }
    return [error for n in numbers if n not in sweep.ended_here and (error := errors.get(n, missing[n])) is not None]


def _error_of(number: int, status: str, reason: str | None) -> BaseException | None:
    """The error that a job would have raised in this process; None if it completed."""
    if status == "completed":
        return None
    if status == "interrupted":
        return KeyboardInterrupt()
    kind = ConfigError if status == "refused" else WP1Error
    return kind(f"job {number}: {'killed before it ended' if status == 'running' else reason}")


def _first_that_can_run(config: DictConfig, jobs: list[list[str]]) -> DictConfig | None:
    """The configuration of the first job that passes all checks, or None. Raises what composing raises."""
    for overrides in jobs:
        composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        with suppress(ConfigError):
            cfg = schema.resolve_job(composed)
            checks.check(cfg)
            checks.check_overrides(cfg, overrides)
            return cfg
    return None


def _begin(folder: Path, cfg: DictConfig, jobs: list[list[str]], overrides: list[str]) -> None:
    """Writes sweep.json and makes the parent run, whose id is passed to the jobs in the environment."""
    from wp1.analysis.sweep import figures as sweep_figures
    from wp1.runner.console import Screen
    from wp1.tracking.mlflow_store import open_sweep_or_say
    from wp1.tracking.store import check_uri

    # Registers the configuration's secrets for redaction.
    redaction.config(as_objects(cfg))
    locks.hold(folder)
    manifest = sweep_figures.new_manifest(folder.name, cfg, jobs, overrides)
    sweep_figures.write_manifest(folder, manifest)
    _open.append((folder, manifest))
    if not cfg.tracking.enabled:
        return
    try:
        check_uri(cfg.tracking.uri, Path(cfg.root))
    except ConfigError:
        # Each job refuses it with a message.
        return
    with Screen() as screen:
        parent = open_sweep_or_say(folder, manifest, screen)
    if parent is not None:
        os.environ[PARENT_VARIABLE] = manifest["parent_run_id"] = parent
        sweep_figures.write_manifest(folder, manifest)


def _take_up(folder: Path, config: DictConfig) -> None:
    """Resumes an interrupted sweep under its MLflow run, or under a new one if that was deleted.

    The store is this command's, which `wp1.core.untrusted` has checked, not the one named in the folder.
    """
    from wp1.analysis.sweep import figures as sweep_figures
    from wp1.runner.console import Screen
    from wp1.tracking.mlflow_store import open_sweep_or_say

    tracking = {key: config.tracking[key] for key in ("enabled", "uri", "timeout_s")}
    manifest = sweep_figures.read_manifest(folder) | {"status": "running", "ended": None, "tracking": tracking}
    manifest["root"] = str(Path(str(config.root)).expanduser().resolve())
    locks.hold(folder)
    _open.append((folder, manifest))
    if manifest["tracking"]["enabled"]:
        with Screen() as screen:
            manifest["parent_run_id"] = open_sweep_or_say(folder, manifest, screen)
    if manifest["parent_run_id"] is not None:
        os.environ[PARENT_VARIABLE] = manifest["parent_run_id"]
    sweep_figures.write_manifest(folder, manifest)


def _without_secrets(path: Path) -> None:
    """Removes secrets from a file that Hydra writes into a sweep's folder at its start."""
    with suppress(OSError, UnicodeDecodeError, ConfigError):
        before = files.read_text(path)
        if (after := "\n".join(map(redaction.text, before.split("\n")))) != before:
            files.write_text(path, after)


@contextmanager
def sweep_closed() -> Iterator[None]:
    """Ends a sweep that is still open if the body raises before `on_multirun_end` is called."""
    try:
        yield
    except BaseException as error:
        end_sweep(stopped=isinstance(error, KeyboardInterrupt))
        raise


def end_sweep(stopped: bool) -> None:
    """Compares the jobs of the open sweep and adds the comparison and the status to its MLflow run.

    stopped: whether a signal stopped it. Does nothing if no sweep is open.
    """
    if not _open:
        return
    _end(*_open.pop(), stopped)


def _end(folder: Path, manifest: dict[str, Any], stopped: bool) -> None:
    _without_secrets(folder / "multirun.yaml")
    parent = manifest["parent_run_id"]
    if parent is not None:
        os.environ.pop(PARENT_VARIABLE, None)
    from wp1.analysis.sweep import figures as sweep_figures
    from wp1.analysis.sweep.report import write_comparison
    from wp1.machine.output import output_to
    from wp1.runner.console import Screen
    from wp1.tracking.mlflow_store import close_sweep_or_say, discard_sweep

    jobs = sweep_figures.read_jobs(folder, manifest)
    if not any(job.run_dir for job in jobs):
        # There is nothing to compare, and no run below the parent.
        if parent is not None:
            discard_sweep(folder, manifest)
        return
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    manifest |= {"status": sweep_figures.status_of(jobs, stopped), "ended": ended}
    with Screen() as screen:
        try:
            sweep_figures.write_manifest(folder, manifest)
            with screen.step("comparing the jobs"):
                page = write_comparison(folder, with_plot=not stopped)
            screen.where("compared", page)
        except Exception as error:
            # A full disk or a damaged folder. Not raised, because Hydra would print several lines.
            with suppress(OSError), output_to(folder / "wp1.log"):
                log.warning("no comparison", exc_info=True)
            screen.say(f"no comparison of the jobs: {type(error).__name__}: {parts.one_line(str(error))}")
        finally:
            # Even after another Ctrl-C, so that no run stays open in MLflow.
            if parent is not None and (published := close_sweep_or_say(folder, manifest, screen)):
                screen.where("mlflow", published)
