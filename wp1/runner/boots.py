"""The monotonic clock of a run that goes on after its machine was started anew: it counts from that start again.

Times of an earlier boot would pass for times of this one, and a cell would be given the samples of another. So when a
run goes on, all times that it has are moved to before this boot's clock began, by as much as the last of them and a
minute. What was measured together stays together, and what was not is a minute apart at least. run_metadata.json says
in `boots` by how much the times of each boot were moved.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wp1.core import files, run_files
from wp1.core.run_files import METADATA

# Between the last moment of a boot and the first of the next, seconds: no request's time and no sample's.
APART_S = 60.0
# The files whose moved copies are whole and take their place; while it is there, `finish` has something to do.
JOURNAL = "boots.json"


def move(run_dir: Path, metadata: dict[str, Any], boot: str | None) -> dict[str, Any]:
    """Moves all times of a run's folder to before this boot, and returns the metadata that says so.

    Killed at any moment, either nothing is moved or `finish` moves the rest. boot: this one's id.
    """
    there = [file.name for file in run_files.with_times() if file.at(run_dir).is_file()]
    last = max((moment for name in there for row in _rows(run_dir / name) for moment in _moments(row)), default=0.0)
    last = max([last, *(moment for start in _starts(metadata) for moment in start.get("idle") or ())])
    by = -(last + APART_S)
    before = [one | {"moved_s": round(one["moved_s"] + by, 6)} for one in metadata.get("boots", [])]
    moved = metadata | {
        "boot": boot,
        "boots": [*before, {"boot": metadata.get("boot"), "moved_s": round(by, 6)}],
        **{
            key: [
                start | ({"idle": [round(moment + by, 6) for moment in start["idle"]]} if start.get("idle") else {})
                for start in metadata.get(key, [])
            ]
            for key in ("starts", "taken_over")
        },
    }
    for name in there:
        with files.replaced(_copy(run_dir, name)) as work, work.open("wb") as out:
            out.writelines(f"{files.json_text(_moved(row, by))}\n".encode() for row in _rows(run_dir / name))
    files.write_text(_copy(run_dir, METADATA.name), files.json_text(moved, indent=2) + "\n")
    files.write_text(run_dir / JOURNAL, files.json_text({"files": [*there, METADATA.name]}) + "\n")
    finish(run_dir)
    return moved


def finish(run_dir: Path) -> None:
    """Ends a move that a killed process began."""
    journal = run_dir / JOURNAL
    if not files.is_plain(journal):
        return
    for name in (*(file.name for file in run_files.with_times()), METADATA.name):
        if files.is_plain(copy := _copy(run_dir, name)):
            copy.replace(run_dir / name)
    journal.unlink()


def _copy(run_dir: Path, name: str) -> Path:
    return run_dir / f"{name}.moved"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a file, one in memory at a time; a line that is none, as one torn, is left out."""
    with files.opened(path) as lines:
        for line in lines:
            try:
                row = files.parsed(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row


def _starts(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*metadata.get("starts", []), *metadata.get("taken_over", [])]


def _is_time(key: str, value: Any) -> bool:
    return (key == "t" or key.startswith("t_")) and isinstance(value, int | float) and not isinstance(value, bool)


def _moments(row: Mapping[str, Any]) -> list[float]:
    tokens = row.get("t_tokens")
    return [value for key, value in row.items() if _is_time(key, value)] + (tokens if isinstance(tokens, list) else [])


def _moved(row: Mapping[str, Any], by: float) -> dict[str, Any]:
    found = {key: round(value + by, 6) if _is_time(key, value) else value for key, value in row.items()}
    if isinstance(row.get("t_tokens"), list):
        found["t_tokens"] = [round(moment + by, 6) for moment in row["t_tokens"]]
    return found
