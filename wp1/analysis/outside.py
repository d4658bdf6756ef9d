"""What a report says of collectors that are none of wp1's own: their figures, whatever these are, and who made them."""

from collections.abc import Iterator, Mapping
from typing import Any

from wp1.analysis.base.markdown import table, text

# What a report has sections of its own for.
OWN = ("latency", "load", "device", "kv_transfer", "memory")
MOST_ROWS = 50


def not_made(summary: Mapping[str, Any]) -> str:
    """One sentence for collectors that a run's folder names and that are not made of it; "" if there are none."""
    names = summary.get("not_made") or []
    if not names:
        return ""
    which = "which is none of wp1's own, and its" if len(names) == 1 else "which are none of wp1's own, and their"
    return (
        f"> **Not made**: {', '.join(map(text, names))} of `collectors`, {which} figures, if there are any, are those "
        "that the run itself wrote: nothing that a folder names is run."
    )


def section(profiling: Mapping[str, Any]) -> str:
    """A table of the plain figures of each such collector, under its name; "" if there are none."""
    parts = []
    for name, figures in profiling.items():
        rows = [] if name in OWN else [[text(key), _said(value)] for key, value in _plain(figures)]
        if rows:
            parts.append(f"## Collector {text(name)}\n\n{table(['', ''], rows[:MOST_ROWS], 'lr')}")
        if len(rows) > MOST_ROWS:
            parts.append(f"The first {MOST_ROWS} of {len(rows)}; all are in summary.json.")
    return "\n\n".join(parts)


def _plain(figures: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The figures in an object of objects that are a number, a text or a truth, by their whole names."""
    for key, value in figures.items() if isinstance(figures, dict) else ():
        if isinstance(value, dict):
            yield from _plain(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value


def _said(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else text(str(value))
