"""A sweep as one comparison: a row for each job, arm and cell, and pairs of jobs that have the same cells.

Pure: reads only the sweep's folder, which has `sweep.json` (what was to run) and a folder for each job that began.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import aggregates, metrics
from wp1.analysis.base.markdown import plain
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.comparison import arms, parity
from wp1.analysis.device import roofline
from wp1.core import redaction, shapes
from wp1.core.errors import WP1Error
from wp1.core.paths import JOB, MANIFEST
from wp1.core.run_files import METADATA, SUMMARY
from wp1.core.run_folder import read_json, write_json
from wp1.workload.prompts import own_source

# Keys that a job's files must have.
OF_JOB = ("job", "overrides", "status", "reason")
# Keys of sweep.json that a resumed sweep needs.
OF_MANIFEST = ("command", "root", "jobs", "status", "tracking", "parent_run_id")
NO_CELL: dict[str, Any] = {"arm": None, "cell": None, "requests_ok": None, "requests_failed": None}


def figures() -> list[metrics.Figure]:
    """The figures of each cell in a sweep's table: those on the page, and means with intervals for the plot."""
    found = []
    for metric in metrics.METRICS:
        drawn = ("mean", "mean_low", "mean_high") if metric.shown.plots and metric.of_one_request else ()
        found += metric.at(tuple(dict.fromkeys((*metric.shown.sweep, *drawn))))
    return found


def no_figures() -> dict[str, Any]:
    return {figure.column: None for figure in figures()}


@dataclass(frozen=True)
class Job:
    """One job of a sweep and its run, if it has one."""

    number: int
    overrides: dict[str, str]  # by key
    status: str  # completed, failed, interrupted or unfinished, as its run was; refused, stopped or not started
    reason: str | None
    left: RunTables | None  # the folder of its run; None if it left none
    metadata: dict[str, Any]  # {} if it left no run

    @property
    def labels(self) -> list[str]:
        return self.metadata.get("labels", [])

    @property
    def run_dir(self) -> Path | None:
        return None if self.left is None else self.left.path

    @property
    def run(self) -> RunTables:
        """The folder of its run; only for a job that left one."""
        assert self.left is not None
        return self.left


def new_manifest(name: str, cfg: Any, jobs: list[list[str]], overrides: list[str]) -> dict[str, Any]:
    """The contents of sweep.json when a sweep begins.

    cfg: the configuration of its first job. jobs: each job's overrides. overrides: the sweep's, as typed.
    """
    return {
        "sweep": name,
        "status": "running",
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "ended": None,
        "experiment": cfg.experiment.name,
        "question": cfg.experiment.question,
        "command": ["wp1", *redaction.words(sys.argv[1:])],
        "overrides": redaction.words(overrides),
        "jobs": [redaction.words(job) for job in jobs],
        "root": cfg.root,
        "tracking": {key: cfg.tracking[key] for key in ("enabled", "uri", "timeout_s")},
        "parent_run_id": None,
    }


