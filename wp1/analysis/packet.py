"""A baseline packet: one machine's experiments as a folder with a page, made from their run folders. Pure.

A complete packet has every experiment of conf/experiment, and any other experiment that has a run. It has each run's
report, plots, tables and metadata, and its records compressed. The page takes the first text, table and picture of each
report, as a report begins with what matters most.
"""

import gzip
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import yaml

from wp1.analysis import completeness
from wp1.analysis.base.markdown import code, fence, inert, table, text
from wp1.analysis.base.provenance import LOCAL_CHANGES, LOCAL_CHANGES_MEANING, code_of, command_of
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.excerpt import in_short, key_parts_of, titled
from wp1.core import files, labels, locks, run_files
from wp1.core.errors import ConfigError
from wp1.core.paths import CONF, kind_of
from wp1.core.run_files import METADATA, SUMMARY
from wp1.core.run_folder import RunFolder

PAGE = "README.md"
# Limit on the sum of a packet's compressed files.
MAX_BYTES = 5 << 20


# Marks an experiment's chapter on a packet's page.
_ANCHOR = re.compile(r'^<a id="([\w.-]+)"></a>$', re.MULTILINE)


@cache
def experiments() -> tuple[str, ...]:
    """The experiments of conf/experiment, sorted; a file without a name of its own is a variant, such as e1_gpu."""
    found = (yaml.safe_load(files.read_text(path)) for path in sorted((CONF / "experiment").glob("*.yaml")))
    names = (config.get("experiment", {}).get("name") for config in found)
    return tuple(sorted({name for name in names if name}))


@dataclass(frozen=True)
class Run:
    """A run that can be part of a packet."""

    tables: RunTables

    @property
    def folder(self) -> Path:
        return self.tables.path

    @property
    def metadata(self) -> dict[str, Any]:
        return self.tables.metadata

    @property
    def experiment(self) -> str:
        """The experiment's name, e1 for a variant such as e1_gpu. It names a folder of the packet."""
        name = str(self.metadata["experiment"])
        base = name.partition("_")[0]
        return base if name not in experiments() and base in experiments() else name

    @property
    def completed(self) -> bool:
        return self.metadata["status"] == "completed"

    @property
    def report(self) -> Path | None:
        """Path of its report; None if there is none."""
        return self.tables.report

    @cached_property
    def lost(self) -> str | None:
        """What its folder lacks, in one line with relative paths (`completeness.check`); None if it is complete."""
        try:
            completeness.check(self.tables)
        except ConfigError as error:
            return self.within(error)
        return None

    def within(self, error: Exception) -> str:
        """The error with paths relative to the run's folder: a packet's page names no path of one machine."""
        return str(error).replace(f"{self.folder}/", "")

    @property
    def command(self) -> str:
        """The command that repeats it."""
        return _portable_text(command_of(self.metadata), str(self.tables.config["root"]))


def find(paths: Iterable[Path]) -> list[Run]:
    """The runs that these folders are or contain, oldest first. Raises ConfigError for a folder without any."""
    found: dict[Path, Run] = {}
    for path in paths:
        files = [METADATA.at(path)] if kind_of(path) == "run" else _below(path)
        if not files:
            raise ConfigError(
                f"{path} contains no run: name run folders, such as outputs/run-..., or a folder that contains them"
            )
        for file in files:
            found[file.parent.resolve()] = Run(RunTables(file.parent))
    return sorted(found.values(), key=lambda run: (run.metadata["started"], run.metadata["run_id"]))


def has_runs(path: Path) -> bool:
    """Whether the folder is a run's, or contains runs."""
    return kind_of(path) == "run" or bool(_below(path))


def _below(path: Path) -> list[Path]:
    """The metadata files of runs within a folder; links are not followed."""
    found = [file for depth in ("*", "*/*", "*/*/*") for file in path.glob(f"{depth}/{METADATA.name}")]
    base = path.resolve()
    return [file for file in found if files.is_plain(file) and file.resolve() == base / file.relative_to(path)]


