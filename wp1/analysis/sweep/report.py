"""The comparison of a sweep's jobs as a page of markdown, two CSV files and a plot. Pure."""

import os
import shlex
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import metrics, provenance, tables
from wp1.analysis.base.how_to_read import HOW_TO_READ_ARMS
from wp1.analysis.base.markdown import fence, form_of, plain, table, text
from wp1.analysis.comparison import report as comparison_report
from wp1.analysis.quality import figures as quality_figures
from wp1.analysis.quality import report as quality_report
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep.figures import Job, Pair, differing, titles
from wp1.analysis.sweep.plots import sweep_plot
from wp1.core import files, labels

PAGE, ROWS, PAIRS, PLOT = "comparison.md", "comparison.csv", "comparison_pairs.csv", "comparison.png"
COUNTS = (("requests_ok", "ok"), ("requests_failed", "failed"))


def write_comparison(folder: Path, with_plot: bool = True) -> Path:
    """Writes comparison.md, its CSV files and its plot into a sweep's folder, and returns the page's path.

    with_plot: False after Ctrl-C; the page then says how to add it. Raises WP1Error if the folder is not a sweep's.
    """
    manifest = sweep_figures.read_manifest(folder)
    jobs = sweep_figures.read_jobs(folder, manifest)
    found = sweep_figures.rows(jobs)
    tables.write_csv(found, folder / ROWS, 3)
    shared, frames = [], []
    for names, of in sweep_figures.contrasts(sweep_figures.pairs(jobs, found)).items():
        content, frame = sweep_figures.side_by_side(names, of)
        shared.append(contrast(content, of))
        marks = ", ".join(sweep_figures.all_labels([job for pair in of for job in (pair.a, pair.b)]))
        frames.append(frame.with_columns(labels=pl.lit(marks or None, pl.String)))
        for job in (job for pair in of for job in (pair.a, pair.b)):
            # Only one contrast's requests are in memory at a time.
            job.run.drop_requests()
    (folder / PAIRS).unlink(missing_ok=True)
    if frames:
        tables.write_csv(pl.concat(frames), folder / PAIRS, 4)
    if not with_plot:
        # Left by an earlier session.
        (folder / PLOT).unlink(missing_ok=True)
    plotted = with_plot and sweep_plot(folder / PLOT, jobs, found)
    parts = [
        _head(manifest, jobs),
        "" if with_plot else _without_plot(folder),
        f"![Mean TTFT and TPOT of each job, with 95 % intervals]({PLOT})" if plotted else "",
        jobs_table(jobs, found),
        reasons(jobs, found),
        *shared,
        f"## How to read the figures\n\n{HOW_TO_READ_ARMS}" if shared else "",
        _files(folder, manifest, jobs, bool(frames)),
    ]
    page = folder / PAGE
    files.write_text(page, "\n\n".join(part for part in parts if part) + "\n")
    return page


def outcome(manifest: dict[str, Any], jobs: list[Job]) -> str:
    """How many of the sweep's jobs completed, and whether a signal stopped it, as text."""
    completed = sum(job.status == "completed" for job in jobs)
    stopped = ", stopped by a signal" if manifest["status"] == "interrupted" else ""
    return f"{completed} of {len(jobs)} jobs completed{stopped}"


def _head(manifest: dict[str, Any], jobs: list[Job]) -> str:
    called = titles(differing(jobs))
    lines = [f"# Sweep over {' and '.join(map(plain, called.values())) or 'one job'}", ""]
    lines.append(f"**{outcome(manifest, jobs)}** · `{manifest['sweep']}` · {manifest['started']}")
    for label in sweep_figures.all_labels(jobs):
        having = [str(job.number) for job in jobs if label in job.labels]
        some = "" if len(having) == sum(job.run_dir is not None for job in jobs) else f" (jobs {', '.join(having)})"
        lines += ["", f"> {labels.in_words(label, '**')}{some}."]
    return "\n".join(lines)


def _without_plot(folder: Path) -> str:
    command = shlex.join(["python", "-m", "wp1.report", str(folder.resolve())])
    return f"> **Without a plot**, as the sweep was interrupted. `{command}` adds it."


