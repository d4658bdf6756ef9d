"""Checks of the settings of datasets that need no model. `wp1.config.checks.check` calls them."""

from pathlib import Path
from typing import Any

from wp1.core.errors import ConfigError
from wp1.quality import benchmarks
from wp1.quality.benchmarks import Benchmarks
from wp1.workload.limits import check_list

# Keys of datasets with tasks, whose answers are scored.
SCORED_ONLY = (
    "samples_per_task", "languages", "min_chars", "max_chars", "repo", "revision", "config", "files", "depths", "squad",
    "hotpot", "prompt_lens", "benchmark",
)  # fmt: skip
# What has no effect on prompts that are made here.
DRAWN_ONLY = ("languages", "min_chars", "max_chars", "path")
MADE_ONLY = ("depths", "squad", "hotpot", "prompt_lens")


def check(cfg: Any) -> None:
    """Refuses settings of `dataset` that contradict each other. Raises ConfigError, naming the key to change."""
    dataset = cfg.dataset
    if cfg.workload.prompts != "scored":
        if dataset.tasks:
            raise ConfigError(
                f"dataset={dataset.name} has tasks, whose answers are scored: choose workload=scored, or experiment=e4"
            )
        for key in SCORED_ONLY:
            if dataset[key] is not None:
                raise ConfigError(f"dataset.{key} is for tasks that are scored: choose dataset=longbench and the like")
        _check_questions(dataset)
        return
    if not dataset.tasks:
        raise ConfigError(
            f"workload=scored needs tasks, and dataset={dataset.name} has none: choose dataset=subsets and the like"
        )
    known = benchmarks.known(dataset.benchmark)
    _check_tasks(dataset, known)
    if cfg.model.source == "random_weights":
        raise ConfigError(
            f"dataset={dataset.name} scores answers, and those of random weights mean nothing: choose "
            "model=smollm2_135m or another with weights"
        )
    if dataset.limit is not None:
        raise ConfigError("dataset.limit is for questions that are not scored: set dataset.samples_per_task")
    if cfg.workload.num_requests is not None:
        raise ConfigError("workload.num_requests has no effect on a scored dataset: set dataset.samples_per_task")
    if dataset.source == "builtin":
        _check_made(cfg, known)
    else:
        _check_drawn(cfg)


def _check_questions(dataset: Any) -> None:
    if dataset.source == "file":
        if dataset.path is None:
            raise ConfigError("dataset.path is empty: set dataset.path=FILE, its forms are in conf/dataset/file.yaml")
        if not Path(dataset.path).expanduser().is_file():
            raise ConfigError(f"dataset.path={dataset.path} is not a file: name one of JSON objects")
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
            raise ConfigError(f"dataset.tasks: {task.name} is not built in, there are {', '.join(makeable)}; {instead}")
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
        raise ConfigError(
            f"dataset.prompt_lens is empty: {dataset.name} is made to lengths, name some as in [1024,2048]"
        )
    most = cfg.model.max_len
    check_list("dataset.prompt_lens", lengths, f"lengths in tokens within model.max_len={most}", 1, most)
    if dataset.samples_per_task is None:
        raise ConfigError("dataset.samples_per_task is empty: a set that is made has as many as you ask for")
    for key in DRAWN_ONLY:
        if dataset[key] is not None:
            raise ConfigError(f"dataset.{key} has no effect on prompts that are made: drop it")
    for benchmark in known.values():
        if benchmark.built_in is not None:
            benchmark.built_in.check(dataset)


def _check_drawn(cfg: Any) -> None:
    dataset = cfg.dataset
    for key in MADE_ONLY:
        if dataset[key] is not None:
            raise ConfigError(f"dataset.{key} is for prompts that are made: drop it, or choose dataset=ruler_subset")
    if dataset.path is None:
        if dataset.source == "file":
            raise ConfigError("dataset.path is empty: name a file, or a folder with a file a task")
        if dataset.repo is None and dataset.files is None:
            raise ConfigError("dataset.repo is empty: set it to owner/name, or set dataset.path")
    elif not Path(dataset.path).expanduser().exists():
        raise ConfigError(f"dataset.path={dataset.path} is not there: name a file, or a folder with a file a task")
