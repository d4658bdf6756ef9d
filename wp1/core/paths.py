"""Paths of conf/, of the project, and of the reports made from a run's folder.

A run is at home if it is in outputs/ or multirun/ of its `root`, where its project puts runs; its reports then go to
that project. Any other run was copied or moved from elsewhere, and its `root` may be anything: it is read and written
in place, and nothing is written to that root.
"""

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Literal

from wp1.core import files
from wp1.core.errors import ConfigError, unreadable
from wp1.core.run_files import METADATA

# The file that marks a sweep's folder, as run_metadata.json marks a run's.
MANIFEST = "sweep.json"
# In the folder of a sweep's job that left no run: how it ended.
JOB = "job.json"
PACKAGE = Path(__file__).parents[1]
# conf/ is next to the package in a checkout, and inside it in a wheel.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

_NAMED = "name the folder of a run, such as outputs/run-..., or of a sweep, such as multirun/..."


def project_root() -> Path:
    """The folder that runs are written under: $WP1_ROOT, else the checkout, else the current folder."""
    if os.environ.get("WP1_ROOT"):
        return Path(os.environ["WP1_ROOT"]).expanduser().resolve()
    return PACKAGE.parent if CONF.parent == PACKAGE.parent else Path.cwd()


def folder_named(word: str) -> Path:
    """A folder given on the command line, for argparse. Refuses "", which would mean the current folder."""
    if not word:
        raise ArgumentTypeError("the name of a folder must not be empty")
    return Path(word)


def kind_of(folder: Path) -> Literal["run", "sweep"] | None:
    """Whether a folder is that of a run or of a sweep; None if it is neither.

    Raises ConfigError, naming the folder and the reason, if it does not exist, is not a folder or cannot be read.
    """
    try:
        if (folder / MANIFEST).is_file():
            return "sweep"
        if METADATA.at(folder).is_file():
            return "run"
        # A plain file, or a folder without read permission, also gets here.
        with os.scandir(folder):
            return None
    except (FileNotFoundError, NotADirectoryError) as error:
        why = "does not exist" if isinstance(error, FileNotFoundError) else "is not a folder"
        raise ConfigError(f"{folder} {why}: {_NAMED}") from error
    except OSError as error:
        # Name the folder: whether the file that was looked for exists is unknown.
        raise unreadable(OSError(error.errno, error.strerror), folder) from error


def run_or_sweep(folder: Path) -> Literal["run", "sweep"]:
    """`kind_of`, but also raises ConfigError if the folder is neither."""
    kind = kind_of(folder)
    if kind is None:
        raise ConfigError(f"{folder} has no {METADATA.name} and no {MANIFEST}: {_NAMED}")
    return kind


def at_home(folder: Path, root: str) -> bool:
    """Whether a run's or sweep's folder is in outputs/ or multirun/ of the project `root`."""
    project = Path(root)
    # A packet's configuration has "." as its root, which means no folder.
    return project.is_absolute() and any(
        folder.resolve().is_relative_to((project / name).resolve()) for name in ("outputs", "multirun")
    )


def reports_of(run_dir: Path, config: Any) -> Path:
    """The folder for the run's report: outputs/reports of its project if it is at home, else reports/ in its folder."""
    return (Path(config["root"]) / "outputs" if at_home(run_dir, config["root"]) else run_dir.resolve()) / "reports"


def report_of(run_dir: Path, config: Any, run_id: str) -> Path | None:
    """Path of the run's report, or None if there is none. In a copied outputs/ it is next to the run."""
    folders = (reports_of(run_dir, config), run_dir.resolve().parent / "reports")
    pages = (folder / f"{run_id}.md" for folder in folders if not folder.is_symlink())
    return next((page for page in pages if files.is_plain(page)), None)


def comparisons_of(run_dir: Path, config: Any) -> Path:
    """The folder for comparisons of this run with others: in its project if it is at home, else next to the run."""
    at = Path(config["root"]) / "outputs" if at_home(run_dir, config["root"]) else run_dir.resolve().parent
    return at / "comparisons"


def cache_folder() -> Path:
    """The folder of prepared models: $WP1_CACHE, else wp1 in the user's cache folder."""
    base = os.environ.get("WP1_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wp1"
