"""A run's report as a page of markdown: setup, results, checks, and how to repeat it. Pure."""

import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis import completeness, outside
from wp1.analysis.base import cells, metrics, provenance, style
from wp1.analysis.base.how_to_read import HOW_TO_READ, HOW_TO_READ_ARMS, HOW_TO_READ_LOAD, HOW_TO_READ_ONE_EACH
from wp1.analysis.base.markdown import (
    code,
    fence,
    form_of,
    number,
    short,
    table,
    text,
)
from wp1.analysis.base.run_tables import RunTables
from wp1.analysis.comparison import arms
from wp1.analysis.comparison import plots as comparison_plots
from wp1.analysis.comparison import report as comparison_report
from wp1.analysis.device import plots as device_plots
from wp1.analysis.device import report as device_report
from wp1.analysis.latency import plots as latency_plots
from wp1.analysis.latency import report as latency_report
from wp1.analysis.length import plots as length_plots
from wp1.analysis.length import report as length_report
from wp1.analysis.load import goodput
from wp1.analysis.load import plots as load_plots
from wp1.analysis.load import report as load_report
from wp1.analysis.memory import figures as memory_figures
from wp1.analysis.memory import report as memory_report
from wp1.analysis.quality import figures as quality_figures
from wp1.analysis.quality import plots as quality_plots
from wp1.analysis.quality import report as quality_report
from wp1.analysis.transfer import plots as transfer_plots
from wp1.analysis.transfer import report as transfer_report
from wp1.core import files, labels, run_files
from wp1.core.run_folder import RunFolder, read_json
from wp1.workload.prompts import asks_questions


def write_report(
    run: RunTables, reports: Path, metadata: dict[str, Any], summary: dict[str, Any], with_plots: bool = True
) -> Path:
    """Writes `reports/<run_id>.md` and its plots in `reports/<run_id>/`, and returns the page's path.

    metadata: run_metadata.json, as it is or is about to be written. with_plots: False after Ctrl-C, as plots take
    seconds; the page then says how to add them.
    """
    run.drop_tokens()
    folder = files.real_folder(files.real_folder(reports) / metadata["run_id"])
    page = reports / f"{metadata['run_id']}.md"
    parts = [
        _head(metadata),
        "" if with_plots else _without_plots(run.path),
        _absent(run),
        outside.not_made(summary),
        *_figures(run, folder, metadata, summary, with_plots),
        _setting(metadata),
        _files(run, page, metadata),
    ]
    content = "\n\n".join(part for part in parts if part) + "\n"
    files.write_text(page, content)
    for plot in files.plain_files(folder, "*.png"):
        if f"({folder.name}/{plot.name})" not in content:
            # Left by an earlier page, from fewer requests or other rules.
            plot.unlink()
    return page


