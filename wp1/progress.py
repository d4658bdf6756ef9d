"""What of a run is done: a line of cells.jsonl for every repeat of a cell that was measured to its end.

It is what `resume=` goes by and what predictions are made from; the figures themselves come from the records.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from wp1.errors import ConfigError

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
    with (run_dir / FILE).open("a", encoding="utf-8") as out:
        out.write(json.dumps(dataclasses.asdict(done), ensure_ascii=False) + "\n")


def read(run_dir: Path) -> list[Done]:
    """All lines in order; of a unit that was measured again the last. A last line torn by a crash is left out.

    Raises ConfigError naming the line that cannot be read.
    """
    path = run_dir / FILE
    found: dict[Unit, Done] = {}
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        try:
            done = Done(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}:{number} is no line of what was measured: restore it from a copy") from error
        found.pop(done.unit, None)
        found[done.unit] = done
    return list(found.values())


def check_records(run_dir: Path) -> None:
    """Raises ConfigError where records.jsonl has fewer records than were measured, before anything is made of it."""
    measured = sum(done.requests for done in read(run_dir))
    path, there = run_dir / "records.jsonl", 0
    if path.is_file():
        with path.open("rb") as file:
            while part := file.read(1 << 24):
                there += part.count(b"\n")
    if there < measured:
        raise ConfigError(
            f"{path} has {there} records and {measured} requests were measured ({FILE}): restore it from a copy"
        )
