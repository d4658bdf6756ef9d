"""A case of the matrix, its result, and the steps that cases share."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture import watching
from tests.user_run import TINY_SHAPE, UserRun, start

# Few requests and short answers, but enough warm-up rounds and requests to catch a run in the middle of either.
ROUNDS = ("workload.output_len=16", "workload.num_warmup=15", "workload.max_warmup=15", "tracking=none")
E0 = (*TINY_SHAPE, *ROUNDS, "workload.num_requests=24")
E3 = (
    *TINY_SHAPE,
    *ROUNDS,
    "experiment=e3",
    "experiment.repeats=1",
    "experiment.prompt_lens=[64]",
    "experiment.request_rates=[8]",
    "workload.num_requests=48",
)
EXPERIMENTS = {"e0": E0, "e3": E3}
REQUESTS = {"e0": 48, "e3": 96}  # e0: 24 sent twice; e3: 48 in each arm
# The arm that is disturbed. In E3 it is the second, so that there are measurements to lose.
ARM = {"e0": "agg", "e3": "disagg"}
# Lines that report how a run ended.
HOW_ENDED = re.compile(r"^(error:|failed:|interrupted|not in MLflow|not published)")


@dataclass
class Result:
    """The outcome of a case. wrong: the expectations that did not hold."""

    code: str = ""
    message: str = ""  # the line that reported how the run ended
    kept: str = "—"
    left: str = "nothing"
    resumed: str = "—"
    wrong: list[str] = field(default_factory=list)

    def expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self.wrong.append(otherwise)


@dataclass(frozen=True)
class Case:
    """One case; `do` runs it in a folder of its own. slots: how many of the shared slots it takes."""

    name: str
    what: str
    phase: str
    do: Callable[["Stage"], Result]
    slots: int = 1


@dataclass
class Stage:
    """The folder of one case, and the runs it has started."""

    root: Path
    runs: list[UserRun] = field(default_factory=list)
    shared_before: set[str] = field(default_factory=set)

    def start(self, *overrides: str, **environment: str) -> UserRun:
        root = next((word.removeprefix("root=") for word in overrides if word.startswith("root=")), None)
        others = [word for word in overrides if not word.startswith("root=")]
        self.runs.append(start(Path(root) if root else self.root, *others, **environment))
        return self.runs[-1]

    def end(self, result: Result) -> None:
        """Records what the case's runs have left behind."""
        left = watching.left_behind(self.runs, self.shared_before)
        if left:
            result.left = ", ".join(left)
            result.wrong.append(f"left behind: {result.left}")


@contextmanager
def on_stage(root: Path) -> Iterator[Stage]:
    """A stage in `root`. Kills all processes of its runs at the end, whatever happens."""
    stage = Stage(root, shared_before=watching.shared_memory())
    try:
        yield stage
    finally:
        for run in stage.runs:
            run.kill()


def ended(run: UserRun, result: Result, code: int, pattern: str | None, within_s: float = 120) -> None:
    """Waits for the run to end, and expects the exit code and one line that matches `pattern`, if given."""
    got, output = run.finish(within_s)
    result.code = str(got)
    lines = [line for line in output.splitlines() if HOW_ENDED.match(line)]
    result.message = lines[0] if lines else ""
    result.expect(got == code, f"exit code {got}, expected {code}; the end of its output: {output[-400:]!r}")
    if pattern is not None:
        result.expect(len(lines) == 1, f"{len(lines)} lines report how it ended: {output[-400:]!r}")
        result.expect(re.search(pattern, result.message) is not None, f"no line matches {pattern!r}: {output[-400:]!r}")


def killed(run: UserRun, result: Result) -> None:
    """Waits for the end of a run whose main process was killed."""
    code, _ = run.finish(30)
    result.code, result.message = str(code), "(killed: the shell says so)"
    result.expect(code == -9, f"exit code {code}, expected -9")


def kept(run: UserRun, result: Result, least: int) -> None:
    """Records how many requests have been answered, and expects at least `least`."""
    ok = [row for row in watching.rows_of(run) if row["status"] == "ok"]
    result.kept = f"{len(ok)} answered"
    result.expect(len(ok) >= least, f"{len(ok)} records of answered requests, expected {least}")


def resumes(stage: Stage, run: UserRun, result: Result, requests: int, within_s: float = 240) -> None:
    """Resumes the run, and expects it to complete without losing what was measured before."""
    folder = watching.folder_of(run)
    if folder is None or not watching.metadata_of(run):
        result.resumed = "nothing to resume: start it again"
        return
    before = [json.loads(line)["repeat"] for line in watching.cells_of(run) if json.loads(line)["died"] is None]
    again = stage.start(f"resume={folder}", f"root={run.root}")
    code, output = again.finish(within_s)
    rows = watching.rows_of(run)
    answered = {row["request_id"] for row in rows if row["status"] == "ok"}
    metadata = watching.metadata_of(run)
    report = run.root / "outputs" / "reports" / f"{folder.name}.md"
    result.expect(code == 0, f"resume= ended with exit code {code}: {output[-400:]!r}")
    result.expect(
        len(answered) == len(rows) == requests, f"{len(answered)} of {len(rows)} answered, expected {requests}"
    )
    result.expect(metadata["status"] == "completed", f"the resumed run is {metadata['status']}")
    result.expect(report.is_file(), "the resumed run has no report")
    if metadata["resumed"]:
        count = metadata["resumed"][-1]["kept"]
        result.expect(count == len(before), f"the resumed run kept {count} of {len(before)} measured repeats")
    measured = f"{len(before)} measured repeat{'s' * (len(before) != 1)} kept"
    result.resumed = f"completed; {measured}" if not result.wrong else "see below"
