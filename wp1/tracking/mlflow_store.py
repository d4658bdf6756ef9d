"""Sends a finished run to MLflow. The only module that imports mlflow; the rest of `wp1.tracking` makes the contents.

Nothing is sent before a run has ended, and an error here never fails a run.
"""

import contextlib
import logging
import os
import shlex
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from wp1.analysis.sweep.figures import read_jobs
from wp1.core.errors import WP1Error
from wp1.core.run_folder import RunFolder
from wp1.core.untrusted import is_own_store
from wp1.tracking.entry import MAX_TAG, TRAINING_VIEW, Entry, experiment_of
from wp1.tracking.run import entry_of
from wp1.tracking.store import Store, one_line, shown, store_of, talking_to
from wp1.tracking.sweep import sweep_entry

if TYPE_CHECKING:
    from mlflow import MlflowClient

log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
# Params or metrics per request.
MAX_BATCH = 100


class Says(Protocol):
    """The part of `wp1.runner.console.Screen` that this module uses."""

    def say(self, text: str) -> None: ...

    def step(self, text: str) -> AbstractContextManager[Any]: ...


def publish_or_say(run_dir: Path, tracking: Any, screen: Says) -> str | None:
    """Publishes a finished run and returns its location; on failure, prints the reason on one line and returns None.

    tracking: the configuration's `tracking`; `timeout_s` is the limit for a server's answer.
    """
    try:
        with screen.step("publishing to MLflow"):
            run = RunFolder(run_dir)
            return publish(run, run.reports, tracking.uri, tracking.timeout_s)
    except KeyboardInterrupt:
        screen.say(_not_published(run_dir, tracking.uri, "stopped by Ctrl-C"))
        raise
    except Exception as error:
        screen.say(_not_published(run_dir, tracking.uri, one_line(error)))
        return None


def publish(run: RunFolder, reports: Path, uri: str, timeout_s: float, parent: str | None = None) -> str:
    """Makes or replaces a run's entry in MLflow, and returns its location.

    reports: the folder of the run's report. uri: `sqlite:///FILE` (relative to the run's `root`) or `http(s)://`.
    timeout_s: seconds to wait for a server's answer, or for a store that others are writing to. parent: the MLflow id
    of the sweep above it, instead of the one that its folder names.
    Raises WP1Error with the reason on one line.
    """
    store = store_of(uri, Path(run.config["root"]))
    with talking_to(store, timeout_s, run.path):
        entry = entry_of(run, reports)
        return _send(store, entry if parent is None else replace(entry, parent=parent))


def open_sweep_or_say(folder: Path, manifest: dict[str, Any], screen: Says) -> str | None:
    """`open_sweep`; on failure, prints the reason on one line and returns None, and the sweep continues without it."""
    uri = manifest["tracking"]["uri"]
    try:
        with screen.step("opening the sweep in MLflow"):
            return open_sweep(folder, manifest, uri)
    except Exception as error:
        screen.say(
            f"not in MLflow (tracking.uri={shown(uri)}): {one_line(error)}. The sweep continues without a parent run"
        )
        return None


def open_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Makes the store, the experiment and the parent run of a sweep, and returns the parent's MLflow id.

    If the sweep is resumed or published again, its existing parent is used, unless it was deleted.
    Raises WP1Error with the reason on one line.
    """
    store = store_of(uri, Path(manifest["root"]))
    with talking_to(store, manifest["tracking"]["timeout_s"], folder):
        entry = sweep_entry(folder, manifest, {})
        client, experiment = _experiment(store, entry)
        query = f"tags.sweep = '{entry.run_id}' and tags.level = 'sweep'"
        existing = [run.info.run_id for run in client.search_runs([experiment], query)]
        parent = manifest["parent_run_id"]
        # An untrusted folder could name any of our runs, and must not be able to change it.
        if _parent_tag(client, parent) and _is_of_sweep(client, parent, entry.run_id):
            existing.insert(0, parent)
        if existing:
            client.update_run(existing[0], status="RUNNING")
            return existing[0]
        return client.create_run(experiment, entry.start_ms, entry.tags, entry.name).info.run_id


def close_sweep_or_say(folder: Path, manifest: dict[str, Any], screen: Says) -> str | None:
    """`close_sweep`; on failure, prints the reason on one line and returns None."""
    uri = manifest["tracking"]["uri"]
    try:
        with screen.step("publishing the comparison to MLflow"):
            return close_sweep(folder, manifest, uri)
    except Exception as error:
        screen.say(f"the comparison is not in MLflow (tracking.uri={shown(uri)}): {one_line(error)}")
        return None


def close_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Adds status, end and comparison to a sweep's MLflow run, and returns its location.

    manifest: `parent_run_id` is that run. Raises WP1Error with the reason on one line.
    """
    store, parent = store_of(uri, Path(manifest["root"])), manifest["parent_run_id"]
    with talking_to(store, manifest["tracking"]["timeout_s"], folder):
        client, experiment = _experiment(store, sweep_entry(folder, manifest, {}))
        entry = sweep_entry(folder, manifest, _pages(client, folder, manifest))
        # The end first: the rest may be interrupted or not fit on the disk.
        client.set_terminated(parent, entry.status, entry.end_ms)
        for key, value in entry.tags.items():
            client.set_tag(parent, key, value)
        _fill(client, experiment, parent, entry)
        return _place(store, experiment, parent, entry)


