"""How every command ends: Ctrl-C, bad options and a closed pipe are at most one line."""

import os
import subprocess
import sys
from typing import Any

import pytest

from tests import REPO
from wp1.core import command

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
