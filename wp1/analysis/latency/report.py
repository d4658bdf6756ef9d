"""The report's section on latency: each cell's metrics with notes on them, and SLO attainment. Pure."""

from typing import Any

from wp1.analysis.base import aggregates, metrics
from wp1.analysis.base.markdown import code, form_of, number, percent, rate, table, with_interval
from wp1.analysis.load import notes as load_notes


def section(summary: dict[str, Any]) -> str:
    """The whole section, made from summary.json; "" for a run without the latency collector."""
    profile = summary["profiling"].get("latency")
    if profile is None:
        return ""
    parts = ["## Latency"]
    rates = [metric for metric in metrics.summarised("rate") if metric.shown.report]
    shown = [metric for metric in metrics.summarised("request", "gaps", "share") if metric.shown.report]
    for name, cell in profile["cells"].items():
        rows = [_latency_row(metric.title, cell.get(metric.key), metric.unit) for metric in shown]
        of_load = load_notes.of_cell(summary, name)
        rows.append(_latency_row("event-loop lag", None if of_load is None else of_load["loop_lag_ms"], "ms"))
        rows = [row for row in rows if row]
        given = ", ".join(f"{rate(cell.get(metric.key))} {metric.title}" for metric in rates)
        parts.append(
            f"**{name}**: {cell['ok']} of {cell['requests']} requests answered, "
            f"{number(cell['prompt_tokens'])} prompt and {number(cell['output_tokens'])} output tokens "
            f"in {cell['duration_s']:.1f} s ({given}). Times in ms."
        )
        if cell["failed"]:
            causes = ", ".join(f"{words_of(cause)} {n}" for cause, n in cell["causes"].items())
            parts.append(f"Failed requests, which count as misses in every share: {causes}.")
        parts += [f"> {_emphasised(note)}." for note in load_notes.notes(summary, name)]
        if rows:
            parts.append(table(["", "n", "mean [95 %]", "p50", "p90", "p95", "p99"], rows, "lrrrrrr"))
    attained = summary["slo"]["attainment"]
    if attained is not None:
        limits = aggregates.limits_in_words(summary["slo"])
        together = ", all arms and cells together" if len(profile["cells"]) > 1 else ""
        parts.append(
            f"SLO {code(summary['slo']['name'])} ({limits}): met by {percent(attained)} of all requests "
            f"sent{together}"
            f"{', counting only the steady state of cells that have one' if load_notes.has_windows(summary) else ''}."
        )
    return "\n\n".join(parts)


def _latency_row(title: str, found: dict[str, Any] | None, unit: metrics.Unit) -> list[Any]:
    """The row of a distribution, or of a share, which has only a mean; [] without values."""
    if not found or not found["n"]:
        return []
    form = form_of(unit)
    figure = {"value": found["mean"], "low": found["mean_low"], "high": found["mean_high"]}
    percentiles = [form(found[p]) if p in found else None for p in ("p50", "p90", "p95", "p99")]
    return [
        title if unit in ("ms", "share") else f"{title}, {unit}",
        number(found["n"]),
        with_interval(figure, form),
        *percentiles,
    ]


def words_of(cause: str) -> str:
    """Why a request failed, as text."""
    return cause.replace("_", " ")


def _emphasised(note: str) -> str:
    matter, _, rest = note.partition(":")
    return f"**{matter}**:{rest}"
