"""A baseline packet: E0 to E6 of one machine as a folder with a page, from the folders of their runs. Pure.

The packet has each run's report, plots, tables and metadata, and its records compressed. The page takes the words, the
first table and the first picture of each report: a report begins with what matters most.
"""

import gzip
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from wp1.analysis import completeness
from wp1.analysis.base.markdown import code, fence, inert, table, text
from wp1.analysis.base.provenance import LOCAL_CHANGES, LOCAL_CHANGES_MEANING, code_of, command_of
from wp1.analysis.base.run_tables import RunTables
from wp1.core import files, labels, locks, run_files
from wp1.core.errors import ConfigError, WP1Error
from wp1.core.paths import kind_of
from wp1.core.run_files import METADATA, SUMMARY
from wp1.core.run_folder import RunFolder

EXPERIMENTS = ("e0", "e1", "e2", "e3", "e4", "e5", "e6")
PAGE = "README.md"
# Of all compressed files of a packet.
MAX_BYTES = 5 << 20
# Characters of what is said of an experiment at the top.
IN_SHORT = 320
# Of a table on the page; the whole one is in the report.
MAX_ROWS = 20
# How words or a table of one arm begin.
_OF_AN_ARM = re.compile(r"\*\*[\w.-]+\*\*, ")


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
        """e0 to e6, also where the experiment is a variant such as e1_gpu."""
        return str(self.metadata["experiment"]).partition("_")[0]

    @property
    def completed(self) -> bool:
        return self.metadata["status"] == "completed"

    @property
    def report(self) -> Path | None:
        """Its page; None where there is none."""
        return self.tables.report

    @cached_property
    def lost(self) -> str | None:
        """What its folder has lost, in one line with paths within it (`completeness.check`); None where it is whole."""
        try:
            completeness.check(self.tables)
        except ConfigError as error:
            return self.within(error)
        return None

    def within(self, error: Exception) -> str:
        """What is wrong in its folder, without the folder: a packet's page names no place of one machine."""
        return str(error).replace(f"{self.folder}/", "")

    @property
    def command(self) -> str:
        """How to repeat it."""
        return _portable_text(command_of(self.metadata), str(self.tables.config["root"]))


def find(paths: Iterable[Path]) -> list[Run]:
    """The runs that are, or are within, these folders, oldest first. Raises WP1Error for a folder that has none."""
    found: dict[Path, Run] = {}
    for path in paths:
        files = [METADATA.at(path)] if kind_of(path) == "run" else _below(path)
        if not files:
            raise WP1Error(f"{path} has no run in it: name folders of runs, as in outputs/run-..., or one above them")
        for file in files:
            found[file.parent.resolve()] = Run(RunTables(file.parent))
    return sorted(found.values(), key=lambda run: (run.metadata["started"], run.metadata["run_id"]))


def has_runs(path: Path) -> bool:
    """Whether the folder is one of a run, or has some in it."""
    return kind_of(path) == "run" or bool(_below(path))


def _below(path: Path) -> list[Path]:
    """The metadata of runs within a folder, and not of those that a link in it leads to."""
    found = [file for depth in ("*", "*/*", "*/*/*") for file in path.glob(f"{depth}/{METADATA.name}")]
    base = path.resolve()
    return [file for file in found if files.is_plain(file) and file.resolve() == base / file.relative_to(path)]


def choose(runs: Sequence[Run]) -> dict[str, Run]:
    """Of each experiment the newest run that completed, else the newest; in the experiments' order."""
    chosen: dict[str, Run] = {}
    for run in runs:
        before = chosen.get(run.experiment)
        if before is None or run.completed or not before.completed:
            chosen[run.experiment] = run
    return {name: chosen[name] for name in EXPERIMENTS if name in chosen}


def shortcomings(chosen: dict[str, Run]) -> list[str]:
    """Why these runs are no whole packet: experiments that are missing, failed or have lost lines, runs of several
    machines; a line each."""
    found = [f"{name} is missing" for name in EXPERIMENTS if name not in chosen]
    found += [
        f"{name} {run.metadata['status']} ({_first_line(run.metadata['reason']) or run.folder.name})"
        for name, run in chosen.items()
        if not run.completed
    ]
    found += [f"{name} ({run.folder.name}) is not whole: {run.lost}" for name, run in chosen.items() if run.lost]
    machines = {machine_of(run) for run in chosen.values()}
    if len(machines) > 1:
        found.append(f"runs are of several machines: {'; '.join(sorted(machines))}")
    return found


