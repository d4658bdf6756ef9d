"""Sends a finished run to MLflow. The only module that imports mlflow; what is sent is in `wp1.tracking`.

It goes one way: nothing is sent before a run has ended, and nothing that goes wrong here fails a run.
"""

import contextlib
import logging
import math
import os
import re
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from filelock import FileLock
from filelock import Timeout as LockTimeout

from wp1.analysis.sweep.figures import read_jobs
from wp1.core import paths, redaction
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.run_folder import RunFolder
from wp1.core.untrusted import is_own_store
from wp1.machine.output import output_to
from wp1.tracking.entry import MAX_TAG, TRAINING_VIEW, Entry, experiment_of
from wp1.tracking.run import entry_of
from wp1.tracking.sweep import sweep_entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

# What a shell or an outer MLflow run may have set, and would send our run elsewhere.
NOT_INHERITED = (
    "MLFLOW_RUN_ID",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_TRACKING_URI",
    "MLFLOW_REGISTRY_URI",
    "MLFLOW_ENABLE_ASYNC_LOGGING",
)
PARENT_TAG = "mlflow.parentRunId"
# Params or metrics a request.
MAX_BATCH = 100


class Says(Protocol):
    """The part of `wp1.runner.console.Screen` that is needed here."""

    def say(self, text: str) -> None: ...

    def step(self, text: str) -> AbstractContextManager[Any]: ...


def publish_or_say(run_dir: Path, tracking: Any, screen: Says) -> str | None:
    """Publishes a run that has ended and says where it is; on failure says why in one line, and returns None.

    tracking: the configuration's `tracking`. A server that does not answer is given up after `timeout_s` seconds.
    """
    try:
        with screen.step("publishing to MLflow"):
            run = RunFolder(run_dir)
            return publish(run, run.reports, tracking.uri, tracking.timeout_s)
    except KeyboardInterrupt:
        screen.say(_not_published(run_dir, tracking.uri, "stopped by Ctrl-C"))
        raise
    except Exception as error:
        screen.say(_not_published(run_dir, tracking.uri, _one_line(error)))
        return None


def publish(run: RunFolder, reports: Path, uri: str, timeout_s: float, parent: str | None = None) -> str:
    """Makes or replaces a run's entry in MLflow, and says where it is.

    reports: the folder that has the run's report. uri: `sqlite:///FILE` (a relative one is taken from the run's
    `root`) or `http(s)://`. timeout_s: seconds for one answer of a server, and for a store that others are writing to.
    parent: the MLflow id of the sweep that it belongs under, instead of the one that its folder names.
    Raises WP1Error with the reason in one line.
    """
    store = store_of(uri, Path(run.config["root"]))
    with _talking_to(store, timeout_s, run.path):
        entry = entry_of(run, reports)
        return _send(store, entry if parent is None else replace(entry, parent=parent))


def open_sweep_or_say(folder: Path, manifest: dict[str, Any], screen: Says) -> str | None:
    """`open_sweep`; on failure says why in one line and returns None: the sweep goes on without."""
    uri = manifest["tracking"]["uri"]
    try:
        with screen.step("opening the sweep in MLflow"):
            return open_sweep(folder, manifest, uri)
    except Exception as error:
        screen.say(
            f"not in MLflow (tracking.uri={shown(uri)}): {_one_line(error)}. The sweep goes on, its runs on their own"
        )
        return None


