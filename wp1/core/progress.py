"""What of a run is done: a line of cells.jsonl for every repeat of a cell that was measured to its end.

It is what `resume=` goes by and what predictions are made from; the figures themselves come from the records.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from wp1.core import files
from wp1.core.records import read_as

FILE = "cells.jsonl"
# Arm, cell and repeat: what is measured in one go, and measured again whole where it was cut short.
Unit = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Done:
    """One repeat of a cell, all its requests sent and ended."""

    arm: str
    cell: str
    repeat: int
    requests: int  # measured
    seconds: float  # that they took
    warmup_s: float  # that the warm-up before them took; 0 where none was needed
    died: str | None = None  # of an engine that died meanwhile

    @property
    def unit(self) -> Unit:
        return (self.arm, self.cell, self.repeat)


def note(run_dir: Path, done: Done) -> None:
    """Adds a line. Raises OSError where the disk refuses."""
    with files.appended(run_dir / FILE) as out:
        out.write(f"{files.json_text(dataclasses.asdict(done))}\n".encode())


def read(run_dir: Path) -> list[Done]:
    """All lines in order; of a unit that was measured again the last. A last line torn by a crash is left out.

    Raises ConfigError naming the line that cannot be read.
    """
    found: dict[Unit, Done] = {}
    for done in read_as(Done, run_dir / FILE, "line of what was measured"):
        found.pop(done.unit, None)
        found[done.unit] = done
    return list(found.values())
