"""python -m wp1.report RUN_DIR: makes a run's summary, plots and report again from its folder, without an engine.

With a sweep's folder, it makes the comparison of the sweep's jobs again.
"""

from pathlib import Path

from wp1.core import command, locks
from wp1.core.errors import reading
from wp1.core.paths import folder_named, run_or_sweep
from wp1.core.run_folder import RunFolder
from wp1.runner.reports import make_comparison, make_report


def _made(folder: Path, reports: Path | None) -> Path:
    kind = run_or_sweep(folder)
    with locks.written(folder):
        if kind == "sweep":
            return make_comparison(folder)
        return make_report(folder, reports or RunFolder(folder).reports)


@command.guarded
def main() -> None:
    parser = command.Parser(prog="python -m wp1.report", description=__doc__)
    parser.add_argument(
        "run_dir", type=folder_named, help="a run's folder, such as outputs/run-..., or a sweep's, in multirun/"
    )
    parser.add_argument(
        "--reports",
        type=Path,
        help="folder for the report (default: outputs/reports of the run's project, or inside the run's folder if it "
        "was copied from elsewhere)",
    )
    args = parser.parse_args()
    with reading(args.run_dir):
        page = _made(args.run_dir, args.reports)
    print(page)


if __name__ == "__main__":
    main()
