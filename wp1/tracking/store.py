"""The MLflow store that `tracking.uri` names, and exclusive access to it while publishing."""

import contextlib
import logging
import math
import os
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from filelock import FileLock
from filelock import Timeout as LockTimeout

from wp1.core import paths, redaction
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.run_files import LOG
from wp1.machine.output import output_to

log = logging.getLogger(__name__)

# Variables that a shell or an outer MLflow run may have set, and that would redirect our run.
NOT_INHERITED = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
)


def check_uri(uri: str, base: Path) -> None:
    """Raises ConfigError if `tracking.uri` is not a store. Called before a run that could not be published."""
    try:
        store_of(uri, base)
    except WP1Error as error:
        raise ConfigError(f"tracking.uri={shown(uri)}: {error}") from error


@dataclass(frozen=True)
class Store:
    """The store that a tracking URI names."""

    uri: str
    shown: str
    database: Path | None = None  # the file of a SQLite store
    in_project: bool = False  # the one that `make ui` shows


def store_of(uri: str, base: Path) -> Store:
    """The store that `uri` names; a relative SQLite file is relative to `base`. Raises WP1Error for any other kind."""
    if uri.startswith("sqlite:///"):
        file, mark, query = uri.removeprefix("sqlite:///").partition("?")
        if file and file != ":memory:":
            database = (base / file).resolve()
            if "%" in str(database):
                raise WP1Error("SQLAlchemy reads the % in that path as an escape: name a file without it")
            absolute = f"sqlite:///{database}{mark}{query}"
            return Store(absolute, absolute, database, database == paths.PACKAGE.resolve().parent / "mlflow.db")
    elif uri.startswith(("http://", "https://")):
        if urlsplit(uri).password is not None:
            # It would be written to config.yaml, and so to the copies in the report and in MLflow.
            raise WP1Error(
                "the address has a password: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead"
            )
        return Store(uri.rstrip("/"), shown(uri.rstrip("/")))
    raise WP1Error("not a store that wp1 can publish to: name sqlite:///FILE, or a server as http://HOST:PORT")


def shown(uri: str) -> str:
    """A tracking URI without possible secrets."""
    return redaction.text(uri)


@contextmanager
def talking_to(store: Store, timeout_s: float, folder: Path) -> Iterator[None]:
    """Gives the body exclusive access to the store, and turns its errors into WP1Error with the reason on one line.

    Output of MLflow, alembic and SQLAlchemy goes to the folder's wp1.log.
    """
    log_file = LOG.at(folder) if os.access(folder, os.W_OK) else Path(os.devnull)
    with output_to(log_file), _environment(timeout_s):
        try:
            with _only_writer(store, timeout_s):
                yield
        except WP1Error:
            raise
        except Exception as error:
            log.warning("could not publish to %s", store.shown, exc_info=True)
            raise WP1Error(_reason(error, timeout_s)) from error


@contextmanager
def _environment(timeout_s: float) -> Iterator[None]:
    """Sets MLflow's environment and restores it afterwards: engines of a later job must not inherit it."""
    # One retry, for a connection that the server closed while idle; both attempts together take timeout_s.
    settings = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(1, math.ceil(timeout_s / 2))),
        "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
        "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0",
        "MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER": "false",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "GIT_PYTHON_REFRESH": "quiet",
    }
    before = {name: os.environ.get(name) for name in (*settings, *NOT_INHERITED)}
    for name in NOT_INHERITED:
        os.environ.pop(name, None)
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def _only_writer(store: Store, timeout_s: float) -> Iterator[None]:
    """Locks a SQLite store, because MLflow creates its tables in steps that must not interleave between processes.

    Raises sqlite3.Error if the file cannot be written, before MLflow would retry for minutes.
    """
    if store.database is None:
        yield
        return
    store.database.parent.mkdir(parents=True, exist_ok=True)
    # The processes before us are publishing, so wait longer than for a silent server.
    wait_s = max(timeout_s, 60)
    with FileLock(f"{store.database}.lock", timeout=wait_s):
        with contextlib.closing(sqlite3.connect(store.database, timeout=timeout_s, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        yield


def _reason(error: Exception, timeout_s: float) -> str:
    """The cause of an error, for people. MLflow's messages list every attempt."""
    text = " ".join(str(error).split())
    if isinstance(error, LockTimeout):
        return "another run was still publishing there"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if "timed out" in text:
        return f"no answer in {timeout_s:g} s (tracking.timeout_s)"
    if found := re.search(r"\[Errno -?\d+\] ([\w ]+)", text) or re.search(r"Caused by \w+\(['\"](.*)['\"]\)", text):
        return found[1].strip()
    return one_line(error).replace("(sqlite3.OperationalError) ", "").partition(" (Background on")[0]


def one_line(error: BaseException, most: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
