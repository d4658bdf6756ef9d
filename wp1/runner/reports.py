"""Makes a run's report or a sweep's comparison again from its folder, without an engine."""

from pathlib import Path

from wp1.analysis import completeness
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.report import write_report
from wp1.analysis.summary import summarise
from wp1.analysis.sweep.figures import read_jobs, read_manifest
from wp1.analysis.sweep.report import write_comparison
from wp1.collectors.making import collectors_in, kept_in


def make_report(run_dir: Path, reports: Path) -> Path:
    """Makes the summary and report of a run's folder; returns the page's path.

    Raises ConfigError if it is not a run's folder or has lost lines.
    """
    run = RunTables(run_dir)
    completeness.check(run, with_figures=True)
    summary = summarise(run, collectors_in(run), kept_in(run))
    return write_report(run, reports, run.metadata, summary)


def make_comparison(folder: Path) -> Path:
    """Makes the comparison of a sweep's jobs; returns the page's path. Raises ConfigError if a job has lost lines."""
    for job in read_jobs(folder, read_manifest(folder)):
        if job.left is not None:
            completeness.check(job.left)
    return write_comparison(folder)
