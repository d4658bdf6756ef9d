"""The report's section on prompt length, one request at a time: a paragraph, the curve, the table. Pure.

Made from `length.figures.by_length`.
"""

from collections.abc import Mapping
from typing import Any

from wp1.analysis.base.markdown import form_of, ms, number, share, short, table, with_interval
from wp1.analysis.device import roofline
from wp1.analysis.device.roofline import LIMITED
from wp1.analysis.length.figures import shown

Found = Mapping[str, Any] | None


def section(found: Found) -> str:
    """The whole section; "" for a run without lengths."""
    if found is None:
        return ""
    parts = ["## What prompt length costs"]
    several = len({row["arm"] for row in found["rows"]}) > 1
    for arm, fitted in found["fits"].items():
        rows = [row for row in found["rows"] if row["arm"] == arm]
        if several:
            parts.append(f"### {arm}")
        parts += [words(rows, fitted), _table(rows)]
    note = (
        "Times are means in ms with 95 % intervals, one request at a time. **host**: TTFT − prefill time, which is "
        "spent in the client, on the way to the engine and back, and in its scheduler. **tokens/s**: prompt tokens / "
        "prefill time, without tokens from the prefix cache. **MFU** (model FLOPs utilisation, of prefill): FLOPs of "
        "the same tokens / prefill time / the device's peak FLOP/s. **MBU** (model bandwidth utilisation, of decode): "
        f"bytes that decode has to move / decode time / the device's peak bytes/s. {LIMITED}"
    )
    parts.append(note + roofline.note(found["rows"], found["why_no_mfu"]))
    return "\n\n".join(part for part in parts if part)


def words(rows: list[dict[str, Any]], fitted: Mapping[str, Any] | None) -> str:
    """A few sentences made from the figures."""
    known = [row for row in rows if row["ttft_ms"]]
    if not known:
        return "No request was answered."
    first, last = known[0], known[-1]
    a, b = first["ttft_ms"]["value"], last["ttft_ms"]["value"]
    sentences = [
        f"A prompt of {number(last['prompt_len'])} tokens took {ms(b)} ms to its first token, {short(b / a)} times as "
        f"long as a prompt of {number(first['prompt_len'])} tokens ({ms(a)} ms), with "
        f"{short(last['prompt_len'] / first['prompt_len'])} times as many tokens."
    ]
    if fitted:
        c = fitted["c"]["value"]
        parts = [
            f"{with_interval(fitted['a'], ms)} ms",
            f"{with_interval(fitted['b'], lambda v: short(v * 1e3))} µs × n",
            f"{with_interval(fitted['c'], lambda v: short(v * 1e6))} ns × n²",
        ]
        # Three lengths determine three coefficients exactly, with no residual.
        near = (
            "exact at all three means"
            if len(fitted["lengths"]) == 3
            else f"within {share(fitted['worst'])} of every mean"
        )
        sentences.append(f"Fitted, for n prompt tokens: TTFT ≈ {' + '.join(parts)}, {near}.")
        of_flops = fitted.get("flops_quadratic_share")
        attention = "" if of_flops is None else f" (attention is {share(of_flops)} of the FLOPs)"
        quadratic = with_interval(fitted["quadratic_share"], share)
        sentences.append(f"At {number(fitted['at'])} tokens, the quadratic part is {quadratic} of TTFT{attention}.")
        if c > 0 and fitted["b"]["value"] > 0:
            equal = fitted["b"]["value"] / c
            sentences.append(f"The linear and the quadratic part are equal at {number(round(equal))} tokens.")
    else:
        sentences.append(
            "No curve a + b n + c n² was fitted: that takes three lengths without prompt tokens from the prefix cache."
        )
    if last["limited_by"]:
        sentences.append(f"At the longest prompt, {last['limited_by']}.")
    return " ".join(sentences)


def _table(rows: list[dict[str, Any]]) -> str:
    _, others = shown()
    header = [
        "prompt tokens", "n", "TTFT", "p50", "prefill", "host", "tokens/s", "MFU",
        *(figure.short_title for figure in others), "MBU", "GiB peak", "limited by",
    ]  # fmt: skip
    lines = [
        [
            number(row["prompt_len"]),
            number(row["ok"]) + (f" of {number(row['sent'])}" if row["ok"] < row["sent"] else ""),
            with_interval(row["ttft_ms"], ms),
            None if row["ttft_ms_p50"] is None else ms(row["ttft_ms_p50"]["value"]),
            with_interval(row["prefill_ms"], ms),
            with_interval(row["host_ms"], ms),
            with_interval(row["prefill_tokens_per_s"], short),
            with_interval(row["mfu"], share),
            *(with_interval(row[figure.short_column], form_of(figure.metric.unit)) for figure in others),
            with_interval(row["mbu"], share),
            None if row["memory_gib_peak"] is None else f"{row['memory_gib_peak']:.2f}",
            row["limited_by"],
        ]
        for row in rows
    ]
    return table(header, lines, "r" * (len(header) - 1) + "l")