def choose(runs: Sequence[Run]) -> dict[str, Run]:
    """Each experiment's newest completed run, or else its newest; conf/experiment's first, then others by name."""
    chosen: dict[str, Run] = {}
    for run in runs:
        before = chosen.get(run.experiment)
        if before is None or run.completed or not before.completed:
            chosen[run.experiment] = run
    own = sorted(set(chosen) - set(experiments()))
    return {name: chosen[name] for name in (*experiments(), *own) if name in chosen}


def shortcomings(chosen: dict[str, Run]) -> list[str]:
    """Why these runs do not make a complete packet, a line each: missing or failed experiments, lost lines, several
    machines."""
    found = [f"{name} is missing" for name in experiments() if name not in chosen]
    found += [
        f"{name} {run.metadata['status']} ({_first_line(run.metadata['reason']) or run.folder.name})"
        for name, run in chosen.items()
        if not run.completed
    ]
    found += [f"{name} ({run.folder.name}) is incomplete: {run.lost}" for name, run in chosen.items() if run.lost]
    machines = {machine_of(run) for run in chosen.values()}
    if len(machines) > 1:
        found.append(f"runs come from several machines: {'; '.join(sorted(machines))}")
    return found


def machine_of(run: Run) -> str:
    """The hardware in one line."""
    hardware = run.metadata["hardware"]
    gpus = hardware["gpus"]
    on = f"{len(gpus)} x {gpus[0]['name']} ({gpus[0]['memory_gib']} GiB), " if gpus else ""
    return f"{on}{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"


def write(chosen: dict[str, Run], out: Path, title: str, missing: Sequence[str]) -> Path:
    """Creates or replaces the folder `out` and returns its page, which lists what is `missing` (`shortcomings`).

    Raises ConfigError if `out` contains anything else, or a run that the packet is made from.
    """
    _make_way(out, [run.folder for run in chosen.values()])
    out.mkdir(parents=True, exist_ok=True)
    left_out = {name: _copy(run, out / name) for name, run in chosen.items()}
    too_large = _shrink(out)
    keys = {name: key_parts_of(out / name / "report.md", name) for name in chosen}
    parts = [
        f"# {title}",
        _overview(chosen, missing),
        in_short(keys),
        _setting(chosen),
        *(_chapter(name, run, keys[name]) for name, run in chosen.items()),
        _again(chosen),
        _contents(too_large, sorted({file for files in left_out.values() for file in files})),
    ]
    page = out / PAGE
    files.write_text(page, "\n\n".join(part for part in parts if part) + "\n")
    return page


def _make_way(out: Path, sources: Sequence[Path]) -> None:
    """Removes an older packet and nothing else. Raises ConfigError if `out` has anything that is not a packet's."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is not a folder: name another")
    here = out.resolve()
    if here == Path.cwd() or any(folder.resolve().is_relative_to(here) for folder in sources):
        raise ConfigError(f"{out} is the current folder, or contains runs that go into the packet: name another folder")
    present = {path.name for path in out.iterdir()} if out.exists() else set()
    # A lone README may be someone else's: do not overwrite it.
    chapters = _chapters_of(out / PAGE) if PAGE in present else set()
    if present and (not chapters or present - {PAGE} - chapters):
        raise ConfigError(f"{out} is not empty and is not a packet: name another folder")
    for name in present & chapters:
        shutil.rmtree(out / name)
    (out / PAGE).unlink(missing_ok=True)


def _chapters_of(path: Path) -> set[str]:
    """The experiments on a packet's page; empty if the file is not a packet's page."""
    page = path.read_text(encoding="utf-8", errors="replace")
    return set(_ANCHOR.findall(page)) if "\n## What it ran on\n" in page else set()


def _copy(run: Run, target: Path) -> list[str]:
    """Copies the run's report, plots, tables and records; returns the names of its files that are not copied."""
    target.mkdir()
    root, page = str(run.tables.config["root"]), run.report
    for source in _sources(run, with_rows=False):
        files.write_bytes(target / source.name, _portable(files.read_bytes(source), root))
    for source in _sources(run, with_rows=True):
        # Without a name and time in the header, the same records give the same bytes.
        packed = gzip.compress(_portable(files.read_bytes(source), root), 9, mtime=0)
        files.write_bytes(target / f"{source.name}.gz", packed)
    if page is not None:
        run_id, content = run.metadata["run_id"], files.read_text(page)
        # Plots that the page does not show are left from an older page.
        for plot in files.plain_files(page.parent / run_id, "*.png"):
            if f"]({run_id}/{plot.name})" in content:
                files.write_bytes(target / plot.name, files.read_bytes(plot))
        files.write_text(target / "report.md", _relinked(content, target, root))
    copied = {file.name.removesuffix(".gz") for file in target.iterdir()}
    return sorted({file.name for file in run.folder.iterdir() if files.is_plain(file)} - copied - {locks.FILE})


