"""python -m wp1.report RUN_DIR: makes a run's summary, plots and report again, from its folder and with no engine."""

import argparse
import sys
from pathlib import Path
from typing import Any

from wp1.analysis.report import write_report
from wp1.analysis.summary import read_config, read_json, summarise
from wp1.collectors import Collector
from wp1.errors import WP1Error


def collectors_of(config: dict[str, Any]) -> list[Collector]:
    """The collectors that a configuration names, by `_target_`."""
    from hydra.utils import instantiate

    return [instantiate(part) for part in config["collectors"].values()]


def make_report(run_dir: Path, reports: Path) -> Path:
    """Summary and report of a run's folder; returns the page's path.

    Raises WP1Error where the folder is none of a run.
    """
    metadata = read_json(run_dir / "run_metadata.json")
    summary = summarise(run_dir, collectors_of(read_config(run_dir)))
    return write_report(run_dir, reports, metadata, summary)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m wp1.report", description=__doc__)
    parser.add_argument("run_dir", type=Path, help="a run's folder, as in outputs/run-...")
    parser.add_argument("--reports", type=Path, help="where to put it (default: outputs/reports of the run's project)")
    words = parser.parse_args()
    try:
        config = read_config(words.run_dir)
        page = make_report(words.run_dir, words.reports or Path(config["root"]) / "outputs" / "reports")
    except WP1Error as error:
        sys.exit(f"error: {error}")
    print(page)


if __name__ == "__main__":
    main()
