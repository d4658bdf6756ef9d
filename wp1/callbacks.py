"""Hydra's callback for sweeps (`python -m wp1 -m ...`): one MLflow run above the sweep's runs, and their comparison.

Hydra makes a warning of what a callback raises, so what goes wrong here is said in a line of its own. Everything that
the end of a sweep needs lies in its folder by then: `sweep.json`, the jobs' folders, and a `job.json` of each job that
left no run.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from wp1 import files, locks, redaction, schema
from wp1.errors import ConfigError
from wp1.identity import PARENT_VARIABLE
from wp1.places import MANIFEST

log = logging.getLogger(__name__)

# Folder and manifest of the sweep that this process has begun and not yet ended.
_open: list[tuple[Path, dict[str, Any]]] = []


class SweepCallback(Callback):
    """Opens a sweep before its first job, notes jobs that left no run, and closes it after the last."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if config.get("resume") is not None:
            _take_up(Path(config.hydra.sweep.dir).absolute(), config)
            return
        try:
            folder = Path(config.hydra.sweep.dir).absolute()
            jobs = planned_jobs(config)
            cfg = _first_that_can_run(config, jobs)
        except Exception:  # what composing brings about has no end, and Hydra, composing next, is to say it
            return
        if cfg is None:
            # Nothing will run, and each job says why.
            return
        with suppress(OSError):  # Hydra cannot make the folder either
            folder.mkdir(parents=True, exist_ok=True)
            _begin(folder, cfg, jobs, list(config.hydra.overrides.task))

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            _without_secrets(Path(config.hydra.sweep.dir) / "multirun.yaml")

    def on_job_end(self, config: DictConfig, job_return: Any, **_: Any) -> None:
        error, run_dir = job_return.return_value, Path(config.hydra.runtime.output_dir)
        if config.hydra.mode != RunMode.MULTIRUN or error is None or (run_dir / "run_metadata.json").is_file():
            return
        from wp1.analysis.summary import write_json

        # This may be another process than the sweep's, so what there is to say goes through the folder.
        if not (Path(config.hydra.sweep.dir) / MANIFEST).is_file():
            return
        status = "refused" if isinstance(error, ConfigError) else "failed"
        job = {"job": config.hydra.job.num, "overrides": redaction.words(config.hydra.overrides.task)}
        with suppress(OSError):  # what was wrong with the job is said all the same
            run_dir.mkdir(parents=True, exist_ok=True)
            write_json(run_dir / "job.json", job | {"status": status, "reason": redaction.text(str(error))})

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        end_sweep(stopped=False)


