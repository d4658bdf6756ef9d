"""kill -9 of each process of a run, in each phase of E0 and E3."""

from functools import partial

from tests.torture import watching
from tests.torture.case import ARM, EXPERIMENTS, REQUESTS, Case, Result, Stage, ended, kept, killed, resumes

PHASES = ("starting", "warm-up", "measuring", "report")
ROLES = ("main", "worker", "core")
# What is measured by then at least, in all.
LEAST = {
    ("e0", "starting"): 0,
    ("e0", "warm-up"): 0,
    ("e0", "measuring"): 3,
    ("e0", "report"): 48,
    ("e3", "starting"): 24,
    ("e3", "warm-up"): 24,
    ("e3", "measuring"): 27,
    ("e3", "report"): 48,
}
SAID = {
    "starting": r"^failed: engine (agg|prefill|decode)-\d did not start",
    "warm-up": r"^failed: engine (agg|prefill|decode)-\d died",
    "measuring": r"^failed: engine (agg|prefill|decode)-\d died",
}


def cases() -> list[Case]:
    """Engines have ended before the report is written, so there is only main to kill."""
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
    run = stage.start(*EXPERIMENTS[experiment])
    watching.kill(watching.wait_for_phase(run, phase, ARM[experiment], role))
    if role == "main":
        killed(run, result)
    else:
        ended(run, result, 1, SAID[phase])
    kept(run, result, LEAST[experiment, phase])
    stage.end(result)
    resumes(stage, run, result, REQUESTS[experiment])
    stage.end(result)
    return result
