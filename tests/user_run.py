"""`python -m wp1 ...` as a user starts it, in a process of its own, and what of it is still there. For real engines."""

import os
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests import REPO
from tests.records import read_records

MARK = "WP1_TEST_MARK"
# The smallest model that an engine serves: random weights, no tokenizer. It starts fastest.
TINY_SHAPE = (
    "model=llama31_8b_shape",
    "model.max_len=2048",
    "model.architecture.hidden_size=256",
    "model.architecture.intermediate_size=512",
    "model.architecture.num_hidden_layers=2",
    "model.architecture.num_attention_heads=4",
    "model.architecture.num_key_value_heads=2",
    "model.architecture.head_dim=64",
    "model.architecture.vocab_size=1024",
)


@dataclass
class UserRun:
    """A run in a process of its own. Its processes carry a mark to find them by."""

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
                if f"{MARK}={self.mark}".encode() in (entry / "environ").read_bytes():
                    found[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip()
            except OSError:
                continue
        return found

    def wait_until_gone(self, within_s: float = 10) -> None:
        deadline = time.monotonic() + within_s
        while self.processes():
            assert time.monotonic() < deadline, f"still there: {self.processes()}"
            time.sleep(0.1)

    def kill(self) -> None:
        """Ends whatever is left of it, at once."""
        for pid in [self.process.pid, *self.processes()]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.wait()


def start(root: Path, *overrides: str, **environment: str) -> UserRun:
    """Starts `python -m wp1 OVERRIDES`; what it leaves lands in `root`."""
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "wp1", f"root={root}", *overrides],
        cwd=REPO,
        env=os.environ | {MARK: mark} | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    return UserRun(root, process, mark)
