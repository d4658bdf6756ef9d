"""Processes with the mark do not outlive the run; others are left alone."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from wp1.serving import guard as guard_module
from wp1.serving.guard import MARK, ProcessGuard, marked, remove_stale

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]


def _gone(pid: int, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_leftovers_of_a_killed_engine_are_removed() -> None:
    """Shared memory that was not unlinked, and files in its temporary folder."""
    work = (
        "import tempfile, time\n"
        "from multiprocessing import shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=100)\n"
        "file = tempfile.NamedTemporaryFile(delete=False)\n"
        "print(memory.name, file.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    temporary = os.environ.get("TMPDIR")
    with ProcessGuard():
        engine = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True)
        assert engine.stdout is not None
        name, file = engine.stdout.readline().split()
        assert Path(f"/dev/shm/{name}").exists()
        assert Path(file).exists()
    engine.wait()
    assert not Path(f"/dev/shm/{name}").exists()
    assert not Path(file).parent.exists()
    assert os.environ.get("TMPDIR") == temporary


def test_memory_created_after_the_watchers_last_look_is_removed() -> None:
    work = (
        "import time\n"
        "from multiprocessing import shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=100)\n"
        "print(memory.name, flush=True)\n"
        "time.sleep(60)\n"
    )
    with ProcessGuard() as guard:
        engine = subprocess.Popen([sys.executable, "-c", work], stdout=subprocess.PIPE, text=True)
        assert engine.stdout is not None
        name = engine.stdout.readline().strip()
        guard.kill()
        assert not Path(f"/dev/shm/{name}").exists()
        engine.wait()


def test_exit_ends_processes_started_inside() -> None:
    before = subprocess.Popen(SLEEP)
    with ProcessGuard() as guard:
        inside = subprocess.Popen(SLEEP, start_new_session=True)
        time.sleep(0.2)
        assert marked(guard.token) == [inside.pid]
    assert inside.wait(timeout=30) == -signal.SIGKILL
    assert before.poll() is None
    assert MARK not in os.environ
    before.kill()
    before.wait()


def test_a_killed_runs_processes_are_killed() -> None:
    """After kill -9 of the run's process, a grandchild in its own session, for which no process waits, must end too."""
    run = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time\n"
            "from wp1.serving.guard import ProcessGuard\n"
            "with ProcessGuard() as guard:\n"
            "    words = [sys.executable, '-c', 'import time; time.sleep(60)']\n"
            "    child = subprocess.Popen(words, start_new_session=True)\n"
            "    print(child.pid, guard.token, flush=True)\n"
            "    time.sleep(60)\n",
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    child, token = run.stdout.readline().split()
    run.kill()
    run.wait()
    assert _gone(int(child), within_s=30)
    assert marked(token) == []


def test_folders_of_dead_runs_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, locked, new = (f"wp1-{dead.pid}-0000000{n}" for n in range(3))
    lives, other = f"wp1-{os.getpid()}-00000000", "wp1-kv-00000000"
    for name in (gone, locked, new, lives, other):
        (tmp_path / name / "kv").mkdir(parents=True)
    holds = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys, time\n"
            "fcntl.flock(os.open(sys.argv[1], os.O_RDONLY), fcntl.LOCK_SH)\n"
            "print(flush=True)\n"
            "time.sleep(60)\n",
            str(tmp_path / locked),
        ],
        stdout=subprocess.PIPE,
    )
    assert holds.stdout is not None
    holds.stdout.readline()
    old = time.time() - 2 * guard_module.STALE_AFTER_S
    for name in (gone, locked, lives, other):
        os.utime(tmp_path / name, (old, old))
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {locked, new, lives, other}
    holds.kill()
    holds.wait()
    remove_stale(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {new, lives, other}


def test_a_run_holds_its_folder_until_its_watcher_has_cleaned_up() -> None:
    with ProcessGuard():
        scratch = Path(os.environ["TMPDIR"])
        old = time.time() - 2 * guard_module.STALE_AFTER_S
        os.utime(scratch, (old, old))
        # As another run sees it: locks belong to descriptors, so this process can stand in for another.
        remove_stale(scratch.parent)
        assert scratch.is_dir()
    assert not scratch.exists()