def _figures(
    run: RunTables, folder: Path, metadata: dict[str, Any], summary: dict[str, Any], with_plots: bool
) -> list[str]:
    """The sections of what was measured, in the page's order; "" for those that this run has nothing for.

    folder: where the plots go.
    """
    config, requests = run.config, run.requests
    measured = requests.filter(~pl.col("warmup"))
    names = arms.names_of(config)
    one_each = memory_figures.one_each(config, measured)
    nothing = measured.is_empty()
    compared = None
    if names and not one_each and not nothing:
        compared = read_json(arms.file_of(run.path, metadata["experiment"]))
    transfers = {} if one_each else summary["profiling"].get("kv_transfer") or {}
    mark = style.mark_of(metadata)

    def drawn(make: Callable[..., list[style.Plot]], *of: Any) -> str:
        return _pictures(folder, make(folder, *of)) if with_plots else ""

    return [
        "**Nothing was measured**: the run ended before its first request did." if nothing else "",
        quality_report.section(summary.get("quality"), quality_figures.scored(run, requests)),
        drawn(quality_plots.quality_plots, summary.get("quality"), mark),
        memory_report.section(run, folder if with_plots else None, requests, config, metadata),
        comparison_report.words(compared, metadata["pools"]),
        drawn(comparison_plots.arm_plots, measured, names, config["slo"], mark) if compared else "",
        comparison_report.side_by_side(compared),
        length_report.section(summary.get("by_length")),
        drawn(length_plots.length_plots, summary.get("by_length"), mark),
        load_report.section(summary.get("by_load"), config["slo"]) if not names else "",
        drawn(load_plots.load_plots, summary.get("by_load"), mark) if not names else "",
        goodput.section(summary.get("goodput"), config["slo"]),
        drawn(load_plots.goodput_plots, summary.get("goodput"), config["slo"], mark),
        _answers(run, metadata, names, summary) if asks_questions(config) else "",
        transfer_report.section(transfers),
        _skipped(summary),
        latency_report.section(summary) if not (one_each or nothing) else "",
        drawn(latency_plots.request_plots, measured, mark) if not one_each else "",
        drawn(device_plots.device_plots, measured, run.device_samples, metadata),
        drawn(transfer_plots.handoff_plots, run.queues, requests, mark, run.handoffs) if not one_each else "",
        device_report.section(summary["profiling"].get("device")) if not nothing else "",
        outside.section(summary["profiling"]),
        _checks(summary) if not nothing else "",
        _failures(requests),
        _how_to_read(metadata, summary, bool(names), one_each, transfers) if not nothing else "",
    ]


def _without_plots(run_dir: Path) -> str:
    command = shlex.join(["python", "-m", "wp1.report", str(run_dir.resolve())])
    return f"> **Without plots**, as the run was interrupted. `{command}` adds them."


def _absent(run: RunFolder) -> str:
    """What cannot be shown because its file is missing, as in a folder unpacked from a packet; "" if all are there."""
    missing = completeness.absent(run)
    what = "; ".join(f"{shows} (no `{name}`)" for name, shows in missing.items())
    return f"> **Not in this folder**, and so not on this page: {what}." if missing else ""


def _pictures(folder: Path, pictures: list[style.Plot]) -> str:
    return "\n\n".join(f"![{caption}]({folder.name}/{file.name})\n\n*{caption}*" for caption, file in pictures)


def _head(metadata: dict[str, Any]) -> str:
    question = f": {text(metadata['question'])}" if metadata["question"] else ""
    lines = [f"# {metadata['experiment'].upper()}{question}", ""]
    status = "unfinished (still running, or killed)" if metadata["status"] == "running" else metadata["status"]
    # The reason may continue with an engine's last lines.
    reason = (metadata["reason"] or "").splitlines()
    status += f": {text(reason[0], 1000)}" if reason else ""
    lines.append(
        f"**{status}** · `{metadata['run_id']}` · {metadata['started']} · "
        f"configuration `{metadata['config_hash'][:12]}`"
    )
    for label in metadata["labels"]:
        lines += ["", f"> {labels.in_words(label, '**')}."]
    return "\n".join(lines)


def _answers(
    run: RunTables, metadata: dict[str, Any], names: list[str], summary: dict[str, Any], most: int = 20
) -> str:
    """The answers section: check results, provenance, answers; "" if all questions are the same."""
    first = run.requests.filter(~pl.col("warmup") & (pl.col("repeat") == 0))
    of_arm = ""
    if names:
        # A check says whether the other arms gave the same.
        first, of_arm = first.filter(pl.col("arm") == names[0]), f" of {names[0]}"
    if first.is_empty() or first["label"].n_unique() < 2:
        return ""
    rows, beside = [], metrics.means_in("answers")
    for row in first.head(most).iter_rows(named=True):
        if row["status"] != "ok":
            answer = f"*{row['status']}: {text(row['error'] or '')}*"
        elif row["text"]:
            answer = text(row["text"])
        else:
            answer = f"*token ids* {' '.join(map(str, row['token_ids'][:8]))} …"
        rows.append(
            [
                text(row["label"]),
                answer,
                row["prompt_tokens"],
                row["output_tokens"],
                *(form_of(figure.metric.unit)(row[figure.metric.key]) for figure in beside),
            ]
        )
    more = f"\n\nThe first {most} of {first.height}; all are in records.jsonl." if first.height > most else ""
    header = ["question", "answer", "prompt tokens", "output tokens"]
    header += [f"{figure.metric.title} {figure.metric.unit}" for figure in beside]
    details = {check["name"]: f"{text(check['detail'])}." for check in summary["checks"]}
    checked = [details.get("requests answered", ""), details.get("same seed, same tokens", "")]
    whose = provenance.answers_of(metadata["model"], run.config["workload"]["temperature"])
    head = [f"## Answers, first repeat{of_arm}", " ".join(filter(None, checked)), whose]
    return "\n\n".join(part for part in (*head, table(header, rows, "llrr" + "r" * len(beside)) + more) if part)


