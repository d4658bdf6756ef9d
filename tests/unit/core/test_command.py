"""How commands end: Ctrl-C, bad options and a closed pipe give one line or none."""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import REPO
from wp1.core import command
from wp1.core.errors import ConfigError, WP1Error, reading

MODULES = ("wp1", *(f"wp1.{name}" for name in command.NAMES))


def _python(*words: str, **settings: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], check=False, stderr=subprocess.PIPE, text=True, cwd=REPO, timeout=120, **settings
    )


@pytest.mark.parametrize("module", MODULES)
def test_a_bad_option_is_one_line(module: str) -> None:
    done = _python("-m", module, "--no-such-option", stdout=subprocess.PIPE)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and "see python -m wp1" in line


@pytest.mark.parametrize(("module", "unbuffered"), [*((module, "") for module in MODULES), ("wp1", "1")])
def test_a_pipe_that_nobody_reads_is_no_error(module: str, unbuffered: str) -> None:
    nobody, out = os.pipe()
    os.close(nobody)
    try:
        done = _python("-m", module, "--help", stdout=out, env=os.environ | {"PYTHONUNBUFFERED": unbuffered})
    finally:
        os.close(out)
    assert done.stderr == ""
    # argparse itself is silent where it cannot write.
    assert done.returncode in ((0, command.NO_READER) if unbuffered else (command.NO_READER,))


# A Ctrl-C while modules are imported, and one while the command is at work; nothing else in the process is changed.
DURING = {
    "imports": "class Stop:\n"
    "    def find_spec(self, name, path=None, target=None):\n"
    "        if name == 'wp1.core.errors': raise KeyboardInterrupt\n"
    "sys.meta_path.insert(0, Stop())\n",
    "work": "import argparse\n"
    "def stop(*_, **__): raise KeyboardInterrupt\n"
    "argparse.ArgumentParser.parse_args = argparse.ArgumentParser.parse_known_args = stop\n",
}


@pytest.mark.parametrize("moment", DURING)
@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_is_one_line(module: str, moment: str) -> None:
    # As `python -m` does it: the package first, then the module as the main one.
    main = f"{module}.__main__" if module == "wp1" else module
    probe = (
        f"import runpy, sys\n{DURING[moment]}"
        "sys.argv = ['-m', 'x']\nimport wp1\nsys.argv[0] = 'wp1'\n"
        f"runpy.run_module('{main}', run_name='__main__', alter_sys=True)\n"
    )
    done = _python("-c", probe, stdout=subprocess.PIPE)
    # The shell calls both 130: a process that SIGINT ended, and one that says so.
    assert done.returncode in (command.INTERRUPTED, -2)
    assert done.stderr.startswith("interrupted")
    assert len(done.stderr.splitlines()) == 1


# The function that each command calls after parsing its arguments, and valid arguments.
WORK = {
    "report": ("_made", ["RUN"]),
    "compare": ("compare", ["RUN", "RUN"]),
    "track": ("_tracked", ["RUN"]),
    "packet": ("make", ["RUN"]),
    "score": ("scores_of", ["hotpotqa", "FILE"]),
    "peaks": ("measure", []),
}
FAULTS: list[tuple[BaseException, int, str]] = [
    (ConfigError("RUN is not there: name another"), 2, "error: RUN is not there: name another"),
    (WP1Error("it broke\nand more"), 1, "error: it broke and more"),
    (OSError(28, "No space left on device", "RUN"), 1, "error: [Errno 28] No space left on device: 'RUN'"),
    (KeyError("x"), 1, "error: "),
    (KeyboardInterrupt(), 130, "interrupted"),
]


def _ends(main: Callable[[], None]) -> int:
    try:
        main()
    except SystemExit as ended:
        assert isinstance(ended.code, int)
        return ended.code
    return 0


@pytest.mark.parametrize(("fault", "code", "said"), FAULTS, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", WORK)
def test_every_command_says_a_fault_of_a_kind_in_the_same_way(
    name: str, fault: BaseException, code: int, said: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    def fail(*_: Any, **__: Any) -> None:
        raise fault

    (tmp_path / "FILE").touch()
    monkeypatch.chdir(tmp_path)
    module = importlib.import_module(f"wp1.{name}")
    call, words = WORK[name]
    monkeypatch.setattr(module, call, fail)
    monkeypatch.setattr(sys, "argv", [name, *words])
    assert _ends(module.main) == code
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(said)
    # An unexpected error is shown by its name and either the folder or the line of code.
    assert not isinstance(fault, KeyError) or ("KeyError: 'x'" in line and ("RUN" in line or "wp1/" in line))


def test_what_a_main_returns_is_its_exit_code() -> None:
    assert command.exit_code(lambda: None) == 0
    assert command.exit_code(lambda: 1) == 1
    assert command.exit_code(lambda: sys.exit(2)) == 2
    assert command.exit_code(sys.exit) == 0


def test_a_secret_in_a_message_is_not_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.say(WP1Error("http://me:hunter2@host:5000 does not answer")) == 1
    assert "hunter2" not in capsys.readouterr().err


@pytest.mark.parametrize(("codes", "worst"), [([], 0), ([2], 2), ([2, 1], 1), ([1, 2], 1)])
def test_a_failure_counts_for_more_than_bad_input(codes: list[int], worst: int) -> None:
    assert command.worst(codes) == worst


def test_whatever_a_damaged_folder_raises_names_the_folder() -> None:
    with pytest.raises(WP1Error, match=r"RUN is not a complete run folder \(KeyError: 'a'\): leave it out"):  # noqa: SIM117
        with reading("RUN", ": leave it out"):
            raise KeyError("a")
    with pytest.raises(ConfigError, match="no access to RUN"), reading("RUN"):
        raise PermissionError(13, "Permission denied")
    with pytest.raises(OSError, match="full"), reading("RUN"):
        raise OSError(28, "full")
