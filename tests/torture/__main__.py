"""Kills and disturbs real runs on the CPU engine in every way, and reports what each leaves behind.

    python -m tests.torture                      # all cases, two at a time; writes docs/reliability.md
    python -m tests.torture --only kill-main hub # cases whose names contain one of these; writes no page
    python -m tests.torture --list

Exit codes: 0 all cases held, 1 some did not, 130 Ctrl-C or SIGTERM (the table of the cases done is printed).
"""

import argparse
import signal
import sys
import tempfile
import threading
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tests.torture import faults, kills, page
from tests.torture.case import Case, Result, on_stage
from tests.torture.watching import MissedError
from tests.user_run import REPO

PAGE = REPO / "docs" / "reliability.md"
SLOTS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="cases whose names contain one of these")
    parser.add_argument("--slots", type=int, default=SLOTS, help="cases at a time, each with one or two engines")
    parser.add_argument(
        "--page", type=Path, default=None, help="page to write; default: docs/reliability.md, if all cases are run"
    )
    parser.add_argument("--list", action="store_true", help="print the names of the cases")
    args = parser.parse_args()
    if args.page is not None and not args.page.is_file():
        parser.error(f"--page={args.page} does not exist: name a page that has the marks for the table")
    every = [*kills.cases(), *faults.cases()]
    cases = [case for case in every if not args.only or any(word in case.name for word in args.only)]
    if not cases or args.list:
        print("\n".join(case.name for case in every))
        return 0 if args.list else 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    console, begin = Console(width=None if sys.stdout.isatty() else 200, highlight=False), time.monotonic()
    results, stopped = _play(cases, args.slots, console)
    minutes = (time.monotonic() - begin) / 60
    command = "make torture" + (f' ARGS="--only {" ".join(args.only)}"' if args.only else "")
    text = page.part(cases, results, command, f"{datetime.now(UTC):%Y-%m-%d}", minutes)
    console.print(text, markup=False, soft_wrap=True)
    target = args.page or (PAGE if not args.only else None)
    if target is not None and not stopped:
        page.put(target, text)
        console.print(f"written to {target}", markup=False)
    return 130 if stopped else int(any(result.wrong for result in results.values()))


def _play(cases: list[Case], slots: int, console: Console) -> tuple[dict[str, Result], bool]:
    """Runs the cases, as many at a time as there are slots. Returns the results, and whether Ctrl-C stopped it.

    A case that takes all slots runs alone.
    """
    results: dict[str, Result] = {}
    free = threading.Semaphore(slots)
    stop = threading.Event()
    threads: list[threading.Thread] = []

    def play(case: Case, taken: int) -> None:
        begin = time.monotonic()
        try:
            if not stop.is_set():
                result = _one(case)
                if not stop.is_set():
                    results[case.name] = result
                    verdict = "[red]✗" if result.wrong else "[green]✓"
                    console.print(
                        verdict, f"{case.name}  {time.monotonic() - begin:.0f} s, {len(results)}/{len(cases)}"
                    )
                    for wrong in result.wrong:
                        console.print(f"    {wrong}", markup=False, soft_wrap=True)
        finally:
            for _ in range(taken):
                free.release()

    try:
        for case in cases:
            taken = min(case.slots, slots)
            for _ in range(taken):
                free.acquire()
            threads.append(threading.Thread(target=play, args=(case, taken)))
            threads[-1].start()
        for thread in threads:
            thread.join()
    except KeyboardInterrupt:
        stop.set()
        console.print("stopping; this takes a few seconds")
        _end_all()
        for thread in threads:
            thread.join()
        return results, True
    return results, False


_stages = []


def _end_all() -> None:
    for stage in list(_stages):
        for run in stage.runs:
            run.kill()


def _one(case: Case) -> Result:
    """Runs one case. If it cannot be set up, the result says why and counts as not held."""
    # Keep the path short: the engines' sockets are below it, and the path of a Unix socket is limited.
    with (
        tempfile.TemporaryDirectory(prefix="wp1-t-", ignore_cleanup_errors=True) as root,
        on_stage(Path(root)) as stage,
    ):
        _stages.append(stage)
        try:
            return case.do(stage)
        except MissedError as error:
            return Result(code="—", message="(could not be set up)", wrong=[str(error)])
        except Exception:
            return Result(code="—", message="(could not be set up)", wrong=[traceback.format_exc(limit=-3)])
        finally:
            _stages.remove(stage)


if __name__ == "__main__":
    sys.exit(main())
