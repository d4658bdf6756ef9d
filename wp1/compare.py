"""python -m wp1.compare RUN RUN...: any runs side by side, from their folders: every metric, its difference, intervals.

The first is what the others are held against; a sweep's folder stands for its runs. Makes a page, tables and a plot.
"""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis.base import tables
from wp1.analysis.base.markdown import fence, table, text
from wp1.analysis.report import HOW_TO_READ_ARMS
from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep import runs
from wp1.analysis.sweep.figures import Job
from wp1.analysis.sweep.plots import sweep_plot
from wp1.analysis.sweep.report import PAGE, PAIRS, PLOT, ROWS, contrast, jobs_table, reasons
from wp1.core import command, files, locks
from wp1.core.errors import ConfigError, WP1Error, access_told, unforeseen
from wp1.core.identity import settings_of
from wp1.core.paths import comparisons_of, folder_named


def compare(given: list[Path], out: Path | None) -> tuple[Path, list[str]]:
    """Writes comparison.md, its CSV files and its plot; returns the page and, in words, what was found and is doubtful.

    out: the folder for it; None: outputs/comparisons/ of the first run's project, or beside that run where it was
    brought from elsewhere.
    Raises ConfigError where runs cannot be compared.
    """
    folders = runs.folders_of(given)
    jobs = runs.read_runs(folders)
    runs.check_alike(jobs)
    found = sweep_figures.rows(jobs)
    pairs = runs.pairs(jobs, found)
    doubts = runs.warnings(jobs)
    folder = out or default_folder(jobs)
    with locks.written(files.real_folder(folder)):
        return _write(folder, jobs, found, pairs, doubts, given)


def _write(
    folder: Path, jobs: list[Job], found: pl.DataFrame, pairs: list[sweep_figures.Pair], doubts: list[str],
    given: list[Path],
) -> tuple[Path, list[str]]:  # fmt: skip
    tables.write_csv(found, folder / ROWS, 3)
    sections, frames, words = [], [], []
    for pair in pairs:
        names = sweep_figures.names_of(pair)
        content, frame = sweep_figures.side_by_side(names, [pair])
        sections.append(contrast(content, [pair]))
        words.append(f"{names[1]} against {names[0]}: {content['words']}")
        marks = ", ".join(sweep_figures.all_labels([pair.a, pair.b]))
        frames.append(frame.with_columns(labels=pl.lit(marks or None, pl.String)))
        # The first run's are held against the next.
        pair.b.run.drop_requests()
    tables.write_csv(pl.concat(frames), folder / PAIRS, 4)
    plotted = sweep_plot(folder / PLOT, jobs, found)
    parts = [
        f"# {len(jobs)} runs side by side",
        "\n".join(
            f"> **{text(doubt.partition(':')[0])}**{text(doubt[len(doubt.partition(':')[0]) :], 1000)}\n"
            for doubt in doubts
        ),
        _settings(jobs, folder),
        f"![Mean TTFT and TPOT of each run, with 95 % intervals]({PLOT})" if plotted else "",
        jobs_table(jobs, found),
        reasons(jobs, found),
        *sections,
        f"## How to read the figures\n\n{HOW_TO_READ_ARMS}",
        _again(given),
    ]
    page = folder / PAGE
    files.write_text(page, "\n\n".join(part.rstrip("\n") for part in parts if part) + "\n")
    return page, [*doubts, *words]


def default_folder(jobs: list[Job]) -> Path:
    """comparisons/<the runs' last letters>: the same runs go to the same place."""
    names = [str(job.metadata["run_id"])[-8:] for job in jobs]
    more = [f"and-{len(names) - 4}-more"] if len(names) > 4 else []
    return comparisons_of(jobs[0].run.path, jobs[0].run.config) / "-".join([*names[:4], *more])


def _settings(jobs: list[Job], beside: Path) -> str:
    """The runs, and every setting in which they differ."""
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
    """A link to the run's report, where there is one."""
    page = job.run.report
    return f"[report]({os.path.relpath(page, beside.resolve())})" if page else "—"


def _again(given: list[Path]) -> str:
    command = shlex.join(["python", "-m", "wp1.compare", *map(str, given)])
    return f"## Again\n\n{fence(command)}\n\nThis comparison as tables: [{ROWS}]({ROWS}), [{PAIRS}]({PAIRS})."


def main() -> None:
    parser = command.Parser(prog="python -m wp1.compare", description=__doc__)
    parser.add_argument("runs", type=folder_named, nargs="+", help="runs' folders, as in outputs/run-..., or a sweep's")
    parser.add_argument(
        "--out",
        type=Path,
        help="where to put it (default: outputs/comparisons of the first's project; of a run brought from elsewhere, "
        "beside it)",
    )
    words = parser.parse_args()
    try:
        with access_told(words.out or words.runs[0]):
            page, said = compare(words.runs, words.out)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except WP1Error as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        given = ", ".join(map(str, words.runs))
        sys.exit(f"error: one of {given} is no whole run, or its comparison cannot be written ({unforeseen(error)})")
    print("\n".join(said))
    print(page)


if __name__ == "__main__":
    command.run(main)
