"""From a run's folder to summary.json. Pure: no engine, the same folder gives the same bytes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import yaml

from wp1.analysis import checks
from wp1.analysis.base import metrics, tables
from wp1.analysis.comparison import arms, parity
from wp1.analysis.length import figures as length_figures
from wp1.analysis.load import figures as load_figures
from wp1.analysis.load import goodput
from wp1.analysis.memory import capacity
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.quality import figures as quality_figures
from wp1.collectors import Collector, load
from wp1.core import files, shapes
from wp1.core.errors import ConfigError
from wp1.core.labels import CLIENT_LATE
from wp1.runner.control import FILE as CONTROL
from wp1.runner.goodput_search import read as read_probes

SAMPLE_COLUMNS = (
    "request_id", "arm", "cell", "repeat", "label", "status", "error", "cause", "phase", "steady", "prompt_tokens",
    "output_tokens", "cached_tokens", "finish_reason", "pool", "prefill_engine", "decode_engine", "handoff_id",
    *metrics.LATENCIES, "decode_ms",
)  # fmt: skip


# Of a configuration: a hundred times what one has.
MOST_VALUES = 100_000


class Content(dict[str, Any]):
    """An object of a file: asked by [] for a key that it does not have, it raises ConfigError that names both."""

    def __init__(self, content: dict[str, Any], path: Path, within: str = "") -> None:
        super().__init__({key: _named(value, path, f"{within}{key}") for key, value in content.items()})
        self._path, self._within = path, within

    def __missing__(self, key: str) -> Any:
        raise ConfigError(f"{self._path} has no {self._within}{key}: restore it from a copy")

    def require(self, *keys: str) -> None:
        """Raises ConfigError where one of these is not there, before anything is done by the others."""
        for key in keys:
            self[key]


def _named(value: Any, path: Path, at: str) -> Any:
    if isinstance(value, dict):
        return Content(value, path, f"{at}.")
    return [_named(one, path, f"{at}[{n}]") for n, one in enumerate(value)] if isinstance(value, list) else value


def read_json(path: Path, shape: Any = shapes.OBJECT) -> Content:
    """A JSON object from a run's folder, as Content. Raises ConfigError where the file is missing or broken.

    shape: of `shapes`, that it must have.
    """
    try:
        return _object(files.parsed(files.read_text(path)), path, shape)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def read_metadata(run_dir: Path) -> Content:
    """The run's run_metadata.json. Raises ConfigError where it is missing or broken, or a name in it is no name.

    Files and folders are named after these, and a folder may come from anybody.
    """
    path = run_dir / "run_metadata.json"
    metadata = read_json(path, shapes.METADATA)
    for key in ("run_id", "experiment"):
        if not re.fullmatch(r"\w[\w.-]*", str(metadata[key])):
            raise ConfigError(f"{path} has {key}={metadata[key]!r}, which is no name: take a folder that wp1 made")
    return metadata


def _object(found: Any, path: Path, shape: Any) -> Content:
    if not isinstance(found, dict):
        raise ValueError("it is no object")
    if (wrong := shapes.unlike(found, shape)) is not None:
        raise ConfigError(f"{path}: {wrong}; restore it from a copy")
    return Content(found, path)


def _cannot_be_read(error: Exception) -> str:
    why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())[:200]
    return f"cannot be read ({why}): name the folder of a run, as in outputs/run-..."


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes beside the file and moves it there, so that a reader never sees half of it; as `files.json_text`."""
    files.write_text(path, files.json_text(content, indent=2) + "\n")


def read_config(run_dir: Path) -> Content:
    """The run's composed configuration, as Content. Raises ConfigError where the file is missing or broken."""
    path = run_dir / "config.yaml"
    try:
        found = yaml.safe_load(files.read_text(path))
        _check_size(found, [MOST_VALUES])
        return _object(found, path, shapes.CONFIG)
    except ConfigError:
        raise
    except Exception as error:  # YAML's constructors raise whatever comes of a strange value
        raise ConfigError(f"{path} {_cannot_be_read(error)}") from error


def _check_size(value: Any, left: list[int]) -> None:
    """Raises ValueError for more values than `left` says: few lines of YAML that name each other can be millions."""
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"it has more than {MOST_VALUES:,} values")
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_size(part, left)


