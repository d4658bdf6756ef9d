"""The files of a run's folder in one table. To add a file, add its row to `RUN_FILES`.

Resuming, shifting times after a reboot, publishing, packing, counting lines and reporting all use this table. It is in
order of importance: a packet that is too large drops the last files first.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from wp1.core import files, records
from wp1.core.arms import arms_moving_kv
from wp1.core.plan import is_scored


def _never(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """One file of a run's folder, or all that match a pattern."""

    name: str  # within the folder; a pattern if it has a *
    row: type | None = None  # the dataclass of a line; None: the file has no rows
    # What its rows belong to. Resuming keeps rows of a completed "unit" (one repeat of a cell) and of an arm's finished
    # "search", and moves the others apart. It keeps all rows of a "moment" on the clock and of the whole "run".
    of: Literal["unit", "search", "moment", "run"] = "run"
    # Whether it is published to MLflow; "small": up to `wp1.tracking.run.MAX_LOG_BYTES`.
    published: Literal["always", "small", "never"] = "small"
    packed: bool = True  # whether a packet includes it; files with rows are compressed there
    shows: str = ""  # what a report lacks without it
    # Whether a run with this config.yaml and run_metadata.json writes it.
    expected: Callable[[Mapping[str, Any], Mapping[str, Any]], bool] = _never

    def at(self, folder: Path) -> Path:
        """Its path in a run's folder."""
        return folder / self.name

    def found(self, folder: Path) -> list[Path]:
        """The plain files of a run's folder that match; links are left out."""
        if self.is_pattern:
            return files.plain_files(self.at(folder).parent, Path(self.name).name)
        return [self.at(folder)] if files.is_plain(self.at(folder)) else []

    @property
    def is_pattern(self) -> bool:
        return "*" in self.name

    @property
    def timed(self) -> bool:
        """Whether its rows have times of the monotonic clock: fields named t or t_..."""
        fields = dataclasses.fields(self.row) if self.row is not None else ()
        return any(field.name == "t" or field.name.startswith("t_") for field in fields)


def _always(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return True


def _scored(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return is_scored(config["workload"]["prompts"])


def _controlled(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return bool(config["experiment"].get("control")) and config["workload"].get("temperature") == 0


def _hands_over(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return bool(arms_moving_kv(metadata, config))


def _notes_memory(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    return bool(config["experiment"].get("memory"))


def _samples_devices(config: Mapping[str, Any], metadata: Mapping[str, Any]) -> bool:
    targets = [str(part.get("_target_")) for part in (config.get("collectors") or {}).values()]
    return any(target.startswith("wp1.collectors.device.") for target in targets)


RECORDS = RunFile(name="records.jsonl", row=records.RequestRecord, of="unit", published="always")
CELLS = RunFile(name="cells.jsonl", row=records.Done, of="unit", published="always")
EXAMPLES = RunFile(
    name="examples.jsonl", row=records.ExampleLine, published="always", shows="scores", expected=_scored
)  # fmt: skip
SCORES = RunFile(name="scores.jsonl", row=records.ScoreLine, published="always")
GOODPUT = RunFile(name="goodput.jsonl", row=records.Probe, of="search", published="always")
CONTROL = RunFile(
    name="control.jsonl", row=records.ControlRecord, of="unit", shows="how close tokens were that part",
    expected=_controlled,
)  # fmt: skip
HANDOFFS = RunFile(
    name="handoffs.jsonl", row=records.Handoff, of="unit", shows="KV transfer", expected=_hands_over
)  # fmt: skip
MEMORY = RunFile(
    name="memory.jsonl", row=records.MemoryNote, of="unit", shows="where memory goes", expected=_notes_memory
)  # fmt: skip
QUEUES = RunFile(
    name="queues.jsonl", row=records.QueueLengths, of="moment", shows="queue lengths", expected=_hands_over
)  # fmt: skip
ENGINE_STATS = RunFile(
    name="engine_stats.jsonl", row=records.EngineStats, of="moment", expected=_always,
    shows="KV use, waiting and preemptions in the engines",
)  # fmt: skip
DEVICE = RunFile(
    name="device.jsonl", row=records.DeviceSample, of="moment", expected=_samples_devices,
    shows="memory, load, power and energy of the devices",
)  # fmt: skip
LOOP = RunFile(
    name="loop.jsonl", row=records.LoopLag, of="unit", shows="event-loop lag", expected=_always
)  # fmt: skip
SUMMARY = RunFile(name="summary.json", published="always")
METADATA = RunFile(name="run_metadata.json", published="always")
CONFIG = RunFile(name="config.yaml", published="always")
ENGINE_LOG = RunFile(name="engine.log", packed=False)

RUN_FILES: tuple[RunFile, ...] = (
    RECORDS, CELLS, EXAMPLES, SCORES, GOODPUT, CONTROL, HANDOFFS, MEMORY, QUEUES, ENGINE_STATS, DEVICE, LOOP,
    SUMMARY, RunFile(name="*_summary.json", published="always"), METADATA, CONFIG,
    RunFile(name="artifacts/*.csv", published="always"), ENGINE_LOG,
    RunFile(name="wp1.log", published="never", packed=False),
)  # fmt: skip


def of(what: str) -> list[RunFile]:
    """The files whose rows belong to `what`: a "unit", a "search", a "moment" or the whole "run"."""
    return [file for file in RUN_FILES if file.row is not None and file.of == what]


def with_times() -> list[RunFile]:
    """The files whose rows have times of the monotonic clock: first those of units, then those of moments."""
    return [file for file in (*of("unit"), *of("search"), *of("moment"), *of("run")) if file.timed]


def packed(with_rows: bool) -> list[RunFile]:
    """The files of a packet, most important first: those with rows, which are compressed, or those without."""
    return [file for file in RUN_FILES if file.packed and (file.row is not None) == with_rows]
