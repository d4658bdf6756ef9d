"""Which phases a change of TTFT or E2E is made of, in words. Arithmetic of means, and no cause. Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from wp1.analysis.base import metric_table
from wp1.analysis.base.markdown import signed_ms
from wp1.analysis.comparison import figures as comparison_figures

E2E_PHASES, TTFT_PHASES = (
    [(f"{key}/mean", metric_table.title_of(key)) for key in keys]
    for keys in (metric_table.E2E_PHASES, metric_table.TTFT_PHASES)
)
# A phase that moved by less than this share of the whole change is not worth a word.
SLIGHT = 0.1

Row = dict[str, Any]
Rows = Mapping[tuple[str, str], Row]


def largest(by: Rows, row: Row) -> tuple[str, str] | None:
    """The phase that is the largest part of a change, and it in words; None for metrics that have no phases."""
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
    """In how many cells each of the phases of `largest` was so; "" without any."""
    counts = Counter(named).most_common()
    if len(counts) < 2:
        return f"with {counts[0][0]} the largest part in each of them" if counts else ""
    first, *others = [f"{phase} {'the largest part ' * (n == 0)}in {count}" for n, (phase, count) in enumerate(counts)]
    return f"with {', '.join([first, *others[:-1]])} and {others[-1]} of them"


def shown(by: Rows, cells: Sequence[str]) -> list[tuple[str, Row]]:
    """Parts of TTFT and E2E that are shown to differ, of cells where the mean of the whole is not."""
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
    """The change of each phase in ms. Of TTFT only the phases before the first token, and that depends on the arm."""

    def of(name: str, side: str) -> float:
        # An aggregated arm has no handoff, which adds nothing to its latency.
        return by.get((cell, name), {}).get(side) or 0.0

    phases = [*E2E_PHASES]
    if metric == "ttft_ms/mean":
        whole, last = TTFT_PHASES, TTFT_PHASES[-1]
        # Where the decode engine streams the first token, all four add up to TTFT; else the first two do, nearly.
        ttft = of(metric, "b")
        by_decode = abs(ttft - sum(of(n, "b") for n, _ in whole)) < abs(ttft - sum(of(n, "b") for n, _ in whole[:2]))
        phases = whole[:2] if not (by_decode and of("handoff_ms/mean", "b")) else whole
        if len(phases) == len(whole):
            # The aggregated arm's first token comes before any step of decoding.
            return [(title, of(n, "b") - (of(n, "a") if n != last[0] else 0.0)) for n, title in phases]
    return [(title, of(n, "b") - of(n, "a")) for n, title in phases]
