"""python -m wp1.packet RUN...: E0 to E6 of one machine as one folder with a page, from the folders of their runs.

Each RUN is the folder of a run, or one above several; of each experiment the newest that completed is taken. A report
that is not there is made. It fails where an experiment is missing, failed or has lost lines of its records, or runs are
of several machines, unless --partial.
"""

import sys
from pathlib import Path

from wp1.analysis import packet
from wp1.core import command, locks
from wp1.core.errors import WP1Error, access_told, unforeseen
from wp1.core.paths import folder_named
from wp1.runner.console import Screen
from wp1.runner.reports import make_report


def main() -> None:
    """Exit codes: 0 done, 1 the packet is not whole, 2 bad input."""
    parser = command.Parser(prog="python -m wp1.packet", description=__doc__)
    parser.add_argument(
        "runs", nargs="+", type=folder_named, metavar="RUN", help="a run's folder, or one with runs in it"
    )
    parser.add_argument("--out", type=Path, default=Path("packet"), help="the folder to make (default: packet)")
    parser.add_argument("--title", default="A baseline packet of wp1", help="the page's title")
    parser.add_argument(
        "--partial", action="store_true", help="also where experiments are missing, failed or not whole"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="only say which experiments have no completed run, one a line, with the folder of one to go on with",
    )
    words = parser.parse_args()
    try:
        with access_told(", ".join(map(str, words.runs))):
            code, said = make(words.runs, words.out, words.title, words.partial, words.missing)
    except (WP1Error, OSError) as error:
        print("error:", error, file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        given = ", ".join(map(str, words.runs))
        print(
            f"error: one of {given} is no whole run ({unforeseen(error)}): remake it or leave it out", file=sys.stderr
        )
        sys.exit(2)
    print(said, file=sys.stderr if code else sys.stdout)
    sys.exit(code)


def make(runs: list[Path], out: Path, title: str, partial: bool, missing_only: bool = False) -> tuple[int, str]:
    """Makes the packet; returns the exit code and what to say. Raises WP1Error for folders without runs."""
    if missing_only:
        newest = packet.choose(_found(runs))
        lines = [f"{name} {newest[name].folder.resolve()}" if name in newest else name for name in packet.EXPERIMENTS]
        todo = [line for line, name in zip(lines, packet.EXPERIMENTS, strict=True) if not _completed(newest, name)]
        return 0, "\n".join(todo)
    chosen = packet.choose(packet.find(runs))
    missing = packet.shortcomings(chosen)
    if partial or not missing:
        missing += _without_report(chosen)
    if missing and not partial:
        told = "".join(f"\n  {line}" for line in missing)
        return 1, f"failed: these runs are no whole packet (--partial makes one all the same):{told}"
    return 0, str(packet.write(chosen, out, title, missing))


def _without_report(chosen: dict[str, packet.Run]) -> list[str]:
    """Makes the reports that are not there; returns a line for each that cannot be made."""
    found = []
    with Screen() as screen:
        for name, run in chosen.items():
            # Of one that has lost lines it is said already.
            if run.report is not None or run.lost is not None:
                continue
            with screen.step(f"making the report of {name}, {run.folder}"):
                try:
                    with locks.written(run.folder):
                        make_report(run.folder, run.tables.reports)
                except WP1Error as error:
                    found.append(f"{name} has no report, and none can be made: {run.within(error)}")
    return found


def _completed(newest: dict[str, packet.Run], name: str) -> bool:
    return name in newest and newest[name].completed


def _found(runs: list[Path]) -> list[packet.Run]:
    """None is no error: nothing has run yet."""
    return packet.find([path for path in runs if path.is_dir() and packet.has_runs(path)])


if __name__ == "__main__":
    command.run(main)
