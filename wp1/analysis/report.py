"""A run as a page of markdown: what was run, what came out, whether to believe it, how to repeat it. Pure."""

import os
import shlex
from pathlib import Path
from typing import Any

import polars as pl

from wp1.analysis import plots, tables
from wp1.collectors.device import read_samples

LATENCY_ROWS = (
    ("ttft_ms", "TTFT"),
    ("tpot_ms", "TPOT"),
    ("itl_ms", "ITL"),
    ("e2e_ms", "E2E"),
    ("queue_ms", "queue"),
    ("prefill_ms", "prefill"),
    ("client_delay_ms", "client delay"),
)
HOW_TO_READ = """\
- **TTFT**: first output token − intended arrival; its parts: **queue** (until scheduled) and **prefill**.
- **TPOT**: (last token − first token) / (output tokens − 1); **ITL**: the single gaps.
- **E2E**: last token − intended arrival.
- **client delay**: how late wp1 itself sent; it is part of TTFT.
- Warm-up requests and engine start are not in any figure; failed requests are counted, and have no latencies."""


def reports_of(config: Any) -> Path:
    """Where the reports of runs with this configuration lie."""
    return Path(config["root"]) / "outputs" / "reports"


def write_report(run_dir: Path, reports: Path, metadata: dict[str, Any], summary: dict[str, Any]) -> Path:
    """Writes `reports/<run_id>.md` and its plots in `reports/<run_id>/`, and returns the page's path."""
    requests = tables.requests(run_dir / "records.jsonl")
    folder = reports / metadata["run_id"]
    folder.mkdir(parents=True, exist_ok=True)
    pictures = plots.run_plots(folder, requests, read_samples(run_dir), metadata)
    page = reports / f"{metadata['run_id']}.md"
    parts = [
        _head(metadata),
        _answers(requests),
        _latency(summary),
        *[f"![{caption}]({folder.name}/{file.name})\n\n*{caption}*" for caption, file in pictures],
        _devices(summary),
        _checks(summary),
        _failures(requests),
        "## How to read the figures\n\n" + HOW_TO_READ,
        _setting(metadata),
        _files(run_dir, page, metadata),
    ]
    page.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return page


def _head(metadata: dict[str, Any]) -> str:
    question = f": {metadata['question']}" if metadata["question"] else ""
    lines = [f"# {metadata['experiment'].upper()}{question}", ""]
    status = "unfinished (still running, or killed)" if metadata["status"] == "running" else metadata["status"]
    # An engine's last lines are in the reason, after its first line.
    reason = (metadata["reason"] or "").splitlines()
    status += f": {reason[0]}" if reason else ""
    lines.append(
        f"**{status}** · `{metadata['run_id']}` · {metadata['started']} · "
        f"configuration `{metadata['config_hash'][:12]}`"
    )
    for label in metadata["labels"]:
        lines += ["", f"> **{label}**: the output means nothing, speed and memory do."]
    return "\n".join(lines)


def _answers(requests: pl.DataFrame, most: int = 20) -> str:
    first = requests.filter(~pl.col("warmup") & (pl.col("repeat") == 0))
    if first.is_empty() or first["label"].n_unique() < 2:
        return ""
    rows = []
    for row in first.head(most).iter_rows(named=True):
        if row["status"] != "ok":
            answer = f"*{row['status']}: {_cell(row['error'] or '')}*"
        elif row["text"]:
            answer = _cell(row["text"])
        else:
            answer = f"*token ids* {' '.join(map(str, row['token_ids'][:8]))} …"
        rows.append(
            [
                _cell(row["label"]),
                answer,
                row["prompt_tokens"],
                row["output_tokens"],
                _ms(row["ttft_ms"]),
                _ms(row["tpot_ms"]),
            ]
        )
    more = f"\n\nThe first {most} of {first.height}; all are in records.jsonl." if first.height > most else ""
    header = ["question", "answer", "prompt tokens", "output tokens", "TTFT ms", "TPOT ms"]
    return "## Answers, first repeat\n\n" + table(header, rows, "llrrrr") + more


def _latency(summary: dict[str, Any]) -> str:
    profile = summary["profiling"].get("latency")
    if profile is None:
        return ""
    parts = ["## Latency"]
    for name, cell in profile["cells"].items():
        rows = []
        for key, title in LATENCY_ROWS:
            d = cell[key]
            if d["n"]:
                interval = f"{_ms(d['mean'])} [{_ms(d['mean_low'])}, {_ms(d['mean_high'])}]"
                rows.append([title, d["n"], interval, *(_ms(d[p]) for p in ("p50", "p90", "p95", "p99"))])
        parts.append(
            f"**{name}**: {cell['ok']} of {cell['requests']} requests answered, {_n(cell['prompt_tokens'])} prompt and "
            f"{_n(cell['output_tokens'])} output tokens in {cell['duration_s']:.1f} s "
            f"({_rate(cell['output_tokens_per_s'])} output tokens/s). Times in ms."
        )
        if rows:
            parts.append(table(["", "n", "mean [95 %]", "p50", "p90", "p95", "p99"], rows, "lrrrrrr"))
    attained = summary["slo"]["attainment"]
    if attained is not None:
        limits = [
            f"{k[:4].upper()} ≤ {summary['slo'][k]:g} ms"
            for k in ("ttft_ms", "tpot_ms")
            if summary["slo"][k] is not None
        ]
        parts.append(
            f"SLO `{summary['slo']['name']}` ({', '.join(limits)}): attained by {attained:.1%} of all requests sent."
        )
    return "\n\n".join(parts)


