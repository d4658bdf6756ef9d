"""A launcher as joblib's and submitit's are: each job in a process of its own, of which only the folder tells.

For tests with this folder on PYTHONPATH: `hydra/launcher=elsewhere`. Jobs run with the engine double.
"""

import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cloudpickle
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict

ConfigStore.instance().store(
    group="hydra/launcher", name="elsewhere", node={"_target_": "hydra_plugins.wp1_elsewhere.ElsewhereLauncher"}
)


class ElsewhereLauncher(Launcher):
    def setup(self, **given: Any) -> None:
        self.given = given

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        Path(self.given["config"].hydra.sweep.dir).mkdir(parents=True, exist_ok=True)
        for number, overrides in enumerate(job_overrides, start=initial_job_idx):
            what = cloudpickle.dumps((Singleton.get_state(), self.given, list(overrides), number))
            process = multiprocessing.get_context("spawn").Process(target=_job, args=(what,))
            process.start()
            process.join()
            if process.exitcode and "WP1_TEST_RAISES" in os.environ:
                raise RuntimeError("a worker was killed")
        # Some launchers raise, as above, and some say nothing.
        return []


def _job(what: bytes) -> None:
    state, given, overrides, number = cloudpickle.loads(what)
    Singleton.set_state(state)
    _with_double()
    if os.environ.get("WP1_TEST_KILLED") == str(number):
        os.kill(os.getpid(), signal.SIGKILL)
    config = given["hydra_context"].config_loader.load_sweep_config(given["config"], overrides)
    with open_dict(config):
        config.hydra.job.id = config.hydra.job.num = number
    run_job(
        hydra_context=given["hydra_context"],
        task_function=given["task_function"],
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )


def _with_double() -> None:
    from tests.double import fresh, unpainted
    from wp1.analysis.base import style
    from wp1.serving import vllm_backend

    double = fresh()
    double.dies_at = int(os.environ["WP1_TEST_DIES_AT"]) if "WP1_TEST_DIES_AT" in os.environ else None
    vllm_backend.VLLMBackend = double  # type: ignore[misc]
    style.save = unpainted
