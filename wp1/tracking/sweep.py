"""The MLflow entry of a sweep, above the runs of its jobs."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wp1.analysis.base.markdown import inert, text
from wp1.analysis.base.markdown import plain as as_plain
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep import report as sweep_report
from wp1.core import files as plain
from wp1.core import labels as label_words
from wp1.core.paths import MANIFEST
from wp1.tracking.entry import MAX_TAG, STATUS, TRAINING_VIEW, Entry, experiment_of, milliseconds, name_of, user
from wp1.tracking.page import report_html


def sweep_entry(folder: Path, manifest: dict[str, Any], pages: Mapping[str, str]) -> Entry:
    """The MLflow entry of a sweep, from its folder, with its comparison if that has been made.

    manifest: the content of sweep.json, which the file itself may lack if the disk is full. pages: the MLflow pages of
    the jobs' runs, by wp1's run id.
    """
    jobs = sweep_figures.read_jobs(folder, manifest)
    started = milliseconds(manifest["started"])
    page = folder / sweep_report.PAGE
    texts = {}
    if page.is_file():
        markdown = inert(plain.read_text(page))
        html = report_html(markdown, folder, f"Sweep {manifest['sweep']}")
        texts = {page.name: markdown, page.with_suffix(".html").name: html}
    names = (MANIFEST, sweep_report.ROWS, sweep_report.PAIRS, sweep_report.PLOT)
    return Entry(
        experiment=experiment_of(manifest),
        question=manifest["question"],
        run_id=manifest["sweep"],
        name=_name(manifest),
        status=STATUS.get(manifest["status"], "RUNNING"),
        start_ms=started,
        end_ms=milliseconds(manifest["ended"]) if manifest["ended"] else started,
        tags=_sweep_tags(manifest, jobs),
        params={},
        metrics={},
        files=[(folder / name, None) for name in names if plain.is_plain(folder / name)],
        texts=texts,
        description=_sweep_description(manifest, jobs, pages, bool(texts)),
    )


def _name(manifest: dict[str, Any], most: int = 80) -> str:
    """The display name: the swept settings and the time."""
    jobs = [sweep_figures.by_key(overrides) for overrides in manifest["jobs"]]
    values = {key: list(dict.fromkeys(job[key] for job in jobs if key in job)) for job in jobs for key in job}
    swept = " ".join(f"{key}={','.join(found)}" for key, found in values.items() if len(found) > 1)
    what = swept if len(swept) <= most else f"{swept[: most - 1]}…"
    return name_of(manifest["experiment"], ["sweep", what], manifest["started"])


def _sweep_tags(manifest: dict[str, Any], jobs: list[sweep_figures.Job]) -> dict[str, str]:
    command = shlex.join(["python", "-m", "wp1", *manifest["command"][1:]])
    tags = {
        "sweep": manifest["sweep"],
        "overrides": shlex.join(manifest["overrides"]),
        "command": command,
        "level": "sweep",
        "status": manifest["status"],
        "jobs": str(len(jobs)),
        "labels": ", ".join(sweep_figures.all_labels(jobs)),
        "mlflow.user": user(),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
    }
    return {key: value[:MAX_TAG] for key, value in tags.items() if value}


def _sweep_description(
    manifest: dict[str, Any], jobs: list[sweep_figures.Job], pages: Mapping[str, str], compared: bool, most: int = 20
) -> str:
    """The description at the top of a sweep's page: how it ended, a link to its comparison, and its runs."""
    keys = sweep_figures.differing(jobs)
    head = f"**Sweep over {', '.join(map(as_plain, keys)) or 'one job'}**: {sweep_report.outcome(manifest, jobs)}"
    marks = [label_words.in_words(label, "**") for label in sweep_figures.all_labels(jobs)]
    files = [("comparison", "comparison.html"), ("as CSV", sweep_report.ROWS)] if compared else []
    links = [f"[{name}]({{run}}/artifacts/{file}?{TRAINING_VIEW})" for name, file in files]
    lines = []
    for job in jobs[:most]:
        name, page = sweep_figures.name_of(job, keys), pages.get(job.metadata.get("run_id", ""))
        reason = f": {text(job.reason, 200)}" if job.reason else ""
        lines.append(f"- job {job.number}, {f'[{name}]({page})' if page else name}: {job.status}{reason}")
    if len(jobs) > most:
        lines.append(f"- and {len(jobs) - most} more")
    return "\n\n".join([" · ".join([head, *marks, *links]), "\n".join(lines)])
