"""python -m wp1.packet RUN...: collects one machine's experiments into one folder with a page.

Each RUN is the folder of a run, or a folder that contains runs. The newest completed run of each experiment is used,
and its report is made if it is missing. Without --partial, it fails if an experiment of conf/experiment is missing,
failed or has lost lines of its records, or if the runs are from several machines. Your own experiments are included if
they have a run.
"""

import sys
from pathlib import Path

from wp1.analysis import packet
from wp1.core import command, locks
from wp1.core.errors import WP1Error, reading
from wp1.core.paths import folder_named
from wp1.runner.console import Screen
from wp1.runner.reports import make_report


@command.guarded
def main() -> int:
    """Returns exit code 1 if the packet would be incomplete."""
    parser = command.Parser(prog="python -m wp1.packet", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=folder_named, metavar="RUN", help="a run's folder, or a folder that contains runs"
    )
    parser.add_argument("--out", type=Path, default=Path("packet"), help="folder to create (default: packet)")
    parser.add_argument("--title", default="A baseline packet of wp1", help="title of the page")
    parser.add_argument(
        "--partial", action="store_true", help="make the packet even if experiments are missing, failed or incomplete"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="only list the experiments without a completed run, one per line, with the folder of a run to resume",
    )
    args = parser.parse_args()
    with reading(f"one of {', '.join(map(str, args.runs))}", ": remake it or leave it out"):
        code, message = make(args.runs, args.out, args.title, args.partial, args.missing)
    print(message, file=sys.stderr if code else sys.stdout)
    return code


def make(runs: list[Path], out: Path, title: str, partial: bool, missing_only: bool = False) -> tuple[int, str]:
    """Makes the packet; returns the exit code and the text to print. Raises ConfigError for folders without runs."""
    if missing_only:
        newest = packet.choose(_found(runs))
        todo = [name for name in packet.experiments() if not _completed(newest, name)]
        return 0, "\n".join(f"{name} {newest[name].folder.resolve()}" if name in newest else name for name in todo)
    chosen = packet.choose(packet.find(runs))
    missing = packet.shortcomings(chosen)
    if partial or not missing:
        missing += _without_report(chosen)
    if missing and not partial:
        lines = "".join(f"\n  {line}" for line in missing)
        return 1, f"failed: these runs are not a complete packet (--partial makes one anyway):{lines}"
    return 0, str(packet.write(chosen, out, title, missing))


def _without_report(chosen: dict[str, packet.Run]) -> list[str]:
    """Makes the missing reports; returns one line for each that cannot be made."""
    failures = []
    with Screen() as screen:
        for name, run in chosen.items():
            # Lost lines have been reported already.
            if run.report is not None or run.lost is not None:
                continue
            with screen.step(f"making the report of {name}, {run.folder}"):
                try:
                    with locks.written(run.folder):
                        make_report(run.folder, run.tables.reports)
                except WP1Error as error:
                    failures.append(f"{name} has no report, and none can be made: {run.within(error)}")
    return failures


def _completed(newest: dict[str, packet.Run], name: str) -> bool:
    return name in newest and newest[name].completed


def _found(runs: list[Path]) -> list[packet.Run]:
    """The runs in these folders. An empty list is not an error: nothing may have run yet."""
    return packet.find([path for path in runs if path.is_dir() and packet.has_runs(path)])


if __name__ == "__main__":
    main()
