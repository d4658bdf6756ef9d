"""Sends a finished run to MLflow. The only module that imports mlflow; what is sent is in `wp1.tracking`.

It goes one way: nothing is sent before a run has ended, and nothing that goes wrong here fails a run.
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
        screen.say(_not_published(run_dir, tracking.uri, one_line(error)))
        return None


def publish(run: RunFolder, reports: Path, uri: str, timeout_s: float, parent: str | None = None) -> str:
    """Makes or replaces a run's entry in MLflow, and says where it is.

    reports: the folder that has the run's report. uri: `sqlite:///FILE` (a relative one is taken from the run's
    `root`) or `http(s)://`. timeout_s: seconds for one answer of a server, and for a store that others are writing to.
    parent: the MLflow id of the sweep that it belongs under, instead of the one that its folder names.
    Raises WP1Error with the reason in one line.
    """
    store = store_of(uri, Path(run.config["root"]))
    with talking_to(store, timeout_s, run.path):
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
            f"not in MLflow (tracking.uri={shown(uri)}): {one_line(error)}. The sweep goes on, its runs on their own"
        )
        return None


def open_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Makes the store, the experiment and the run above a sweep's runs, and returns that one's MLflow id.

    Of a sweep that goes on, or is published again, it is the run that there is, unless somebody has deleted that.
    Raises WP1Error with the reason in one line.
    """
    store = store_of(uri, Path(manifest["root"]))
    with talking_to(store, manifest["tracking"]["timeout_s"], folder):
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
        screen.say(f"the comparison is not in MLflow (tracking.uri={shown(uri)}): {one_line(error)}")
        return None


def close_sweep(folder: Path, manifest: dict[str, Any], uri: str) -> str:
    """Gives a sweep's MLflow run its status, its end and the comparison, and says where it is.

    manifest: its `parent_run_id` is that run. Raises WP1Error with the reason in one line.
    """
    store, parent = store_of(uri, Path(manifest["root"])), manifest["parent_run_id"]
    with talking_to(store, manifest["tracking"]["timeout_s"], folder):
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
        with talking_to(store, timeout_s, folder):
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