def read_manifest(folder: Path) -> dict[str, Any]:
    """The contents of sweep.json. Raises WP1Error if the folder is not a sweep's."""
    return read_json(folder / MANIFEST, shapes.MANIFEST)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes sweep.json, without credentials in the address of its tracking store."""
    tracking = manifest["tracking"]
    shown = tracking | {"uri": redaction.text(tracking["uri"])} if "uri" in tracking else tracking
    write_json(folder / MANIFEST, manifest | {"tracking": shown})


def read_jobs(folder: Path, manifest: dict[str, Any]) -> list[Job]:
    """The jobs of a sweep in order, including those that left no run or never started.

    manifest: from `read_manifest`. Unreadable files count as missing.
    """
    jobs = {number: _without_run(folder, number, overrides) for number, overrides in enumerate(manifest["jobs"])}
    for _, left in _readable(folder, JOB, shapes.JOB):
        jobs[left["job"]] = Job(left["job"], by_key(left["overrides"]), left["status"], left["reason"], None, {})
    for run_dir, metadata in _readable(folder, METADATA.name, shapes.METADATA):
        job = metadata.get("sweep") or {}
        if job.get("name") == manifest["sweep"]:
            status, reason = metadata["status"], metadata["reason"]
            if status == "running":
                status, reason = "unfinished", "still running, or killed"
            jobs[job["job"]] = Job(
                job["job"], by_key(job["overrides"]), status, reason, RunTables(run_dir, True), metadata
            )
    return [jobs[number] for number in sorted(jobs)]


def _readable(folder: Path, name: str, shape: Any) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in sorted(folder.rglob(name)):
        with suppress(WP1Error):
            found = read_json(path, shape)
            found.require(*(key for key in shape if key in OF_JOB))
            yield path.parent, found


def _without_run(folder: Path, number: int, overrides: list[str]) -> Job:
    begun = (folder / str(number)).is_dir()
    status, reason = ("stopped", "before it measured anything") if begun else ("not started", None)
    return Job(number, by_key(overrides), status, reason, None, {})


def by_key(overrides: list[str]) -> dict[str, str]:
    """Overrides by key as typed, without Hydra's leading pluses and the backslashes it adds before colons."""
    pairs = (word.lstrip("+").partition("=") for word in overrides)
    return {key: re.sub(r"\\(.)", r"\1", value) for key, _, value in pairs}


def status_of(jobs: list[Job], stopped: bool) -> str:
    """How a sweep ended, with a run's statuses: completed, failed, or interrupted if a signal stopped it."""
    if stopped or any(job.status == "interrupted" for job in jobs):
        return "interrupted"
    return "completed" if all(job.status == "completed" for job in jobs) else "failed"


def all_labels(jobs: list[Job]) -> list[str]:
    """The labels of all jobs, each once."""
    return list(dict.fromkeys(label for job in jobs for label in job.labels))


def differing(jobs: list[Job]) -> list[str]:
    """The override keys that differ between jobs, in the order typed."""
    keys = dict.fromkeys(key for job in jobs for key in job.overrides)
    return [key for key in keys if len({job.overrides.get(key) for job in jobs}) > 1]


def titles(keys: list[str]) -> dict[str, str]:
    """A title for each key: its last part if that is unique, else the whole key."""
    lasts = [key.rpartition(".")[2] for key in keys]
    return {key: last if lasts.count(last) == 1 else key for key, last in zip(keys, lasts, strict=True)}


def name_of(job: Job, keys: list[str]) -> str:
    """What distinguishes a job from the others of its sweep, such as `scheduler=disagg`."""
    called = titles(keys)
    return (
        plain(", ".join(f"{called[key]}={job.overrides[key]}" for key in keys if key in job.overrides))
        or f"job {job.number}"
    )


def rows(jobs: list[Job]) -> pl.DataFrame:
    """One row per job, arm and cell: the overrides that differ, counts, metrics (`figures`), status.

    A job without cells, because it failed early or never ran, is one row with its status. A skipped cell has the status
    "skipped" and no figures.
    """
    keys = differing(jobs)
    found = []
    for job in jobs:
        head = {"job": job.number, **{key: job.overrides.get(key) for key in keys}}
        tail = {
            "labels": ", ".join(job.labels) or None,
            "status": job.status,
            "reason": (job.reason or "").partition("\n")[0] or None,
            "run_id": job.metadata.get("run_id"),
        }
        found += [head | cell | tail for cell in _cells(job)]
        found += [head | tail | cell for cell in _skipped(job)]
    texts = [*keys, "arm", "cell", "labels", "status", "reason", "run_id"]
    counts = ["job", "requests_ok", "requests_failed"]
    schema: dict[str, Any] = dict.fromkeys(texts, pl.String) | dict.fromkeys(counts, pl.Int64)
    columns = ["job", *keys, *NO_CELL, *no_figures(), "labels", "status", "reason", "run_id"]
    return pl.DataFrame(found, schema={name: schema.get(name, pl.Float64) for name in columns})


