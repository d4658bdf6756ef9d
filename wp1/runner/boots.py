"""Shifts the times of a run that is resumed after a reboot, when the monotonic clock starts from zero again.

Without it, times of an earlier boot would be mistaken for times of this one, and samples would be assigned to the wrong
cell. All earlier times are shifted to before the start of this boot's clock, by the latest of them plus a minute. Times
of one boot keep their differences, and boots are at least a minute apart. `boots` in run_metadata.json records the
shift of each boot.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wp1.core import files, run_files
from wp1.core.jsonl import object_on
from wp1.core.run_files import METADATA

# Seconds between the last time of a boot and the first of the next.
APART_S = 60.0
# Lists the files whose shifted copies are complete. While it exists, `finish` has copies to move into place.
JOURNAL = "boots.json"


def move(run_dir: Path, metadata: dict[str, Any], boot: str | None) -> dict[str, Any]:
    """Shifts all times in a run's folder to before this boot, and returns the updated metadata.

    If it is killed, either nothing has been shifted or `finish` completes the shift. boot: id of this boot.
    """
    names = [file.name for file in run_files.with_times() if file.at(run_dir).is_file()]
    last = max((moment for name in names for row in _rows(run_dir / name) for moment in _moments(row)), default=0.0)
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
    for name in names:
        with files.replaced(_copy(run_dir, name)) as work, work.open("wb") as out:
            out.writelines(f"{files.json_text(_moved(row, by))}\n".encode() for row in _rows(run_dir / name))
    files.write_text(_copy(run_dir, METADATA.name), files.json_text(moved, indent=2) + "\n")
    files.write_text(run_dir / JOURNAL, files.json_text({"files": [*names, METADATA.name]}) + "\n")
    finish(run_dir)
    return moved


def finish(run_dir: Path) -> None:
    """Completes a shift that a killed process began."""
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
    """Yields the rows of a file one at a time, skipping lines that are not JSON objects, such as a torn one."""
    with files.opened(path) as lines:
        for line in lines:
            if (row := object_on(line)) is not None:
                yield row


def _starts(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [*metadata.get("starts", []), *metadata.get("taken_over", [])]


def _is_time(key: str, value: Any) -> bool:
    return (key == "t" or key.startswith("t_")) and isinstance(value, int | float) and not isinstance(value, bool)


def _moments(row: Mapping[str, Any]) -> list[float]:
    tokens = row.get("t_tokens")
    return [value for key, value in row.items() if _is_time(key, value)] + (tokens if isinstance(tokens, list) else [])


def _moved(row: Mapping[str, Any], by: float) -> dict[str, Any]:
    moved = {key: round(value + by, 6) if _is_time(key, value) else value for key, value in row.items()}
    if isinstance(row.get("t_tokens"), list):
        moved["t_tokens"] = [round(moment + by, 6) for moment in row["t_tokens"]]
    return moved