def _skipped(summary: dict[str, Any]) -> str:
    rows = [[cells.parse(one["cell"]).words, one["kind"], text(one["reason"])] for one in summary["skipped"]]
    return f"## Skipped\n\n{table(['cell', 'for', 'reason'], rows, 'lll')}" if rows else ""


def _checks(summary: dict[str, Any]) -> str:
    rows = [["passed" if c["passed"] else "**FAILED**", c["name"], text(c["detail"], 2000)] for c in summary["checks"]]
    return "## Checks\n\n" + table(["", "check", "result"], rows, "lll")


def _failures(requests: pl.DataFrame) -> str:
    failed = requests.filter(pl.col("status") != "ok")
    if failed.is_empty():
        return ""
    keys = ("arm", "cell", "cause", "phase", "error")
    counts = failed.filter(~pl.col("warmup")).group_by(keys, maintain_order=True).len()
    warmups = failed.filter(pl.col("warmup")).group_by("cause", "phase", "error", maintain_order=True).len()
    rows = [
        [f"{arm}/{cell}", latency_report.words_of(cause or "unknown"), phase, n, text(error or "", 300)]
        for arm, cell, cause, phase, error, n in counts.iter_rows()
    ]
    rows += [
        ["warm-up", latency_report.words_of(cause or "unknown"), phase, n, text(error or "", 300)]
        for cause, phase, error, n in warmups.iter_rows()
    ]
    header = ["cell", "cause", "phase", "requests", "error"]
    return "## Requests that failed\n\n" + table(header, rows, "lllrl")


def _how_to_read(
    metadata: dict[str, Any], summary: dict[str, Any], several_arms: bool, one_each: bool, transfers: dict[str, Any]
) -> str:
    """Explains only the terms that occur on the page."""
    parts = [HOW_TO_READ_ONE_EACH] if one_each else [HOW_TO_READ, *_other_formulas()]
    if transfers:
        parts.append(transfer_report.how_to_read(transfers))
    if any("steady" in cell for cell in summary["profiling"].get("load", {}).get("cells", {}).values()):
        parts.append(HOW_TO_READ_LOAD)
    if several_arms and not one_each:
        parts.append(HOW_TO_READ_ARMS)
    if summary.get("quality"):
        parts.append(quality_report.HOW_TO_READ)
    parts += [f"- {labels.in_words(label, '**')}." for label in metadata["labels"] if label == labels.SHARED_GPU]
    return "## How to read the figures\n\n" + "\n".join(parts)


def _other_formulas() -> list[str]:
    """The formulas of metrics that the report shows and HOW_TO_READ does not name."""
    shown = [metric for metric in metrics.METRICS if metric.shown.summary and metric.shown.report]
    return [f"- **{metric.title}**: {metric.formula}." for metric in shown if metric.title not in HOW_TO_READ]


