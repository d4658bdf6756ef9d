"""python -m wp1.report RUN_DIR: makes a run's summary, plots and report again, from its folder and with no engine.

The same with a sweep's folder makes the comparison of its jobs again.
"""

import sys
from pathlib import Path
from typing import Any

from wp1.analysis import completeness
from wp1.analysis.report import write_report
from wp1.analysis.summary import read_config, read_metadata, summarise
from wp1.analysis.sweep.figures import read_jobs, read_manifest
from wp1.analysis.sweep.report import write_comparison
from wp1.collectors import Collector
from wp1.core import command, locks, targets
from wp1.core.errors import ConfigError, WP1Error, access_told, unforeseen
from wp1.core.paths import folder_named, reports_of, run_or_sweep


def collectors_of(config: dict[str, Any]) -> list[Collector]:
    """The collectors that a configuration names, by `_target_`. Raises ConfigError for one that cannot be made."""
    made = []
    for name, part in (config["collectors"] or {}).items():
        if (wrong := targets.wrong_collector(part)) is not None:
            raise ConfigError(f"collectors.{name} {wrong}: set it as in conf/collectors/, or drop it")
        try:
            made.append(targets.partial(part)())
        except (ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"collectors.{name} cannot be made ({reason}): see conf/collectors/") from error
    return made


def collectors_in(run_dir: Path) -> list[Collector]:
    """The collectors that a run's folder names, less those that are none of wp1's, which its report names.

    Such a name may be of another version, or be there to run something on the machine of whoever reads the folder.
    Raises ConfigError as `collectors_of` does.
    """
    config = read_config(run_dir)
    known = {name: part for name, part in (config["collectors"] or {}).items() if not targets.wrong_collector(part)}
    return collectors_of({"collectors": known})


def make_report(run_dir: Path, reports: Path) -> Path:
    """Summary and report of a run's folder; returns the page's path.

    Raises ConfigError where the folder is none of a run, or has lost lines.
    """
    completeness.check(run_dir)
    metadata = read_metadata(run_dir)
    summary = summarise(run_dir, collectors_in(run_dir))
    return write_report(run_dir, reports, metadata, summary)


def make_comparison(folder: Path) -> Path:
    """The comparison of a sweep's jobs; returns the page's path. Raises ConfigError where a job has lost lines."""
    for job in read_jobs(folder, read_manifest(folder)):
        if job.run_dir is not None:
            completeness.check(job.run_dir)
    return write_comparison(folder)


def _made(folder: Path, reports: Path | None) -> Path:
    kind = run_or_sweep(folder)
    with locks.written(folder):
        if kind == "sweep":
            return make_comparison(folder)
        return make_report(folder, reports or reports_of(folder, read_config(folder)))


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
            page = _made(words.run_dir, words.reports)
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
