"""Each engine's processes get its own variables although engines start in parallel; afterwards they are gone."""

import multiprocessing
import os
import threading
import time
from pathlib import Path

import pytest

from wp1.serving.spawning import spawning

NAME = "WP1_TEST_DEVICE"


def _write_down(path: str) -> None:
    Path(path).write_text(os.environ.get(NAME, "none"))


def _start_slowly(device: str, path: Path, log: list[tuple[str, str]]) -> None:
    with spawning({NAME: device}):
        log.append(("begins", device))
        process = multiprocessing.get_context("spawn").Process(target=_write_down, args=(str(path),))
        process.start()
        # Like an engine, it is slow to get ready once its process runs.
        process.join()
        time.sleep(0.3)
        log.append(("ends", device))


def test_engines_start_in_parallel_with_their_own_variables(tmp_path: Path) -> None:
    log: list[tuple[str, str]] = []
    threads = [threading.Thread(target=_start_slowly, args=(d, tmp_path / d, log)) for d in ("0", "1", "2")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / device).read_text() for device in ("0", "1", "2")] == ["0", "1", "2"]
    # The second did not wait for the first to be ready.
    assert [what for what, _ in log[:2]] == ["begins", "begins"]
    assert NAME not in os.environ


def test_the_environment_is_restored_even_if_nothing_was_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, "before")
    with pytest.raises(RuntimeError), spawning({NAME: "7"}):
        assert os.environ[NAME] == "7"
        raise RuntimeError("no engine")
    assert os.environ[NAME] == "before"
