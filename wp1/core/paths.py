"""Where things lie: conf/, the project, and what is made of a run's folder.

A run at home lies where its project puts runs, in outputs/ or multirun/ of its `root`; what is made of it goes to that
project. Any other was brought from elsewhere, or put elsewhere, and its `root` may be anything: it is read and written
as it lies, and nothing goes to that root.
"""

import os
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Any, Literal

from wp1.core import files
from wp1.core.errors import ConfigError, unreadable
from wp1.core.run_files import METADATA

# What a sweep's folder has at its top, as a run's has run_metadata.json.
MANIFEST = "sweep.json"
PACKAGE = Path(__file__).parents[1]
# conf/ lies beside the package in a checkout, and inside it in a wheel.
CONF = PACKAGE / "conf" if (PACKAGE / "conf").is_dir() else PACKAGE.parent / "conf"

_NAMED = "name the folder of a run, as in outputs/run-..., or of a sweep, as in multirun/..."


def project_root() -> Path:
    """Where runs land: $WP1_ROOT, else the checkout, else the folder wp1 is started in."""
    if os.environ.get("WP1_ROOT"):
        return Path(os.environ["WP1_ROOT"]).expanduser().resolve()
    return PACKAGE.parent if CONF.parent == PACKAGE.parent else Path.cwd()


def folder_named(word: str) -> Path:
    """A folder of a command line, for argparse: an empty word would be the one it is called in."""
    if not word:
        raise ArgumentTypeError("an empty word is no folder")
    return Path(word)


def kind_of(folder: Path) -> Literal["run", "sweep"] | None:
    """Whether a folder is one of a run or of a sweep; None where it is neither.

    Raises ConfigError that names the folder and says why, where it is not there, is no folder or cannot be looked into.
    """
    try:
        if (folder / MANIFEST).is_file():
            return "sweep"
        if METADATA.at(folder).is_file():
            return "run"
        # A file, or a folder that may not be listed, has neither too.
        with os.scandir(folder):
            return None
    except (FileNotFoundError, NotADirectoryError) as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else "is no folder"
        raise ConfigError(f"{folder} {why}: {_NAMED}") from error
    except OSError as error:
        # Of the file that was looked for nobody knows whether it is there.
        raise unreadable(OSError(error.errno, error.strerror), folder) from error


def run_or_sweep(folder: Path) -> Literal["run", "sweep"]:
    """`kind_of` a folder that must be of one of them: raises ConfigError where it is of neither, too."""
    kind = kind_of(folder)
    if kind is None:
        raise ConfigError(f"{folder} has no {METADATA.name} and no {MANIFEST}: {_NAMED}")
    return kind


def at_home(folder: Path, root: str) -> bool:
    """Whether a run's or sweep's folder lies where the project `root` puts them."""
    project = Path(root)
    # A packet's configuration has "." for its root, which is no place.
    return project.is_absolute() and any(
        folder.resolve().is_relative_to((project / name).resolve()) for name in ("outputs", "multirun")
    )


def reports_of(run_dir: Path, config: Any) -> Path:
    """The folder for the report of a run with this configuration: its project's, else one of its own."""
    return (Path(config["root"]) / "outputs" if at_home(run_dir, config["root"]) else run_dir.resolve()) / "reports"


def report_of(run_dir: Path, config: Any, run_id: str) -> Path | None:
    """The page of a run that is there; None where none is. Of a copied outputs/ it lies beside the run, as ever."""
    places = (reports_of(run_dir, config), run_dir.resolve().parent / "reports")
    pages = (folder / f"{run_id}.md" for folder in places if not folder.is_symlink())
    return next((page for page in pages if files.is_plain(page)), None)


def comparisons_of(run_dir: Path, config: Any) -> Path:
    """The folder for comparisons of this run with others: its project's, else one beside it."""
    at = Path(config["root"]) / "outputs" if at_home(run_dir, config["root"]) else run_dir.resolve().parent
    return at / "comparisons"


def cache_folder() -> Path:
    """Where prepared models live: $WP1_CACHE, else wp1 in the user's cache folder."""
    base = os.environ.get("WP1_CACHE")
    if base:
        return Path(base).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wp1"
