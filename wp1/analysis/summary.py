"""Makes summary.json from a run's folder. Pure: no engine is needed, and the same folder gives the same bytes."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import polars as pl

from wp1.analysis import checks
from wp1.analysis.base import aggregates, metrics, tables
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.comparison import arms, parity
from wp1.analysis.length import figures as length_figures
from wp1.analysis.load import figures as load_figures
from wp1.analysis.load import goodput
from wp1.analysis.load import notes as load_notes
from wp1.analysis.memory import capacity
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.quality import figures as quality_figures
from wp1.core import files
from wp1.core.labels import CLIENT_LATE
from wp1.core.records import Probe
from wp1.core.run_files import SUMMARY
from wp1.core.run_folder import write_json

SAMPLE_COLUMNS = (
    "request_id", "arm", "cell", "repeat", "label", "status", "error", "cause", "phase", "steady", "prompt_tokens",
    "output_tokens", "cached_tokens", "finish_reason", "pool", "prefill_engine", "decode_engine", "handoff_id",
)  # fmt: skip


class Profiler(Protocol):
    """What a summary needs of a collector (`wp1.collectors.Collector`)."""

    name: str  # its key under `profiling` in summary.json

    def profile(self, run: RunTables, requests: pl.DataFrame) -> dict[str, Any]: ...


def summarise(run: RunTables, collectors: Sequence[Profiler], kept: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Writes summary.json and artifacts/requests.csv, and returns the summary.

    kept: figures of collectors that are not run here, by name; {} for one that left none. A run with several arms also
    gets their comparison: e3_summary.json and artifacts/e3_mode_comparison.csv.
    """
    config, requests = run.config, run.requests
    measured = requests.filter(~pl.col("warmup"))
    profiling = {name: figures for name, figures in (kept or {}).items() if figures}
    profiling |= {collector.name: collector.profile(run, requests) for collector in collectors}
    late = bool(load_notes.late_cells({"profiling": profiling}))
    labels = [label for label in run.metadata["labels"] if label != CLIENT_LATE] + [CLIENT_LATE] * late
    metadata = run.metadata.changed(labels=labels)
    summary = {
        "run_id": metadata["run_id"],
        "experiment": metadata["experiment"],
        "config_hash": metadata["config_hash"],
        "labels": metadata["labels"],
        "skipped": metadata.get("skipped", []),
        "checks": checks.all_checks(
            config,
            requests,
            run.handoffs,
            metadata.get("kv_held"),
            parity.basis_of(config, metadata, run.control),
        ),
        "slo": {
            **config["slo"],
            "attainment": aggregates.attainment(measured, aggregates.limits(config["slo"])),
        },
        "profiling": profiling,
        "not_made": sorted(kept or {}),
    }
    probes = run.probes or goodput.tested(requests, arms.names_of(config), config["slo"])
    summary |= _by_length_and_load(run, metadata, profiling.get("device") or {}, probes)
    answers = quality_figures.scored(run, requests)
    summary["quality"] = quality_figures.summarise(answers, metadata.get("dataset") or {})
    summary["goodput"] = goodput.found(probes, requests, metadata, config["slo"])
    _write_tables(run, metadata, summary, answers)
    _compare(run, metadata)
    _memory(run, metadata)
    write_json(SUMMARY.at(run.path), summary)
    return summary


def _by_length_and_load(
    run: RunTables, metadata: Mapping[str, Any], profile: dict[str, Any], probes: list[Probe]
) -> dict[str, Any]:
    """The summary's by_length and by_load; both None for a run that measures memory with one request per cell.

    profile: what the device collector found; {} without it. Cells that only the search for goodput measured (`probes`)
    are not part of by_load.
    """
    config, requests = run.config, run.requests
    if memory_figures.one_each(config, requests):
        return {"by_length": None, "by_load": None}
    apart = goodput.probe_cells(probes)
    planned = pl.Series([key not in apart for key in requests.select("arm", "cell").iter_rows()], dtype=pl.Boolean)
    of_plan = requests.filter(planned) if apart else requests
    return {
        "by_length": length_figures.by_length(requests, metadata, profile),
        "by_load": load_figures.by_load(of_plan, run.engine_stats, metadata, config["slo"], profile),
    }


def _write_tables(
    run: RunTables, metadata: Mapping[str, Any], summary: Mapping[str, Any], answers: pl.DataFrame
) -> None:
    """The CSV files in artifacts/ of what the summary has by length and load, of scores and of requests."""
    artifacts = files.real_folder(run / "artifacts")
    for name in ("by_length", "by_load"):
        path = artifacts / f"{metadata['experiment']}_{name}.csv"
        if summary[name] is None:
            path.unlink(missing_ok=True)
        else:
            tables.write_csv(tables.flat(summary[name]["rows"], metadata["labels"]), path)
    if not answers.is_empty():
        tables.write_csv(quality_figures.table(answers, metadata["labels"]), artifacts / "scores.csv", 4)
    timed = [metric.key for metric in metrics.of_kind("request")]
    measured = run.requests.filter(~pl.col("warmup"))
    samples = measured.select(*SAMPLE_COLUMNS, *timed, pl.lit(", ".join(metadata["labels"])).alias("labels"))
    tables.write_csv(samples, artifacts / "requests.csv", 3)


def _memory(run: RunTables, metadata: Mapping[str, Any]) -> None:
    rows = memory_figures.rows_of(run.notes, run.requests, metadata)
    if not rows:
        return
    name = metadata["experiment"]
    table = memory_figures.long_table(rows, memory_figures.not_measured(metadata, run.requests))
    tables.write_csv(table, run.path / "artifacts" / f"{name}_memory.csv")
    fits = capacity.fits_of(capacity.pools_of(rows, metadata), rows, metadata, run.config["workload"]["output_len"])
    tables.write_csv(pl.DataFrame(fits), run.path / "artifacts" / f"{name}_capacity.csv")


def _compare(run: RunTables, metadata: Mapping[str, Any]) -> None:
    names, config = arms.names_of(run.config), run.config
    if not names:
        return
    tokens = parity.basis_of(config, metadata, run.control)
    content, rows = arms.contents(run.requests, names, config["slo"], arms.devices_of(metadata["pools"], names), tokens)
    known = {key: metadata[key] for key in ("run_id", "experiment", "labels")}
    write_json(arms.file_of(run.path, metadata["experiment"]), known | content)
    path = arms.table_of(run.path, metadata["experiment"])
    tables.write_csv(arms.labelled(rows, names, metadata["labels"]), path)
