"""python -m wp1.report RUN_DIR: makes a run's summary, plots and report again, from its folder and with no engine.

The same with a sweep's folder makes the comparison of its jobs again.
"""

import sys
from pathlib import Path

from wp1.core import command, locks
from wp1.core.errors import ConfigError, WP1Error, access_told, unforeseen
from wp1.core.paths import folder_named, run_or_sweep
from wp1.core.run_folder import RunFolder
from wp1.runner.reports import make_comparison, make_report


def _made(folder: Path, reports: Path | None) -> Path:
    kind = run_or_sweep(folder)
    with locks.written(folder):
        if kind == "sweep":
            return make_comparison(folder)
        return make_report(folder, reports or RunFolder(folder).reports)


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
