"""A run's report or a sweep's comparison, made again from its folder with no engine."""

from pathlib import Path

from wp1.analysis import completeness
from wp1.analysis.report import write_report
from wp1.analysis.summary import summarise
from wp1.analysis.sweep.figures import read_jobs, read_manifest
from wp1.analysis.sweep.report import write_comparison
from wp1.collectors.making import collectors_in, kept_in
from wp1.core.run_folder import read_metadata


def make_report(run_dir: Path, reports: Path) -> Path:
    """Summary and report of a run's folder; returns the page's path.

    Raises ConfigError where the folder is none of a run, or has lost lines.
    """
    completeness.check(run_dir)
    metadata = read_metadata(run_dir)
    summary = summarise(run_dir, collectors_in(run_dir), kept_in(run_dir))
    return write_report(run_dir, reports, metadata, summary)


def make_comparison(folder: Path) -> Path:
    """The comparison of a sweep's jobs; returns the page's path. Raises ConfigError where a job has lost lines."""
    for job in read_jobs(folder, read_manifest(folder)):
        if job.run_dir is not None:
            completeness.check(job.run_dir)
    return write_comparison(folder)
