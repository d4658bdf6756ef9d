"""The progress of a run: one line in cells.jsonl for every repeat of a cell that was measured completely.

`resume=` and the predictions of durations use it; the figures themselves come from the records.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from wp1.core import files
from wp1.core.records import read_as

FILE = "cells.jsonl"
# (arm, cell, repeat): the unit of measuring. One that was interrupted is measured again from its beginning.
Unit = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """One repeat of a cell whose requests have all been sent and have ended."""

    arm: str
    cell: str
    repeat: int
    requests: int  # measured
    seconds: float  # duration of these requests
    warmup_s: float  # duration of the warm-up before them; 0 if there was none
    died: str | None = None  # error message, if an engine died meanwhile

    @property
    def unit(self) -> Unit:
        return (self.arm, self.cell, self.repeat)


def note(run_dir: Path, done: Done) -> None:
    """Appends a line. Raises OSError if it cannot be written."""
    with files.appended(run_dir / FILE) as out:
        out.write(f"{files.json_text(dataclasses.asdict(done))}\n".encode())


def read(run_dir: Path) -> list[Done]:
    """All lines in order, only the last one for each unit. A last line that a crash truncated is left out.

    Raises ConfigError, naming the line, if one cannot be read.
    """
    by_unit: dict[Unit, Done] = {}
    for done in read_as(Done, run_dir / FILE, "line of what was measured"):
        by_unit.pop(done.unit, None)
        by_unit[done.unit] = done
    return list(by_unit.values())
