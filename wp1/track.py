"""python -m wp1.track RUN_DIR: publishes a run that has ended to MLflow, from its folder; again replaces it."""

import argparse
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from wp1.analysis.summary import read_config, read_json, read_metadata, write_json
from wp1.errors import ConfigError, WP1Error
from wp1.places import at_home, project_root, report_of, reports_of
from wp1.report import make_report
from wp1.resume import writer_in
from wp1.tracking import publish, shown


def track(run_dir: Path, uri: str | None) -> str:
    """Publishes, after making what a run that was killed did not get to; says where it is. Raises WP1Error.

    uri: where to, instead of `store_for`.
    """
    config, metadata = read_config(run_dir), read_metadata(run_dir)
    unfinished = metadata["status"] == "running"
    if unfinished:
        close(run_dir)
    page = report_of(run_dir, config, metadata["run_id"])
    if unfinished or page is None or not (run_dir / "summary.json").is_file() or _lacks_plots(metadata, page):
        page = make_report(run_dir, reports_of(run_dir, config))
    where = uri or store_for(run_dir, config)
    try:
        return publish(run_dir, page.parent, where, float(config["tracking"]["timeout_s"]))
    except WP1Error as error:
        raise WP1Error(f"not in MLflow (tracking.uri={shown(where)}): {error}") from error


def _lacks_plots(metadata: Mapping[str, Any], page: Path) -> bool:
    """Whether a run was stopped and left its page without plots, as somebody was waiting then."""
    return metadata["status"] == "interrupted" and not any((page.parent / metadata["run_id"]).glob("*.png"))


def store_for(folder: Path, config: Mapping[str, Any]) -> str:
    """The store for a run's or sweep's folder: its tracking.uri; where that names none, its project's mlflow.db.

    What was brought from elsewhere may name a file of that place: such goes to the mlflow.db of the project here.
    config: with the keys `root` and `tracking`.
    """
    named: str = config["tracking"]["uri"]
    if at_home(folder, config["root"]):
        return named or f"sqlite:///{config['root']}/mlflow.db"
    return named if named.startswith(("http://", "https://")) else f"sqlite:///{project_root()}/mlflow.db"


def close(run_dir: Path) -> None:
    """Marks a run whose process was killed as failed. Raises WP1Error where that process still lives."""
    writer = writer_in(run_dir.resolve())
    if writer is not None:
        raise WP1Error(f"{run_dir} is of a run that goes on in process {writer}: it is published when it ends")
    metadata = read_json(run_dir / "run_metadata.json")
    written = (run_dir / name for name in ("run_metadata.json", "records.jsonl", "device.jsonl", "engine.log"))
    last = max(path.stat().st_mtime for path in written if path.is_file())
    metadata.update(
        status="failed",
        reason="killed before it ended",
        ended=datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
    )
    write_json(run_dir / "run_metadata.json", metadata)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wp1.track", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run's folder, as in outputs/run-...")
    parser.add_argument(
        "--uri",
        help="sqlite:///FILE or http://HOST:PORT (default: the run's tracking.uri; of a run brought "
        "from elsewhere that names a file, the mlflow.db here)",
    )
    words = parser.parse_args()
    uri = words.uri
    if uri and uri.startswith("sqlite:///"):
        # What is typed is meant from here, what is in a configuration from its root.
        uri = f"sqlite:///{Path.cwd() / uri.removeprefix('sqlite:///')}"
    try:
        print(track(words.run_dir, uri))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except (WP1Error, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