def machine_of(run: Run) -> str:
    """The hardware in words."""
    hardware = run.metadata["hardware"]
    gpus = hardware["gpus"]
    on = f"{len(gpus)} x {gpus[0]['name']} ({gpus[0]['memory_gib']} GiB), " if gpus else ""
    return f"{on}{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB"


def write(chosen: dict[str, Run], out: Path, title: str, missing: Sequence[str]) -> Path:
    """Makes the folder `out` anew and returns its page, which says what is `missing` (`shortcomings`).

    Raises WP1Error where something else is in it, or a run that the packet is made of.
    """
    _make_way(out, [run.folder for run in chosen.values()])
    out.mkdir(parents=True, exist_ok=True)
    left_out = {name: _copy(run, out / name) for name, run in chosen.items()}
    too_large = _shrink(out)
    keys = {name: _key_parts_of(out / name / "report.md", name) for name in chosen}
    parts = [
        f"# {title}",
        _overview(chosen, missing),
        _in_short(keys),
        _setting(chosen),
        *(_chapter(name, run, keys[name]) for name, run in chosen.items()),
        _again(chosen),
        _contents(too_large, sorted({file for files in left_out.values() for file in files})),
    ]
    page = out / PAGE
    files.write_text(page, "\n\n".join(part for part in parts if part) + "\n")
    return page


def _make_way(out: Path, sources: Sequence[Path]) -> None:
    """Removes an older packet, and nothing else. Raises WP1Error where `out` has anything that is not a packet's."""
    if out.exists() and not out.is_dir():
        raise WP1Error(f"{out} is no folder: name another")
    here = out.resolve()
    if here == Path.cwd() or any(folder.resolve().is_relative_to(here) for folder in sources):
        raise WP1Error(f"{out} is where you are, or has runs that the packet is made of: name another folder")
    there = {path.name for path in out.iterdir()} if out.exists() else set()
    # A README alone is anybody's.
    if there and (PAGE not in there or there - {PAGE, *EXPERIMENTS} or not _is_page(out / PAGE)):
        raise WP1Error(f"{out} is not empty and no packet: name another folder")
    for name in there & set(EXPERIMENTS):
        shutil.rmtree(out / name)
    (out / PAGE).unlink(missing_ok=True)


def _is_page(path: Path) -> bool:
    return "\n## What it ran on\n" in path.read_text(encoding="utf-8", errors="replace")


def _copy(run: Run, target: Path) -> list[str]:
    """The run's report, plots, tables and records; returns the files of the run that stay behind."""
    target.mkdir()
    root, page = str(run.tables.config["root"]), run.report
    for source in _sources(run, with_rows=False):
        files.write_bytes(target / source.name, _portable(files.read_bytes(source), root))
    for source in _sources(run, with_rows=True):
        # No name and no time within: the same records have the same bytes.
        packed = gzip.compress(_portable(files.read_bytes(source), root), 9, mtime=0)
        files.write_bytes(target / f"{source.name}.gz", packed)
    if page is not None:
        run_id, content = run.metadata["run_id"], files.read_text(page)
        # What the page does not show is of an older page.
        for plot in files.plain_files(page.parent / run_id, "*.png"):
            if f"]({run_id}/{plot.name})" in content:
                files.write_bytes(target / plot.name, files.read_bytes(plot))
        files.write_text(target / "report.md", _relinked(content, target, root))
    there = {file.name.removesuffix(".gz") for file in target.iterdir()}
    return sorted({file.name for file in run.folder.iterdir() if files.is_plain(file)} - there - {locks.FILE})


def _sources(run: Run, with_rows: bool) -> list[Path]:
    """The files that a packet takes from a run's folder; of a link in the place of one, its reader says what it is."""
    found: list[Path] = []
    for file in run_files.packed(with_rows):
        found += file.found(run.folder) if file.is_pattern or not run.tables.has(file) else [file.at(run.folder)]
    return found


def _portable(content: bytes, root: str) -> bytes:
    """Without the folders of the machine that it was made on."""
    return content.replace(root.encode(), b".").replace(f"{Path.home()}/".encode(), b"~/")


def _portable_text(content: str, root: str) -> str:
    return _portable(content.encode(), root).decode()