def open_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Makes the store, the experiment and the run above a sweep's runs, and returns that one's MLflow id.

    Of a sweep that goes on, or is published again, it is the run that there is, unless somebody has deleted that.
    Raises WP1Error with the reason in one line.
    """
    store = store_of(uri, Path(manifest["root"]))
    with _talking_to(store, manifest["tracking"]["timeout_s"], folder):
        entry = sweep_entry(folder, manifest, {})
        client, experiment = _experiment(store, entry)
        asked = f"tags.sweep = '{entry.run_id}' and tags.level = 'sweep'"
        there = [run.info.run_id for run in client.search_runs([experiment], asked)]
        parent = manifest["parent_run_id"]
        # A folder may name any run of ours, which is not for it to close and rename.
        if _parent_tag(client, parent) and _is_of_sweep(client, parent, entry.run_id):
            there.insert(0, parent)
        if there:
            client.update_run(there[0], status="RUNNING")
            return there[0]
        return client.create_run(experiment, entry.start_ms, entry.tags, entry.name).info.run_id


def close_sweep_or_say(folder: Path, manifest: dict[str, Any], screen: Says) -> str | None:
    """`close_sweep`; on failure says why in one line and returns None."""
    uri = manifest["tracking"]["uri"]
    try:
        with screen.step("publishing the comparison to MLflow"):
            return close_sweep(folder, manifest, uri)
    except Exception as error:
        screen.say(f"the comparison is not in MLflow (tracking.uri={shown(uri)}): {_one_line(error)}")
        return None


def close_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Gives a sweep's MLflow run its status, its end and the comparison, and says where it is.

    manifest: its `parent_run_id` is that run. Raises WP1Error with the reason in one line.
    """
    store, parent = store_of(uri, Path(manifest["root"])), manifest["parent_run_id"]
    with _talking_to(store, manifest["tracking"]["timeout_s"], folder):
        client, experiment = _experiment(store, sweep_entry(folder, manifest, {}))
        entry = sweep_entry(folder, manifest, _pages(client, folder, manifest))
        # Its end first: what follows may be stopped, or not fit the disk.
        client.set_terminated(parent, entry.status, entry.end_ms)
        for key, value in entry.tags.items():
            client.set_tag(parent, key, value)
        _fill(client, experiment, parent, entry)
        return _place(store, experiment, parent, entry)


def discard_sweep(folder: Path, manifest: dict[str, Any]) -> None:
    """Deletes the MLflow run of a sweep of which no job left a run; one that cannot be deleted is let be."""
    timeout_s = manifest["tracking"]["timeout_s"]
    with contextlib.suppress(WP1Error):
        store = store_of(manifest["tracking"]["uri"], Path(manifest["root"]))
        with _talking_to(store, timeout_s, folder):
            _client(store).delete_run(manifest["parent_run_id"])


