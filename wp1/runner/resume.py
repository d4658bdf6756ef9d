"""python -m wp1 resume=DIR: resumes a run or a sweep that was interrupted, or in which something failed.

It reuses the folder's command line, so that the same configuration is composed. If the configuration or the machine
differs, it refuses. Repeats that `progress` lists as done are kept; the others are measured again from their start. The
records of an incomplete repeat are moved to records.apart.jsonl and the like, and never mixed with new ones.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from wp1.core import files, locks, redaction, run_files, untrusted
from wp1.core.errors import ConfigError
from wp1.core.identity import DECISIVE, HASH_RULE, settings_of
from wp1.core.jsonl import object_on
from wp1.core.paths import MANIFEST, at_home, project_root, run_or_sweep
from wp1.core.plan import Arm
from wp1.core.records import Unit
from wp1.core.run_files import CELLS, CONFIG, METADATA
from wp1.runner import boots

# Keys of run_metadata.json that a resumed run appends to.
NOTED = ("labels", "pools", "starts", "taken_over", "kv_held", "skipped")
# Seconds to wait for a killed process's children to exit.
GONE_WITHIN_S = locks.WITHIN_S


def arguments(words: list[str]) -> list[str]:
    """The command line to pass to Hydra. With `resume=DIR`, it is the folder's own, directed to that folder.

    Settings typed next to `resume=` replace the folder's. Sets WP1_ROOT, so that runs are written under the same root.
    The folder stays locked until the command ends (`locks.command`).
    Raises ConfigError if the folder is not that of a run or sweep, cannot be read, or is still being written, or if its
    command must not be trusted (`untrusted.check`).
    """
    asked = [word for word in words if _key(word) == "resume"]
    if not asked or asked == ["resume=null"]:
        return words
    named = asked[-1].partition("=")[2].strip("'\"")
    if not named:
        raise ConfigError("resume= is empty: name the folder of a run, such as outputs/run-..., or leave it out")
    folder = Path(named).expanduser().resolve()
    command, root, place = _recorded(folder)
    _hold(folder)
    untrusted.check_links(folder)
    typed = [word for word in words if _key(word) != "resume"]
    taken = {_key(word) for word in typed} | {"resume", "hydra.run.dir", "hydra.sweep.dir"}
    kept = [word for word in command if word.startswith("-") or _key(word) not in taken]
    home = at_home(folder, root)
    if not home:
        # The root of a folder copied from elsewhere means nothing here.
        kept = [word for word in kept if _key(word) != "root"]
    elif "root" not in map(_key, [*kept, *typed]):
        os.environ["WP1_ROOT"] = root
    untrusted.check(folder, kept, typed, root if home else str(project_root()))
    kept = [_rooted(word, root) for word in kept]
    # Hydra accepts settings on one side of the options only, and options may have been typed last.
    options = [word for word in kept if word.startswith("-") or ("=" not in word and not word.startswith("~"))]
    settings = [word for word in kept if word not in options]
    return [*options, *settings, *typed, f"resume={_quoted(folder)}", f"{place}={_quoted(folder)}"]


def _recorded(folder: Path) -> tuple[list[str], str, str]:
    """The arguments of the folder's command, its root, and the setting that names the folder.

    Lost lines are checked later, when the configuration is known, as for each job of a sweep: `check_same`.
    """
    from wp1.analysis.sweep.figures import OF_MANIFEST
    from wp1.core import shapes
    from wp1.core.run_folder import read_config, read_json

    try:
        kind = run_or_sweep(folder)
    except ConfigError as error:
        raise ConfigError(f"resume={error}") from error
    if kind == "sweep":
        manifest = read_json(folder / MANIFEST)
        manifest.require(*OF_MANIFEST)
        return _words(folder / MANIFEST, manifest["command"]), _root(folder / MANIFEST, manifest), "hydra.sweep.dir"
    path = METADATA.at(folder)
    metadata, config = read_json(path, shapes.METADATA), read_config(folder)
    job = metadata.get("sweep")
    words = _words(path, ["wp1", *job["overrides"]] if job else metadata["command"])
    return words, _root(CONFIG.at(folder), config), "hydra.run.dir"


def _words(path: Path, command: Any) -> list[str]:
    """The arguments of a command line, without the program's name."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigError(f"{path}: command must be a list of strings: restore the file from a copy")
    return command[1:]