def _relinked(page: str, target: Path, root: str) -> str:
    """A report whose links point at what lies beside it; a link to what does not is its words alone."""

    def link(found: re.Match[str]) -> str:
        words, name = found[2], Path(found[3]).name
        for there in (name, f"{name}.gz"):
            if (target / there).is_file():
                return f"{found[1]}[{words}]({there})"
        return words

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", link, inert(_portable_text(page, root)))


def _shrink(out: Path) -> list[str]:
    """Removes compressed files until the others are within MAX_BYTES, samples before records; returns what went."""
    packed = list(out.glob("*/*.gz"))
    order = [file.name for file in run_files.packed(with_rows=True)]
    packed.sort(key=lambda file: (-order.index(file.name.removesuffix(".gz")), file.stat().st_size))
    gone = []
    while packed and sum(file.stat().st_size for file in packed) > MAX_BYTES:
        # Of the last kind that there is, the largest.
        kind = [file for file in packed if file.name == packed[0].name]
        packed.remove(kind[-1])
        kind[-1].unlink()
        gone.append(f"{kind[-1].parent.name}/{kind[-1].name}")
    return gone


def _overview(chosen: dict[str, Run], missing: Sequence[str]) -> str:
    rows = []
    for name, run in chosen.items():
        metadata = run.metadata
        rows.append(
            [
                f"[{name.upper()}](#{name})", text(metadata["question"]), metadata["status"],
                text(metadata["model"].get("name") or "—"), ", ".join(metadata["labels"]) or None,
                f"`{metadata['config_hash'][:12]}`", metadata["started"][:16].replace("T", " "),
            ]
        )  # fmt: skip
    header = ["", "question", "status", "model", "labels", "configuration", "started, UTC"]
    partial = [f"> **Not whole**: {'; '.join(text(line, 300) for line in missing)}."] if missing else []
    return "\n\n".join([*partial, table(header, rows, "lllllll")])


def _in_short(keys: dict[str, list[str] | None]) -> str:
    """How each report begins: the first sentences of its words; of a list the last, which is of the longest prompt.

    Words of several arms, a paragraph each, begin with the first sentences of each. keys: of each experiment the key
    parts of its report.
    """
    lines = []
    for name, parts in keys.items():
        if not parts or parts[0].startswith("|"):
            continue
        of_arms = {found[0]: part for part in reversed(parts) if (found := _OF_AN_ARM.match(part))}
        said = [part for part in parts if part in of_arms.values()] or [parts[0].splitlines()[-1].removeprefix("- ")]
        lines.append(f"- [{name.upper()}](#{name}): {' '.join(map(_beginning, said))}")
    return "## In short\n\n" + "\n".join(lines) if lines else ""


def _beginning(said: str) -> str:
    """As many whole sentences as are no longer than IN_SHORT, and one at least."""
    sentences = re.split(r"(?<=\.) (?=[A-Z])", said)
    kept = sentences[:1]
    while len(kept) < len(sentences) and len(" ".join([*kept, sentences[len(kept)]])) <= IN_SHORT:
        kept.append(sentences[len(kept)])
    return " ".join(kept)


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
            commits.setdefault(code_of(git), []).append(name.upper())
    # Settings that one of them does not know yet are not in its configuration.
    of = "; ".join(f"{code} ({', '.join(names)})" if len(commits) > 1 else code for code, names in commits.items())
    rows += [["code", of]] if commits else []
    if len({run.metadata.get("boot") for run in chosen.values()}) > 1:
        rows.append(["machines", "of the same kind; not the same machine, or not since the same start of it"])
    meanings = [
        f"- {labels.in_words(label, '**')}."
        for label in sorted({label for run in chosen.values() for label in run.metadata["labels"]})
    ]
    if any(git["dirty"] for git in states):
        meanings.append(f"- **{LOCAL_CHANGES}**: {LOCAL_CHANGES_MEANING}.")
    return "\n\n".join(["## What it ran on", table(["", ""], rows, "ll"), "\n".join(meanings)]).rstrip()


def _versions(chosen: dict[str, Run]) -> list[str]:
    """`package version`, with every version where runs differ."""
    found: dict[str, list[str]] = {}
    for run in chosen.values():
        for package, version in run.metadata["versions"].items():
            if version not in found.setdefault(package, []):
                found[package].append(version)
    return [f"{package} {' and '.join(versions)}" for package, versions in found.items()]


