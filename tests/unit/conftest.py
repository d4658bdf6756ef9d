"""Fixtures for tests of whole sweeps: the command line in this process, with the engine double as backend."""

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.double import TINY, DoubleBackend
from wp1 import main
from wp1.core.identity import PARENT_VARIABLE
from wp1.core.run_folder import read_json
from wp1.runner.loop_lag import garbage_left
from wp1.sweep import callbacks


@dataclass
class Swept:
    """What a sweep left."""

    code: int
    said: str  # on standard error
    out: str
    folder: Path
    store: str

    @property
    def manifest(self) -> dict[str, Any]:
        return read_json(self.folder / "sweep.json")

    @property
    def table(self) -> pl.DataFrame:
        return pl.read_csv(self.folder / "comparison.csv")

    def runs(self, state: str = "active") -> dict[str, Any]:
        """Everything in MLflow: runs by their id, sweeps by their folder's name, cells by what they are shown as."""
        from mlflow import MlflowClient
        from mlflow.entities import ViewType

        client = MlflowClient(self.store)
        view = ViewType.ACTIVE_ONLY if state == "active" else ViewType.ALL
        experiments = [experiment.experiment_id for experiment in client.search_experiments()]
        found = client.search_runs(experiments, run_view_type=view)
        named_by = {"run": "run_id", "sweep": "sweep"}
        return {
            str(run.data.tags.get(named_by.get(run.data.tags.get("level", ""), ""), run.info.run_name)): run
            for run in found
        }

    @property
    def parent(self) -> Any:
        return self.runs()[self.folder.name]

    def children(self) -> list[Any]:
        mine = self.parent.info.run_id
        return [run for run in self.runs().values() if run.data.tags.get("mlflow.parentRunId") == mine]


Sweep = Callable[..., Swept]
Command = Callable[..., tuple[int, str, str]]


class Left(BaseException):
    """The command's end."""

    def __init__(self, code: int) -> None:
        self.code = code


def leave(code: int) -> None:
    raise Left(code)


@pytest.fixture(scope="session", autouse=True)
def garbage_of_tests_left() -> Iterator[None]:
    """Else every run would let the garbage collector go through all that the tests before have imported."""
    with garbage_left():
        yield


@pytest.fixture(autouse=True)
def root_of_a_test_left() -> Iterator[None]:
    """`resume=` names the root of what it goes on with in the environment, for the rest of its process."""
    before = os.environ.get("WP1_ROOT")
    yield
    if before is None:
        os.environ.pop("WP1_ROOT", None)
    else:
        os.environ["WP1_ROOT"] = before


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One store for all: making its tables takes MLflow seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def undisturbed() -> Iterator[None]:
    """Puts back what a command line may do to its own process."""
    handlers, level = logging.root.handlers[:], logging.root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    yield
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    for number, handler in signals.items():
        signal.signal(number, handler)
    main._failures.clear()
    callbacks._open.clear()
    callbacks._begun.clear()


@pytest.fixture
def command(
    double: type[DoubleBackend], undisturbed: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Command:
    """`python -m wp1 WORDS` in this process: exit code, standard error, standard output."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    # The real one ends the process, that of the tests too.
    monkeypatch.setattr(main, "_leave", leave)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wp1", *words])
        main._failures.clear()
        before = os.environ.get(PARENT_VARIABLE)
        with pytest.raises(Left) as left:
            main.main()
        assert os.environ.get(PARENT_VARIABLE) == before
        seen = capfd.readouterr()
        return left.value.code, seen.err, seen.out

    return run


@pytest.fixture
def sweep(command: Command, tmp_path: Path, store: str) -> Sweep:
    def run(*overrides: str) -> Swept:
        code, said, out = command("-m", f"root={tmp_path}", f"tracking.uri={store}", *TINY, *overrides)
        (folder,) = (tmp_path / "multirun").iterdir()
        return Swept(code, said, out, folder, store)

    return run
