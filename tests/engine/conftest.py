"""Real vLLM on the CPU. An engine takes a minute to start, so tests of one kind share one."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from wp1.records import read_records

REPO = Path(__file__).parents[2]


class Loop:
    """An event loop in a thread, so that one engine can serve many tests."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __call__(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = 300) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(timeout_s)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@dataclass
class UserRun:
    """`python -m wp1 ...` in a process of its own, as a user starts it. Its processes carry a mark to find them by."""

    root: Path
    process: subprocess.Popen[str]
    mark: str
    output: list[str] = field(default_factory=list)

    @property
    def run_dir(self) -> Path:
        return next((self.root / "outputs").glob("run-*"))

    def records(self) -> list[Any]:
        found = list((self.root / "outputs").glob("run-*/records.jsonl"))
        return read_records(found[0]) if found else []

    def wait_for_records(self, count: int, within_s: float = 400) -> None:
        """Until the run has measured that many requests."""
        deadline = time.monotonic() + within_s
        while len(self.records()) < count:
            assert self.process.poll() is None, self.finish()[1]
            assert time.monotonic() < deadline, "no records in time"
            time.sleep(0.2)

    def finish(self, within_s: float = 400) -> tuple[int, str]:
        """Exit code and what the user saw."""
        output, _ = self.process.communicate(timeout=within_s)
        return self.process.returncode, output

    def processes(self) -> dict[int, str]:
        """Command lines of what lives of this run, by process id."""
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                if f"WP1_TEST_MARK={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
        return found

    def wait_until_gone(self, within_s: float = 30) -> None:
        """Until no process of the run is left. Here as everywhere the limit is for a machine with much else to do."""
        deadline = time.monotonic() + within_s
        while self.processes():
            assert time.monotonic() < deadline, f"still there: {self.processes()}"
            time.sleep(0.1)


Start = Callable[..., UserRun]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts `python -m wp1 OVERRIDES` with a folder of its own for what it leaves."""
    runs: list[UserRun] = []

    def start_(*overrides: str, **environment: str) -> UserRun:
        root, mark = tmp_path_factory.mktemp("user"), uuid.uuid4().hex
        process = subprocess.Popen(
            [sys.executable, "-m", "wp1", f"root={root}", *overrides],
            cwd=REPO,
            env=os.environ | {"WP1_TEST_MARK": mark} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        runs.append(UserRun(root, process, mark))
        return runs[-1]

    yield start_
    for run in runs:
        for pid in [run.process.pid, *run.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        run.process.wait()