def _pages(client: "MlflowClient", folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """Where MLflow has the runs of a sweep's jobs, by wp1's run id; their experiments may differ."""
    jobs = [job for job in read_jobs(folder, manifest) if job.run_dir is not None]
    pages = {}
    for name in {experiment_of(job.metadata) for job in jobs}:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            continue
        found = client.search_runs([experiment.experiment_id], f"tags.sweep = '{manifest['sweep']}'", max_results=5000)
        for run in found:
            if "run_id" in run.data.tags:
                pages[run.data.tags["run_id"]] = _page(run.info.experiment_id, run.info.run_id)
    return pages


def _not_published(run_dir: Path, uri: str, reason: str) -> str:
    to = f" --uri {shlex.quote(shown(uri))}"
    # What cannot be read is named in the reason.
    with contextlib.suppress(WP1Error):
        to = "" if is_own_store(uri, run_dir, RunFolder(run_dir).config["root"]) else to
    return (
        f"not in MLflow (tracking.uri={shown(uri)}): {reason}. "
        f"The run is safe; publish it later with: python -m wp1.track {shlex.quote(str(run_dir))}{to}"
    )


def check_uri(uri: str, base: Path) -> None:
    """Raises ConfigError where `tracking.uri` names no store, before a run is made that could not go there."""
    try:
        store_of(uri, base)
    except WP1Error as error:
        raise ConfigError(f"tracking.uri={shown(uri)}: {error}") from error


@dataclass(frozen=True)
class Store:
    """What a tracking URI names."""

    uri: str
    shown: str
    database: Path | None = None  # the file of a SQLite store
    in_project: bool = False  # the one that `make ui` shows


def store_of(uri: str, base: Path) -> Store:
    """The store that `uri` names; a relative SQLite file is taken from `base`. Raises WP1Error for any other kind."""
    if uri.startswith("sqlite:///"):
        file, mark, query = uri.removeprefix("sqlite:///").partition("?")
        if file and file != ":memory:":
            database = (base / file).resolve()
            if "%" in str(database):
                raise WP1Error("SQLAlchemy takes the % in that path for an escape: name a file without one")
            absolute = f"sqlite:///{database}{mark}{query}"
            return Store(absolute, absolute, database, database == paths.PACKAGE.resolve().parent / "mlflow.db")
    elif uri.startswith(("http://", "https://")):
        if urlsplit(uri).password is not None:
            # It would be in config.yaml, and so in the report's and MLflow's copies of it.
            raise WP1Error("the address has a password: use MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD instead")
        return Store(uri.rstrip("/"), shown(uri.rstrip("/")))
    raise WP1Error("no store wp1 can publish to: name sqlite:///FILE, or a server as http://HOST:PORT")


def shown(uri: str) -> str:
    """A tracking URI without what may be a secret in it."""
    return redaction.text(uri)


@contextmanager
def _talking_to(store: Store, timeout_s: float, folder: Path) -> Iterator[None]:
    """What is within has the store to itself; what goes wrong there is a WP1Error with the reason in one line.

    MLflow, alembic and SQLAlchemy print while they work; all of it belongs in the folder's wp1.log.
    """
    log_file = folder / "wp1.log" if os.access(folder, os.W_OK) else Path(os.devnull)
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
    """MLflow's settings for one call, put back afterwards: engines of a later job must not inherit them."""
    # One retry is for a connection that the server closed while idle; both tries together take timeout_s.
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
    """Runs that end together take turns at a SQLite store: MLflow makes its tables in steps that must not mix.

    Raises sqlite3.Error where the file cannot be written to, before MLflow tries it for minutes.
    """
    if store.database is None:
        yield
        return
    store.database.parent.mkdir(parents=True, exist_ok=True)
    # Those before us are at work, so they are given more time than a silent server.
    wait_s = max(timeout_s, 60)
    with FileLock(f"{store.database}.lock", timeout=wait_s):
        with contextlib.closing(sqlite3.connect(store.database, timeout=timeout_s, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
        yield


def _send(store: Store, entry: Entry) -> str:
    """Adds the entry as a new MLflow run, then deletes what an earlier publication of the same run left.

    A new one rather than the old one written over: MLflow does not change a param, and of two values of a metric it
    shows the higher, so a figure that was corrected downwards would stay. In this order a failure loses nothing.
    """
    client, experiment = _experiment(store, entry)
    tags = entry.tags | _parent_tag(client, entry.parent)
    made = [client.create_run(experiment, entry.start_ms, tags, entry.name).info.run_id]
    try:
        _fill(client, experiment, made[0], entry)
        for cell in entry.cells:
            below = cell.tags | {PARENT_TAG: made[0]}
            made.append(client.create_run(experiment, cell.start_ms, below, cell.name).info.run_id)
            _fill(client, experiment, made[-1], cell)
    except BaseException:
        # Best effort, and brief: what failed may be the server.
        os.environ.update(MLFLOW_HTTP_REQUEST_TIMEOUT="1", MLFLOW_HTTP_REQUEST_MAX_RETRIES="0")
        with contextlib.suppress(Exception):
            for run in made:
                client.delete_run(run)
        raise
    for run in client.search_runs([experiment], f"tags.run_id = '{entry.run_id}'", max_results=5000):
        if run.info.run_id not in made:
            client.delete_run(run.info.run_id)
    return _place(store, experiment, made[0], entry)


def _client(store: Store) -> "MlflowClient":
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=store.uri, registry_uri=store.uri)


def _parent_tag(client: "MlflowClient", parent: str | None) -> dict[str, str]:
    """What puts a run under its sweep's; nothing where that is not in this store, or deleted."""
    from mlflow.exceptions import MlflowException

    try:
        if parent is not None and client.get_run(parent).info.lifecycle_stage == "active":
            return {PARENT_TAG: parent}
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    return {}


def _is_of_sweep(client: "MlflowClient", run: str, sweep: str) -> bool:
    tags = client.get_run(run).data.tags
    return tags.get("sweep") == sweep and tags.get("level") == "sweep"


def _page(experiment: str, run: str) -> str:
    """The address of a run's page within MLflow's."""
    return f"#/experiments/{experiment}/runs/{run}"


def _place(store: Store, experiment: str, run: str, entry: Entry) -> str:
    """Where a person finds a run: its address, or what shows the file that it is in."""
    if store.database is None:
        return f"{store.uri}/{_page(experiment, run)}?{TRAINING_VIEW}"
    viewer = "make ui" if store.in_project else f"mlflow server --backend-store-uri {shlex.quote(store.uri)}"
    return f"{entry.experiment}/{entry.name} in {store.shown}, {viewer} shows it"


def _experiment(store: Store, entry: Entry) -> "tuple[MlflowClient, str]":
    """A client, and the id of the MLflow experiment, made if there is none. Raises WP1Error where that was deleted."""
    from mlflow.exceptions import MlflowException

    client, database = _client(store), store.database
    found = client.get_experiment_by_name(entry.experiment)
    if found is None:
        # MLflow would put the files of a SQLite store where the process happens to run.
        beside = (database.parent / "mlartifacts" / entry.experiment).as_uri() if database else None
        tags = {"mlflow.note.content": entry.question, "mlflow.experimentKind": "custom_model_development"}
        try:
            return client, client.create_experiment(entry.experiment, beside, tags)
        except MlflowException as error:
            # Another run's process may have made it meanwhile.
            found = client.get_experiment_by_name(entry.experiment)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise WP1Error(
            f"the experiment {entry.experiment} is deleted in MLflow: "
            f"mlflow experiments restore --experiment-id {found.experiment_id} brings it back"
        )
    if database and str(found.artifact_location).startswith("mlflow-artifacts:"):
        raise WP1Error(
            f"the experiment {entry.experiment} was made by a server that keeps its files: "
            "name that server in tracking.uri, as http://HOST:PORT"
        )
    return client, found.experiment_id


def _fill(client: "MlflowClient", experiment: str, made: str, entry: Entry) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param

    params = [Param(key, value) for key, value in entry.params.items()]
    for start in range(0, len(params), MAX_BATCH):
        client.log_batch(made, params=params[start : start + MAX_BATCH], synchronous=True)
    metrics = [Metric(key, value, entry.end_ms, 0) for key, value in entry.metrics.items()]
    metrics += [Metric(key, value, entry.end_ms, step) for key, value, step in entry.curves]
    for start in range(0, len(metrics), MAX_BATCH):
        client.log_batch(made, metrics=metrics[start : start + MAX_BATCH], synchronous=True)
    if entry.dataset is not None:
        asked = Dataset(entry.dataset["name"], entry.dataset["digest"], "wp1", entry.dataset["source"])
        client.log_inputs(made, [DatasetInput(asked, [InputTag("mlflow.data.context", "evaluation")])])
    for name, text in entry.texts.items():
        client.log_text(made, text, name)
    for path, folder in entry.files:
        client.log_artifact(made, str(path), folder)
    description = entry.description.replace("{run}", _page(experiment, made))
    client.set_tag(made, "mlflow.note.content", description[:MAX_TAG])
    client.set_terminated(made, entry.status, entry.end_ms)


def _reason(error: Exception, timeout_s: float) -> str:
    """MLflow's exceptions say all that was tried; a person needs what was in the way."""
    text = " ".join(str(error).split())
    if isinstance(error, LockTimeout):
        return "another run was still publishing there"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    if "timed out" in text:
        return f"no answer in {timeout_s:g} s (tracking.timeout_s)"
    if found := re.search(r"\[Errno -?\d+\] ([\w ]+)", text) or re.search(r"Caused by \w+\(['\"](.*)['\"]\)", text):
        return found[1].strip()
    return _one_line(error).replace("(sqlite3.OperationalError) ", "").partition(" (Background on")[0]


def _one_line(error: BaseException, most: int = 300) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else text[: most - 1] + "…"
