"""The progress of a run: one line in cells.jsonl for every repeat of a cell that was measured completely.

`resume=` and the predictions of durations use it; the figures themselves come from the records.
"""

import dataclasses
from pathlib import Path

from wp1.core import files
from wp1.core.jsonl import read_as
from wp1.core.records import Done, Unit
from wp1.core.run_files import CELLS


def note(run_dir: Path, done: Done) -> None:
    """Appends a line. Raises OSError if it cannot be written."""
    with files.appended(CELLS.at(run_dir)) as out:
        out.write(f"{files.json_text(dataclasses.asdict(done))}\n".encode())


def read(run_dir: Path) -> list[Done]:
    """All lines in order, only the last one for each unit. A last line that a crash truncated is left out.

    Raises ConfigError, naming the line, if one cannot be read.
    """
    by_unit: dict[Unit, Done] = {}
    for done in read_as(Done, CELLS.at(run_dir), "line of what was measured"):
        by_unit.pop(done.unit, None)
        by_unit[done.unit] = done
    return list(by_unit.values())