def _root(path: Path, content: Mapping[str, Any]) -> str:
    if not isinstance(content["root"], str):
        raise ConfigError(f"{path}: root={content['root']!r} must be a folder: restore the file from a copy")
    return content["root"]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _rooted(word: str, root: str) -> str:
    """The setting, with a root= that would mean another folder here replaced by the absolute path."""
    if _key(word) != "root" or Path(word.partition("=")[2].strip("'\"")).expanduser().resolve() == Path(root):
        return word
    return f"root={_quoted(Path(root))}"


def _quoted(path: Path) -> str:
    """A path quoted for Hydra's grammar, whatever characters it has."""
    return "'" + str(path).replace("'", "\\'") + "'"


def _hold(folder: Path) -> None:
    """Locks the folder for this command. Raises ConfigError if another process on this machine writes to it."""
    deadline = time.monotonic() + GONE_WITHIN_S
    try:
        locks.hold(folder, GONE_WITHIN_S)
    except locks.BusyError as error:
        raise ConfigError(f"resume={folder} is still running in {error.who}: wait for it, or end it") from error
    except OSError as error:
        raise ConfigError(f"resume={folder} cannot be locked ({error.strerror}): name one that can be") from error
    # Engines of a killed run, or a run of a wp1 version without locks.
    while (writer := locks.writer_in(folder)) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(f"resume={folder} is still running in process {writer}: wait for it, or end it")
        time.sleep(0.2)


def check_same(cfg: Any, run_dir: Path) -> None:
    """Raises ConfigError if the configuration differs from the one that the run began with; the message says how.

    Also raises it if the folder has lost lines (`completeness.check`): figures of the rest would pass for complete.
    """
    from wp1.analysis import completeness
    from wp1.analysis.base.run_tables import RunTables

    run = RunTables(run_dir)
    completeness.check(run)
    if run.metadata.get("hash_rule", 1) != HASH_RULE:
        raise ConfigError(
            f"{run_dir} was begun by an earlier version of wp1, which hashed configurations differently, so it cannot "
            "be checked that the configuration is the same: start a new run"
        )
    before = settings_of(run.config)
    now = settings_of(redaction.config(yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True))))
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    changes = [f"{key} was {_value(before, key)} and is {_value(now, key)}" for key in sorted(keys)]
    if changes:
        more = f", and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise ConfigError(
            f"{run_dir} has another configuration: {'; '.join(changes[:5])}{more}. Put that back, or start a new run"
        )