def jobs_table(jobs: list[Job], found: pl.DataFrame) -> str:
    """The table with a row for each job, arm and cell. found: from `figures.rows`."""
    keys = differing(jobs)
    # A job's only arm is its scheduler, which the overrides already name.
    several = found.group_by("job").agg(arms=pl.col("arm").n_unique())["arms"].max() != 1
    arm = ["arm"] if several else []
    shown = list(metrics.shown_in("sweep"))
    header = [
        "job",
        *map(plain, titles(keys).values()),
        *arm,
        "cell",
        *(title for _, title in COUNTS),
        *(figure.title for figure in shown),
        "status",
    ]
    body = [
        [
            row["job"], *(text(row[key] or "—", 60) for key in keys), *(_named(row[name]) for name in arm),
            _named(row["cell"]),
            *(row[name] for name, _ in COUNTS),
            *(form_of(figure.metric.unit)(row[figure.column]) for figure in shown),
            row["status"] if row["status"] == "completed" else f"**{row['status']}**",
        ]
        for row in found.iter_rows(named=True)
    ]  # fmt: skip
    align = "r" + "l" * (len(keys) + len(arm) + 1) + "r" * (len(COUNTS) + len(shown)) + "l"
    return (
        "## Jobs\n\n"
        + table(header, body, align)
        + "\n\nTimes in ms, of answered requests; **ok** and **failed** count "
        "measured requests. The runs' reports explain each figure."
    )


def _named(name: str | None) -> str | None:
    return None if name is None else text(name, 200)


def reasons(jobs: list[Job], found: pl.DataFrame) -> str:
    """A list of why jobs did not complete and why cells were skipped."""
    lines = [
        f"- job {job.number}, {job.status}: {text(job.reason)}"
        for job in jobs
        if job.status != "completed" and job.reason
    ]
    skipped = found.filter(pl.col("status") == "skipped").unique(["job", "cell"], maintain_order=True)
    lines += [
        f"- job {row['job']}, {text(row['cell'], 200)} skipped: {text(row['reason'])}"
        for row in skipped.iter_rows(named=True)
    ]
    return "\n".join(lines)


def contrast(content: dict[str, Any], of: list[Pair]) -> str:
    """The section on one contrast. content: from `figures.side_by_side`; of: its pairs."""
    a, b = content["arms"]
    parts = [f"## {b} against {a}", content["words"]]
    counts = [content["devices"][name] for name in (a, b)]
    if counts[0] != counts[1]:
        parts.append(f"**Not on equal devices**: {a} had {counts[0]}, {b} had {counts[1]}.")
    if differ := sorted({part for pair in of for part in sweep_figures.unlike(pair)}):
        parts.append(f"The requests sent, or the model they were sent to, differ: see {', '.join(differ)}.")
    else:
        parts.append(comparison_report.tokens(content))
    return "\n\n".join(part for part in (*parts, _scores(of, a, b), comparison_report.tables_of(content)) if part)


def _scores(of: list[Pair], a: str, b: str) -> str:
    """Tables of how the scores of two jobs differ over the same examples; "" if either has no scores."""
    sides: tuple[list[pl.DataFrame], list[pl.DataFrame]] = ([], [])
    for pair in of:
        for side, job, arm in zip(sides, (pair.a, pair.b), pair.arms, strict=True):
            if not job.run.examples:
                continue
            scored = quality_figures.scored(job.run, job.run.requests)
            if not scored.is_empty():
                side.append(scored.filter((pl.col("arm") == arm) & pl.col("cell").is_in(pair.cells)))
    if not all(sides):
        return ""
    found = quality_figures.differences(*map(pl.concat, sides))
    both = (quality_report.difference_table(found, a, b), quality_report.perplexity_table(found, a, b))
    return "\n\n".join(part for part in both if part)


def _files(folder: Path, manifest: dict[str, Any], jobs: list[Job], compared: bool) -> str:
    links = []
    for job in jobs:
        if job.run_dir is not None:
            page = job.run.report
            links += [f"[job {job.number}]({os.path.relpath(page, folder.resolve())})"] if page else []
    own = ", ".join(f"[{name}]({name})" for name in (ROWS, *([PAIRS] if compared else [])))
    command = provenance.again(manifest["command"][1:])
    reports = f"Reports of the runs: {', '.join(links)}. " if links else ""
    return f"## Again\n\n{fence(command)}\n\n{reports}This comparison as tables: {own}."
