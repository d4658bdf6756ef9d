"""python -m wp1.report RUN_DIR: makes a run's summary, plots and report again, from its folder and with no engine.

The same with a sweep's folder makes the comparison of its jobs again.
"""

import sys
from pathlib import Path
from typing import Any

from wp1 import command
from wp1.analysis import whole
from wp1.analysis.report import write_report
from wp1.analysis.summary import read_config, read_metadata, summarise
from wp1.analysis.sweep import read_jobs, read_manifest
from wp1.analysis.sweep_report import write_comparison
from wp1.collectors import Collector
from wp1.errors import ConfigError, WP1Error, access_told, unforeseen
from wp1.places import folder_named, reports_of, run_or_sweep


def collectors_of(config: dict[str, Any]) -> list[Collector]:
    """The collectors that a configuration names, by `_target_`. Raises ConfigError for one that cannot be made."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    made = []
    for name, part in (config["collectors"] or {}).items():
        if not isinstance(part, dict) or not str(part.get("_target_", "")).startswith("wp1.collectors."):
            raise ConfigError(
                f"collectors.{name} names no collector of wp1: set collectors.{name}._target_, or drop it"
            )
        try:
            # Not recursive: what lies deeper could name anybody's code, and a run's folder may come from anybody.
            made.append(instantiate(part, _recursive_=False))
        except (InstantiationException, ValueError, TypeError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise ConfigError(f"collectors.{name} cannot be made ({reason}): see conf/collectors/") from error
    return made


def make_report(run_dir: Path, reports: Path) -> Path:
    """Summary and report of a run's folder; returns the page's path.

    Raises ConfigError where the folder is none of a run, or has lost lines.
    """
    whole.check(run_dir)
    metadata = read_metadata(run_dir)
    summary = summarise(run_dir, collectors_of(read_config(run_dir)))
    return write_report(run_dir, reports, metadata, summary)


def make_comparison(folder: Path) -> Path:
    """The comparison of a sweep's jobs; returns the page's path. Raises ConfigError where a job has lost lines."""
    for job in read_jobs(folder, read_manifest(folder)):
        if job.run_dir is not None:
            whole.check(job.run_dir)
    return write_comparison(folder)


def main() -> None:
    parser = command.Parser(prog="python -m wp1.report", description=__doc__)
    parser.add_argument(
        "run_dir", type=folder_named, help="a run's folder, as in outputs/run-..., or a sweep's, in multirun/"
    )
    parser.add_argument(
        "--reports",
        type=Path,
        help="where to put it (default: outputs/reports of its project; for a run from elsewhere, in its folder)",
    )
    words = parser.parse_args()
    try:
        with access_told(words.run_dir):
            if run_or_sweep(words.run_dir) == "sweep":
                page = make_comparison(words.run_dir)
            else:
                reports = words.reports or reports_of(words.run_dir, read_config(words.run_dir))
                page = make_report(words.run_dir, reports)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (WP1Error, OSError) as error:
        sys.exit(f"error: {error}")
    except Exception as error:
        sys.exit(f"error: {words.run_dir} is no whole run ({unforeseen(error)})")
    print(page)


if __name__ == "__main__":
    command.run(main)