def _skipped(job: Job) -> list[dict[str, Any]]:
    """Rows of cells that were skipped for lack of time or memory, by arm."""
    skipped = job.metadata.get("skipped", [])
    names = list(dict.fromkeys(pool["arm"] for pool in job.metadata["pools"])) if skipped else []
    return [
        NO_CELL | no_figures() | {"arm": arm, "cell": one["cell"], "status": "skipped", "reason": one["reason"]}
        for arm in names
        for one in skipped
    ]


def _cells(job: Job) -> list[dict[str, Any]]:
    """The figures of each cell from the run's summary, or from its records if it has none."""
    if job.run_dir is None:
        return [NO_CELL | no_figures()]
    profiling = job.run.summary["profiling"] if job.run.has(SUMMARY) else {}
    cells = profiling.get("latency", {}).get("cells")
    if cells is None:
        measured = job.run.requests.filter(~pl.col("warmup"))
        job.run.drop_requests()
        groups = measured.group_by("arm", "cell", maintain_order=True)
        cells = {f"{arm}/{cell}": aggregates.latency(of_cell) for (arm, cell), of_cell in groups}
    found = []
    for name, of_cell in cells.items():
        arm, _, cell = name.partition("/")
        counts = {"requests_ok": of_cell["ok"], "requests_failed": of_cell["failed"]}
        values = {figure.column: figure.value_in(of_cell) for figure in figures()}
        found.append({"arm": arm, "cell": cell} | counts | values)
    return found or [NO_CELL | no_figures()]


@dataclass(frozen=True)
class Pair:
    """Two jobs, and the cells that only these two have."""

    a: Job
    b: Job
    arms: tuple[str, str]
    arm: str | None  # the arm they share, if jobs have several arms
    cells: list[str]


def pairs(jobs: list[Job], table: pl.DataFrame) -> list[Pair]:
    """The pairs of completed jobs that share a cell with no third job, each with all such cells.

    table: from `rows`. The arm must match only in jobs with several arms, as `scheduler=agg,disagg` gives two jobs
    whose single arms have different names.
    """
    completed = table.filter((pl.col("status") == "completed") & pl.col("cell").is_not_null())
    several = completed.group_by("job").agg(several=pl.col("arm").n_unique() > 1)
    keyed = completed.join(several, on="job", maintain_order="left")
    sharers: dict[tuple[str | None, str], list[tuple[int, str]]] = {}
    for job, arm, cell, many in keyed.select("job", "arm", "cell", "several").iter_rows():
        sharers.setdefault((arm if many else None, cell), []).append((job, arm))
    of = {job.number: job for job in jobs}
    found: dict[Any, Pair] = {}
    for (arm, cell), who in sharers.items():
        if len(who) == 2:
            (a, arm_a), (b, arm_b) = who
            found.setdefault((arm, a, b), Pair(of[a], of[b], (arm_a, arm_b), arm, [])).cells.append(cell)
    return list(found.values())


def contrasts(found: list[Pair]) -> dict[tuple[str, str], list[Pair]]:
    """Pairs by the names of their two sides, which come from the overrides in which they differ.

    `scheduler=agg,disagg workload.prompt_len=1024,2048` is thus one contrast of agg and disagg over both lengths.
    """
    by_names: dict[tuple[str, str], list[Pair]] = {}
    for pair in found:
        by_names.setdefault(names_of(pair), []).append(pair)
    return by_names


def names_of(pair: Pair) -> tuple[str, str]:
    """Names of a pair's two sides, from the overrides in which they differ."""
    keys = differing([pair.a, pair.b])
    arm = f", {pair.arm}" if pair.arm else ""
    a, b = (f"{name_of(job, keys) if keys else f'job {job.number}'}{arm}" for job in (pair.a, pair.b))
    return a, b


