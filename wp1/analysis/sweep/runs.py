"""Comparing any runs: how their configurations differ, whether their figures are comparable, and the pairs.

Pure: reads only the runs' folders. The other runs are compared with the first.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep.figures import Job, Pair
from wp1.core.errors import ConfigError
from wp1.core.identity import DECISIVE, settings_of
from wp1.core.paths import run_or_sweep
from wp1.workload.prompts import asks_questions

# Workload settings that may differ between cells of the same name: the name includes them, or they change how much was
# sent but not what.
SAME_CELL = (
    "prompt_len", "concurrency", "request_rate", "num_requests", "num_warmup", "max_warmup", "warmup_once", "timeout_s",
)  # fmt: skip
# In these groups one setting stands for the others if it differs.
NAMED_BY = {"scheduler": "name", "model": "name", "transfer": "name", "dataset": "name", "slo": "name"}


def folders_of(given: Sequence[Path]) -> list[Path]:
    """The run folders; a sweep's folder gives those of its jobs. Raises ConfigError if a folder is neither."""
    found: list[Path] = []
    for folder in given:
        if run_or_sweep(folder) == "sweep":
            jobs = sweep_figures.read_jobs(folder, sweep_figures.read_manifest(folder))
            found += [job.run_dir for job in jobs if job.run_dir is not None]
        else:
            found.append(folder)
    if len(dict.fromkeys(folder.resolve() for folder in found)) < 2:
        raise ConfigError("there is nothing to compare: name two runs or more")
    return found


def read_runs(folders: Sequence[Path]) -> list[Job]:
    """The runs as jobs of an imaginary sweep: numbered, and named by the settings in which they differ."""
    found = [RunTables(folder, compared=True) for folder in folders]
    settings = [settings_of(run.config) for run in found]
    keys = differing_settings(settings)
    jobs = []
    for number, (run, of_run) in enumerate(zip(found, settings, strict=True)):
        metadata = run.metadata
        # scheduler=disagg, as on the command line, and not name=disagg.
        names = {key.removesuffix(".name"): said(of_run, key) for key in naming(keys)}
        status = "unfinished" if metadata["status"] == "running" else metadata["status"]
        jobs.append(Job(number, names or {"run": metadata["run_id"]}, status, metadata["reason"], run, metadata))
    return jobs


def differing_settings(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that differ between runs, sorted."""
    keys = dict.fromkeys(key for of_run in settings for key in of_run)
    return sorted(key for key in keys if any(of_run.get(key) != settings[0].get(key) for of_run in settings))


def naming(keys: Sequence[str]) -> list[str]:
    """The differing settings that name runs briefly: `scheduler.name`, but not what follows from it."""
    led = {group for group, key in NAMED_BY.items() if f"{group}.{key}" in keys}
    return [key for key in keys if (group := key.partition(".")[0]) not in led or key == f"{group}.{NAMED_BY[group]}"]


def said(settings: Mapping[str, Any], key: str) -> str:
    value = settings.get(key)
    return "—" if value is None else value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def check_alike(jobs: Sequence[Job]) -> None:
    """Raises ConfigError if cells of the same name, or attainment, would not mean the same in two of the runs."""
    first = jobs[0]
    for job in jobs[1:]:
        a, b = (_definitions(one.run.config) for one in (first, job))
        for key in sorted(a | b):
            # A run without limits has no attainment, so there is nothing to compare wrongly.
            if a.get(key) != b.get(key) and not (key.startswith("slo.") and None in (a.get(key), b.get(key))):
                raise ConfigError(
                    f"{key} is {said(a, key)} in {first.metadata['run_id']} and {said(b, key)} in "
                    f"{job.metadata['run_id']}: their figures are not comparable. Compare runs in "
                    "which it is the same"
                )


def _definitions(config: Mapping[str, Any]) -> dict[str, Any]:
    workload = {key: value for key, value in config["workload"].items() if key not in SAME_CELL}
    found = settings_of({"workload": workload}) | {
        f"slo.{key}": most for key, most in aggregates.limits(config["slo"]).items()
    }
    if asks_questions(config):
        found |= settings_of({"dataset": config["dataset"]})
    return found


def warnings(jobs: Sequence[Job]) -> list[str]:
    """Reasons to doubt a difference although it can be computed, a line each."""
    found = []
    for name, of_run in (
        ("hardware", _hardware),
        ("labels", lambda job: ", ".join(job.labels) or "none"),
        *((package, lambda job, p=package: job.metadata["versions"].get(p, "none")) for package in DECISIVE),
        ("weights", lambda job: str(job.metadata["model"].get("digest", "none"))[:12]),
        ("seed", lambda job: str(job.metadata["seed"])),
    ):
        values = [of_run(job) for job in jobs]
        if len(set(values)) > 1:
            each = [f"run {job.number} {value}" for job, value in zip(jobs, values, strict=True)]
            found.append(f"different {name}: {'; '.join(each)}")
    found += [f"run {job.number} {job.status}" for job in jobs if job.status != "completed"]
    return found


def _hardware(job: Job) -> str:
    hardware = job.metadata["hardware"]
    return ", ".join(gpu["name"] for gpu in hardware["gpus"]) or f"{hardware['cpu']}, {hardware['cores']} cores"


def pairs(jobs: Sequence[Job], table: pl.DataFrame) -> list[Pair]:
    """The first run paired with each other run, over the cells that both have; arm by arm if runs have several.

    table: from `figures.rows`. Raises ConfigError if there is no pair.
    """
    of_run = {
        job.number: table.filter(
            (pl.col("job") == job.number) & pl.col("cell").is_not_null() & pl.col("requests_ok").is_not_null()
        )
        for job in jobs
    }
    first, found = jobs[0], []
    for job in jobs[1:]:
        several = any(of_run[one.number]["arm"].n_unique() > 1 for one in (first, job))
        keys = ["arm", "cell"] if several else ["cell"]
        both = of_run[first.number].join(of_run[job.number], on=keys, how="inner", maintain_order="left", suffix="_b")
        by_arms: dict[tuple[str, str], list[str]] = {}
        for row in both.iter_rows(named=True):
            by_arms.setdefault((row["arm"], row.get("arm_b", row["arm"])), []).append(row["cell"])
        found += [Pair(first, job, arms, arms[0] if several else None, cells) for arms, cells in by_arms.items()]
    if not found:
        have = "; ".join(
            f"run {job.number}: {', '.join(of_run[job.number]['cell'].unique(maintain_order=True)) or 'none'}"
            for job in jobs
        )
        raise ConfigError(
            f"the runs have no cell in common ({have}): compare runs with the same prompt lengths and loads"
        )
    return found
