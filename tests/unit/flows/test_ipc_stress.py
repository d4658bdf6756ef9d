"""A tenth of `make stress`: no block is lost or released twice, and every block has the right content."""

import json
import subprocess
import sys

import pytest

from tests import REPO as ROOT
from tests.stress.ipc import stress


@pytest.mark.parametrize(
    ("handoffs", "settings"),
    [
        (800, {"num_blocks": 130}),
        (200, {"num_blocks": 130, "ranks": 2, "verify": True, "cached": 0.0}),
    ],
    ids=["one rank", "two ranks, verified"],
)
def test_handoffs_of_random_sizes_with_random_aborts(handoffs: int, settings: dict) -> None:
    result = stress(handoffs, limit_s=120, seed=handoffs, **settings)
    assert result["well"] > handoffs / 3
    assert result["given up"] > handoffs / 10
    assert result["preempted in prefill"] > 0 or handoffs < 500  # too few for an event that occurs once in fifty steps


def test_the_connector_beside_vllms_own_scheduler() -> None:
    """In a separate process, because it initialises vLLM."""
    asked = [sys.executable, "-m", "tests.stress.scheduler", "--requests", "600"]
    done = subprocess.run(asked, check=False, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert min(result[kind] for kind in ("at once", "ahead", "failed beside", "aborted", "plain")) > 0