def _sources(run: Run, with_rows: bool) -> list[Path]:
    """The files that a packet takes from a run's folder. A link in place of a file is refused when it is read."""
    found: list[Path] = []
    for file in run_files.packed(with_rows):
        found += file.found(run.folder) if file.is_pattern or not run.tables.has(file) else [file.at(run.folder)]
    return found


def _portable(content: bytes, root: str) -> bytes:
    """The content without the absolute paths of the machine it was made on."""
    return content.replace(root.encode(), b".").replace(f"{Path.home()}/".encode(), b"~/")


def _portable_text(content: str, root: str) -> str:
    return _portable(content.encode(), root).decode()


def _relinked(page: str, target: Path, root: str) -> str:
    """A report whose links point to files next to it; a link to any other file becomes plain text."""

    def link(found: re.Match[str]) -> str:
        words, name = found[2], Path(found[3]).name
        for there in (name, f"{name}.gz"):
            if (target / there).is_file():
                return f"{found[1]}[{words}]({there})"
        return words

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, inert(_portable_text(page, root)))


def _shrink(out: Path) -> list[str]:
    """Removes compressed files, samples before records, until the rest fit in MAX_BYTES; returns the names removed."""
    packed = list(out.glob("*/*.gz"))
    order = [file.name for file in run_files.packed(with_rows=True)]
    packed.sort(key=lambda file: (-order.index(file.name.removesuffix(".gz")), file.stat().st_size))
    removed = []
    while packed and sum(file.stat().st_size for file in packed) > MAX_BYTES:
        # Remove the largest file of the lowest-priority kind left.
        kind = [file for file in packed if file.name == packed[0].name]
        packed.remove(kind[-1])
        kind[-1].unlink()
        removed.append(f"{kind[-1].parent.name}/{kind[-1].name}")
    return removed


def _overview(chosen: dict[str, Run], missing: Sequence[str]) -> str:
    rows = []
    for name, run in chosen.items():
        metadata = run.metadata
        rows.append(
            [
                f"[{titled(name)}](#{name})", text(metadata["question"]), metadata["status"],
                text(metadata["model"].get("name") or "—"), ", ".join(metadata["labels"]) or None,
                f"`{metadata['config_hash'][:12]}`", metadata["started"][:16].replace("T", " "),
            ]
        )  # fmt: skip
    header = ["", "question", "status", "model", "labels", "configuration", "started, UTC"]
    partial = [f"> **Incomplete**: {'; '.join(text(line, 300) for line in missing)}."] if missing else []
    return "\n\n".join([*partial, table(header, rows, "lllllll")])


