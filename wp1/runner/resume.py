"""python -m wp1 resume=DIR: goes on with a run or a sweep that was cut short, or in which something failed.

The command line is that of the folder, so what is composed is what was composed then; where it is not, or the machine
is another, it is refused. What `progress` has as done stays. The rest is measured, whole: a repeat of a cell that was
cut short leaves records that are put apart, into records.apart.jsonl and the like, and never mixed with new ones.
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
from wp1.core.paths import MANIFEST, at_home, project_root, run_or_sweep
from wp1.core.plan import Arm
from wp1.core.records import Unit
from wp1.core.run_files import CELLS, CONFIG, METADATA
from wp1.runner import boots

# Of run_metadata.json, what a run that goes on adds to.
NOTED = ("labels", "pools", "starts", "taken_over", "kv_held", "skipped")
# For what a killed process has started to be gone.
GONE_WITHIN_S = locks.WITHIN_S


def arguments(words: list[str]) -> list[str]:
    """The command line as Hydra is to have it: where it says `resume=DIR`, that of the folder, and where to go on.

    Settings that are typed beside it take the place of the folder's. Sets WP1_ROOT, so that runs land where they did.
    The folder is locked until the command ends (`locks.command`).
    Raises ConfigError for a folder that is none of a run or sweep, cannot be read, or is still being written, and for
    one whose command is not to be taken from somebody else (`foreign.check`).
    """
    asked = [word for word in words if _key(word) == "resume"]
    if not asked or asked == ["resume=null"]:
        return words
    named = asked[-1].partition("=")[2].strip("'\"")
    if not named:
        raise ConfigError("resume= names no folder: name that of a run, as outputs/run-..., or leave it out")
    folder = Path(named).expanduser().resolve()
    command, root, place = _recorded(folder)
    _hold(folder)
    untrusted.check_links(folder)
    typed = [word for word in words if _key(word) != "resume"]
    taken = {_key(word) for word in typed} | {"resume", "hydra.run.dir", "hydra.sweep.dir"}
    kept = [word for word in command if word.startswith("-") or _key(word) not in taken]
    home = at_home(folder, root)
    if not home:
        # What a folder says of another place is no place of ours.
        kept = [word for word in kept if _key(word) != "root"]
    elif "root" not in map(_key, [*kept, *typed]):
        os.environ["WP1_ROOT"] = root
    untrusted.check(folder, kept, typed, root if home else str(project_root()))
    kept = [_rooted(word, root) for word in kept]
    # Hydra takes settings from one side of the options alone, and these may have been typed last.
    options = [word for word in kept if word.startswith("-") or ("=" not in word and not word.startswith("~"))]
    settings = [word for word in kept if word not in options]
    return [*options, *settings, *typed, f"resume={_quoted(folder)}", f"{place}={_quoted(folder)}"]


def _recorded(folder: Path) -> tuple[list[str], str, str]:
    """The words of the folder's command, its root, and the setting that names the folder.

    Whether a run's folder has lost lines is asked when its configuration is there, as of each job of a sweep:
    `check_same`.
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
    """The words of a command line after the program's name."""
    if not isinstance(command, list) or not all(isinstance(word, str) for word in command):
        raise ConfigError(f"{path} has a command that is no list of words: restore it from a copy")
    return command[1:]


def _root(path: Path, content: Mapping[str, Any]) -> str:
    if not isinstance(content["root"], str):
        raise ConfigError(f"{path} has root={content['root']!r}, which is no folder: restore it from a copy")
    return content["root"]


def _key(word: str) -> str:
    return word.lstrip("+~").partition("=")[0]


def _rooted(word: str, root: str) -> str:
    """A root= that means another folder from here is written out."""
    if _key(word) != "root" or Path(word.partition("=")[2].strip("'\"")).expanduser().resolve() == Path(root):
        return word
    return f"root={_quoted(Path(root))}"


def _quoted(path: Path) -> str:
    """A path as a value that Hydra's grammar takes whatever is in it."""
    return "'" + str(path).replace("'", "\\'") + "'"


def _hold(folder: Path) -> None:
    """Locks the folder for this command. Raises ConfigError where another process on this machine writes into it."""
    deadline = time.monotonic() + GONE_WITHIN_S
    try:
        locks.hold(folder, GONE_WITHIN_S)
    except locks.BusyError as error:
        raise ConfigError(f"resume={folder} goes on in {error.who} already: wait for it, or end it") from error
    except OSError as error:
        raise ConfigError(f"resume={folder} cannot be locked ({error.strerror}): name a folder that can") from error
    # Engines of a run that was killed, or one of a version without locks.
    while (writer := locks.writer_in(folder)) is not None:
        if time.monotonic() > deadline:
            raise ConfigError(f"resume={folder} goes on in process {writer} already: wait for it, or end it")
        time.sleep(0.2)


