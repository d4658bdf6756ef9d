"""Checks of dataset settings that need no model. Called by `wp1.config.checks.check`."""

from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import benchmarks
from wp1.quality.benchmarks import Benchmarks
from wp1.workload.limits import check_list

# Keys that only datasets with scored tasks have.
SCORED_ONLY = (
    "samples_per_task", "languages", "min_chars", "max_chars", "repo", "revision", "config", "files", "depths", "squad",
    "hotpot", "prompt_lens", "benchmark",
)  # fmt: skip
# Keys that have no effect on built-in prompts, and keys that only those have.
DRAWN_ONLY = ("languages", "min_chars", "max_chars", "path")
MADE_ONLY = ("depths", "squad", "hotpot", "prompt_lens")


def check(cfg: Any) -> None:
    """Raises ConfigError, naming the key to change, if settings of `dataset` contradict each other."""
    dataset = cfg.dataset
    if cfg.workload.prompts != "scored":
        if dataset.tasks:
            raise ConfigError(
                f"dataset={dataset.name} has tasks with scored answers: choose workload=scored, or experiment=e4"
            )
        for key in SCORED_ONLY:
            if dataset[key] is not None:
                raise ConfigError(f"dataset.{key} is for scored tasks only: choose a dataset such as dataset=longbench")
        _check_questions(dataset)
        return
    if not dataset.tasks:
        raise ConfigError(
            f"workload=scored needs tasks, and dataset={dataset.name} has none: choose a dataset such as "
            "dataset=subsets"
        )
    known = benchmarks.known(dataset.benchmark)
    _check_tasks(dataset, known)
    if cfg.model.source == "random_weights":
        raise ConfigError(
            f"dataset={dataset.name} scores answers, and answers of random weights mean nothing: choose "
            "model=smollm2_135m or another model with weights"
        )
    if dataset.limit is not None:
        raise ConfigError("dataset.limit has no effect on a scored dataset: set dataset.samples_per_task")
    if cfg.workload.num_requests is not None:
        raise ConfigError("workload.num_requests has no effect on a scored dataset: set dataset.samples_per_task")
    if dataset.source == "builtin":
        _check_made(cfg, known)
    else:
        _check_drawn(cfg)


def _check_questions(dataset: Any) -> None:
    if dataset.source == "file":
        if dataset.path is None:
            raise ConfigError("dataset.path is empty: set dataset.path=FILE (formats: conf/dataset/file.yaml)")
        if not Path(dataset.path).expanduser().is_file():
            raise ConfigError(f"dataset.path={dataset.path} is not a file: name a file of JSON objects")
    elif dataset.path is not None:
        raise ConfigError("dataset.path has no effect with a built-in dataset: choose dataset=file as well")


def _check_tasks(dataset: Any, known: Benchmarks) -> None:
    try:
        tasks = benchmarks.chosen(dataset.tasks, known)
    except ConfigError as error:
        raise ConfigError(f"dataset.tasks: {error}") from error
    makeable = _makeable(known)
    for task in tasks if dataset.source == "builtin" else ():
        if f"{task.benchmark}/{task.name}" not in makeable:
            official = task.benchmark in benchmarks.own()
            instead = f"for the official set choose dataset={task.benchmark}" if official else "set dataset.source=file"
            raise ConfigError(
                f"dataset.tasks: {task.name} is not built in; {instead}, or choose from {', '.join(makeable)}"
            )
    if len(set(tasks)) < len(tasks):
        raise ConfigError(f"dataset.tasks={list(dataset.tasks)} names a task twice: name each once")


def _makeable(known: Benchmarks) -> list[str]:
    return [
        f"{one.name}/{task}"
        for one in known.values()
        if one.built_in is not None
        for task in (*one.built_in.tasks, *one.built_in.more_tasks)
    ]


def _check_made(cfg: Any, known: Benchmarks) -> None:
    dataset, lengths = cfg.dataset, cfg.dataset.prompt_lens
    if not lengths:
        raise ConfigError("dataset.prompt_lens is empty: set the lengths to make, in tokens, for example [1024,2048]")
    most = cfg.model.max_len
    check_list("dataset.prompt_lens", lengths, f"lengths in tokens within model.max_len={most}", 1, most)
    if dataset.samples_per_task is None:
        raise ConfigError("dataset.samples_per_task is empty: set the number of examples to make for each task")
    for key in DRAWN_ONLY:
        if dataset[key] is not None:
            raise ConfigError(f"dataset.{key} has no effect on built-in prompts: drop it")
    for benchmark in known.values():
        if benchmark.built_in is not None:
            benchmark.built_in.check(dataset)


def _check_drawn(cfg: Any) -> None:
    dataset = cfg.dataset
    for key in MADE_ONLY:
        if dataset[key] is not None:
            raise ConfigError(f"dataset.{key} is for built-in prompts only: drop it, or choose dataset=ruler_subset")
    if dataset.path is None:
        if dataset.source == "file":
            raise ConfigError("dataset.path is empty: name a file, or a folder with one file per task")
        if dataset.repo is None and dataset.files is None:
            raise ConfigError("dataset.repo is empty: set it to owner/name, or set dataset.path")
    elif not Path(dataset.path).expanduser().exists():
        raise ConfigError(
            f"dataset.path={dataset.path} does not exist: name a file, or a folder with one file per task"
        )