def _setting(chosen: dict[str, Run]) -> str:
    machines = sorted({machine_of(run) for run in chosen.values()})
    rows = [["hardware", text("; ".join(machines), 2000)]]
    for key in ("driver", "os"):
        values = sorted(
            {str(run.metadata["hardware"][key]) for run in chosen.values() if run.metadata["hardware"].get(key)}
        )
        rows += [[key, text(", ".join(values))]] if values else []
    rows.append(["versions", ", ".join(_versions(chosen))])
    states = [git for run in chosen.values() if (git := run.metadata["git"])]
    commits: dict[str, list[str]] = {}
    for name, run in chosen.items():
        if git := run.metadata["git"]:
            commits.setdefault(code_of(git), []).append(titled(name))
    of = "; ".join(f"{code} ({', '.join(names)})" if len(commits) > 1 else code for code, names in commits.items())
    rows += [["code", of]] if commits else []
    if len({run.metadata.get("boot") for run in chosen.values()}) > 1:
        rows.append(["machines", "of the same kind, but not the same machine or not the same boot"])
    meanings = [
        f"- {labels.in_words(label, '**')}."
        for label in sorted({label for run in chosen.values() for label in run.metadata["labels"]})
    ]
    if any(git["dirty"] for git in states):
        meanings.append(f"- **{LOCAL_CHANGES}**: {LOCAL_CHANGES_MEANING}.")
    return "\n\n".join(["## What it ran on", table(["", ""], rows, "ll"), "\n".join(meanings)]).rstrip()


def _versions(chosen: dict[str, Run]) -> list[str]:
    """`package version` for each package, with every version if runs differ."""
    found: dict[str, list[str]] = {}
    for run in chosen.values():
        for package, version in run.metadata["versions"].items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return [f"{package} {' and '.join(versions)}" for package, versions in found.items()]


def _chapter(name: str, run: Run, key: list[str] | None) -> str:
    """One experiment: key text, table and picture, what was skipped, its command. key: None without a report."""
    metadata = run.metadata
    parts = [f'<a id="{name}"></a>', f"## {titled(name)}: {text(metadata['question'] or metadata['experiment'])}"]
    if not run.completed:
        parts.append(f"> **{metadata['status']}**: {text(metadata['reason'] or 'no reason was recorded', 300)}")
    if run.lost is not None:
        parts.append(f"> **Incomplete**: {text(run.lost, 300)}")
    parts += key or []
    parts += [_skipped(metadata), _failed(run.tables)]
    parts.append(fence(run.command))
    parts.append(f"[Full report]({name}/report.md)" if key is not None else "It has no report.")
    return "\n\n".join(part for part in parts if part)


def _skipped(metadata: dict[str, Any]) -> str:
    rows = [[one["cell"], text(one["reason"], 300)] for one in metadata.get("skipped", ())]
    return f"Skipped:\n\n{table(['cell', 'reason'], rows, 'll')}" if rows else ""


def _failed(run: RunFolder) -> str:
    """The checks that failed, as a list."""
    broken = [check for check in run.summary["checks"] if not check["passed"]] if run.has(SUMMARY) else []
    return "\n".join(f"- **FAILED** {text(check['name'])}: {text(check['detail'], 300)}" for check in broken)


def _again(chosen: dict[str, Run]) -> str:
    return "## Again\n\n" + fence("\n".join(run.command for run in chosen.values()))


def _contents(too_large: Sequence[str], left_out: Sequence[str]) -> str:
    lines = [
        "Each experiment's folder has its report with plots, `summary.json`, `run_metadata.json`, `config.yaml`, "
        "tables as CSV, and its records as `*.jsonl.gz`. After `gunzip`, `python -m wp1.report` on that folder makes "
        "the report again."
    ]
    if too_large:
        lines.append(
            f"Left out to keep the compressed files within 5 MB: {', '.join(too_large)}. A report made again says "
            "what it cannot show without them."
        )
    if left_out:
        lines.append(f"Not part of a packet: {', '.join(map(code, left_out))}.")
    return "## What is here\n\n" + "\n\n".join(lines)


def _first_line(reason: str | None) -> str:
    return text((reason or "").splitlines()[0], 200) if reason else ""
