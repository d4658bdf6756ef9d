"""What a report says of loads: a paragraph, the table, goodput. From `by_load`; pure."""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base import cells, metric_table, metrics
from wp1.analysis.base.markdown import form_of, ms, number, percent, share, short, table, with_interval
from wp1.analysis.device import roofline
from wp1.analysis.device.roofline import LIMITED

Found = Mapping[str, Any] | None


def section(found: Found, slo: Mapping[str, Any]) -> str:
    """The whole section; "" for a run without. slo: its limits, which attainment is of."""
    if found is None:
        return ""
    arms = list(dict.fromkeys(row["arm"] for row in found["rows"]))
    parts = ["## What context and load cost"]
    for arm in arms:
        rows = [row for row in found["rows"] if row["arm"] == arm]
        if len(arms) > 1:
            parts.append(f"### {arm}")
        parts += [words(rows), metrics.slo_in_words(slo), _latency(rows), _use(rows)]
    note = (
        "Times in ms with 95 % intervals: over repeats from three on, else over requests; rates over repeats. "
        "**batch**: requests in decode at a time, on average. **MBU**: the weights once a step and every context's KV, "
        "as bytes / time in decode / the device's peak; **MFU**: FLOPs of prompt tokens that were computed / time in "
        "prefill / peak. **KV**: share of the KV cache's blocks in use, mean / peak. **waiting**: requests that had no "
        "place in the engine, at most. "
        f"{LIMITED}"
    )
    parts.append(note + roofline.note(found["rows"], found["why_no_mfu"]))
    return "\n\n".join(part for part in parts if part)


def words(rows: list[dict[str, Any]]) -> str:
    """By prompt length, what the highest load did against the lowest."""
    said = []
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
                f"tokens/s a device) at "
            )
        tpot = high["tpot_ms"]["value"]
        limited = f" Limited there: {high['limited_by']}." if high["limited_by"] else ""
        said.append(
            f"- **{name}**: {cells.parse(high['cell']).load} against {cells.parse(low['cell']).load} gave {more}"
            f"{short(tpot / low['tpot_ms']['value'])} times the TPOT ({ms(tpot)} ms).{limited}"
        )
    return "\n".join(said)


def _name(row: Mapping[str, Any]) -> list[str]:
    cell = cells.parse(row["cell"])
    return [number(cell.prompt_len) if cell.prompt_len is not None else cell.prompt, cell.load]


def _latency(rows: list[dict[str, Any]]) -> str:
    with_slo = any(row["attainment"] is not None for row in rows)
    shown = [figure for figure in metric_table.shown_in("load") if figure.metric.shown.load_table]
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
    header += [*(["J a token"] if joules else []), "limited by"]
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