def side_by_side(names: tuple[str, str], of: list[Pair]) -> tuple[dict[str, Any], pl.DataFrame]:
    """`arms.contents` of one contrast, with its sides as the two arms; the table also names the jobs of each cell."""
    parts, devices, limits = [], {}, []
    for pair in of:
        for job, arm, name in zip((pair.a, pair.b), pair.arms, names, strict=True):
            parts.append(_of_pair(job.run.requests, arm, pair.cells).with_columns(arm=pl.lit(name)))
            devices[name] = roofline.devices_of(job.metadata["pools"], arm)
            limits.append(job.run.config["slo"])
    # Attainment under different limits is not comparable.
    slo = limits[0] if all(other == limits[0] for other in limits) else {}
    content, table = arms.contents(pl.concat(parts), names, slo, devices, _tokens(names, of))
    jobs = [{"cell": cell, "job_a": pair.a.number, "job_b": pair.b.number} for pair in of for cell in pair.cells]
    named = table.join(pl.DataFrame(jobs), on="cell", maintain_order="left")
    return content, named.select(
        pl.lit(names[0]).alias("name_a"), pl.lit(names[1]).alias("name_b"), "job_a", "job_b", *table.columns
    )


def _of_pair(requests: pl.DataFrame, arm: str, cells: list[str]) -> pl.DataFrame:
    """The requests of an arm's cells; not copied if these are all requests."""
    of_pair = (requests["arm"] == arm) & requests["cell"].is_in(cells)
    return requests if of_pair.all() else requests.filter(of_pair)


def _tokens(names: tuple[str, str], of: list[Pair]) -> parity.Basis:
    """What a comparison of the tokens of two sides needs."""
    again, alike, margin = [], True, 0.0
    for pair in of:
        for job, arm, name in zip((pair.a, pair.b), pair.arms, names, strict=True):
            asked = job.run.control.filter(pl.col("arm") == arm)
            again.append(asked.filter(pl.col("cell").is_in(pair.cells)).with_columns(arm=pl.lit(name)))
            source = own_source(job.run.config["workload"]["prompts"])
            alike = alike and source is not None and source.repeated
            margin = max(margin, parity.margin_of(job.metadata["pools"]))
    why = next((why for why in map(tokens_differ, of) if why is not None), None)
    return parity.Basis(why, pl.concat(again), alike, margin)


# Workload settings that do not change tokens: when requests time out, and warm-up.
NO_TOKENS = ("timeout_s", "num_warmup", "max_warmup", "warmup_once")
# Engine arguments that change what is computed, not only how.
OF_NUMBERS = ("quantization", "kv_cache_dtype", "speculative_config")


def unlike(pair: Pair) -> list[str]:
    """The parts of the two configurations that decide what is sent and that differ."""
    a, b = _sent(pair)
    return [key for key in ("seed", "model", "dataset", "workload") if a[key] != b[key]]


def _sent(pair: Pair) -> list[dict[str, Any]]:
    """The configurations of both, without settings that do not affect tokens."""
    configs = [dict(job.run.config) for job in (pair.a, pair.b)]
    for config in configs:
        config["workload"] = {key: value for key, value in config["workload"].items() if key not in NO_TOKENS}
    return configs


def tokens_differ(pair: Pair) -> str | None:
    """Why two jobs need not give the same tokens; None if they must, except for rounding."""
    configs = _sent(pair)
    for config in configs:
        if (temperature := config["workload"].get("temperature") or 0) > 0:
            return f"answers were sampled (workload.temperature={temperature:g}), so they differ by chance"
    if parts := unlike(pair):
        return f"the requests sent, or the model they were sent to, differ ({', '.join(parts)})"
    digests = [(job.metadata.get("model") or {}).get("digest") for job in (pair.a, pair.b)]
    if digests[0] != digests[1]:
        return "they had different weights"
    for key in ("rope", *OF_NUMBERS):
        a, b = (_of_model(config, arm, key) for config, arm in zip(configs, pair.arms, strict=True))
        if a != b:
            return f"{key} is not the same in both, so they are not the same model"
    return None


def _of_model(config: dict[str, Any], arm: str, key: str) -> Any:
    """The rotary scaling of an arm, or one of its engine arguments."""
    if key != "rope":
        return ((config.get("backend") or {}).get("engine") or {}).get(key)
    own = ((config.get("arms") or {}).get(arm) or config.get("scheduler") or {}).get("rope")
    return own or config.get("rope")
