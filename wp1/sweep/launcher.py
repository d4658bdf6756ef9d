"""A Hydra launcher for sweeps that runs the jobs one after another in this process and reuses their engines.

Jobs with the same engine configuration run next to each other; Hydra's job numbers, folders and overrides are kept.
"""

import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, configure_log, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from wp1.config import checks, schema
from wp1.core import redaction
from wp1.core.errors import ConfigError
from wp1.core.paths import reports_of
from wp1.core.run_files import METADATA
from wp1.runner import resume

if TYPE_CHECKING:
    from wp1.serving.engines import Engines

log = logging.getLogger("hydra.wp1.launcher")

# Hydra finds launchers only in packages named hydra_plugins; ours is in this folder.
sys.path.append(str(Path(__file__).parent / "plugins"))

# The engines of the sweep running in this process; empty if there is none.
_engines: "list[Engines]" = []


def engines_of_sweep() -> "Engines | None":
    """The engines that the jobs of this process's sweep share; None for a single run."""
    return _engines[-1] if _engines else None


class SharedEnginesLauncher(Launcher):
    """Runs the jobs of a sweep. Engines stay up for the next job if it has the same engine configuration."""

    def __init__(self) -> None:
        self._config: Any = None
        self._context: Any = None
        self._task: Any = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self._config, self._context, self._task = config, hydra_context, task_function

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        Path(str(self._config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        jobs = [list(overrides) for overrides in job_overrides]
        # Checks all jobs first: if one job of a resumed sweep has changed, nothing runs.
        keys = [
            asked_of_engines(self._context.config_loader, self._config, overrides, initial_job_idx + n)
            for n, overrides in enumerate(jobs)
        ]
        order = together(keys)
        moved = "" if order == sorted(order) else f", in the order {', '.join(str(initial_job_idx + n) for n in order)}"
        log.info(f"Launching {len(jobs)} jobs locally{moved}")
        returned: dict[int, JobReturn] = {}
        with _shared_engines() as engines:
            for n, following in zip(order, [*order[1:], None], strict=True):
                engines.next_key = _single(keys[following]) if following is not None else None
                returned[n] = self._job(initial_job_idx + n, jobs[n])
        return [returned[n] for n in range(len(jobs))]

    def _job(self, number: int, overrides: list[str]) -> JobReturn:
        log.info(f"\t#{number} : {' '.join(redaction.words(filter_overrides(overrides)))}")
        config = self._context.config_loader.load_sweep_config(self._config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        done = run_job(
            hydra_context=self._context,
            task_function=self._task,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self._config.hydra.hydra_logging, self._config.hydra.verbose)
        return done


@contextmanager
def _shared_engines() -> "Iterator[Engines]":
    """Engines for all jobs of a sweep; they are stopped when it ends, for whatever reason."""
    from wp1.serving.engines import Engines

    with Engines() as engines:
        _engines.append(engines)
        try:
            yield engines
        finally:
            _engines.remove(engines)


def asked_of_engines(loader: ConfigLoader, config: DictConfig, overrides: list[str], number: int) -> tuple[str, ...]:
    """`engines.keys_of` for a planned job; () if it will be refused, or if it is complete in a resumed sweep.

    Raises ConfigError if the job's run was begun with another configuration.
    """
    from wp1.serving.engines import keys_of

    composed = loader.load_sweep_config(config, overrides)
    try:
        cfg = schema.resolve_job(composed)
        checks.check(cfg)
    except ConfigError:
        return ()
    run_dir = Path(str(config.hydra.sweep.dir)) / str(number)
    if cfg.resume is not None and METADATA.at(run_dir).is_file():
        resume.check_same(cfg, run_dir)
        if resume.is_complete(run_dir, reports_of(run_dir, cfg)):
            return ()
    return tuple(keys_of(cfg))


def _single(keys: tuple[str, ...]) -> str | None:
    """The key of the engines that a job can take over; None for a job of several arms, which starts its own."""
    return keys[0] if len(keys) == 1 else None


def together(asked: Sequence[tuple[str, ...]]) -> list[int]:
    """The order of jobs in which those with the same keys are consecutive, in order of each group's first job."""
    first: dict[tuple[str, ...], int] = {}
    for n, keys in enumerate(asked):
        first.setdefault(keys, n)
    return sorted(range(len(asked)), key=lambda n: (first[asked[n]], n))