def _chapter(name: str, run: Run, key: list[str] | None) -> str:
    """One experiment: its words, key table and picture, what was skipped, its command. key: None without a report."""
    metadata = run.metadata
    parts = [f'<a id="{name}"></a>', f"## {name.upper()}: {text(metadata['question'] or metadata['experiment'])}"]
    if not run.completed:
        parts.append(f"> **{metadata['status']}**: {text(metadata['reason'] or 'no reason was written', 300)}")
    if run.lost is not None:
        parts.append(f"> **Not whole**: {text(run.lost, 300)}")
    parts += key or []
    parts += [_skipped(metadata), _failed(run.tables)]
    parts.append(fence(run.command))
    parts.append(f"[The whole report]({name}/report.md)" if key is not None else "It has no report.")
    return "\n\n".join(part for part in parts if part)


def _key_parts_of(report: Path, name: str) -> list[str] | None:
    """`key_parts` of a report's file; None where there is none."""
    return key_parts(files.read_text(report), name) if report.is_file() else None


def key_parts(page: str, name: str, most_words: int = 12) -> list[str]:
    """Of a report its first words, first table and first picture, in this order, with links that fit from above.

    Where the first table is one arm's, the tables of the other arms that follow it come too.
    """
    blocks = [block.strip() for block in re.split(r"\n{2,}", page) if block.strip()]
    # The head is title, status and labels.
    body = [block for block in blocks[2:] if not block.startswith((">", "#", "```"))]
    pictures = [block for block in body if block.startswith("![")]
    tables = [block for block in body if block.startswith("|")]
    before_table = body[: body.index(tables[0])] if tables else body
    words = [block for block in before_table if not block.startswith(("![", "|"))]
    captions = {block.removeprefix("![").partition("]")[0] for block in pictures}
    words = [block for block in words if block.strip("*") not in captions][:most_words]
    key_table = [_shortened(tables[0], name)] if tables else []
    if tables and words and _OF_AN_ARM.match(words[-1]):
        after = body[body.index(tables[0]) + 1 :]
        for lead, rows in zip(after[::2], after[1::2], strict=False):
            if not (_OF_AN_ARM.match(lead) and rows.startswith("|")):
                break
            key_table += [lead, _shortened(rows, name)]
    picture = [re.sub(r"\]\(", f"]({name}/", pictures[0])] if pictures else []
    return [*words, *key_table, *picture]


def _shortened(rows: str, name: str) -> str:
    lines = rows.splitlines()
    if len(lines) <= MAX_ROWS + 2:
        return rows
    more = len(lines) - 2 - MAX_ROWS
    return "\n".join(lines[: MAX_ROWS + 2]) + f"\n\n{more} more rows are in [the report]({name}/report.md)."


def _skipped(metadata: dict[str, Any]) -> str:
    rows = [[one["cell"], text(one["reason"], 300)] for one in metadata.get("skipped", ())]
    return f"Skipped:\n\n{table(['cell', 'why'], rows, 'll')}" if rows else ""


def _failed(run: RunFolder) -> str:
    """Checks that did not hold."""
    broken = [check for check in run.summary["checks"] if not check["passed"]] if run.has(SUMMARY) else []
    return "\n".join(f"- **FAILED** {text(check['name'])}: {text(check['detail'], 300)}" for check in broken)


def _again(chosen: dict[str, Run]) -> str:
    return "## Again\n\n" + fence("\n".join(run.command for run in chosen.values()))


def _contents(too_large: Sequence[str], left_out: Sequence[str]) -> str:
    lines = [
        "Each experiment's folder has its report with plots, `summary.json`, `run_metadata.json`, `config.yaml`, "
        "tables as CSV, and its records as `*.jsonl.gz`: unpacked by `gunzip`, the folder is one that `python -m "
        "wp1.report` makes the report of again."
    ]
    if too_large:
        lines.append(
            f"Left out, as all compressed files would be more than 5 MB: {', '.join(too_large)}. A report made again "
            "says what it cannot show for it."
        )
    if left_out:
        lines.append(f"Not part of a packet: {', '.join(map(code, left_out))}.")
    return "## What is here\n\n" + "\n\n".join(lines)


def _first_line(reason: str | None) -> str:
    return text((reason or "").splitlines()[0], 200) if reason else ""
