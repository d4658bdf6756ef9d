"""The report's sections for collectors without one of their own: a table of whatever figures they left."""

from collections.abc import Iterator, Mapping
from typing import Any

from wp1.analysis.base.markdown import table, text

# The names in summary.json of the collectors whose figures have a section of their own, written in this folder.
WITH_SECTION = ("latency", "load", "device", "kv_transfer", "memory")
MOST_ROWS = 50


def not_made(summary: Mapping[str, Any]) -> str:
    """A sentence on collectors that the run's folder names but that were not run again for this page; "" if none."""
    names = summary.get("not_made") or []
    if not names:
        return ""
    which = "is not part of wp1. Its" if len(names) == 1 else "are not part of wp1. Their"
    return (
        f"> **Not recomputed**: {', '.join(map(text, names))} in `collectors` {which} figures, if any, are those that "
        "the run itself wrote, as a report never runs code that a folder names."
    )


def section(profiling: Mapping[str, Any]) -> str:
    """A table of the plain figures of each such collector, titled with its name; "" if there are none."""
    parts = []
    for name, figures in profiling.items():
        rows = [] if name in WITH_SECTION else [[text(key), _shown(value)] for key, value in _plain(figures)]
        if rows:
            parts.append(f"## Collector {text(name)}\n\n{table(['', ''], rows[:MOST_ROWS], 'lr')}")
        if len(rows) > MOST_ROWS:
            parts.append(f"The first {MOST_ROWS} of {len(rows)}; all are in summary.json.")
    return "\n\n".join(parts)


def _plain(figures: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers, strings and booleans in nested objects, each with its dotted path."""
    for key, value in figures.items() if isinstance(figures, dict) else ():
        if isinstance(value, dict):
            yield from _plain(value, f"{prefix}{key}.")
        elif isinstance(value, str | int | float):
            yield f"{prefix}{key}", value


def _shown(value: Any) -> str:
    return f"{value:,.6g}" if isinstance(value, float) else text(str(value))
