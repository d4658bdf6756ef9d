"""launch/packet.sh, as far as it can be tested without running its experiments."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests import REPO
from tests.conftest import Compose
from wp1.analysis.packet import experiments
from wp1.config import checks

SCRIPT = REPO / "launch" / "packet.sh"

pytestmark = pytest.mark.skipif(
    Path(sys.prefix).resolve() != (REPO / ".venv").resolve(), reason="the script uses the checkout's own .venv"
)


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), *arguments], check=False, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("scale", ["smoke", "gpu"])
def test_wp1_accepts_every_command(scale: str, config: Compose, tmp_path: Path) -> None:
    said = _run(str(tmp_path / "packets"), f"scale={scale}", "--print", "seed=7")
    assert said.returncode == 0, said.stderr
    commands = [line.partition("python -m wp1 ")[2] for line in said.stdout.splitlines() if line.startswith("== ")]
    assert len(commands) == len(experiments())
    assert not (tmp_path / "packets").exists()
    for command in commands:
        cfg = config(*shlex.split(command))
        checks.check(cfg)
        assert cfg.seed == 7


@pytest.mark.parametrize("argument", ["scale=big", "--all", "--all=1", "word"])
def test_unknown_arguments_are_refused(tmp_path: Path, argument: str) -> None:
    said = _run(str(tmp_path / "packets"), argument)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: {argument} is not known")
    assert said.stderr.count("\n") == 1
    assert not (tmp_path / "packets").exists()


@pytest.mark.parametrize("argument", ["root=elsewhere", "experiment=e3", "resume=run", "hydra.run.dir=x"])
def test_arguments_that_would_change_folder_or_experiment_are_refused(tmp_path: Path, argument: str) -> None:
    said = _run(str(tmp_path / "packets"), argument)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr == f"error: {argument} cannot be set: the packet runs every experiment, each in FOLDER\n"


@pytest.mark.parametrize("words", [("nosuch.key=1",), ("nosuch.key=1", "--print")])
def test_an_unknown_key_is_refused_before_anything_runs(tmp_path: Path, words: tuple[str, ...]) -> None:
    said = _run(str(tmp_path / "packets"), *words)
    assert (said.returncode, said.stdout) == (2, "")
    assert said.stderr.startswith("error: unknown key nosuch.key")
    assert said.stderr.count("\n") == 1
    assert not (tmp_path / "packets").exists()


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("packets", "--help")])
def test_help_is_the_header(words: tuple[str, ...]) -> None:
    said = _run(*words)
    assert (said.returncode, said.stderr) == (0, "")
    assert "launch/packet.sh FOLDER [scale=smoke|gpu]" in said.stdout
    assert said.stdout.rstrip().endswith("the exit code is 1.")
    assert _run().stdout == said.stdout


@pytest.mark.parametrize("word", ["--print", "--partial", "seed=7"])
def test_the_first_argument_must_be_a_folder(word: str, tmp_path: Path) -> None:
    said = _run(word)
    assert said.returncode == 2
    assert said.stderr.startswith(f"error: {word} is not a folder")
    assert said.stderr.count("\n") == 1


def test_make_says_what_is_missing() -> None:
    """Skips the setup target."""
    said = subprocess.run(
        ["make", "--old-file=setup", "--dry-run", "packet"], check=False, capture_output=True, text=True, cwd=REPO
    )
    assert said.returncode == 2
    [line] = said.stderr.splitlines()
    assert "DIR=FOLDER is missing" in line
