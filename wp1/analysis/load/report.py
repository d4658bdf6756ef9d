"""The report's section on load: a paragraph and two tables, from `load.figures.by_load`. Pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base import aggregates, cells, metrics
from wp1.analysis.base.markdown import form_of, ms, number, percent, share, short, table, with_interval
from wp1.analysis.device import roofline
from wp1.analysis.device.roofline import LIMITED

Found = Mapping[str, Any] | None


def section(found: Found, slo: Mapping[str, Any]) -> str:
    """The whole section; "" for a run without loads. slo: the limits that attainment is measured against."""
    if found is None:
        return ""
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    parts = ["## What context and load cost"]
    for arm in arms:
        rows = [row for row in found["rows"] if row["arm"] == arm]
        if len(arms) > 1:
            parts.append(f"### {arm}")
        parts += [words(rows), aggregates.slo_in_words(slo), _latency(rows), _use(rows)]
    note = (
        "Times are in ms with 95 % intervals: over repeats if there are at least three, else over requests; intervals "
        "of rates are always over repeats. **batch**: mean number of requests in decode at a time. **MBU** (model "
        "bandwidth utilisation, of decode): bytes of the weights, once per step, and of every context's KV / time in "
        "decode / the device's peak bytes/s. **MFU** (model FLOPs utilisation, of prefill): FLOPs of computed prompt "
        "tokens / time in prefill / the device's peak FLOP/s. **KV**: share of the KV cache's blocks in use, mean / "
        "peak. **waiting**: the largest number of requests that waited in the engine to be scheduled. "
        f"{LIMITED}"
    )
    parts.append(note + roofline.note(found["rows"], found["why_no_mfu"]))
    return "\n\n".join(part for part in parts if part)


def words(rows: list[dict[str, Any]]) -> str:
    """Compares the highest load with the lowest, a list item per prompt length."""
    lines = []
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        of_prompt = [row for row in rows if row["prompt"] == prompt and row["tpot_ms"]]
        if len(of_prompt) < 2:
            continue
        low, high = of_prompt[0], of_prompt[-1]
        rate_low, rate_high = (row["output_tokens_per_s_per_device"] for row in (low, high))
        name = f"{int(prompt):,} tokens" if prompt.isdecimal() else prompt
        more = ""
        if rate_low and rate_high and rate_low["value"]:
            more = (
                f"{short(rate_high['value'] / rate_low['value'])} times the output ({short(rate_high['value'])} "
                f"tokens/s per device) at "
            )
        tpot = high["tpot_ms"]["value"]
        limited = f" At the higher load, {high['limited_by']}." if high["limited_by"] else ""
        lines.append(
            f"- **{name}**: compared with {cells.parse(low['cell']).load}, {cells.parse(high['cell']).load} gave {more}"
            f"{short(tpot / low['tpot_ms']['value'])} times the TPOT ({ms(tpot)} ms).{limited}"
        )
    return "\n".join(lines)


def _name(row: Mapping[str, Any]) -> list[str]:
    cell = cells.parse(row["cell"])
    return [number(cell.prompt_len) if cell.prompt_len is not None else cell.prompt, cell.load]


def _latency(rows: list[dict[str, Any]]) -> str:
    with_slo = any(row["attainment"] is not None for row in rows)
    shown = [figure for figure in metrics.shown_in("load") if figure.metric.shown.load_table]
    header = ["prompt tokens", "load", "n", *(figure.short_title for figure in shown)]
    header += ["SLO attainment"] if with_slo else []
    lines = []
    for row in rows:
        line = [
            *_name(row),
            number(row["ok"]) + (f" of {number(row['sent'])}" if row["ok"] < row["sent"] else ""),
            *(with_interval(row[figure.short_column], form_of(figure.metric.unit)) for figure in shown),
        ]
        if with_slo:
            interval = row["attainment_interval"]
            bounds = f" [{', '.join(share(bound) for bound in interval)}]" if interval else ""
            line.append(f"{percent(row['attainment'])}{bounds}" if row["attainment"] is not None else None)
        lines.append(line)
    return table(header, lines, "rl" + "r" * (len(header) - 2))


def _use(rows: list[dict[str, Any]]) -> str:
    joules = any(row["joules_per_output_token"] is not None for row in rows)
    header = ["prompt tokens", "load", "batch", "MBU", "MFU", "KV", "waiting", "preemptions"]
    header += [*(["J per token"] if joules else []), "limited by"]
    lines = [
        [
            *_name(row),
            with_interval(row["batch"], short),
            with_interval(row["mbu"], share),
            with_interval(row["mfu"], share),
            None if row["kv_use_mean"] is None else f"{share(row['kv_use_mean'])} / {share(row['kv_use_peak'])}",
            row["waiting_peak"],
            row["preemptions"],
            *([_joules(row["joules_per_output_token"])] if joules else []),
            row["limited_by"],
        ]
        for row in rows
    ]
    return table(header, lines, "rl" + "r" * (len(header) - 3) + "l")


def _joules(value: float | None) -> str | None:
    return None if value is None else short(value)