def summarise(run_dir: Path, collectors: Sequence[Collector]) -> dict[str, Any]:
    """Writes summary.json and artifacts/requests.csv, and returns the summary.

    Of a run with several arms also their comparison: e3_summary.json and artifacts/e3_mode_comparison.csv.
    """
    config = read_config(run_dir)
    metadata = read_metadata(run_dir)
    compared = config["experiment"]["same_tokens"] or bool(arms.names_of(config))
    requests = tables.requests(run_dir / "records.jsonl", tables.bulk_of(config, compared))
    measured = requests.filter(~pl.col("warmup"))
    profiling = {collector.name: collector.profile(run_dir, requests) for collector in collectors}
    late = bool(load.late_cells({"profiling": profiling}))
    metadata["labels"] = [label for label in metadata["labels"] if label != CLIENT_LATE] + [CLIENT_LATE] * late
    summary = {
        "run_id": metadata["run_id"],
        "experiment": metadata["experiment"],
        "config_hash": metadata["config_hash"],
        "labels": metadata["labels"],
        "skipped": metadata.get("skipped", []),
        "checks": checks.all_checks(
            config,
            requests,
            tables.handoffs(run_dir / "handoffs.jsonl"),
            metadata.get("kv_held"),
            parity.basis_of(config, metadata, tables.control(run_dir / CONTROL)),
        ),
        "slo": {
            **config["slo"],
            "attainment": metrics.attainment(measured, *metrics.limits(config["slo"])),
        },
        "profiling": profiling,
    }
    profile = summary["profiling"].get("device") or {}
    stats = tables.engine_stats(run_dir / "engine_stats.jsonl")
    one_each = memory_figures.one_each(config, requests)
    summary["by_length"] = None if one_each else length_figures.by_length(requests, metadata, profile)
    probes = read_probes(run_dir) or goodput.tested(requests, arms.names_of(config), config["slo"])
    apart = goodput.probe_cells(probes)
    planned = pl.Series([key not in apart for key in requests.select("arm", "cell").iter_rows()], dtype=pl.Boolean)
    summary["by_load"] = (
        None
        if one_each
        else load_figures.by_load(
            requests.filter(planned) if apart else requests, stats, metadata, config["slo"], profile
        )
    )
    answers = quality_figures.scored(run_dir, requests)
    summary["quality"] = quality_figures.summarise(answers, metadata.get("dataset") or {})
    summary["goodput"] = goodput.found(probes, requests, metadata, config["slo"])
    artifacts = files.real_folder(run_dir / "artifacts")
    for name in ("by_length", "by_load"):
        path = artifacts / f"{metadata['experiment']}_{name}.csv"
        if summary[name] is None:
            path.unlink(missing_ok=True)
        else:
            tables.write_csv(tables.flat(summary[name]["rows"], metadata["labels"]), path)
    if not answers.is_empty():
        tables.write_csv(quality_figures.table(answers, metadata["labels"]), artifacts / "scores.csv", 4)
    samples = measured.select(*SAMPLE_COLUMNS, pl.lit(", ".join(metadata["labels"])).alias("labels"))
    tables.write_csv(samples, artifacts / "requests.csv", 3)
    _compare(run_dir, config, metadata, requests)
    _memory(run_dir, config, metadata, requests)
    write_json(run_dir / "summary.json", summary)
    return summary


def _memory(run_dir: Path, config: dict[str, Any], metadata: dict[str, Any], requests: pl.DataFrame) -> None:
    rows = memory_figures.rows_of(memory_figures.read_notes(run_dir), requests, metadata)
    if not rows:
        return
    name = metadata["experiment"]
    table = memory_figures.long_table(rows, memory_figures.not_measured(metadata, requests))
    tables.write_csv(table, run_dir / "artifacts" / f"{name}_memory.csv")
    fits = capacity.fits_of(capacity.pools_of(rows, metadata), rows, metadata, config["workload"]["output_len"])
    tables.write_csv(pl.DataFrame(fits), run_dir / "artifacts" / f"{name}_capacity.csv")


def _compare(run_dir: Path, config: dict[str, Any], metadata: dict[str, Any], requests: pl.DataFrame) -> None:
    names = arms.names_of(config)
    if not names:
        return
    tokens = parity.basis_of(config, metadata, tables.control(run_dir / CONTROL))
    content, rows = arms.contents(requests, names, config["slo"], arms.devices_of(metadata["pools"], names), tokens)
    known = {key: metadata[key] for key in ("run_id", "experiment", "labels")}
    write_json(arms.file_of(run_dir, metadata["experiment"]), known | content)
    path = arms.table_of(run_dir, metadata["experiment"])
    tables.write_csv(arms.labelled(rows, names, metadata["labels"]), path)
