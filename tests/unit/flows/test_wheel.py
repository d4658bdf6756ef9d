"""The wheel as another project installs it: built here, installed outside the checkout, and its command run."""

import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests import REPO
from wp1 import __version__
from wp1.core import command


@pytest.fixture(scope="module")
def wp1_command(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `wp1` of an environment that has the wheel, and everything else from the one of these tests."""
    folder = tmp_path_factory.mktemp("wheel")
    _done([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)])
    (wheel,) = folder.glob("*.whl")
    uv = Path(sys.executable).parent / "uv"
    python = folder / "venv" / "bin" / "python"
    _done([str(uv), "venv", "--quiet", "--offline", "--no-config", "--python", sys.executable, str(folder / "venv")])
    offline = ["--quiet", "--offline", "--no-config", "--no-deps", "--no-index"]
    _done([str(uv), "pip", "install", *offline, "--python", str(python), str(wheel)])
    found = _done([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    # A path in a .pth file is only a path: the checkout, which these tests have by a .pth file too, is not found by it.
    (Path(found.stdout.strip()) / "packages.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python.with_name("wp1")


def _done(words: list[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=REPO, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def _say(program: Path, *words: str, at: Path) -> str:
    done = subprocess.run([program, *words], check=False, capture_output=True, text=True, cwd=at, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_of_the_wheel_composes_its_own_configuration(wp1_command: Path, tmp_path: Path) -> None:
    composed = _say(wp1_command, "--cfg", "job", "--resolve", at=tmp_path)
    assert "smollm2_135m" in composed
    assert f"root: {tmp_path}" in composed  # where it was started, as there is no checkout
    assert "experiment=e6" in _say(wp1_command, "--help", at=tmp_path)
    where = _say(wp1_command.with_name("python"), "-c", "from wp1.core.paths import CONF; print(CONF)", at=tmp_path)
    assert Path(where.strip()).is_relative_to(wp1_command.parents[1])
    # Hydra finds the launcher of sweeps by its name, and both jobs are refused.
    words = [wp1_command, "-m", "workload.concurrency=0,-1", "tracking=none"]
    done = subprocess.run(words, check=False, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 2, done.stderr
    assert "error: job 1: workload.concurrency=-1 is too small" in done.stderr


def test_the_version_is_that_of_wp1(wp1_command: Path, tmp_path: Path) -> None:
    assert _say(wp1_command, "--version", at=tmp_path) == f"wp1 {__version__}\n"
    assert _done([sys.executable, "-m", "wp1", "--version"]).stdout == f"wp1 {__version__}\n"


@pytest.mark.parametrize("name", command.NAMES)
def test_other_commands_are_subcommands(name: str, wp1_command: Path, tmp_path: Path) -> None:
    said = _say(wp1_command, name, "--help", at=tmp_path)
    assert said == _done([sys.executable, "-m", f"wp1.{name}", "--help"]).stdout
    assert said.startswith(f"usage: python -m wp1.{name} ")


def test_every_module_that_is_a_command_is_a_subcommand() -> None:
    modules = (path for path in (REPO / "wp1").glob("*.py") if "@command.guarded" in path.read_text())
    assert sorted(path.stem for path in modules if path.stem != "__main__") == sorted(command.NAMES)