def _value(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def is_complete(run_dir: Path, reports: Path) -> bool:
    """Whether a run is completed, with all checks passed and its report written, which is the last step.

    reports: the folder of the report.
    """
    from wp1.core.run_folder import read_json

    path = METADATA.at(run_dir)
    if not path.is_file() or (metadata := read_json(path))["status"] != "completed":
        return False
    return (reports / f"{metadata['run_id']}.md").is_file()


def take_up(run_dir: Path, fresh: dict[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    """Returns the metadata of a resumed run, and moves the records of incomplete repeats apart.

    fresh: the metadata that it would have as a new run. arms: the planned arms and cells. Cells of a search for goodput
    are not planned; those of an unfinished search are moved apart as well.
    Raises ConfigError if the machine, the versions, or the model or data behind the configuration have changed.
    """
    from wp1.analysis.load import probes
    from wp1.core import shapes
    from wp1.core.run_folder import RunFolder, read_json
    from wp1.runner import goodput_search

    boots.finish(run_dir)
    metadata = read_json(METADATA.at(run_dir), shapes.METADATA)
    metadata.require(*NOTED)
    run = RunFolder(run_dir)
    _check_setting(run_dir, metadata, fresh)
    if metadata["status"] == "completed" and not run.has(CELLS):
        # All its records would be moved apart, as none would count as done.
        raise ConfigError(
            f"{run_dir} is complete but has no {CELLS.name}, which lists what is done: restore that file from a copy, "
            f"or make the report with python -m wp1.report {run_dir}"
        )
    skipped, tried = [one["cell"] for one in metadata["skipped"]], run.probes
    searched = {arm.name for arm in arms if probes.ended(tried, arm.name, goodput_search.lengths_of(arm, skipped))}
    planned = {(cell.arm, cell.name) for arm in arms for cell in arm.cells}
    done = {one.unit for one in run.done if one.died is None and (one.arm in searched or one.unit[:2] in planned)}
    # cells.jsonl first: if we are killed here, no repeat may be listed as done that has lost its records.
    _put_apart(CELLS.at(run_dir), lambda row: _unit(row) in done)
    apart = sum(
        _put_apart(file.at(run_dir), lambda row: _of_start(row) or _unit(row) in done) for file in run_files.of("unit")
    )
    for file in run_files.of("search"):
        _put_apart(file.at(run_dir), lambda row: row.get("arm") in searched)
    for file in run_files.of("moment"):
        _trim(file.at(run_dir))
    if metadata.get("boot") != fresh["boot"]:
        # The monotonic clock has restarted, so earlier times would be mistaken for current ones.
        metadata = boots.move(run_dir, metadata, fresh["boot"])
    resumed = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "was": metadata["status"],
        "kept": len(done),
        "lines_apart": apart,
        "git": fresh["git"],
    }
    return metadata | {
        "status": "running",
        "reason": None,
        "ended": None,
        "boot": fresh["boot"],
        "parent_run_id": fresh["parent_run_id"] or metadata["parent_run_id"],
        "resumed": [*metadata.get("resumed", []), resumed],
    }


def _check_setting(run_dir: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if before["config_hash"] != now["config_hash"]:
        raise ConfigError(f"{run_dir} used another model or other data under the same names: start a new run")
    parts = {"hardware": (_machine(before), _machine(now))}
    parts |= {name: (before["versions"].get(name), now["versions"].get(name)) for name in DECISIVE}
    parts["cells without room"] = (_without_room(before), _without_room(now))
    for name, (was, is_) in parts.items():
        if was != is_:
            raise ConfigError(
                f"{run_dir} cannot be resumed here: {name} was {was or 'none'} and is {is_ or 'none'}, and figures of "
                "both must not be mixed in one run. Start a new run"
            )


def _machine(metadata: Mapping[str, Any]) -> str:
    hardware = metadata["hardware"]
    return ", ".join([*(gpu["name"] for gpu in hardware["gpus"]), f"{hardware['cpu']}, {hardware['cores']} cores"])


def _without_room(metadata: Mapping[str, Any]) -> str:
    return ", ".join(one["cell"] for one in metadata.get("skipped", ()) if one["kind"] == "memory")


def _put_apart(path: Path, stays: Callable[[dict[str, Any]], bool]) -> int:
    """Moves all lines but those that `stays` accepts to a file next to it, torn lines included; returns how many.

    A line is in at least one of the two files at any moment.
    """
    if not path.is_file():
        return 0
    # Bytes: a line may be torn inside a character, and a text may contain what splitlines() takes for a line end.
    lines = [line + b"\n" for line in files.read_bytes(path).split(b"\n") if line]
    keep, apart = [], []
    for line in lines:
        (keep if stays(object_on(line) or {}) else apart).append(line)
    if apart:
        with files.appended(path.with_suffix(f".apart{path.suffix}")) as out:
            out.writelines(apart)
            out.flush()
            os.fsync(out.fileno())
        files.write_bytes(path, b"".join(keep))
    return len(apart)


def _unit(row: Mapping[str, Any]) -> Unit:
    return row.get("arm", ""), row.get("cell", ""), row.get("repeat", -1)


def _of_start(row: Mapping[str, Any]) -> bool:
    """Whether a line belongs to an engine start instead of a cell."""
    return bool(row) and row.get("cell", "") is None


def _trim(path: Path) -> None:
    """Drops a torn last line, so that the next line is not appended to it."""
    if path.is_file():
        with files.changed(path) as file:
            file.truncate(file.read().rfind(b"\n") + 1)