def _devices(summary: dict[str, Any]) -> str:
    profile = summary["profiling"].get("device")
    if not profile or not profile["devices"]:
        return ""
    rows = []
    for name, d in profile["devices"].items():
        rows.append(
            [
                name,
                *(
                    _fixed(d[f"{key}_{end}"])
                    for key in ("memory_gib", "utilisation_percent", "power_w")
                    for end in ("mean", "peak")
                ),
            ]
        )
    host = any(d["kind"] == "host" for d in profile["devices"].values())
    note = (
        "No GPU was used: **host** is the engines' resident memory and their CPU load (100 % is one core)."
        if host
        else "Memory in use on the GPU includes the KV pool that vLLM reserves at its start."
    )
    header = ["device", "GiB mean", "GiB peak", "load % mean", "load % peak", "W mean", "W peak"]
    return f"## Devices, while requests were measured\n\n{table(header, rows, 'lrrrrrr')}\n\n{note}"


def _checks(summary: dict[str, Any]) -> str:
    rows = [["passed" if c["passed"] else "**FAILED**", c["name"], c["detail"]] for c in summary["checks"]]
    return "## Checks\n\n" + table(["", "check", "what was found"], rows, "lll")


def _failures(requests: pl.DataFrame) -> str:
    failed = requests.filter(pl.col("status") != "ok")
    if failed.is_empty():
        return ""
    counts = failed.group_by("status", "error", maintain_order=True).len()
    rows = [[status, n, _cell(error or "", 300)] for status, error, n in counts.iter_rows()]
    return "## Requests that failed\n\n" + table(["status", "requests", "reason"], rows, "lrl")


def _setting(metadata: dict[str, Any]) -> str:
    model, hardware = metadata["model"], metadata["hardware"]
    gpus = ", ".join(f"{gpu['name']} ({gpu['memory_gib']} GiB)" for gpu in hardware["gpus"])
    rows = [
        ["hardware", gpus or f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['memory_gib']} GiB, no GPU used"]
    ]
    if model:
        rope = model["rope"]
        scaled = "as the model has it" if rope["written_as"] is None else f"written as {rope['written_as']}"
        rows += [
            ["model", f"{model['name']}, weights `{model['digest'][:12]}`, max_len {_n(model['max_len'])} tokens"],
            ["rope", f"{rope['type']}, factor {rope['factor']:g} from {_n(rope['original_max_len'])} tokens, {scaled}"],
            ["KV", f"{_n(model['kv_bytes_per_token'])} bytes a token"],
        ]
    for pool in metadata["pools"]:
        for engine in pool["engines"]:
            s = engine["settings"]
            text = (
                f"{' and '.join(pool['phases'])}; {', '.join(engine['devices'])}; {s['dtype']}; "
                f"{s['kv_blocks']} KV blocks of {s['block_size']} tokens; up in {engine['startup_s']} s"
            )
            rows.append([f"engine {engine['name']}", text])
    git = metadata["git"]
    if git:
        rows.append(["code", f"`{git['commit'][:12]}`{' with local changes' if git['dirty'] else ''}"])
    rows.append(["versions", ", ".join(f"{name} {version}" for name, version in metadata["versions"].items())])
    rows.append(["seed", metadata["seed"]])
    return "## What it ran on\n\n" + table(["", ""], rows, "ll")


def _files(run_dir: Path, page: Path, metadata: dict[str, Any]) -> str:
    where = os.path.relpath(run_dir, page.parent)
    names = [
        name
        for name in ("records.jsonl", "summary.json", "run_metadata.json", "config.yaml", "engine.log")
        if (run_dir / name).exists()
    ]
    links = ", ".join(f"[{name}]({where}/{name})" for name in names)
    overrides = shlex.join(metadata["command"][1:])
    return f"## Again\n\n```\npython -m wp1 {overrides}".rstrip() + f"\n```\n\nFiles of this run: {links}."


def table(header: list[str], rows: list[list[Any]], align: str) -> str:
    """A markdown table; `align` has l or r a column."""
    rule = ["---:" if a == "r" else "---" for a in align]
    lines = [header, rule, *[["—" if cell is None else str(cell) for cell in row] for row in rows]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(text: str, most: int = 400) -> str:
    flat = " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
    return flat if len(flat) <= most else flat[: most - 1] + "…"


def _ms(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def _fixed(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}"


def _rate(value: float | None) -> str:
    return "no" if value is None else f"{value:,.1f}"


def _n(value: int) -> str:
    return f"{value:,}"
