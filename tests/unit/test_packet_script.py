"""launch/packet.sh, as far as it can be known without running its experiments."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Compose
from wp1 import schema
from wp1.analysis.packet import EXPERIMENTS

REPO = Path(__file__).parents[2]
SCRIPT = REPO / "launch" / "packet.sh"

pytestmark = pytest.mark.skipif(
    Path(sys.prefix).resolve() != (REPO / ".venv").resolve(), reason="the script uses the checkout's own .venv"
)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("scale", ["smoke", "gpu"])
def test_every_command_is_one_that_wp1_takes(scale: str, config: Compose, tmp_path: Path) -> None:
    said = _run(str(tmp_path / "packets"), f"scale={scale}", "--print", "seed=7")
    assert said.returncode == 0, said.stderr
    commands = [line.partition("python -m wp1 ")[2] for line in said.stdout.splitlines() if line.startswith("== ")]
    absent = [line.partition(":")[0] for line in said.stdout.splitlines() if line.endswith("conf/experiment has none")]
    assert len(commands) + len(absent) == len(EXPERIMENTS)
    assert not (tmp_path / "packets" / "outputs").exists()
    for command in commands:
        cfg = config(*shlex.split(command))
        schema.check(cfg)
        assert cfg.seed == 7


def test_what_it_does_not_know_is_refused(tmp_path: Path) -> None:
    for argument in ("scale=big", "--all", "word"):
        said = _run(str(tmp_path), argument)
        assert said.returncode == 2
        assert said.stderr.startswith(f"error: {argument} is not known")
        assert said.stderr.count("\n") == 1
