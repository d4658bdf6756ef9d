"""Which phases account for a change of TTFT or E2E, as text. This is arithmetic of means, not a cause. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base import metrics
from wp1.analysis.base.markdown import signed_ms
from wp1.analysis.comparison import figures as comparison_figures

E2E_PHASES, TTFT_PHASES = (
    [(f"{key}/mean", metrics.title_of(key)) for key in keys] for keys in (metrics.E2E_PHASES, metrics.TTFT_PHASES)
)
# A phase that moved by less than this share of the whole change is not mentioned.
SLIGHT = 0.1

Row = dict[str, Any]
Rows = Mapping[tuple[str, str], Row]


def largest(by: Rows, row: Row) -> tuple[str, str] | None:
    """Title of the phase that is the largest part of a change, and a clause on it; None for metrics without phases."""
    if row["metric"] not in ("ttft_ms/mean", "e2e_ms/mean"):
        return None
    total = row["delta"]
    parts = _parts(by, row["cell"], row["metric"])
    along = [(name, part) for name, part in parts if part * total > 0]
    if not along:
        return None
    name, part = max(along, key=lambda found: abs(found[1]))
    text = f"{'mostly' if abs(part) > abs(total) / 2 else 'the largest part'} {name} {signed_ms(part)}"
    against = [(n, p) for n, p in parts if p * total < 0 and abs(p) >= SLIGHT * abs(total)]
    if against:
        text += ", against " + " and ".join(f"{n} {signed_ms(p)}" for n, p in against)
    return name, text


def of_many(named: Sequence[str]) -> str:
    """A clause that counts the cells in which each phase was the largest part; named: titles from `largest`."""
    counts = Counter(named).most_common()
    if len(counts) < 2:
        return f"with {counts[0][0]} the largest part in each of them" if counts else ""
    first, *others = [f"{phase} {'the largest part ' * (n == 0)}in {count}" for n, (phase, count) in enumerate(counts)]
    return f"with {', '.join([first, *others[:-1]])} and {others[-1]} of them"


def shown(by: Rows, cells: Sequence[str]) -> list[tuple[str, Row]]:
    """Title and row of each phase that is shown to differ in a cell whose mean TTFT or E2E is not."""
    found = []
    for name, title in E2E_PHASES:
        whole = "e2e_ms/mean" if title == "decode" else "ttft_ms/mean"
        rows = [by[cell, name] for cell in cells if (cell, name) in by]
        found += [
            (title, row)
            for row in rows
            if comparison_figures.verdict(row) and not comparison_figures.verdict(by.get((row["cell"], whole), {}))
        ]
    return found


def _parts(by: Rows, cell: str, metric: str) -> list[tuple[str, float]]:
    """The change of each phase (title, ms). For TTFT only those before the first token, which depend on the arm."""

    def of(name: str, side: str) -> float:
        # An aggregated arm has no handoff: it adds nothing to its latency.
        return by.get((cell, name), {}).get(side) or 0.0

    phases = [*E2E_PHASES]
    if metric == "ttft_ms/mean":
        whole, last = TTFT_PHASES, TTFT_PHASES[-1]
        # If the decode engine streams the first token, all four phases add up to TTFT; else the first two nearly do.
        ttft = of(metric, "b")
        by_decode = abs(ttft - sum(of(n, "b") for n, _ in whole)) < abs(ttft - sum(of(n, "b") for n, _ in whole[:2]))
        phases = whole[:2] if not (by_decode and of("handoff_ms/mean", "b")) else whole
        if len(phases) == len(whole):
            # The aggregated arm's first token comes before any step of decoding.
            return [(title, of(n, "b") - (of(n, "a") if n != last[0] else 0.0)) for n, title in phases]
    return [(title, of(n, "b") - of(n, "a")) for n, title in phases]