def check_same(cfg: Any, run_dir: Path) -> None:
    """Raises ConfigError that says how the configuration differs from the one that the run began with.

    So it does if the folder has lost lines (`completeness.check`): figures of what is left would be taken for all of
    them.
    """
    from wp1.analysis import completeness
    from wp1.analysis.base.run_tables import RunTables

    run = RunTables(run_dir)
    completeness.check(run)
    if run.metadata.get("hash_rule", 1) != HASH_RULE:
        raise ConfigError(
            f"{run_dir} was begun by an earlier version of wp1, which had another rule for the configuration hash: "
            "whether its configuration is this one cannot be told. Start a new run"
        )
    before = settings_of(run.config)
    now = settings_of(redaction.config(yaml.safe_load(OmegaConf.to_yaml(cfg, resolve=True))))
    keys = [key for key in before | now if before.get(key) != now.get(key)]
    told = [f"{key} was {_said(before, key)} and is {_said(now, key)}" for key in sorted(keys)]
    if told:
        more = f", and {len(told) - 5} more" if len(told) > 5 else ""
        raise ConfigError(
            f"{run_dir} has another configuration: {'; '.join(told[:5])}{more}. Put that back, or start a new run"
        )


def _said(settings: Mapping[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def is_complete(run_dir: Path, reports: Path) -> bool:
    """Whether a run ended with everything measured, every check passed, and its report written, which comes last.

    reports: the folder that has it.
    """
    from wp1.core.run_folder import read_json

    path = METADATA.at(run_dir)
    if not path.is_file() or (metadata := read_json(path))["status"] != "completed":
        return False
    return (reports / f"{metadata['run_id']}.md").is_file()


def take_up(run_dir: Path, fresh: dict[str, Any], arms: Sequence[Arm]) -> dict[str, Any]:
    """The metadata of a run that goes on; puts apart what was left of repeats that were not measured to their end.

    fresh: the metadata that it would have as a new run. arms: what is planned; the cells of a search for goodput are
    not, and those of one that was not brought to its end go too.
    Raises ConfigError where the machine, the versions or what the configuration stands for are not what they were.
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
        # All its records would be put apart as nobody's.
        raise ConfigError(
            f"{run_dir} is complete and has no {CELLS.name}, which says what is done: restore it from a copy, or "
            f"make its report by python -m wp1.report {run_dir}"
        )
    skipped, tried = [one["cell"] for one in metadata["skipped"]], run.probes
    searched = {arm.name for arm in arms if probes.ended(tried, arm.name, goodput_search.lengths_of(arm, skipped))}
    planned = {(cell.arm, cell.name) for arm in arms for cell in arm.cells}
    done = {one.unit for one in run.done if one.died is None and (one.arm in searched or one.unit[:2] in planned)}
    # First what says that they are done: nothing may be called done that has lost its lines, were we killed here.
    _put_apart(CELLS.at(run_dir), lambda row: _unit(row) in done)
    apart = sum(
        _put_apart(file.at(run_dir), lambda row: _of_start(row) or _unit(row) in done) for file in run_files.of("unit")
    )
    for file in run_files.of("search"):
        _put_apart(file.at(run_dir), lambda row: row.get("arm") in searched)
    for file in run_files.of("moment"):
        _trim(file.at(run_dir))
    if metadata.get("boot") != fresh["boot"]:
        # The monotonic clock began anew, and moments of before would pass for moments of now.
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
        raise ConfigError(f"{run_dir} was of another model or other data under the same names: start a new run")
    parts = {"hardware": (_machine(before), _machine(now))}
    parts |= {name: (before["versions"].get(name), now["versions"].get(name)) for name in DECISIVE}
    parts["cells without room"] = (_without_room(before), _without_room(now))
    for name, (was, is_) in parts.items():
        if was != is_:
            raise ConfigError(
                f"{run_dir} cannot go on here: {name} was {was or 'none'} and is {is_ or 'none'}, and figures of both "
                "do not belong in one run. Start a new one"
            )


def _machine(metadata: Mapping[str, Any]) -> str:
    hardware = metadata["hardware"]
    return ", ".join([*(gpu["name"] for gpu in hardware["gpus"]), f"{hardware['cpu']}, {hardware['cores']} cores"])


def _without_room(metadata: Mapping[str, Any]) -> str:
    return ", ".join(one["cell"] for one in metadata.get("skipped", ()) if one["kind"] == "memory")


def _put_apart(path: Path, stays: Callable[[dict[str, Any]], bool]) -> int:
    """Moves other lines than these to a file beside it, and says how many. A torn line goes with them.

    At no moment is a line in neither file.
    """
    if not path.is_file():
        return 0
    # Bytes: a line may be torn within a sign, and a text may hold what other splitting takes for a line's end.
    lines = [line + b"\n" for line in files.read_bytes(path).split(b"\n") if line]
    keep = [line for line in lines if stays(_row(line))]
    if len(keep) < len(lines):
        with files.appended(path.with_suffix(f".apart{path.suffix}")) as out:
            out.writelines(line for line in lines if not stays(_row(line)))
            out.flush()
            os.fsync(out.fileno())
        files.write_bytes(path, b"".join(keep))
    return len(lines) - len(keep)


def _row(line: bytes) -> dict[str, Any]:
    """A line's content; {} of one that was torn."""
    try:
        row = files.parsed(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _unit(row: Mapping[str, Any]) -> Unit:
    return row.get("arm", ""), row.get("cell", ""), row.get("repeat", -1)


def _of_start(row: Mapping[str, Any]) -> bool:
    """Whether a line is of the engines' start, and of no cell."""
    return bool(row) and row.get("cell", "") is None


def _trim(path: Path) -> None:
    """Drops a last line that was torn, so that the next one does not go on in it."""
    if path.is_file():
        with files.changed(path) as file:
            file.truncate(file.read().rfind(b"\n") + 1)