def planned_jobs(config: DictConfig) -> list[list[str]]:
    """The overrides of each job to come, in order; one list without the swept ones where the sweeper is not Hydra's."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.core.override_parser.overrides_parser import OverridesParser

    params = [f"{key}={value}" for key, value in (config.hydra.sweeper.get("params") or {}).items()]
    words = OverridesParser.create().parse_overrides([*params, *config.hydra.overrides.task])
    if not config.hydra.sweeper._target_.endswith(f".{BasicSweeper.__name__}"):
        words = [word for word in words if not word.is_sweep_override()]
    return BasicSweeper.split_arguments(words, max_batch_size=None)[0]


def _first_that_can_run(config: DictConfig, jobs: list[list[str]]) -> DictConfig | None:
    """The configuration of the first job that `wp1.schema` has nothing against. Raises what composing raises."""
    for overrides in jobs:
        composed = GlobalHydra.instance().config_loader().load_sweep_config(config, overrides)
        with suppress(ConfigError):
            cfg = schema.resolve(OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"]))
            schema.check(cfg)
            schema.check_overrides(cfg, overrides)
            return cfg
    return None


def _begin(folder: Path, cfg: DictConfig, jobs: list[list[str]], overrides: list[str]) -> None:
    """Writes sweep.json and makes the parent run, whose id goes to the jobs by the environment."""
    from wp1.analysis import sweep
    from wp1.console import Screen
    from wp1.tracking import check_uri, open_sweep_or_say

    # Secrets of the configuration are known from here on.
    redaction.config({str(key): value for key, value in _plain(cfg).items()})
    locks.hold(folder)
    manifest = sweep.new_manifest(folder.name, cfg, jobs, overrides)
    sweep.write_manifest(folder, manifest)
    _open.append((folder, manifest))
    if not cfg.tracking.enabled:
        return
    try:
        check_uri(cfg.tracking.uri, Path(cfg.root))
    except ConfigError:
        # Each job refuses it, in words.
        return
    with Screen() as screen:
        parent = open_sweep_or_say(folder, manifest, screen)
    if parent is not None:
        os.environ[PARENT_VARIABLE] = manifest["parent_run_id"] = parent
        sweep.write_manifest(folder, manifest)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in plain.items()} if isinstance(plain, dict) else {}


def _take_up(folder: Path, config: DictConfig) -> None:
    """Goes on with a sweep that was cut short, under the MLflow run that it has, or a new one where that is gone.

    The store is that of this command, which `wp1.foreign` has looked at, and not what the folder says.
    """
    from wp1.analysis import sweep
    from wp1.console import Screen
    from wp1.tracking import open_sweep_or_say

    tracking = {key: config.tracking[key] for key in ("enabled", "uri", "timeout_s")}
    manifest = sweep.read_manifest(folder) | {"status": "running", "ended": None, "tracking": tracking}
    manifest["root"] = str(Path(str(config.root)).expanduser().resolve())
    locks.hold(folder)
    _open.append((folder, manifest))
    if manifest["tracking"]["enabled"]:
        with Screen() as screen:
            manifest["parent_run_id"] = open_sweep_or_say(folder, manifest, screen)
    if manifest["parent_run_id"] is not None:
        os.environ[PARENT_VARIABLE] = manifest["parent_run_id"]
    sweep.write_manifest(folder, manifest)


def _without_secrets(path: Path) -> None:
    """Takes secrets out of what Hydra writes into a sweep's folder when it begins."""
    with suppress(OSError, UnicodeDecodeError, ConfigError):
        before = files.read_text(path)
        if (after := "\n".join(map(redaction.text, before.split("\n")))) != before:
            files.write_text(path, after)


@contextmanager
def sweep_closed() -> Iterator[None]:
    """Ends a sweep that is still open when what is within ends otherwise than by `on_multirun_end`."""
    try:
        yield
    except BaseException as error:
        end_sweep(stopped=isinstance(error, KeyboardInterrupt))
        raise


def end_sweep(stopped: bool) -> None:
    """Compares the jobs of the open sweep, and gives its MLflow run the comparison and its status.

    stopped: by a signal. Does nothing where no sweep is open.
    """
    if not _open:
        return
    _end(*_open.pop(), stopped)


def _end(folder: Path, manifest: dict[str, Any], stopped: bool) -> None:
    _without_secrets(folder / "multirun.yaml")
    parent = manifest["parent_run_id"]
    if parent is not None:
        os.environ.pop(PARENT_VARIABLE, None)
    from wp1.analysis import sweep
    from wp1.analysis.sweep_report import write_comparison
    from wp1.console import Screen, output_to
    from wp1.tracking import close_sweep_or_say, discard_sweep

    jobs = sweep.read_jobs(folder, manifest)
    if not any(job.run_dir for job in jobs):
        # Nothing to compare, and no run for a parent to be one of.
        if parent is not None:
            discard_sweep(folder, manifest)
        return
    ended = datetime.now(UTC).isoformat(timespec="seconds")
    manifest |= {"status": sweep.status_of(jobs, stopped), "ended": ended}
    with Screen() as screen:
        try:
            sweep.write_manifest(folder, manifest)
            with screen.step("comparing the jobs"):
                page = write_comparison(folder, with_plot=not stopped)
            screen.where("compared", page)
        except Exception as error:
            # A full disk or a damaged folder; not raised, as Hydra would make several lines of it.
            with suppress(OSError), output_to(folder / "wp1.log"):
                log.warning("no comparison", exc_info=True)
            screen.say(f"no comparison of the jobs: {type(error).__name__}: {schema.one_line(str(error))}")
        finally:
            # Also after one more Ctrl-C: no run stays open in MLflow.
            if parent is not None and (published := close_sweep_or_say(folder, manifest, screen)):
                screen.where("mlflow", published)