def discard_sweep(folder: Path, manifest: dict[str, Any]) -> None:
    """Deletes the MLflow run of a sweep whose jobs left no run; if it cannot be deleted, it stays."""
    timeout_s = manifest["tracking"]["timeout_s"]
    with contextlib.suppress(WP1Error):
        store = store_of(manifest["tracking"]["uri"], Path(manifest["root"]))
        with talking_to(store, timeout_s, folder):
            _client(store).delete_run(manifest["parent_run_id"])


def _pages(client: "MlflowClient", folder: Path, manifest: dict[str, Any]) -> dict[str, str]:
    """The MLflow pages of a sweep's runs, by wp1's run id; their experiments may differ."""
    jobs = [job for job in read_jobs(folder, manifest) if job.run_dir is not None]
    pages = {}
    for name in {experiment_of(job.metadata) for job in jobs}:
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            continue
        runs = client.search_runs([experiment.experiment_id], f"tags.sweep = '{manifest['sweep']}'", max_results=5000)
        for run in runs:
            if "run_id" in run.data.tags:
                pages[run.data.tags["run_id"]] = _page(run.info.experiment_id, run.info.run_id)
    return pages


def _not_published(run_dir: Path, uri: str, reason: str) -> str:
    to = f" --uri {shlex.quote(shown(uri))}"
    # If the folder cannot be read, the reason says so.
    with contextlib.suppress(WP1Error):
        to = "" if is_own_store(uri, run_dir, RunFolder(run_dir).config["root"]) else to
    return (
        f"not in MLflow (tracking.uri={shown(uri)}): {reason}. "
        f"The run is safe; publish it later with: python -m wp1.track {shlex.quote(str(run_dir))}{to}"
    )


def _send(store: Store, entry: Entry) -> str:
    """Adds the entry as a new MLflow run, then deletes the earlier publications of the same run.

    The old run cannot be updated: MLflow does not change params, and shows the higher of two values of a metric, so a
    figure corrected downwards would stay. In this order, a failure loses nothing.
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
        # Best effort with a short timeout: the server itself may have failed.
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
    """The tag that puts a run under its sweep's; {} if the sweep's run is not in this store or was deleted."""
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
    """The address of a run's page, relative to MLflow's."""
    return f"#/experiments/{experiment}/runs/{run}"


def _place(store: Store, experiment: str, run: str, entry: Entry) -> str:
    """The location of a run for people: its address, or the SQLite file and the command that shows it."""
    if store.database is None:
        return f"{store.uri}/{_page(experiment, run)}?{TRAINING_VIEW}"
    viewer = "make ui" if store.in_project else f"mlflow server --backend-store-uri {shlex.quote(store.uri)}"
    return f"{entry.experiment}/{entry.name} in {store.shown}, {viewer} shows it"


def _experiment(store: Store, entry: Entry) -> "tuple[MlflowClient, str]":
    """A client, and the id of the MLflow experiment, made if it is missing. Raises WP1Error if it was deleted."""
    from mlflow.exceptions import MlflowException

    client, database = _client(store), store.database
    found = client.get_experiment_by_name(entry.experiment)
    if found is None:
        # By default, MLflow would put the files of a SQLite store into the current folder.
        beside = (database.parent / "mlartifacts" / entry.experiment).as_uri() if database else None
        tags = {"mlflow.note.content": entry.question, "mlflow.experimentKind": "custom_model_development"}
        try:
            return client, client.create_experiment(entry.experiment, beside, tags)
        except MlflowException as error:
            # Another process may have made it in the meantime.
            found = client.get_experiment_by_name(entry.experiment)
            if found is None:
                raise error
    if found.lifecycle_stage == "deleted":
        raise WP1Error(
            f"the experiment {entry.experiment} is deleted in MLflow: restore it with "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    if database and str(found.artifact_location).startswith("mlflow-artifacts:"):
        raise WP1Error(
            f"the experiment {entry.experiment} was made by a server that stores its files: "
            "set tracking.uri to that server, as http://HOST:PORT"
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