def _kv(model: dict[str, Any], pools: list[dict[str, Any]]) -> str:
    """KV bytes per token, how sliding windows and recurrent layers change that, and any notes by the engines."""
    cache, a_token = model.get("kv_cache"), model["kv_bytes_per_token"]
    parts = [f"{number(a_token)} bytes per token" if a_token is not None else f"unknown: {model['why_no_kv_cache']}"]
    if cache is not None:
        parts += [
            f"{number(size)} of these for the last {number(window)} tokens only" for window, size in cache["windows"]
        ]
        if cache["state_bytes"] is None:
            parts.append("plus a recurrent state of unknown size")
        elif cache["state_bytes"]:
            parts.append(f"plus a recurrent state of {number(cache['state_bytes'])} bytes a request")
    notes = {engine["settings"].get("kv_note") for pool in pools for engine in pool["engines"]} - {None}
    return "; ".join([*parts, *sorted(notes)])


def _setting(metadata: dict[str, Any]) -> str:
    model, hardware = metadata["model"], metadata["hardware"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware["gpus"])
    rows = [
        [
            "hardware",
            text(gpus or f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, no GPU used"),
        ]
    ]
    if model:
        rope = model["rope"]
        scaled = "as the model has it" if rope["written_as"] is None else f"written as {text(str(rope['written_as']))}"
        rows += [
            [
                "model",
                f"{text(model['name'])}, weights {code(model['digest'][:12])}, "
                f"max_len {number(model['max_len'])} tokens",
            ],
            [
                "rope",
                f"{rope['type']}, factor {rope['factor']:g} from {number(rope['original_max_len'])} tokens, {scaled}",
            ],
            ["KV", _kv(model, metadata["pools"])],
        ]
    rows += [["input", text(note)] for note in metadata.get("notes", ())]
    peaks = metadata.get("peaks")
    if peaks:
        figures = f"{short(peaks['flops'] / 1e12)} TFLOP/s, {short(peaks['bytes_per_s'] / 1e9)} GB/s"
        rows.append(["peaks per device", f"{figures} ({text(peaks['kind'])}: {text(peaks['source'])})"])
    several = len({pool.get("arm") for pool in metadata["pools"]}) > 1
    for pool in metadata["pools"]:
        for engine in pool["engines"]:
            s = engine["settings"]
            shared = " (shared)" if pool.get("shared_gpu") else ""
            what = (
                f"{' and '.join(pool['phases'])}; {', '.join(engine['devices'])}{shared}; {s['dtype']}; "
                f"{number(s['kv_blocks'])} KV blocks of {s['block_size']} tokens; up in {engine['startup_s']} s"
            )
            of_arm = f"{pool['arm']}: " if several else ""
            rows.append([f"{of_arm}engine {engine['name']}", what])
    if metadata.get("transfer"):
        rows.append(["KV transfer", f"{metadata['transfer']['name']}: {text(metadata['transfer']['why'])}"])
    if several and metadata.get("starts"):
        # An arm's engines start in parallel; the arms take turns.
        starts = [
            f"{start['arm']} up in {start['seconds']} s for repeat {_listed(start['repeats'])}"
            for start in metadata["starts"]
        ]
        rows.append(["order", ", then ".join(starts)])
    rows += [["engines of " + taken["arm"], f"up since `{taken['from']}`"] for taken in metadata.get("taken_over", ())]
    git = metadata["git"]
    if git:
        rows.append(
            ["code", provenance.code_of(git) + (f": {provenance.LOCAL_CHANGES_MEANING}" if git["dirty"] else "")]
        )
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())])
    rows.append(["seed", metadata["seed"]])
    return "## What it ran on\n\n" + table(["", ""], rows, "ll")


def _listed(numbers: list[int]) -> str:
    return " and ".join(map(str, numbers))


def _files(run: RunFolder, page: Path, metadata: dict[str, Any]) -> str:
    where = os.path.relpath(run.path, page.parent)
    found = [path for file in run_files.RUN_FILES if file.published != "never" for path in file.found(run.path)]
    names = [path.relative_to(run.path).as_posix() for path in found]
    links = ", ".join(f"[{name}]({where}/{name})" for name in names)
    return f"## Again\n\n{fence(provenance.command_of(metadata))}\n\nFiles of this run: {links}."
