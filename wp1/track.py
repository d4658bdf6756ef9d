"""python -m wp1.track RUN...: publishes runs and sweeps that have ended to MLflow, from their folders.

Again replaces what is there. A sweep's folder stands for its runs, which go below one that has their comparison.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wp1.analysis.sweep import figures as sweep_figures
from wp1.analysis.sweep.report import PAGE, PLOT, write_comparison
from wp1.core import command, files, locks, redaction, run_files, untrusted
from wp1.core.errors import ConfigError, WP1Error, access_told, unforeseen
from wp1.core.paths import at_home, folder_named, project_root, run_or_sweep
from wp1.core.run_files import ENGINE_LOG, METADATA, SUMMARY
from wp1.core.run_folder import RunFolder, read_json, write_json
from wp1.runner.reports import make_report
from wp1.tracking.mlflow_store import close_sweep, open_sweep, publish, shown


def track(run_dir: Path, uri: str | None) -> str:
    """Publishes a run, after making what one that was killed did not get to; says where it is. Raises WP1Error.

    uri: where to, instead of `store_for`.
    """
    run, page = _reported(run_dir)
    return _publish(run, page, uri or store_for(run_dir, run.config))


def track_sweep(folder: Path, uri: str | None) -> Iterator[str]:
    """Publishes a sweep's runs below one of its own, which gets their comparison; says of each where it is.

    What a sweep that was killed did not get to is made first. uri: as in `track`. Raises WP1Error.
    """
    manifest = sweep_figures.read_manifest(folder)
    unfinished = manifest["status"] == "running"
    if unfinished:
        _refuse_while_written(folder, "a sweep")
    jobs = sweep_figures.read_jobs(folder, manifest)
    runs = [_reported(job.run_dir) for job in jobs if job.run_dir is not None]
    if not runs:
        raise ConfigError(f"{folder} is of a sweep that left no run: there is nothing to publish")
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
        # Where it goes on, should it be resumed.
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
    """What goes wrong within names the store."""
    try:
        yield
    except WP1Error as error:
        raise WP1Error(f"not in MLflow (tracking.uri={shown(where)}): {error}") from error


def _reported(run_dir: Path) -> tuple[RunFolder, Path]:
    """A run with its report, which is made if it is missing or was cut short."""
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
    """Whether a run was stopped and left its page without plots, as somebody was waiting then."""
    return metadata["status"] == "interrupted" and not files.plain_files(page.parent / metadata["run_id"], "*.png")


def store_for(folder: Path, config: Mapping[str, Any]) -> str:
    """The store for a run's or sweep's folder: its tracking.uri if that is this user's own (`foreign.is_own_store`).

    Where it names none, it is the mlflow.db of its project. What was brought from elsewhere may name a file of that
    place: such goes to the mlflow.db of the project here. config: with the keys `root` and `tracking`.
    Raises ConfigError for any other: a folder is not asked whom to send passwords to.
    """
    named, root = config["tracking"]["uri"], config["root"]
    if untrusted.is_own_store(named, folder, root):
        return named or f"sqlite:///{root if at_home(folder, root) else project_root()}/mlflow.db"
    if named.startswith("sqlite:///") and not at_home(folder, root):
        return f"sqlite:///{project_root()}/mlflow.db"
    raise ConfigError(
        f"{folder} names tracking.uri={shown(named)}, which is not known to be yours, and MLflow may send it a "
        "password: name the store by --uri"
    )


def close(run_dir: Path) -> None:
    """Marks a run whose process was killed as failed. Raises WP1Error where that process still lives."""
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
    """Also where its engines, or a version without locks, still write."""
    writer = locks.writer_in(folder.resolve())
    if writer is not None:
        raise WP1Error(f"{folder} is of {what} that goes on in process {writer}: it is published when it ends")


def main() -> None:
    """Exit codes: 0 done, 1 something was not published, 2 bad input alone."""
    parser = command.Parser(prog="python -m wp1.track", description=__doc__)
    parser.add_argument("runs", type=folder_named, nargs="+", help="runs' folders, as in outputs/run-..., or sweeps'")
    parser.add_argument(
        "--uri",
        help="sqlite:///FILE or http://HOST:PORT (default: the mlflow.db of the run's project, or here; a server that "
        "the run names only if MLFLOW_TRACKING_URI or conf/tracking/mlflow.yaml names it too)",
    )
    words = parser.parse_args()
    uri = words.uri
    if uri and uri.startswith("sqlite:///"):
        # What is typed is meant from here, what is in a configuration from its root.
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    code = 0
    for folder in words.runs:
        try:
            with access_told(folder):
                for place in _tracked(folder, uri):
                    print(place, flush=True)
        except BrokenPipeError:  # nobody reads what is printed, which is no fault of the folder
            raise
        except (WP1Error, OSError) as error:
            print(f"error: {redaction.text(str(error))}", file=sys.stderr)
            code = 2 if isinstance(error, ConfigError) and code != 1 else 1
        except Exception as error:
            print(f"error: {folder} is no whole run ({unforeseen(error)})", file=sys.stderr)
            code = 1
    sys.exit(code)


if __name__ == "__main__":
    command.run(main)
