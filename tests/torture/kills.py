"""kill -9 of each process of a run, in each phase of E0 and E3.

E3 is disturbed in its second arm, so that there are measurements to lose. Its first arm is measured once, in a run that
is then stopped; every case resumes a copy of that run's folder.
"""

import os
import shutil
import signal
import tempfile
from functools import partial
from pathlib import Path
from threading import Lock

from tests.torture import watching
from tests.torture.case import ARM, EXPERIMENTS, REQUESTS, Case, Result, Stage, ended, kept, killed, on_stage, resumes

PHASES = ("starting", "warm-up", "measuring", "report")
ROLES = ("main", "worker", "core")
# Requests answered by then, at least, in the whole run.
LEAST = {
    ("e0", "starting"): 0,
    ("e0", "warm-up"): 0,
    ("e0", "measuring"): 3,
    ("e0", "report"): 48,
    ("e3", "starting"): 48,
    ("e3", "warm-up"): 48,
    ("e3", "measuring"): 51,
    ("e3", "report"): 96,
}
PATTERNS = {
    "starting": r"^failed: engine (agg|prefill|decode)-\d did not start",
    # The second form appears if the engine had no request when it died.
    "warm-up": r"^failed: (engine (agg|prefill|decode)-\d died|no (prefill|decode) engine is left)",
    "measuring": r"^failed: (engine (agg|prefill|decode)-\d died|no (prefill|decode) engine is left)",
}


def cases() -> list[Case]:
    """Engines end before the report is written, so only main can be killed in that phase."""
    return [
        Case(
            name=f"kill-{role}-{phase}-{experiment}",
            what=f"kill -9 of {NAMES[role]}, {experiment.upper()}",
            phase=phase,
            do=partial(_kill, experiment=experiment, role=role, phase=phase),
        )
        for experiment in EXPERIMENTS
        for phase in PHASES
        for role in ROLES
        if phase != "report" or role == "main"
    ]


NAMES = {"main": "main", "worker": "an engine's worker", "core": "the engine core"}


def _kill(stage: Stage, *, experiment: str, role: str, phase: str) -> Result:
    result = Result()
    if experiment == "e3":
        copy = stage.root / "outputs" / _first_arm().name
        shutil.copytree(_first_arm(), copy)
        run = stage.start(f"resume={copy}")
    else:
        run = stage.start(*EXPERIMENTS[experiment])
    watching.kill(watching.wait_for_phase(run, phase, ARM[experiment], role))
    if role == "main":
        killed(run, result)
    else:
        ended(run, result, 1, PATTERNS[phase])
    kept(run, result, LEAST[experiment, phase])
    stage.end(result)
    resumes(stage, run, result, REQUESTS[experiment])
    stage.end(result)
    return result


_measured: list[tempfile.TemporaryDirectory[str]] = []
_measuring = Lock()


def _first_arm() -> Path:
    """The folder of an E3 run that was stopped after its first arm. Measured once for all cases."""
    with _measuring:
        if not _measured:
            folder = tempfile.TemporaryDirectory(prefix="wp1-t-")
            with on_stage(Path(folder.name)) as stage:
                run = stage.start(*EXPERIMENTS["e3"])
                watching.until("a measured arm", lambda: watching.cells_of(run), run)
                os.killpg(run.process.pid, signal.SIGINT)
                run.finish()
            _measured.append(folder)
    return next(Path(_measured[0].name, "outputs").glob("run-*"))
