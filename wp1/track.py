"""python -m wp1.track RUN...: publishes finished runs and sweeps to MLflow, from their folders.

Publishing again replaces the earlier entry. A sweep is published as a parent run with the comparison, and its runs
below it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep.report import PAGE, PLOT, write_comparison
from wp1.core import command, files, locks, run_files, untrusted
from wp1.core.errors import ConfigError, WP1Error, reading
from wp1.core.paths import at_home, folder_named, project_root, run_or_sweep
from wp1.core.run_files import ENGINE_LOG, METADATA, SUMMARY
from wp1.core.run_folder import RunFolder, read_json, write_json
from wp1.runner.reports import make_report
from wp1.tracking.mlflow_store import close_sweep, open_sweep, publish
from wp1.tracking.store import shown


def track(run_dir: Path, uri: str | None) -> str:
    """Publishes a run and returns its location. First completes the files of a run that was killed. Raises WP1Error.

    uri: the store; None: `store_for`.
    """
    run, page = _reported(run_dir)
    return _publish(run, page, uri or store_for(run_dir, run.config))


def track_sweep(folder: Path, uri: str | None) -> Iterator[str]:
    """Publishes a sweep's runs below a parent run with their comparison; yields the location of each.

    First completes the files of a sweep that was killed. uri: as in `track`. Raises WP1Error.
    """
    manifest = sweep_figures.read_manifest(folder)
    unfinished = manifest["status"] == "running"
    if unfinished:
        _refuse_while_written(folder, "a sweep")
    jobs = sweep_figures.read_jobs(folder, manifest)
    runs = [_reported(job.run_dir) for job in jobs if job.run_dir is not None]
    if not runs:
        raise ConfigError(f"{folder} is the folder of a sweep without runs: there is nothing to publish")
    if unfinished:
        jobs = sweep_figures.read_jobs(folder, manifest)
        ended = max(job.metadata["ended"] for job in jobs if job.run_dir is not None)
        manifest |= {"status": sweep_figures.status_of(jobs, stopped=False), "ended": ended}
        sweep_figures.write_manifest(folder, manifest)
    if unfinished or not all((folder / name).is_file() for name in (PAGE, PLOT)):
        write_comparison(folder)
    where = uri or store_for(folder, manifest)
    with _named(where):
        parent = open_sweep(folder, manifest, where)
    manifest["parent_run_id"] = parent
    if uri is None:
        # A resumed sweep continues under the same parent.
        sweep_figures.write_manifest(folder, manifest)
    try:
        while runs:
            yield _publish(*runs.pop(0), where, parent)
    finally:
        with _named(where):
            place = close_sweep(folder, manifest, where)
    yield place


def _publish(run: RunFolder, page: Path, where: str, parent: str | None = None) -> str:
    with _named(where):
        return publish(run, page.parent, where, float(run.config["tracking"]["timeout_s"]), parent)


@contextmanager
def _named(where: str) -> Iterator[None]:
    """Adds the store to the message of a WP1Error that is raised inside."""
    try:
        yield
    except WP1Error as error:
        raise WP1Error(f"not in MLflow (tracking.uri={shown(where)}): {error}") from error


def _reported(run_dir: Path) -> tuple[RunFolder, Path]:
    """A run and the path of its report, which is made if it is missing or incomplete."""
    run = RunFolder(run_dir)
    unfinished = run.metadata["status"] == "running"
    if unfinished:
        close(run_dir)
        run = RunFolder(run_dir)
    page = run.report
    if unfinished or page is None or not run.has(SUMMARY) or _lacks_plots(run.metadata, page):
        page = make_report(run_dir, run.reports)
    return run, page


def _lacks_plots(metadata: Mapping[str, Any], page: Path) -> bool:
    """Whether the run was interrupted and so got its report at once, without plots."""
    return metadata["status"] == "interrupted" and not files.plain_files(page.parent / metadata["run_id"], "*.png")


def store_for(folder: Path, config: Mapping[str, Any]) -> str:
    """The store for a run's or sweep's folder: its tracking.uri if it is this user's own (`untrusted.is_own_store`).

    If the folder names no store, it is the mlflow.db of its project. A folder copied from elsewhere may name a SQLite
    file of the other machine; it goes to this project's mlflow.db. config: has the keys `root` and `tracking`.
    Raises ConfigError for any other store: a folder must not decide where passwords are sent.
    """
    named, root = config["tracking"]["uri"], config["root"]
    if untrusted.is_own_store(named, folder, root):
        return named or f"sqlite:///{root if at_home(folder, root) else project_root()}/mlflow.db"
    if named.startswith("sqlite:///") and not at_home(folder, root):
        return f"sqlite:///{project_root()}/mlflow.db"
    raise ConfigError(
        f"{folder} names tracking.uri={shown(named)}, which is not known to be yours, and MLflow might send it a "
        "password: name the store with --uri"
    )


def close(run_dir: Path) -> None:
    """Marks a run whose process was killed as failed. Raises WP1Error if that process is still alive."""
    _refuse_while_written(run_dir, "a run")
    metadata = read_json(METADATA.at(run_dir))
    written = [
        file.at(run_dir) for file in run_files.RUN_FILES if file.row is not None or file in (METADATA, ENGINE_LOG)
    ]
    last = max(path.stat().st_mtime for path in written if path.is_file())
    metadata.update(
        status="failed",
        reason="killed before it ended",
        ended=datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
    )
    write_json(METADATA.at(run_dir), metadata)


def _tracked(folder: Path, uri: str | None) -> Iterator[str]:
    kind = run_or_sweep(folder)
    with locks.written(folder):
        yield from track_sweep(folder, uri) if kind == "sweep" else [track(folder, uri)]


def _refuse_while_written(folder: Path, what: str) -> None:
    """Raises WP1Error if any process still writes to the folder: its engines and wp1 versions without locks count."""
    writer = locks.writer_in(folder.resolve())
    if writer is not None:
        raise WP1Error(f"{folder} belongs to {what} still running in process {writer}: it is published when it ends")


@command.guarded
def main() -> int:
    """Publishes each folder; a folder that fails does not stop the others. Returns the worst exit code."""
    parser = command.Parser(prog="python -m wp1.track", description=__doc__)
    parser.add_argument(
        "runs", type=folder_named, nargs="+", help="folders of runs, such as outputs/run-..., or of sweeps"
    )
    parser.add_argument(
        "--uri",
        help="sqlite:///FILE or http://HOST:PORT (default: the mlflow.db of the run's project, or of this one; a "
        "server named by the run is used only if MLFLOW_TRACKING_URI or conf/tracking/mlflow.yaml names it too)",
    )
    args = parser.parse_args()
    uri = args.uri
    if uri and uri.startswith("sqlite:///"):
        # A typed path is relative to the current folder, one in a configuration to its root.
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    codes = []
    for folder in args.runs:
        try:
            with reading(folder):
                for place in _tracked(folder, uri):
                    print(place, flush=True)
        except BrokenPipeError:  # the reader of our output has gone: not the folder's fault
            raise
        except Exception as error:
            codes.append(command.say(error))
    return command.worst(codes)


if __name__ == "__main__":
    main()
