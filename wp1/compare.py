"""python -m wp1.compare RUN RUN...: compares runs with the first one, metric by metric, with confidence intervals.

It reads the runs' folders; a sweep's folder stands for all its runs. It writes a page, tables and a plot.
"""

import os
import shlex
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis import completeness
from wp1.analysis.base import tables
from wp1.analysis.base.how_to_read import HOW_TO_READ_ARMS
from wp1.analysis.base.markdown import fence, table, text
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep import runs
from wp1.analysis.sweep.figures import Job
from wp1.analysis.sweep.plots import sweep_plot
from wp1.analysis.sweep.report import PAGE, PAIRS, PLOT, ROWS, contrast, jobs_table, reasons
from wp1.core import command, files, locks
from wp1.core.errors import reading
from wp1.core.identity import settings_of
from wp1.core.paths import comparisons_of, folder_named


def compare(folders: list[Path], out: Path | None) -> tuple[Path, list[str]]:
    """Writes comparison.md, its CSV files and its plot; returns the page's path and the warnings and results as text.

    out: the folder to write to. None: outputs/comparisons/ of the first run's project, or next to that run if it was
    copied from elsewhere.
    Raises ConfigError if the runs cannot be compared or one has lost lines.
    """
    jobs = runs.read_runs(runs.folders_of(folders))
    for job in jobs:
        if job.run is not None:
            completeness.check(job.run)
    runs.check_alike(jobs)
    rows = sweep_figures.rows(jobs)
    pairs = runs.pairs(jobs, rows)
    warnings = runs.warnings(jobs)
    target = out or default_folder(jobs)
    with locks.written(files.real_folder(target)):
        return _write(target, jobs, rows, pairs, warnings, folders)


def _write(
    target: Path, jobs: list[Job], rows: pl.DataFrame, pairs: list[sweep_figures.Pair], warnings: list[str],
    folders: list[Path],
) -> tuple[Path, list[str]]:  # fmt: skip
    tables.write_csv(rows, target / ROWS, 3)
    sections, frames, results = [], [], []
    for pair in pairs:
        names = sweep_figures.names_of(pair)
        content, frame = sweep_figures.side_by_side(names, [pair])
        sections.append(contrast(content, [pair]))
        results.append(f"{names[1]} against {names[0]}: {content['words']}")
        labels = ", ".join(sweep_figures.all_labels([pair.a, pair.b]))
        frames.append(frame.with_columns(labels=pl.lit(labels or None, pl.String)))
        # Frees memory. The first run's requests are needed again for the next pair.
        pair.b.run.drop_requests()
    tables.write_csv(pl.concat(frames), target / PAIRS, 4)
    plotted = sweep_plot(target / PLOT, jobs, rows)
    parts = [
        f"# {len(jobs)} runs side by side",
        "\n".join(
            f"> **{text(warning.partition(':')[0])}**{text(warning[len(warning.partition(':')[0]) :], 1000)}\n"
            for warning in warnings
        ),
        _settings(jobs, target),
        f"![Mean TTFT and TPOT of each run, with 95 % intervals]({PLOT})" if plotted else "",
        jobs_table(jobs, rows),
        reasons(jobs, rows),
        *sections,
        f"## How to read the figures\n\n{HOW_TO_READ_ARMS}",
        _again(folders),
    ]
    page = target / PAGE
    files.write_text(page, "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")
    return page, [*warnings, *results]


def default_folder(jobs: list[Job]) -> Path:
    """comparisons/<last 8 characters of each run id>: comparing the same runs again reuses the folder."""
    names = [str(job.metadata["run_id"])[-8:] for job in jobs]
    more = [f"and-{len(names) - 4}-more"] if len(names) > 4 else []
    return comparisons_of(jobs[0].run.path, jobs[0].run.config) / "-".join([*names[:4], *more])


def _settings(jobs: list[Job], beside: Path) -> str:
    """A table of the runs and of every setting that differs between them."""
    configs = [settings_of(job.run.config) for job in jobs]
    keys = runs.differing_settings(configs)
    header = ["", *(f"run {job.number}" for job in jobs)]
    body: list[list[Any]] = [
        ["run", *(f"`{job.metadata['run_id']}`" for job in jobs)],
        ["experiment", *(job.metadata["experiment"] for job in jobs)],
        ["started", *(job.metadata["started"] for job in jobs)],
        ["report", *(_report(job, beside) for job in jobs)],
        *([text(key, 80), *(text(runs.said(config, key), 80) for config in configs)] for key in keys),
    ]
    same = "" if keys else "\n\nThe configurations are the same."
    return f"## What differs in configuration\n\n{table(header, body, 'l' * len(header))}{same}"


def _report(job: Job, beside: Path) -> str:
    """A link to the run's report, or a dash if it has none."""
    page = job.run.report
    return f"[report]({os.path.relpath(page, beside.resolve())})" if page else "—"


def _again(given: list[Path]) -> str:
    line = shlex.join(["python", "-m", "wp1.compare", *map(str, given)])
    return f"## Again\n\n{fence(line)}\n\nThis comparison as tables: [{ROWS}]({ROWS}), [{PAIRS}]({PAIRS})."


@command.guarded
def main() -> None:
    parser = command.Parser(prog="python -m wp1.compare", description=__doc__)
    parser.add_argument("runs", type=folder_named, nargs="+", help="runs' folders, as in outputs/run-..., or a sweep's")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder for the comparison (default: outputs/comparisons of the first run's project, or next to that run "
        "if it was copied from elsewhere)",
    )
    args = parser.parse_args()
    with reading(f"one of {', '.join(map(str, args.runs))}"):
        page, lines = compare(args.runs, args.out)
    print("\n".join(lines))
    print(page)


if __name__ == "__main__":
    main()
