"""What of a run is done: a line of cells.jsonl for every repeat of a cell that was measured to its end.

It is what `resume=` goes by and what predictions are made from; the figures themselves come from the records.
"""

import dataclasses
from pathlib import Path

from wp1.core import files
from wp1.core.records import Done, Unit, read_as
from wp1.core.run_files import CELLS


def note(run_dir: Path, done: Done) -> None:
    """Adds a line. Raises OSError where the disk refuses."""
    with files.appended(CELLS.at(run_dir)) as out:
        out.write(f"{files.json_text(dataclasses.asdict(done))}\n".encode())


def read(run_dir: Path) -> list[Done]:
    """All lines in order; of a unit that was measured again the last. A last line torn by a crash is left out.

    Raises ConfigError naming the line that cannot be read.
    """
    found: dict[Unit, Done] = {}
    for done in read_as(Done, CELLS.at(run_dir), "line of what was measured"):
        found.pop(done.unit, None)
        found[done.unit] = done
    return list(found.values())
